"""Synthetic attention problems with prescribed, stated and tested properties.

Every generator returns a `Problem` of float64 arrays. Common arguments: `n`, the number of queries and of keys;
`d`, the number of coordinates of a query (where the family does not fix it); `d_v`, that of a value; `rng`: None, a
seed or a Generator. Values are independent N(0, 1). "Exact" means up to rounding.

alpha and kappa are those of the theory page: with A = exp(scale Q K^T) and P = A with its rows normalised,
alpha = n max_j ||P e_j||^2 and kappa = the largest over the smallest row sum of A outside the mask. Two facts serve
several families. (i) When all logits lie in an interval of length r and there is no mask, row sums differ by at most
the factor e^r and P_ij <= e^r / n, so log kappa <= r and alpha <= e^(2r). (ii) Vectors within angles s and t of axes
at angle u make an angle between u - s - t and u + s + t, the triangle inequality on the sphere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.plan.block_mask import BlockMask, dense_mask

# Properties of P alone, which a rescaling of rows keeps.
_OF_P = ("alpha", "alpha_max", "op_norm", "stable_rank", "mask_mass_min", "sink_key", "sink_mass", "needle_mass")


@dataclass(frozen=True, eq=False, repr=False)
class Problem(Result):
    """One head with known properties, returned by every generator.

    Derived: page "theory", synthetic families.

    Attributes
    ----------
    name : the family.
    query, key : (n, d) float64. value : (n, d_v) float64.
    scale : factor of the logits.
    mask : which entries count as large: an (n, n) boolean array, a BlockMask, or None for none.
    guarantee : what holds for these arrays, in words.
    exact : the same in numbers, by name: `alpha` and `log_kappa` (natural logarithm) where known in closed form,
        `alpha_max` and `log_kappa_max` where only bounded, and properties specific to the family.
    """

    name: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    mask: np.ndarray | BlockMask | None
    guarantee: str
    exact: dict[str, float]


def gaussian(n: int, d: int = 64, *, rng=None, d_v: int | None = None) -> Problem:
    """Queries and keys with independent N(0, 1) entries, scale 1/sqrt(d).

    Derived: given query q, its logits are independent N(0, ||q||^2 / d), so about N(0, 1) for large d. Nothing is
    bounded with certainty: `exact` is empty. Cost O(n d).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d), generator(rng)
    query, key = rng.standard_normal((2, n, d))
    guarantee = "The entries of query and key are independent N(0, 1)."
    return Problem("gaussian", query, key, _values(rng, n, d_v, d), 1 / math.sqrt(d), None, guarantee, {})


def sphere(n: int, d: int = 64, scale: float = 1.0, *, rng=None, d_v: int | None = None) -> Problem:
    """Queries and keys uniform on the unit sphere.

    Derived: logits lie in [-scale, scale], so by fact (i) with r = 2 scale, kappa <= e^(2 scale) and
    alpha <= e^(4 scale). Cost O(n d).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d), generator(rng)
    scale = inputs.positive("scale", scale)
    query, key = _unit(rng.standard_normal((2, n, d)))
    guarantee = f"All rows have length 1, so kappa <= exp({2 * scale:g}) and alpha <= exp({4 * scale:g})."
    return Problem("sphere", query, key, _values(rng, n, d_v, d), scale, None, guarantee, _bounds(n, 2 * scale))


def planted_clusters(
    n: int, d: int = 64, clusters: int | None = None, angle: float = 0.2, mass: float = 0.9, *, rng=None, d_v=None
) -> Problem:
    """Clusters of near pairs, which LSH should find, in random order; the mask marks them.

    Derived: the axes of the clusters are orthonormal and each unit row lies within angle/2 of its axis, so by fact (ii)
    near pairs make at most `angle` and all others between pi/2 - angle and pi/2 + angle. With c the smallest cluster,
    scale = log(1 + mass/(1 - mass) max(1, (n - c)/c)) / (cos angle - sin angle) makes the masked sum
    H_i >= c e^(scale cos angle) at least mass/(1 - mass) times R_i <= (n - c) e^(scale sin angle). And with C the
    largest cluster, log kappa <= 2 scale sin angle + log((n - c)/(n - C)) outside the mask. Cost O(n (n + d)).

    Parameters
    ----------
    clusters : their number, at most min(n, d), which None stands for; their sizes differ by at most 1.
    angle : in radians, in [0, pi/4): the largest angle of a query and a key of one cluster.
    mass : in (0, 1): every row has at least this fraction of its softmax in its own cluster.
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d, least=2), generator(rng)
    clusters = inputs.count("clusters", min(n, d) if clusters is None else clusters, most=min(n, d))
    angle, mass = _within("angle", angle, 0, math.pi / 4), _within("mass", mass, 0, 1, open_low=True)
    axes = _orthonormal(rng, d, clusters).T
    sides = [rng.permutation(n) % clusters for _ in range(2)]
    query, key = (_tilted(rng, axes[side], angle / 2 * rng.random(n)) for side in sides)
    smallest, largest = n // clusters, -(-n // clusters)
    others = n - smallest
    scale = math.log1p(mass / (1 - mass) * max(1, others / smallest)) / (math.cos(angle) - math.sin(angle))
    log_kappa = 2 * scale * math.sin(angle) + math.log(others / (n - largest)) if clusters > 1 else 0.0
    guarantee = (
        f"Queries and keys of one cluster are within {angle:g} rad, all others at least {math.pi / 2 - angle:.4g} rad "
        f"apart, and every row has at least {mass:g} of its softmax in its own cluster."
    )
    exact = {"angle_max": angle, "far_angle_min": math.pi / 2 - angle, "mask_mass_min": mass}
    exact["log_kappa_max"] = log_kappa
    mask = sides[0][:, None] == sides[1][None, :]
    return Problem("planted_clusters", query, key, _values(rng, n, d_v, d), scale, mask, guarantee, exact)


def cones(
    n: int, d: int = 64, query_angle=0.6, key_angle=0.6, axis_angle=2.0, scale=None, *, rng=None, d_v=None
) -> Problem:
    """Unit queries in one cone and unit keys in another, as in trained models.

    Derived: by fact (ii) a query and a key make an angle between t0 = max(0, axis - query - key) and
    t1 = min(pi, axis + query + key), so by fact (i) with r = scale (cos t0 - cos t1), kappa <= e^r, alpha <= e^(2r).
    Cost O(n d).

    Parameters
    ----------
    query_angle, key_angle : in radians, in [0, pi]: half-openings of the cones; the angle to the axis is uniform.
    axis_angle : in radians, in [0, pi]: the angle of the two axes.
    scale : None means sqrt(d), which gives the logits of rows of length sqrt(d) at the standard scale 1/sqrt(d).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d, least=2), generator(rng)
    scale = math.sqrt(d) if scale is None else inputs.positive("scale", scale)
    angles = {"query_angle": query_angle, "key_angle": key_angle, "axis_angle": axis_angle}
    s, t, u = (_within(name, x, 0, math.pi, open_high=False) for name, x in angles.items())
    query_axis = _unit(rng.standard_normal((1, d)))
    key_axis = _tilted(rng, query_axis, np.array([u]))
    query, key = (_tilted(rng, np.repeat(a, n, 0), x * rng.random(n)) for a, x in ((query_axis, s), (key_axis, t)))
    low, high = max(0.0, u - s - t), min(math.pi, u + s + t)
    guarantee = (
        f"Queries lie within {s:g} rad and keys within {t:g} rad of axes {u:g} rad apart, so every query and key make "
        f"an angle between {low:.4g} and {high:.4g} rad."
    )
    exact = {"angle_min": low, "angle_max": high} | _bounds(n, scale * (math.cos(low) - math.cos(high)))
    return Problem("cones", query, key, _values(rng, n, d_v, d), scale, None, guarantee, exact)


def sink(n: int, d: int = 64, mass: float = 0.9, *, rng=None, d_v: int | None = None) -> Problem:
    """Key 0 takes exactly the fraction `mass`, in [1/2, 1), of every row; the rest is Gaussian in d - 1 coordinates.

    Derived: key 0 is the last unit vector, to which all other keys are orthogonal, and query i has there the coordinate
    that makes logit i0 = log(mass/(1 - mass)) + log sum_{j>0} A_ij; hence P_i0 = mass. Column 0 has squared norm
    n mass^2, any other at most n (1 - mass)^2, which is no more; hence alpha = n^2 mass^2. n, d >= 2. Cost O(n^2 d).
    """
    n, d, rng = inputs.count("n", n, least=2), inputs.count("d", d, least=2), generator(rng)
    mass = _within("mass", mass, 0.5, 1)
    base = gaussian(n, d - 1, rng=rng, d_v=d if d_v is None else d_v)
    sink_logit = math.log(mass / (1 - mass)) + _log_row_sums(base.query, base.key[1:], base.scale)
    query = np.column_stack([base.query, sink_logit / base.scale])
    key = np.column_stack([base.key, np.zeros(n)])
    key[0] = np.eye(d)[-1]
    guarantee = f"Every row gives exactly {mass:g} of its softmax to key 0, the heaviest column."
    exact = {"alpha": (n * mass) ** 2, "sink_key": 0, "sink_mass": mass}
    return replace(base, name="sink", query=query, key=key, guarantee=guarantee, exact=exact)


def permutation(n: int, strength: float = 10.0, *, rng=None, d_v: int = 64) -> Problem:
    """Logits `strength` times a random permutation matrix, so d = n: the permutation family of the counterexamples.

    Derived: every row of A holds e^strength once and 1 otherwise, so all row sums agree and kappa = 1. With
    p = 1/(1 + (n - 1) e^-strength), every row and every column of P holds p once and p e^-strength otherwise:
    alpha = n (p^2 + (n - 1) p^2 e^(-2 strength)), which tends to n. P is doubly stochastic, so ||P||_op = 1 and the
    stable rank is ||P||_F^2 = alpha. `strength` is not negative. Cost O(n^2).
    """
    n, rng = inputs.count("n", n), generator(rng)
    strength = inputs.at_least("strength", strength, 0)
    query, key = strength * np.eye(n)[rng.permutation(n)], np.eye(n)
    hit = 1 / (1 + (n - 1) * math.exp(-strength))
    miss = hit * math.exp(-strength)
    alpha = n * (hit**2 + (n - 1) * miss**2)
    guarantee = f"P has one entry {hit:.6g} in each row and column, all others are {miss:.3g}, and all row sums agree."
    exact = {"alpha": alpha, "log_kappa": 0.0, "op_norm": 1.0, "stable_rank": alpha}
    return Problem("permutation", query, key, _values(rng, n, d_v, n), 1.0, None, guarantee, exact)


def flat(n: int, d: int = 64, *, rng=None, d_v: int | None = None) -> Problem:
    """Uniform attention: P_ij = 1/n although neither queries nor keys are constant.

    Derived: queries use the first half of the coordinates and keys the others, so every logit is exactly 0, A is all
    ones, and alpha = kappa = ||P||_op = stable rank = 1. Cost O(n d).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d), generator(rng)
    query, key = _orthogonal_gaussians(rng, n, d)
    exact = {"alpha": 1.0, "log_kappa": 0.0, "op_norm": 1.0, "stable_rank": 1.0}
    guarantee = "Every entry of P is 1/n, so alpha = 1 and kappa = 1."
    return Problem("flat", query, key, _values(rng, n, d_v, d), 1 / math.sqrt(d), None, guarantee, exact)


def scale_rows(problem: Problem, log_factors) -> Problem:
    """Multiply row i of A by exp(log_factors[i]) and leave P, the values and the mask as they are.

    Derived: one more coordinate, log_factors[i]/scale in query i and 1 in every key, adds log_factors[i] to the whole
    row of logits; normalisation removes it again. The result has d + 1 coordinates, and its log kappa exceeds the
    old one by at most the range of `log_factors`, an (n,) floating-point array. Cost O(n d).
    """
    n = problem.query.shape[0]
    log_factors = inputs.floating("log_factors", log_factors).astype(np.float64)
    if log_factors.shape != (n,):
        raise ValueError(f"log_factors has shape {log_factors.shape}; it must be ({n},), one for each query")
    exact = {name: x for name, x in problem.exact.items() if name in _OF_P}
    if bounds := [problem.exact[name] for name in ("log_kappa", "log_kappa_max") if name in problem.exact]:
        exact["log_kappa_max"] = bounds[0] + float(np.ptp(log_factors))
    return replace(
        problem,
        name=f"{problem.name}, rows scaled",
        query=np.column_stack([problem.query, log_factors / inputs.positive("problem.scale", problem.scale)]),
        key=np.column_stack([problem.key, np.ones(len(problem.key))]),
        guarantee=f"Row i of A is exp(log_factors[i]) times that of the problem {problem.name}, whose P it keeps.",
        exact=exact,
    )


def row_scales(n: int, d: int, log_kappa: float, *, mask=None, rng=None, d_v: int | None = None) -> Problem:
    """A Gaussian problem in d - 1 coordinates with its rows scaled so that log kappa is exactly `log_kappa`.

    Derived: `scale_rows` with factors t_i - log R_i, where R_i is the base problem's row sum outside the mask and the
    targets t_i are equally spaced from 0 to log_kappa >= 0, in random order over the rows with R_i > 0 (the only ones
    that kappa counts; above log_kappa = 0 two are needed). P is the base problem's: that of the arrays without their
    last coordinate. `mask` is any (n, n) mask, fixed before the arrays are drawn; d >= 2. Cost O(n^2 d).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d, least=2), generator(rng)
    log_kappa, dense = inputs.at_least("log_kappa", log_kappa, 0), dense_mask(mask, n, n)
    open_rows = np.flatnonzero(~dense.all(axis=1))
    if log_kappa > 0 and open_rows.size < 2:
        raise ValueError(
            f"log_kappa is {log_kappa:g} and the mask leaves {open_rows.size} of {n} row(s) incompletely covered; "
            "log_kappa above 0 needs two of them: pass log_kappa=0, a larger n or another mask"
        )
    targets = rng.permutation(np.linspace(0, log_kappa, open_rows.size))
    base = gaussian(n, d - 1, rng=rng, d_v=d if d_v is None else d_v)
    factors = np.zeros(n)
    factors[open_rows] = targets - _log_row_sums(base.query, base.key, base.scale, dense)[open_rows]
    guarantee = f"log kappa is exactly {log_kappa:g} outside the mask, and P is that of a Gaussian problem."
    mask = mask if mask is None or isinstance(mask, BlockMask) else dense
    exact = {"log_kappa": log_kappa}
    return replace(scale_rows(base, factors), name="row_scales", mask=mask, guarantee=guarantee, exact=exact)


def prescribed_alpha(n: int, d: int, alpha: float, *, rng=None, d_v: int | None = None) -> Problem:
    """Logits of rank at most one with kappa = 1 and exactly the given alpha, in [1, n^2) (1 for n = 1).

    Derived: all rows of P are equal, with P_i0 = p = sqrt(alpha)/n >= 1/n and the rest spread evenly, so column 0 is
    the heaviest and alpha = n * n p^2. Coordinate 0 carries the logit log((n - 1) p/(1 - p)) of key 0; the others
    are Gaussian and orthogonal between queries and keys, as in `flat`. P has rank one: stable rank 1. Cost O(n d).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d), generator(rng)
    alpha = inputs.finite("alpha", alpha)
    if not (alpha >= 1 and (math.sqrt(alpha) < n or alpha == n == 1)):
        raise ValueError(f"alpha is {alpha:g} and n is {n}; alpha lies in [1, n^2) for n >= 2 and is 1 for n = 1")
    heavy = math.sqrt(alpha) / n
    query, key = (np.column_stack([np.zeros(n), x]) for x in _orthogonal_gaussians(rng, n, d - 1))
    query[:, 0] = 1.0
    key[0, 0] = math.log((n - 1) * heavy / (1 - heavy)) if n > 1 else 0.0
    guarantee = f"All rows of P are equal, key 0 has {heavy:.6g} of each, and alpha is exactly {alpha:g}."
    exact = {"alpha": alpha, "log_kappa": 0.0, "stable_rank": 1.0}
    return Problem("prescribed_alpha", query, key, _values(rng, n, d_v, d), 1.0, None, guarantee, exact)


def needle(n: int, needles: int = 4, mass: float = 0.9, *, rng=None, d_v: int = 64) -> Problem:
    """Flat rows, except a few that hold `mass` of their sum in one entry, each at a different key; d = needles + 1.

    Derived: coordinate 0 carries a row's base logit (0, in needle rows log(n (1 - mass)/(n - 1))) and coordinate t the
    excess log(mass (n - 1)/(1 - mass)) of needle t: a needle row holds n mass once and n (1 - mass)/(n - 1)
    otherwise, which sums to n, so kappa = 1. As mass >= 1/n, the columns with a needle are the heaviest:
    alpha = n (mass^2 + (needles - 1) ((1 - mass)/(n - 1))^2 + (n - needles)/n^2). n >= 2, needles <= n, mass in
    [1/n, 1). Cost O(n needles).
    """
    n, rng = inputs.count("n", n, least=2), generator(rng)
    needles, mass = inputs.count("needles", needles, most=n), _within("mass", mass, 1 / n, 1)
    query, key = np.zeros((2, n, needles + 1))
    rows, keys = (rng.permutation(n)[:needles] for _ in range(2))
    query[rows, 0], key[:, 0] = math.log(n * (1 - mass) / (n - 1)), 1.0
    query[rows, 1 + np.arange(needles)] = math.log(mass * (n - 1) / (1 - mass))
    key[keys, 1 + np.arange(needles)] = 1.0
    alpha = n * (mass**2 + (needles - 1) * ((1 - mass) / (n - 1)) ** 2 + (n - needles) / n**2)
    guarantee = f"All row sums are n; {needles} row(s) hold {mass:g} of it in one entry, all other rows are flat."
    exact = {"alpha": alpha, "log_kappa": 0.0, "needle_mass": mass}
    return Problem("needle", query, key, _values(rng, n, d_v, needles + 1), 1.0, None, guarantee, exact)


def low_rank(n: int, d: int = 64, rank: int = 8, *, rng=None, d_v: int | None = None) -> Problem:
    """Q K^T has exactly the given rank, and its nonzero singular values all equal n.

    Derived: Q = sqrt(n) X B and K = sqrt(n) Y B with orthonormal columns in X, Y (n x rank) and orthonormal rows in B
    (rank x d), so Q K^T = n X Y^T. Entries are about N(0, 1) in `rank` directions and scale = 1/sqrt(rank), so
    that logits have variance about 1, as in `gaussian`. `rank` is at most min(n, d). Cost O(n d rank).
    """
    n, d, rng = inputs.count("n", n), inputs.count("d", d), generator(rng)
    rank = inputs.count("rank", rank, most=min(n, d))
    basis = _orthonormal(rng, d, rank).T
    query, key = (math.sqrt(n) * _orthonormal(rng, n, rank) @ basis for _ in range(2))
    guarantee = f"Q K^T has rank {rank} exactly, with all nonzero singular values equal to n."
    exact = {"rank": rank, "singular_value": float(n)}
    return Problem("low_rank", query, key, _values(rng, n, d_v, d), 1 / math.sqrt(rank), None, guarantee, exact)


# Families by name with default parameters, as on the command line.
FAMILIES: dict[str, Callable[..., Problem]] = {
    "gaussian": lambda n, rng: gaussian(n, rng=rng),
    "sphere": lambda n, rng: sphere(n, rng=rng),
    "planted_clusters": lambda n, rng: planted_clusters(n, rng=rng),
    "cones": lambda n, rng: cones(n, rng=rng),
    "sink": lambda n, rng: sink(n, rng=rng),
    "permutation": lambda n, rng: permutation(n, rng=rng),
    "flat": lambda n, rng: flat(n, rng=rng),
    "row_scales": lambda n, rng: row_scales(n, 64, 5.0, rng=rng),
    "prescribed_alpha": lambda n, rng: prescribed_alpha(n, 64, float(n), rng=rng),
    "needle": lambda n, rng: needle(n, min(4, n), rng=rng),
    "low_rank": lambda n, rng: low_rank(n, rank=min(8, n), rng=rng),
}


def _values(rng, n: int, d_v: int | None, d: int) -> np.ndarray:
    return rng.standard_normal((n, d if d_v is None else inputs.count("d_v", d_v)))


def _bounds(n: int, logit_range: float) -> dict[str, float]:
    """The bounds of fact (i), with alpha at most n^2."""
    alpha_max = math.exp(2 * logit_range) if logit_range < math.log(n) else float(n**2)
    return {"alpha_max": alpha_max, "log_kappa_max": logit_range}


def _log_row_sums(query, key, scale: float, mask=False) -> np.ndarray:
    """log R_i, the row sums of A outside the mask; -inf where the mask covers the row."""
    return np.logaddexp.reduce(scale * (query @ key.T), axis=1, where=~np.asarray(mask), initial=-np.inf)


def _orthogonal_gaussians(rng, n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian queries and keys whose supports are disjoint halves of the coordinates: dot products exactly 0."""
    query, key = rng.standard_normal((2, n, d))
    query[:, (d + 1) // 2 :], key[:, : (d + 1) // 2] = 0.0, 0.0
    return query, key


def _orthonormal(rng, n: int, r: int) -> np.ndarray:
    """(n, r), r <= n, orthonormal columns in random directions."""
    return np.linalg.qr(rng.standard_normal((n, r)))[0]


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _tilted(rng, axes: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Unit rows at the given angles from the unit rows `axes`, in random directions; d >= 2."""
    normals = rng.standard_normal(axes.shape)
    normals = _unit(normals - np.sum(normals * axes, axis=1, keepdims=True) * axes)
    return np.cos(angles)[:, None] * axes + np.sin(angles)[:, None] * normals


def _within(name: str, x, low: float, high: float, *, open_low: bool = False, open_high: bool = True) -> float:
    x = inputs.finite(name, x)
    if not low <= x <= high or (open_low and x == low) or (open_high and x == high):
        interval = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} is {x:g}; it must lie in {interval}")
    return x
