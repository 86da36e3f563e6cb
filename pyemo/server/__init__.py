"""The server: OpenAI's routes over one scheduler, with a mood of its own in every request."""
