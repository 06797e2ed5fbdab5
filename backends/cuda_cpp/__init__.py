"""The backend `cupy`: kernels in CUDA C++ for an NVIDIA GPU, compiled and launched through CuPy."""

from .backend import CupyBackend

__all__ = ["CupyBackend"]
