"""A pilot: some random query rows, computed exactly, tell which keys matter to a head as a whole."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation.memory import memory_of


def pilot_column_masses(q, k, rows: int, scale: float, rng: np.random.Generator, backend) -> np.ndarray:
    """Estimate the mean of P_ij^2 over the queries i, for every key j, from random rows of P.

    Derived: an unbiased estimate of ||P e_j||^2 / n_q, the quantity that alpha maximises over columns. A sink, which
    most queries attend to, shows in any few rows; a key that few queries need is likely to be missed.

    Parameters
    ----------
    q : (n_q, d) array.
    k : (n_k, d) array.
    rows : number of query rows, drawn without replacement; all rows if there are fewer.
    scale : multiplies the logits.
    rng : the pilot's own stream; its draws must not be used for anything else.
    backend : computes the rows, in float64.

    Returns
    -------
    (n_k,) float64 array of numbers in [0, 1].

    Cost: rows n_k (d + some 10) operations, as many logits as exact attention has in that many rows, and float64
    copies of k and of these rows of q.
    """
    memory = memory_of(backend)
    chosen = rng.choice(len(q), size=min(rows, len(q)), replace=False)
    drawn, k = memory.copy(q, "float64", rows=chosen), memory.copy(k, "float64")
    sums = backend.attention_sums(drawn, k, None, scale=scale, is_causal=False)
    return memory.to_host(sums.column_squares) / chosen.size
