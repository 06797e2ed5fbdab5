"""The benchmark on a GPU: conformance, ceilings, then case by case, within a budget of minutes.

Every case is written when it is finished and right, so that a run that was stopped, or a bug that was mended, resumes.
An answer is compared with float64 rows before it is timed, see `check.py`: rows of the rounded inputs, computed by
NumPy on the host.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

from hyperattention_ref.backends.cuda_cpp import CupyBackend
from hyperattention_ref.bench.cases import LEAVES, SDPA, THEIRS, Contestant, available_cores, logits, planned, prepare
from hyperattention_ref.bench.ceilings import RUNS, Ceilings
from hyperattention_ref.bench.check import DrawnRows, check_rows, exact_rows, planned_rows, relative_error_of_rows
from hyperattention_ref.bench.gpu.cases import (
    HALF,
    HALF_BACKENDS,
    GpuCase,
    GpuSettings,
    half_cases,
    obstacles,
    single_cases,
)
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.run import ROWS_SEED, claim, environment, once
from hyperattention_ref.bench.timing import median, quartiles, take_turns, timed
from hyperattention_ref.foundation.registry import get_backend
from hyperattention_ref.plan.plan import Plan

PACKAGES = ("hyperattention-ref", "numpy", "numba", "numba-cuda", "torch")
LEAST_SECONDS, MOST_CALLS = 2e-3, 50
"""A run takes at least so long, for which a short call is made several times in a row, up to a limit."""
WORKERS = 8
"""Heads whose rows the host computes at a time, at most; each takes up to a GB at n = 131072."""
LONGEST_REASON = 300
CEILINGS = "ceilings"


class Job(NamedTuple):
    """Something to run, and what tells its time from that of an earlier one: its series, and its size in it."""

    run: Callable[[], dict]
    series: tuple
    size: int = 1


class Budget:
    """Seconds that are left; a job fits if the one before it in its series, in proportion to size, says so.

    The rows that are computed on the host take most of a case, and their time is in proportion to n.
    """

    def __init__(self, minutes: float):
        self.end = time.monotonic() + 60 * minutes
        self.rates: dict[tuple, float] = {}

    def allows(self, job: Job) -> bool:
        """Whether the job would end in time."""
        return time.monotonic() + self.rates.get(job.series, 0.0) * job.size < self.end

    def note(self, job: Job, seconds: float) -> None:
        """Remember what a job has taken."""
        self.rates[job.series] = seconds / job.size


def benchmark_gpu(
    gpu: Gpu,
    settings: GpuSettings,
    out,
    *,
    minutes: float,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict:
    """Run every case that has no result in `out` yet, the most important first, as long as the minutes last.

    Returns
    -------
    dict with "environment", "ceilings" (None if they failed), "conformance" by backend, "cases", "left_out" (the reason
    of everything that did not run) and "failures" (the error of everything that broke).

    Raises
    ------
    ValueError : `out` holds a benchmark with other settings or of another machine.
    """
    budget = Budget(minutes)
    out, facts = Path(out), environment(PACKAGES) | gpu.facts()
    claim(out, settings, facts)
    left_out = obstacles(settings)
    able = [name for name in settings.backends if name not in left_out]
    results: dict[str, dict] = {}
    failures: dict[str, str] = {}
    to_do = jobs(gpu, settings, able)
    for i, (name, job) in enumerate(to_do.items()):
        if progress:
            progress(name, i, len(to_do))
        path = out / "cases" / f"{name}.json"
        if not (path.exists() or budget.allows(job)):
            left_out[name] = f"the {minutes:g} minutes are over"
            continue
        try:
            results[name] = once(path, partial(_with_seconds, job.run), is_clean)
        except Exception as error:  # a broken case must not take the others with it
            failures[name] = reason_of(error)
        else:
            budget.note(job, results[name]["took"])
    conformance = {name: results.pop(f"conformance-{name}", None) for name in able}
    return {
        "environment": facts,
        "ceilings": results.pop(CEILINGS, None),
        "conformance": {name: x for name, x in conformance.items() if x},
        "cases": list(results.values()),
        "left_out": left_out,
        "failures": failures,
    }


def jobs(gpu: Gpu, settings: GpuSettings, able: list[str]) -> dict[str, Job]:
    """Everything in order: what the numbers are judged by, the first dimension, float32, the other dimensions."""
    first, *others = settings.dims

    def suites(names) -> dict[str, Job]:
        return {f"conformance-{x}": Job(partial(conformance, x, settings), ("conformance", x)) for x in names}

    def timed_cases(cases) -> dict[str, Job]:
        return {x.name: Job(partial(measure_case, gpu, x, settings), x.group, x.n) for x in cases}

    to_do = {CEILINGS: Job(lambda: measure_ceilings(gpu).to_dict(), (CEILINGS,))}
    to_do |= suites(name for name in able if name in HALF_BACKENDS)
    to_do |= timed_cases(half_cases(settings, able, first))
    to_do |= suites(name for name in able if name not in HALF_BACKENDS)
    to_do |= timed_cases(single_cases(settings, able, first))
    for dim in others:
        to_do |= timed_cases(half_cases(settings, able, dim))
    return to_do


def is_clean(result: dict) -> bool:
    """Whether nothing of ours was wrong or broke, so that the result may stand when a run resumes."""
    ours = [x for x in result.get("contestants", ()) if x["kind"] not in THEIRS]
    return result.get("failure") is None and all("failure" not in x and x["check"]["is_right"] for x in ours)


def conformance(name: str, settings: GpuSettings) -> dict:
    """What the conformance suite says of a backend: the worst ratio, or the first violation."""
    try:
        from hyperattention_ref.backends.conformance import check_backend
    except ImportError as error:
        return {"failure": f"the suite cannot run: {error}; pip install 'hyperattention-ref[test]'"}
    try:
        return check_backend(name, max_examples=settings.examples, seed=settings.seed).to_dict()
    except Exception as error:  # an AssertionError is a violation; whatever else is raised is no better
        return {"failure": reason_of(error), "message": str(error)}


def measure_ceilings(gpu: Gpu) -> Ceilings:
    """The best rate of any run of any call, for products, exponentials and copies."""

    def rate(call: Callable[[], Any], amount: float) -> float:
        calls = calls_in_a_run(gpu, call)
        return amount * calls / min(gpu.seconds(call, calls) for _ in range(RUNS))

    return Ceilings(*(max(rate(*task) for task in competing) for competing in gpu.tasks()))


def measure_case(gpu: Gpu, case: GpuCase, settings: GpuSettings) -> dict:
    """Check every contestant, then weigh and time those that are right."""
    gpu.release()
    judge = _Judge(gpu, case)
    calls, results = {}, {}
    for contestant in case.contestants(gpu.sdpa_kinds):
        call, results[contestant.name] = judge.first_run(contestant)
        if call:
            calls[contestant.name] = call
            results[contestant.name]["peak_bytes"] = gpu.peak_bytes(call, contestant.engine)
    for name, times in _times(gpu, calls, settings).items():
        results[name] |= times
    return {
        "name": case.name,
        "case": case.to_dict(),
        "input_bytes": judge.heads.n_bytes,
        "output_bytes": judge.heads.value.nbytes,
        "paths": {name: _path(name, judge.heads) for name in case.backends},
        "contestants": list(results.values()),
    }


class _Judge:
    """Runs a contestant for the first time and compares what it returns with float64 rows."""

    def __init__(self, gpu: Gpu, case: GpuCase):
        self.gpu, self.case, self.heads = gpu, case, gpu.heads(case)
        self.host = gpu.on_host(self.heads)
        workers = min(WORKERS, available_cores(), case.heads)
        self.options: dict[str, Any] = {
            "seed": case.seed + ROWS_SEED,
            "is_bfloat": case.dtype == HALF,
            "workers": workers,
        }
        self.exact = exact_rows(self.host, is_causal=case.is_causal, **self.options) if case.has_exact else None
        self._planned: dict[str, tuple[Plan, DrawnRows]] = {}

    def first_run(self, contestant: Contestant):
        """The call if it may be timed, else None; and what its first run took and returned, or how it broke."""
        result = contestant.to_dict() | {"name": contestant.name}
        try:
            call = self._prepare(contestant)
            output, seconds = timed(lambda: self.gpu.finished(call))
            verdict = self._verdict(contestant, output)
        except Exception as error:  # too little memory, or SDPA has no kernel for this; the others can still run
            return None, result | {"failure": reason_of(error)}
        return call if verdict["check"]["is_right"] else None, result | {"first_seconds": seconds} | verdict

    def _prepare(self, contestant: Contestant) -> Callable[[], Any]:
        if contestant.kind == SDPA:
            return self.gpu.sdpa(contestant.engine, self.heads, self.case.is_causal)
        if contestant.kind == LEAVES:
            return prepare(contestant, self.case, self.heads, CupyBackend(exact=contestant.engine))
        return prepare(contestant, self.case, self.heads)

    def _verdict(self, contestant: Contestant, output) -> dict:
        """The check, the logits and the error of an output."""
        plan, truth = self._truth(contestant)
        if flaw := self.gpu.flaw(output, self.heads.value):
            return {"check": {"is_right": False, "worst": math.inf, "flaw": flaw}}
        rows = self.gpu.rows(output, truth.rows)
        return {
            "check": check_rows(rows, truth).to_dict(),
            "logits": logits(contestant, plan, self.heads, self.case.is_causal),
            "relative_error": relative_error_of_rows(rows, self.exact) if self.exact else None,
        }

    def _truth(self, contestant: Contestant) -> tuple[Plan | None, DrawnRows]:
        """The plan, if the contestant has one, and the rows that its output must agree with."""
        if not contestant.is_planned:
            assert self.exact is not None  # exact attention takes part only where its rows were computed
            return None, self.exact
        name = CupyBackend.name if contestant.kind == LEAVES else contestant.engine
        if name not in self._planned:
            plan = planned(self.case, self.heads, name)
            self._planned[name] = plan, planned_rows(self.host, plan, **self.options)
        return self._planned[name]


def _times(gpu: Gpu, calls: dict[str, Callable], settings: GpuSettings) -> dict[str, dict]:
    """Device and wall seconds of each call, by runs in turns; a run is some calls in a row."""
    in_a_run = {name: calls_in_a_run(gpu, call) for name, call in calls.items()}
    device: dict[str, list[float]] = {name: [] for name in calls}

    def run(name: str) -> None:
        device[name].append(gpu.seconds(calls[name], in_a_run[name]) / in_a_run[name])

    turns = take_turns({name: partial(run, name) for name in calls}, settings.repeats, settings.seconds, pause=0)
    wall = {name: [t / in_a_run[name] for t in times] for name, times in turns.items()}
    return {
        name: {"calls_in_a_run": in_a_run[name], "device": _summary(device[name]), "wall": _summary(wall[name])}
        for name in calls
    }


def calls_in_a_run(gpu: Gpu, call: Callable[[], Any]) -> int:
    """So many calls in a row that a run is long beside the start of one; the call is warm afterwards."""
    gpu.finished(call)  # it may have to allocate
    _, seconds = timed(lambda: gpu.finished(call))
    return min(MOST_CALLS, max(1, math.ceil(LEAST_SECONDS / seconds)))


def _summary(times: list[float]) -> dict:
    low, high = quartiles(times)
    return {"seconds": times, "median": median(times), "quartiles": [low, high]}


def _path(name: str, heads) -> dict | None:
    """Which kernels the backend has for these arrays, and why no better ones, if it says so."""
    path = getattr(get_backend(name), "attention_path", None)
    return path(*heads.arrays)._asdict() if path else None


def _with_seconds(run: Callable[[], dict]) -> dict:
    result, seconds = timed(run)
    return result | {"took": seconds}


def reason_of(error: Exception) -> str:
    """An error in one line of bearable length."""
    first = (str(error).strip().splitlines() or [""])[0]
    return shorten(f"{type(error).__name__}: {first}" if first else type(error).__name__, LONGEST_REASON)
