"""Another quantization of a model file, and what it costs."""
