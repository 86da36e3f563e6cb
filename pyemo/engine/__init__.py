"""Tokens in, tokens and readings out, under a mood: the Python face of the extension."""
