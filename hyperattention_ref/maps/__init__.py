"""Real attention maps: out of a model, into a file, and back one head at a time."""
