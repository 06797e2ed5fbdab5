"""What is measured on one real head: hardness, what each recipe finds, how wrong it is, and a verdict."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.memory import memory_of
from hyperattention_ref.foundation.registry import select
from hyperattention_ref.foundation.results import Result, plain
from hyperattention_ref.maps.attention_map import AttentionMap
from hyperattention_ref.measures.attention_rows import attention_rows, draw_rows, number_of_rows
from hyperattention_ref.measures.key_shift import MOST_ROWS
from hyperattention_ref.measures.kl_bounds import failure_probability, mean_lower, mean_upper
from hyperattention_ref.plan.recipe import RECIPES, preset

FACTS = ("name", "layer", "head", "model", "source", "scale", "is_causal")
PICTURE = 48
"""Side of the down-sampled attention picture."""
SHORTEST_PREFIX = 64
MEMORY_FACTOR, MEMORY_FIXED = 10, 2**29
"""Memory that measuring a head takes at most: so many times its arrays, and panels."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SurveySettings(Result):
    """What a survey measures.

    Attributes
    ----------
    n : tokens, a prefix of every head; None for all.
    recipes : names from `RECIPES`, compared at equal budget.
    budget : keys per query.
    rows : exact rows drawn for masses and errors; None means 1024, or all if there are fewer.
    confidence : of every bound by itself.
    tolerance : relative Frobenius error, as bounded, up to which a recipe may stand in for the head.
    min_seq_len : causal ranges up to this length are exact.
    seed : of every draw.
    backend : None, or a name; see `backends.select`.
    """

    n: int | None = None
    recipes: tuple[str, ...] = tuple(RECIPES)
    budget: int = 64
    rows: int | None = None
    confidence: float = 0.95
    tolerance: float = 0.1
    min_seq_len: int = 4096
    seed: int = 0
    backend: str | None = None

    def __post_init__(self):
        object.__setattr__(self, "recipes", tuple(dict.fromkeys(self.recipes)))
        if not self.recipes:
            raise ValueError(f"recipes is empty; name at least one of {', '.join(RECIPES)}")
        for name in self.recipes:
            preset(name, inputs.count("budget", self.budget))
        for name in ("n", "rows"):
            if getattr(self, name) is not None:
                inputs.count(name, getattr(self, name))
        inputs.count("min_seq_len", self.min_seq_len)
        inputs.positive("tolerance", self.tolerance)
        failure_probability(self.confidence)


def measure_head(head: AttentionMap, settings: SurveySettings) -> dict:
    """Measure one head.

    Derived: `hardness`, `certify` and row sampling, put together; page "surveys" explains every entry.

    Parameters
    ----------
    head : the query, key and value of one head with scale and causality.
    settings : SurveySettings.

    Returns
    -------
    dict of plain Python objects, which `json.dump` takes: which head and of what size; `hardness`; `growth` of alpha
    and kappa over prefixes; for every recipe in `recipes` its mass and error bounds; `baselines`; `picture`; `verdict`
    and `rule`.

    Cost: about 4/3 exact streaming passes for the hardness of the head and its prefixes, and for each recipe its own
    cost and `rows` exact rows.
    """
    q, k, v = prefix(head, settings)
    n = len(q)
    memory = memory_of(select(settings.backend, q))
    query, key, value = (memory.from_host(x) for x in (q, k, v))  # a backend on a GPU gets copies of its own
    plans = {name: _plan(query, key, head, name, settings) for name in settings.recipes}
    masses, picture = _from_rows(q, k, head, plans, settings)
    certificates = {
        name: _certificate(q, k, v, head, memory.to_host(_output(query, key, value, head, plan, settings)), settings)
        for name, plan in plans.items()
    }
    made = {name: preset(name, settings.budget) for name in settings.recipes}
    recipes = {
        name: {
            "mass": masses[name],
            "logits_per_query": _logits(plans[name].heads[0]) / n,
            "keys_per_query": made[name].keys_per_query,
            "pilot_rows": made[name].pilot_rows if made[name].needs_pilot else 0,
            **certificates[name]["output"],
        }
        for name in made
    }
    baselines = {name: next(iter(certificates.values()))[name] for name in ("zero", "mean")}
    # A bound that is infinite comes as a text, which JSON can hold.
    errors = {name: float(recipe["relative_frobenius"]) for name, recipe in recipes.items()}
    verdict, rule = judge(errors, settings.tolerance)
    if head.is_causal and n <= settings.min_seq_len:
        verdict, rule = "not approximated", f"causal and no longer than min_seq_len = {settings.min_seq_len}: all exact"
    return plain(
        {
            **{name: getattr(head, name) for name in FACTS},
            "n": n,
            "d": q.shape[1],
            "rows": number_of_rows(settings.rows, n),
            "hardness": _hardness(query, key, head, settings) | _shifted(q, k, head),
            "growth": _growth(query, key, head, settings),
            "recipes": recipes,
            "baselines": baselines,
            "picture": picture,
            "verdict": verdict,
            "rule": rule,
        }
    )


def prefix(head: AttentionMap, settings: SurveySettings):
    """The query, key and value to measure, checked as all that is done with them checks them."""
    n = len(head.query) if settings.n is None else settings.n
    if n > len(head.query):
        raise ValueError(f"n is {n} and {head.name} has {len(head.query)} tokens; pass at most that many")
    if len(head.key) != len(head.query):
        raise ValueError(
            f"{head.name} has {len(head.query)} queries and {len(head.key)} keys; a survey takes self-attention: "
            "measure such a head with hardness and certify"
        )
    number_of_rows(settings.rows, n)
    select(settings.backend, head.query)
    q, k, v = inputs.heads(head.query[:n], head.key[:n], head.value[:n], is_causal=head.is_causal)
    inputs.logit_range(q, k, head.scale, v)
    _fits_memory(head.name, q, k, v)
    return q, k, v


def _fits_memory(name: str, *arrays) -> None:
    """Refuse a head whose measuring needs more memory than the machine has."""
    needed, available = MEMORY_FACTOR * sum(x.nbytes for x in arrays) + MEMORY_FIXED, physical_memory()
    if needed > available:
        raise ValueError(
            f"{name} with n = {len(arrays[0])} needs about {needed / 1e9:.1f} GB of memory and this machine has "
            f"{available / 1e9:.1f} GB; measure a shorter prefix (n), or on a larger machine"
        )


def physical_memory() -> float:
    """Bytes of memory of this machine; infinite where the system does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def judge(errors: dict[str, float], tolerance: float) -> tuple[str, str]:
    """The verdict on a head from the bounded relative error of each recipe, and the rule that gave it."""
    enough = [name for name, error in errors.items() if error <= tolerance]
    within = f"relative error bounded by {tolerance:g}"
    if "window_sinks" in enough:
        return "window + sinks suffice", f"window_sinks has a {within}"
    if "paper" in enough:
        return "replace", f"the paper's recipe has a {within}, window_sinks has not"
    if enough:
        best = min(enough, key=errors.__getitem__)
        return f"replace, with {best}", f"{best} has a {within}, the paper's recipe and window_sinks have not"
    return "keep exact", f"no recipe has a {within}"


def _plan(q, k, head: AttentionMap, name: str, settings: SurveySettings):
    return hr.make_plan(
        q,
        k,
        recipe=preset(name, settings.budget),
        is_causal=head.is_causal,
        min_seq_len=settings.min_seq_len,
        scale=head.scale,
        rng=settings.seed,
        backend=settings.backend,
    )


def _logits(plan) -> int:
    """How many logits a head's plan evaluates: causal leaves whole, and those of every rectangle."""
    leaves = sum((stop - start) * (stop - start + 1) // 2 for start, stop in plan.leaves)
    return leaves + sum(rectangle.n_logits for rectangle in plan.rectangles)


def _output(q, k, v, head: AttentionMap, plan, settings: SurveySettings):
    common: dict[str, Any] = {"is_causal": head.is_causal, "scale": head.scale}
    return hr.hyper_attention(q, k, v, plan=plan, backend=settings.backend, **common)


def _certificate(q, k, v, head: AttentionMap, out, settings: SurveySettings) -> dict:
    common: dict[str, Any] = {"is_causal": head.is_causal, "scale": head.scale, "rng": settings.seed}
    rows = number_of_rows(settings.rows, len(q))
    bounds = hr.certify(q, k, v, out, rows=rows, confidence=settings.confidence, **common)
    return {name: getattr(bounds, name).to_dict() for name in ("output", "zero", "mean")}


def _hardness(q, k, head: AttentionMap, settings: SurveySettings) -> dict:
    """Exact hardness; the norm of P only where it is cheap."""
    small = len(q) <= MOST_ROWS
    common = {"scale": head.scale, "rng": settings.seed, "backend": settings.backend}
    h = hr.hardness(q, k, is_causal=head.is_causal, op_norm=small, **common)
    n = len(k)
    kept = sorted({0, 1, 4, 32, n // 16} & set(range(n)))
    figures = {name: getattr(h, name) for name in ("alpha", "log_kappa", "log_kappa_rescaled", "frobenius_norm")}
    figures |= {name: getattr(h, name) for name in ("op_norm", "op_norm_residual", "stable_rank", "overflows")}
    figures |= {"logit_min": h.logit_min, "logit_max": h.logit_max, "heavy_columns": h.heavy_columns[:32]}
    figures["alpha_left_out"] = {count: h.alpha_curve[count] for count in kept}
    figures["perplexity"] = dict(zip(("10 %", "50 %", "90 %"), np.quantile(h.perplexity, [0.1, 0.5, 0.9]), strict=True))
    if head.is_causal:
        parts = hr.causal_hardness(q, k, min_seq_len=settings.min_seq_len, op_norm=False, **common)
        figures["rectangles"] = [
            {"range": place, "alpha": part.alpha, "log_kappa": part.log_kappa} for place, part in parts.items()
        ]
    return figures


def _shifted(q, k, head: AttentionMap) -> dict:
    """kappa at the best key shift, only where the program is small."""
    if len(q) > MOST_ROWS:
        return {"log_kappa_shifted": None}
    _, log_r = hr.exact_attention(q, k, k, scale=head.scale, is_causal=head.is_causal, return_lse=True)
    return {"log_kappa_shifted": hr.best_key_shift(q, log_r, scale=head.scale).log_kappa}


def _growth(q, k, head: AttentionMap, settings: SurveySettings) -> list[dict]:
    """alpha, alpha without n/16 columns and log kappa for halved prefixes, shortest first."""
    rows: list[dict] = []
    n = len(q) // 2
    while n >= SHORTEST_PREFIX and len(rows) < 4:
        h = hr.hardness(
            q[:n], k[:n], scale=head.scale, is_causal=head.is_causal, op_norm=False, rng=0, backend=settings.backend
        )
        rows.append({"n": n, "alpha": h.alpha, "alpha_sixteenth": h.alpha_curve[n // 16], "log_kappa": h.log_kappa})
        n //= 2
    return rows[::-1]


def _from_rows(q, k, head: AttentionMap, plans: dict, settings: SurveySettings):
    """From one draw of exact rows: the mass that each plan's exact pairs hold, with bounds, and the picture."""
    n = len(q)
    work = np.promote_types(q.dtype, np.float32)
    q, k = q.astype(work, copy=False), k.astype(work, copy=False)
    (rows,) = draw_rows(settings.seed, n, number_of_rows(settings.rows, n), 1)
    sums = dict.fromkeys(plans, 0.0)
    side = min(n, PICTURE)
    bins = np.arange(n) * side // n
    bands = np.searchsorted(bins, range(side))
    picture, counts = np.zeros((side, side)), np.bincount(bins[rows], minlength=side)
    for panel in attention_rows(q, k, rows, scale=head.scale, is_causal=head.is_causal):
        for name, plan in plans.items():
            sums[name] += float(panel.probabilities[plan.heads[0].rows(panel.rows)].sum())
        np.add.at(picture, bins[panel.rows], np.add.reduceat(panel.probabilities, bands, axis=1))
    delta = failure_probability(settings.confidence) / 2
    masses = {}
    for name, total in sums.items():
        mean = min(1.0, total / len(rows))
        low, high = (float(bound(mean, delta, len(rows), n)) for bound in (mean_lower, mean_upper))
        masses[name] = {"estimate": mean, "low": low, "high": high}
    return masses, picture / np.maximum(counts, 1)[:, None]
