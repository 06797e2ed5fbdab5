"""The command `bench-gpu`: the backends for GPUs beside PyTorch on this machine’s GPU. Needs the extra `bench`."""
