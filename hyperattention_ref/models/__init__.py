"""HyperAttention inside models: as a function of PyTorch's signature, and in place of a transformers model's own."""
