"""Numbers about texts: repetition, perplexity, regimes, intervals. No engine, no judge."""
