"""Which strengths do what: trials, sweeps and the calibrated window."""
