"""The benchmark: HyperAttention beside exact attention and other packages, on this machine. Needs the extra `bench`."""
