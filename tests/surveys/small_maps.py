"""Small files of maps: two layers of two heads each."""

import numpy as np

OPTIONS = ("--recipes", "paper,heavy,window_sinks", "--budget", "16", "--rows", "80", "--tolerance", "0.9")
"""Of the survey that most tests read."""


def arrays(n=160, d=8, **facts):
    """The heads 0 and 1 of the layers 0 and 3."""
    query, key, value = np.random.default_rng(5).standard_normal((3, 4, n, d)).astype(np.float32)
    return {"query": 2 * query, "key": key, "value": value, "layer": [0, 0, 3, 3], "head": [0, 1, 0, 1]} | facts


def write_maps(path, n=128, d=8, **facts):
    """The heads 1 and 4 of the layers 0 and 2."""
    np.savez(path, **arrays(n, d, **({"layer": [0, 0, 2, 2], "head": [1, 4, 1, 4]} | facts)))
    return path
