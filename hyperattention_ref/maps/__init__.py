"""Real attention maps: captured from a model, written to a file, read one head at a time."""
