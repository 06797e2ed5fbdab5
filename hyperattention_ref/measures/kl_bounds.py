"""Confidence bounds for the mean of numbers in [0, 1], from a random sample of them."""

from __future__ import annotations

import numpy as np

from hyperattention_ref.foundation import inputs

HALVINGS = 56  # enough for full precision: the initial brackets are at most a few times as wide as their end
SMALLEST = 5e-324  # the least positive float64


def binary_kl(p, q):
    """The divergence kl(p, q) = p ln(p/q) + (1 - p) ln((1 - p)/(1 - q)) of two Bernoulli laws, in nats.

    Derived: page "theory", certificates after the fact. Computed from q - p by log1p, so that nearby p and q lose
    no digits. p and q are numbers or arrays in [0, 1] and not subnormal; infinite where q is 0 or 1 and p is not.
    """
    with np.errstate(over="ignore"):
        return _kl_term(p, q, q - p) + _kl_term(1 - p, 1 - q, p - q)


def kl_upper(p, level):
    """kl+(p, L) = sup{q >= p : kl(p, q) <= L}.

    Derived: page "theory", inequality (H). Bisection; the upper end of the last bracket, so never below the supremum up
    to the rounding of kl. The first bracket is proved: kl(p, q) >= (q - p)^2 / (2 q), and kl+ increases in p
    from kl+(0, L) = 1 - e^{-L}.

    Parameters
    ----------
    p : numbers in [0, 1]; subnormal ones count as 0.
    level : L >= 0, broadcast against p.

    Returns
    -------
    float64, relative error below 1e-12.

    Raises
    ------
    ValueError : p outside [0, 1] or a negative level.
    """
    p, level = _checked(p, level)
    low = np.maximum(p, -np.expm1(-level))
    high = np.maximum(low, np.minimum(1.0, p + level + np.sqrt(level * (level + 2 * p))))
    return _bisected(p, level, low, high)


def kl_lower(p, level):
    """kl-(p, L) = inf{q <= p : kl(p, q) <= L}.

    Derived: page "theory", inequality (H). Bisection as in `kl_upper`; the lower end of the last bracket. The bracket
    comes from kl(p, q) >= (p - q)^2 / (2 p). Parameters and errors as there.

    Returns
    -------
    float64, error below 1e-12 relative to p.
    """
    p, level = _checked(p, level)
    return _bisected(p, level, p, np.maximum(0.0, p - np.sqrt(2 * p * level)))


def mean_upper(mean, delta, sample_size: int, population: int):
    """An upper bound for the mean of a population of numbers in [0, 1], wrong with probability at most `delta`.

    Derived: inequality (H), kl+(mean, ln(1/delta) / sample_size), and at most the mean if all numbers outside the
    sample were 1, which makes the bound exact when the sample is the population.

    Parameters
    ----------
    mean : mean of the sample, a number or array; values outside [0, 1] by rounding are clipped.
    delta : in (0, 1), broadcast against it.
    sample_size, population : sizes of the sample, uniform without replacement, and of the population.
    """
    mean, fraction = np.clip(mean, 0.0, 1.0), sample_size / population
    return np.minimum(kl_upper(mean, -np.log(delta) / sample_size), fraction * mean + (1 - fraction))


def mean_lower(mean, delta, sample_size: int, population: int):
    """The lower bound like `mean_upper`: kl-, and at least the mean if all numbers outside the sample were 0."""
    mean = np.clip(mean, 0.0, 1.0)
    return np.maximum(kl_lower(mean, -np.log(delta) / sample_size), sample_size / population * mean)


def failure_probability(confidence) -> float:
    """delta = 1 - `confidence`, which must lie strictly between 0 and 1."""
    confidence = inputs.finite("confidence", confidence)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie strictly between 0 and 1, such as 0.95")
    return 1 - confidence


def _bisected(p, level, inside, outside):
    """The outer end of the last bracket, from brackets with kl(p, inside) <= level."""
    for _ in range(HALVINGS):
        middle = 0.5 * (inside + outside)
        holds = binary_kl(p, middle) <= level
        inside, outside = np.where(holds, middle, inside), np.where(holds, outside, middle)
    return np.where(level > 0, outside, p)[()]


def _kl_term(p: np.ndarray, q: np.ndarray, step: np.ndarray) -> np.ndarray:
    """-p ln(q / p) for step = q - p, and 0 for p = 0."""
    from scipy.special import xlog1py

    return -np.sign(step) * xlog1py(p, np.abs(step) / np.maximum(np.minimum(p, q), SMALLEST))


def _checked(p, level) -> tuple[np.ndarray, np.ndarray]:
    p, level = np.broadcast_arrays(np.asarray(p, dtype=np.float64), np.asarray(level, dtype=np.float64))
    if not np.all(level >= 0):
        raise ValueError(f"level is {level}; it must not be negative")
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p is {p}; it must lie in [0, 1]")
    return np.where(p < np.finfo(np.float64).tiny, 0.0, p), level
