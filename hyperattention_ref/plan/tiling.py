"""The causal recursion: a head as exact leaves and rectangles."""

from __future__ import annotations

from hyperattention_ref.foundation import inputs


def causal_tiling(n: int, min_seq_len: int):
    """Leaves and rectangles of the causal recursion on [0, n).

    Paper: Algorithm 4. Derived: rule 8, ranges longer than min_seq_len are split at a + ceil((c - a)/2).

    Returns
    -------
    leaves : tuple of (a, c), in order of their rows.
    rectangles : tuple of (a, split, c), queries [split, c) by keys [a, split); those that share rows smallest first.
    """
    n, min_seq_len = inputs.count("n", n), inputs.count("min_seq_len", min_seq_len)
    leaves, rectangles = [], []

    def recurse(a: int, c: int) -> None:
        if c - a <= min_seq_len:
            leaves.append((a, c))
            return
        split = split_point(a, c)
        recurse(a, split)
        recurse(split, c)
        rectangles.append((a, split, c))

    recurse(0, n)
    return tuple(leaves), tuple(rectangles)


def split_point(a: int, c: int) -> int:
    """a + ceil((c - a)/2): the left half of an odd range is the longer one, so that no row is padded."""
    return a + -(-(c - a) // 2)
