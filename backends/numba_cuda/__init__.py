"""The backend `numba-cuda`: kernels in Python for an NVIDIA GPU."""

from .backend import NumbaCuda

__all__ = ["NumbaCuda"]
