"""The backend `numba`: compiled tiles on all CPU cores."""

from .backend import NumbaCPU

__all__ = ["NumbaCPU"]
