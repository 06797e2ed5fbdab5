"""bfloat16, which NumPy lacks: the upper half of the bits of a float32."""

from __future__ import annotations

import numpy as np


def bfloat16_bits(x) -> np.ndarray:
    """The uint16 bits of the bfloat16 number nearest to each finite number of x in float32; ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16_bits(bits) -> np.ndarray:
    """The bfloat16 numbers with these uint16 bits, as float32."""
    return (np.asarray(bits).astype(np.uint32) << 16).view(np.float32)
