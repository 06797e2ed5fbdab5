"""The comparison: head by head, each written when it is finished, so that it resumes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from hyperattention_ref.bench.cases import Heads
from hyperattention_ref.bench.check import Check, DrawnRows, true_rows
from hyperattention_ref.bench.heads.methods import Method, methods
from hyperattention_ref.bench.heads.report import HeadResult, HeadsReport, Point
from hyperattention_ref.bench.heads.settings import FLEX, HeadsSettings
from hyperattention_ref.bench.output_checker import ROWS_SEED
from hyperattention_ref.bench.results import reason_of
from hyperattention_ref.bench.run import claimed_folder
from hyperattention_ref.bench.timing import take_turns, timed
from hyperattention_ref.maps.attention_map import AttentionMap
from hyperattention_ref.maps.map_file import MapFile
from hyperattention_ref.maps.sample_heads import SampleHead, load_sample_heads
from hyperattention_ref.pages.environment import environment
from hyperattention_ref.pages.progress import Step
from hyperattention_ref.pages.threads import limited_threads

PACKAGES = ("hyperattention-ref", "numpy", "numba", "torch")
SAMPLE = "the sample heads"


def compare(maps: Path | None, out: Path, settings: HeadsSettings, command: str, step: Step) -> HeadsReport:
    """Measure every head that has no result in `out` yet.

    Parameters
    ----------
    maps : a file of maps, see `MapFile`; None for the heads that ship with the package.
    out : folder for one JSON file per head, written when the head is finished.
    settings : what to compare.
    command : that was given, for the report.
    step : called with the name of the head that begins, how many are finished, and how many there are.

    Raises
    ------
    ValueError : no such head, heads of different kinds, nothing to approximate; `out` holds something else.
    """
    facts = environment(PACKAGES)
    count = _count(maps, settings)
    source = SAMPLE if maps is None else maps.name
    folder = claimed_folder(out, settings, facts | {"maps": source if maps is None else _digest(maps)})
    results: list[HeadResult] = []
    with limited_threads(settings.threads):
        for head in _chosen(maps, settings):
            step(head.name, len(results), count)
            results.append(folder.once(head.name, partial(measure, head, settings), HeadResult))
    return HeadsReport(source, settings, tuple(results), command, facts)


def measure(head: AttentionMap | SampleHead, settings: HeadsSettings) -> HeadResult:
    """Error and time of every method on one head, in float32."""
    q, k, v = (np.array(x[: settings.n], np.float32)[None] for x in (head.query, head.key, head.value))
    heads = Heads(q, k, v, head.scale, head.is_causal)
    exact_rows = true_rows(heads, seed=settings.seed + ROWS_SEED)
    points: list[Point] = []
    calls: dict[int, Callable[[], np.ndarray]] = {}
    failures: dict[str, str] = {}
    exact = None
    for method in methods(settings, heads):
        if method.name in failures:
            continue
        try:
            output, first_seconds = timed(method.call)
        except Exception as error:  # without a C++ compiler, for example; all the others can still run
            if not method.name.startswith(FLEX):
                raise
            failures[method.name] = reason_of(error)
            continue
        exact = output if exact is None else exact
        point = Point(
            method=method.name,
            budget=method.budget,
            logits_per_query=method.logits_per_query,
            check=_check(method, output, heads, exact_rows, settings),
            error=float(np.linalg.norm(output - exact) / np.linalg.norm(exact)),
            first_seconds=first_seconds,
        )
        if point.check.is_right:
            calls[len(points)] = method.call
        points.append(point)
    for i, times in take_turns(calls, settings.repeats, settings.seconds).items():
        points[i] = replace(points[i], seconds=times.seconds, median=times.median)
    return HeadResult(head.name, heads.n, head.is_causal, tuple(points), failures)


def _check(method: Method, output, heads: Heads, exact_rows: DrawnRows, settings: HeadsSettings) -> Check:
    """Judge an output by float64 rows of exact attention or of the plan; with landmarks it must only be finite."""
    if not np.isfinite(output).all():
        return Check(False, flaw="the output has entries that are not finite")
    if method.plan is None and method.budget is not None:
        return Check(True)
    truth = exact_rows
    if method.plan is not None:
        truth = true_rows(heads, method.plan, seed=settings.seed + ROWS_SEED)
    return truth.check(np.stack([x[rows] for x, rows in zip(output, truth.rows, strict=True)]))


def _chosen(maps: Path | None, settings: HeadsSettings) -> Iterator[AttentionMap | SampleHead]:
    """The heads that are compared, one at a time."""

    def is_chosen(layer: int, head: int) -> bool:
        return layer in (settings.layers or (layer,)) and head in (settings.heads or (head,))

    if maps is None:
        yield from (head for head in load_sample_heads() if is_chosen(head.layer, head.head))
        return
    with MapFile(maps) as file:
        for layer in file.layers:
            yield from (file.head(layer, x, settings.n) for x in file.heads(layer) if is_chosen(layer, x))


def _count(maps: Path | None, settings: HeadsSettings) -> int:
    """How many heads are compared, after a check that they can be, and can be compared with one another."""
    kinds = [(len(head.query), len(head.key), head.is_causal) for head in _chosen(maps, settings)]
    if not kinds:
        raise ValueError("no head has one of these numbers; name other --layers or --heads")
    if len(set(kinds)) > 1:
        raise ValueError(
            f"heads have (queries, keys, causal) of {sorted(set(kinds))}; choose some that are alike, or --n"
        )
    n_q, n_k, is_causal = kinds[0]
    n = settings.n or n_q
    if n_q != n_k or n > n_q:
        raise ValueError(
            f"heads have {n_q} queries and {n_k} keys, and n is {n}; n tokens of self-attention are needed"
        )
    if n <= settings.budgets[0] or (is_causal and n <= settings.min_seq_len):
        raise ValueError(
            f"heads have n = {n}, where nothing is approximated: budgets {settings.budgets}, exact causal ranges up to "
            f"{settings.min_seq_len}; take smaller ones, or longer heads"
        )
    return len(kinds)


def _digest(maps: Path) -> str:
    with maps.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
