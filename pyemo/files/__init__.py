"""Where bytes come from: a name or a path becomes a checked file, and whole files are written."""
