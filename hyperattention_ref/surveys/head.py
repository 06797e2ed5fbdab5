"""Measure one real head: hardness, what each recipe finds, how wrong its output is, and a verdict."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.randomness import streams
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.maps.attention_map import AttentionMap
from hyperattention_ref.maps.map_file import MapFile
from hyperattention_ref.measures.attention_rows import ROWS, attention_rows, draw_rows, number_of_rows
from hyperattention_ref.measures.certificate import exact_rows
from hyperattention_ref.measures.error_bounds import MEAN, ZERO, ErrorBounds, Found, Problem, Rule, bound_errors
from hyperattention_ref.measures.key_shift import MOST_ROWS
from hyperattention_ref.measures.kl_bounds import failure_probability, mean_lower, mean_upper
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.recipe import preset
from hyperattention_ref.surveys.head_measures import (
    CausalRectangle,
    GrowthPoint,
    HeadErrors,
    HeadHardness,
    HeadMeasures,
    Mass,
    RecipeMeasures,
)
from hyperattention_ref.surveys.settings import SurveySettings

PICTURE = 48
"""Side of the down-sampled attention picture."""
PERPLEXITY = {"10 %": 0.1, "50 %": 0.5, "90 %": 0.9}
"""Quantiles over the rows."""
UNDECIDED = "undecided"
SHORTEST_PREFIX, MOST_PREFIXES = 64, 4
MEMORY_FACTOR, MEMORY_FIXED = 10, 2**29
"""The most memory that measuring a head takes: a multiple of its arrays, and bytes for panels."""


def measure_head(head: AttentionMap, settings: SurveySettings) -> HeadMeasures:
    """Measure one head.

    Derived: `hardness`, `certify` and row sampling, put together; page "surveys" explains every entry.

    Parameters
    ----------
    head : the query, key and value of one head with scale and causality.
    settings : SurveySettings.

    Returns
    -------
    HeadMeasures

    Cost: about 4/3 exact streaming passes for the hardness of the head and its prefixes, 2 to 24 for the norm of P,
    one for the errors of all recipes together (or `rows` exact rows), and for each recipe its own cost.
    """
    q, k, v = prefix(head, settings)
    n, backend = len(q), select(settings.backend, q)
    memory = memory_of(backend)
    query, key, value = (memory.from_host(x) for x in (q, k, v))  # a backend on a GPU gets copies of its own
    common: dict[str, Any] = {"is_causal": head.is_causal, "scale": head.scale, "backend": settings.backend}
    plans = {name: _plan(query, key, head, name, settings) for name in settings.recipes}
    outputs = {name: hr.hyper_attention(query, key, value, plan=plan, **common) for name, plan in plans.items()}
    outputs = {name: memory.to_host(output) for name, output in outputs.items()}
    is_exact = all(plan.heads[0].is_exact for plan in plans.values())
    errors = _errors(q, k, v, outputs, head, settings, backend, "all" if is_exact else settings.rows)
    verdict, rule = judge({name: errors.bounds[name] for name in outputs}, settings.tolerance, errors.rows_to_decide)
    if is_exact:
        verdict, rule = "not approximated", f"causal and no longer than min_seq_len = {settings.min_seq_len}: all exact"
    mass_rows = number_of_rows(settings.rows if isinstance(settings.rows, int) else None, n)
    masses, picture = _from_rows(q, k, mass_rows, head, plans, settings)
    facts = ("name", "layer", "head", "model", "source", "scale", "is_causal")
    return HeadMeasures(
        **{name: getattr(head, name) for name in facts},
        n=n,
        d=q.shape[1],
        rows=errors.rows,
        mass_rows=mass_rows,
        hardness=_hardness(query, key, head, settings, log_kappa_shifted=_log_kappa_shifted(q, k, head)),
        growth=_growth(query, key, head, settings),
        recipes={name: _recipe(name, n, head.is_causal, masses[name], errors.bounds[name], settings) for name in plans},
        baselines={name: HeadErrors(**vars(errors.bounds[name])) for name in (ZERO, MEAN)},
        picture=picture,
        verdict=verdict,
        rule=rule,
        rows_to_decide=errors.rows_to_decide if verdict == UNDECIDED else None,
    )


def _errors(q, k, v, outputs: dict, head: AttentionMap, settings: SurveySettings, backend, rows) -> Found:
    """The errors of all outputs and baselines, from the same rows."""
    (stream,) = streams(noise_of(head, settings), 1, purpose=ROWS)
    rule = Rule(exact_rows(rows, q, v), failure_probability(settings.confidence), settings.tolerance)
    return bound_errors(Problem(q, k, v, head.scale, head.is_causal), outputs, rule, stream, backend)


def prefix(head: AttentionMap, settings: SurveySettings):
    """The query, key and value to measure, checked here so that no later step refuses them."""
    n = len(head.query) if settings.n is None else settings.n
    if n > len(head.query):
        raise ValueError(f"n is {n} and {head.name} has {len(head.query)} tokens; pass at most that many")
    if len(head.key) != len(head.query):
        raise ValueError(
            f"{head.name} has {len(head.query)} queries and {len(head.key)} keys; a survey takes self-attention: "
            "measure such a head with hardness and certify"
        )
    select(settings.backend, head.query)
    q, k, v = inputs.heads(head.query[:n], head.key[:n], head.value[:n], is_causal=head.is_causal)
    exact_rows(settings.rows, q, v)
    inputs.logit_range(q, k, head.scale, v)
    _check_memory(head.name, n, q.nbytes + k.nbytes + v.nbytes)
    return q, k, v


def read_head(maps: MapFile, layer: int, head: int, settings: SurveySettings) -> AttentionMap:
    """What is to be measured of a head in a file, and no more, after a check that measuring it fits memory."""
    n = settings.n
    _check_memory(f"L{layer}H{head}", n or maps.tokens(layer), maps.nbytes(layer, head, n))
    return maps.head(layer, head, n)


def _check_memory(name: str, n: int, nbytes: int) -> None:
    """Refuse a head whose measuring needs more memory than the machine has, from the bytes of its arrays."""
    needed, available = MEMORY_FACTOR * nbytes + MEMORY_FIXED, physical_memory()
    if needed > available:
        raise ValueError(
            f"{name} with n = {n} needs about {needed / 1e9:.1f} GB of memory and this machine has "
            f"{available / 1e9:.1f} GB; measure a shorter prefix (n), or on a larger machine"
        )


def physical_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def noise_of(head: AttentionMap, settings: SurveySettings) -> np.random.SeedSequence:
    """The seed of all that is drawn for a head; other heads have other noise, so medians do not hang on one draw."""
    return np.random.SeedSequence((settings.seed, head.layer, head.head))


def judge(errors: dict[str, ErrorBounds], tolerance: float, rows_to_decide: int) -> tuple[str, str]:
    """The verdict on a head from the errors of each recipe, and the rule that gave it."""
    within = [name for name, error in errors.items() if error.relative_frobenius <= tolerance]
    undecided = [name for name in errors if name not in within and not errors[name].relative_frobenius_low > tolerance]
    words = f"a relative error of at most {tolerance:g}"
    if "window_sinks" in within:
        return "window + sinks suffice", f"window_sinks has {words}"
    if "paper" in within:
        return "replace", f"the paper's recipe has {words}"
    if within:
        best = min(within, key=lambda name: errors[name].relative_frobenius)
        return f"replace, with {best}", f"{best} has {words}"
    if undecided:
        names = ", ".join(undecided)
        return UNDECIDED, f"{names} may have {words} or more; about {rows_to_decide} rows would decide"
    return "keep exact", f"no recipe has {words}"


def _plan(q, k, head: AttentionMap, name: str, settings: SurveySettings) -> Plan:
    return hr.make_plan(
        q,
        k,
        recipe=preset(name, settings.budget),
        is_causal=head.is_causal,
        min_seq_len=settings.min_seq_len,
        scale=head.scale,
        rng=noise_of(head, settings),
        backend=settings.backend,
    )


def _recipe(
    name: str, n: int, is_causal: bool, mass: Mass, errors: ErrorBounds, settings: SurveySettings
) -> RecipeMeasures:
    recipe = preset(name, settings.budget)
    logits = recipe.logits_per_query(n, n, is_causal=is_causal, min_seq_len=settings.min_seq_len)
    return RecipeMeasures(
        **vars(errors), mass=mass, keys_per_query=recipe.keys_per_query, logits_per_query=float(logits)
    )


def _hardness(q, k, head: AttentionMap, settings: SurveySettings, *, log_kappa_shifted: float | None) -> HeadHardness:
    """Exact hardness, with the norm of P if asked for."""
    n = len(k)
    common: dict[str, Any] = {"scale": head.scale, "rng": noise_of(head, settings), "backend": settings.backend}
    h = hr.hardness(q, k, is_causal=head.is_causal, op_norm=settings.op_norm, **common)
    rectangles = None
    if head.is_causal:
        parts = hr.causal_hardness(q, k, min_seq_len=settings.min_seq_len, op_norm=False, **common)
        rectangles = tuple(CausalRectangle(place, part.alpha, part.log_kappa) for place, part in parts.items())
    same = ("alpha", "log_kappa", "log_kappa_rescaled", "frobenius_norm", "op_norm", "op_norm_high", "stable_rank")
    return HeadHardness(
        **{name: getattr(h, name) for name in (*same, "logit_min", "logit_max")},
        overflows={name: bool(flag) for name, flag in h.overflows.items()},
        heavy_columns=tuple(h.heavy_columns[:32].tolist()),
        alpha_left_out={count: float(h.alpha_curve[count]) for count in sorted({0, 1, 4, 32, n // 16}) if count < n},
        perplexity=dict(zip(PERPLEXITY, np.quantile(h.perplexity, [*PERPLEXITY.values()]).tolist(), strict=True)),
        log_kappa_shifted=log_kappa_shifted,
        rectangles=rectangles,
    )


def _log_kappa_shifted(q, k, head: AttentionMap) -> float | None:
    """Ln kappa at the best key shift, only where the linear program is small."""
    if len(q) > MOST_ROWS:
        return None
    _, log_r = hr.exact_attention(q, k, k[:, :1], scale=head.scale, is_causal=head.is_causal, return_lse=True)
    return float(hr.best_key_shift(q, log_r, scale=head.scale).log_kappa)


def _growth(q, k, head: AttentionMap, settings: SurveySettings) -> tuple[GrowthPoint, ...]:
    """alpha, alpha without n/16 columns and log kappa of halved prefixes, the shortest first."""
    common: dict[str, Any] = {"scale": head.scale, "is_causal": head.is_causal, "backend": settings.backend}
    points = []
    for n in (len(q) >> halvings for halvings in range(MOST_PREFIXES, 0, -1)):
        if n >= SHORTEST_PREFIX:
            h = hr.hardness(q[:n], k[:n], op_norm=False, rng=0, **common)
            points.append(GrowthPoint(n, float(h.alpha), float(h.alpha_curve[n // 16]), float(h.log_kappa)))
    return tuple(points)


def _from_rows(q, k, count: int, head: AttentionMap, plans: dict[str, Plan], settings: SurveySettings):
    """From one draw of exact rows: the Mass of each plan's exact pairs, and the picture."""
    n = len(q)
    work = np.promote_types(q.dtype, np.float32)
    q, k = q.astype(work, copy=False), k.astype(work, copy=False)
    (rows,) = draw_rows(noise_of(head, settings), n, count, 1)
    sums = dict.fromkeys(plans, 0.0)
    side = min(n, PICTURE)
    bins = np.arange(n) * side // n
    bands = np.searchsorted(bins, range(side))
    picture, counts = np.zeros((side, side)), np.bincount(bins[rows], minlength=side)
    for panel in attention_rows(q, k, rows, scale=head.scale, is_causal=head.is_causal):
        for name, plan in plans.items():
            sums[name] += float(panel.probabilities[plan.heads[0].rows(panel.rows)].sum())
        np.add.at(picture, bins[panel.rows], np.add.reduceat(panel.probabilities, bands, axis=1))
    picture /= np.maximum(counts, 1)[:, None]
    masses, delta = {}, failure_probability(settings.confidence) / 2
    for name, total in sums.items():
        mean = min(1.0, total / count)
        ends = (float(bound(mean, delta, count, n)) for bound in (mean_lower, mean_upper))
        masses[name] = Mass(1.0, 1.0, 1.0) if plans[name].heads[0].is_exact else Mass(mean, *ends)
    return masses, tuple(map(tuple, picture.tolist()))
