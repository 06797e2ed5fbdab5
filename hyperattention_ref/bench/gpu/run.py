"""The benchmark on a GPU: conformance, ceilings, then case by case, within a budget of minutes.

Every case is written when it is finished and right, so that a run that was stopped, or a bug that was fixed, resumes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from hyperattention_ref.bench.cases import EXTERNAL, Contestant, Heads
from hyperattention_ref.bench.device import Call, Ceilings, measure_ceilings
from hyperattention_ref.bench.gpu.cases import HALF, HALF_BACKENDS, SINGLE, GpuCase, GpuSettings, cases, obstacles
from hyperattention_ref.bench.gpu.device import Gpu
from hyperattention_ref.bench.gpu.report import GpuReport
from hyperattention_ref.bench.gpu.results import ConformanceResult, GpuCaseResult, GpuCeilings, GpuContestantResult
from hyperattention_ref.bench.output_checker import OutputChecker
from hyperattention_ref.bench.results import reason_of
from hyperattention_ref.bench.run import claimed_folder
from hyperattention_ref.bench.timing import timed
from hyperattention_ref.foundation.registry import get_backend
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.environment import environment
from hyperattention_ref.pages.progress import Step
from hyperattention_ref.pages.threads import available_cores

PACKAGES = ("hyperattention-ref", "numpy", "numba", "numba-cuda", "torch")
WORKERS = 8
"""Heads whose rows the host computes at a time, at most; each takes up to a GB at n = 131072."""
CEILINGS = "ceilings"


class Job(NamedTuple):
    """Something to run, what it returns, and what predicts its time: its series, and its size in the series."""

    run: Callable[[], Any]
    kind: type[Result]
    series: tuple
    size: int = 1

    def timed(self) -> Any:
        """The result, with the seconds that it took."""
        result, seconds = timed(self.run)
        return replace(result, took=seconds)


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


def benchmark_gpu(gpu: Gpu, settings: GpuSettings, out, progress: Step, *, minutes: float, command: str) -> GpuReport:
    """Run every case that has no result in `out` yet, the most important first, as long as the minutes last.

    Raises
    ------
    ValueError : `out` holds a benchmark with other settings or of another machine.
    """
    budget = Budget(minutes)
    facts = environment(PACKAGES) | gpu.facts()
    folder = claimed_folder(out, settings, facts)
    left_out = obstacles(settings)
    usable = [name for name in settings.backends if name not in left_out]
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    all_jobs = jobs(gpu, settings, usable)
    for i, (name, job) in enumerate(all_jobs.items()):
        progress(name, i, len(all_jobs))
        if not (folder.file(name).exists() or budget.allows(job)):
            left_out[name] = f"the {minutes:g} minutes are over"
            continue
        try:
            results[name] = folder.once(name, job.timed, job.kind, keep=is_clean)
        except Exception as error:  # a broken case must not take the others with it
            failures[name] = reason_of(error)
        else:
            budget.note(job, results[name].took)
    measured = results.pop(CEILINGS, None)
    ceilings = Ceilings(measured.flops, measured.exponentials, measured.bytes) if measured else None
    suites = {name: suite for name in usable if (suite := results.pop(f"conformance-{name}", None))}
    return GpuReport(settings, command, facts, ceilings, suites, tuple(results.values()), left_out, failures)


def jobs(gpu: Gpu, settings: GpuSettings, usable: list[str]) -> dict[str, Job]:
    """Everything in order: what the numbers are compared with, the first dimension, float32, the other dimensions."""
    first, *others = settings.dims

    def suites(names) -> dict[str, Job]:
        return {
            f"conformance-{x}": Job(partial(conformance, x, settings), ConformanceResult, ("conformance", x))
            for x in names
        }

    def timed_cases(dim: int, dtype: str) -> dict[str, Job]:
        return {
            x.name: Job(partial(measure_case, gpu, x, settings), GpuCaseResult, x.group, x.n)
            for x in cases(settings, usable, dim, dtype)
        }

    all_jobs = {CEILINGS: Job(lambda: GpuCeilings(**vars(measure_ceilings(gpu))), GpuCeilings, (CEILINGS,))}
    all_jobs |= suites(name for name in usable if name in HALF_BACKENDS)
    all_jobs |= timed_cases(first, HALF)
    all_jobs |= suites(name for name in usable if name not in HALF_BACKENDS)
    all_jobs |= timed_cases(first, SINGLE)
    for dim in others:
        all_jobs |= timed_cases(dim, HALF)
    return all_jobs


def is_clean(result) -> bool:
    """Whether nothing of this library was wrong or broke, so that the result is kept when a run resumes."""
    if isinstance(result, GpuCaseResult):
        return all(x.is_right for x in result.contestants if x.kind not in EXTERNAL)
    return getattr(result, "failure", None) is None


def conformance(name: str, settings: GpuSettings) -> ConformanceResult:
    """What the conformance suite says of a backend: the worst ratio, or the first violation."""
    try:
        from hyperattention_ref.backends.conformance import check_backend
    except ImportError as error:
        return ConformanceResult(failure=f"the suite cannot run: {error}")
    try:
        return ConformanceResult(**vars(check_backend(name, max_examples=settings.examples, seed=settings.seed)))
    except Exception as error:  # an AssertionError is a violation; any other error is no better
        return ConformanceResult(failure=reason_of(error), message=str(error))


def measure_case(gpu: Gpu, case: GpuCase, settings: GpuSettings) -> GpuCaseResult:
    """Check every contestant, then weigh and time those that are right."""
    gpu.release()
    heads, workers = gpu.heads(case), min(WORKERS, available_cores(), case.heads)
    checker = OutputChecker(gpu, case, heads, has_exact=case.has_exact, is_bfloat=case.dtype == HALF, workers=workers)
    calls: dict[str, Call] = {}
    results: dict[str, GpuContestantResult] = {}
    for contestant in case.contestants(gpu.sdpa_kinds):
        call, result = _first_run(checker, contestant)
        if call and result.is_right:
            calls[result.name] = call
            result = replace(result, peak_bytes=gpu.peak_bytes(call, contestant.engine))
        results[result.name] = result
    for name, times in gpu.times(calls, settings.repeats, settings.seconds).items():
        results[name] = replace(results[name], **times)
    return GpuCaseResult(
        name=case.name,
        case=case,
        input_bytes=heads.n_bytes,
        output_bytes=heads.value.nbytes,
        paths={name: _path(name, heads) for name in case.backends},
        contestants=tuple(results.values()),
    )


def _first_run(checker: OutputChecker, contestant: Contestant) -> tuple[Call | None, GpuContestantResult]:
    try:
        return checker.first_run(contestant, GpuContestantResult)
    except Exception as error:  # too little memory, or SDPA has no kernel for this; the others can still run
        return None, GpuContestantResult(**vars(contestant), failure=reason_of(error))


def _path(name: str, heads: Heads) -> dict[str, str | None] | None:
    """Which kernels the backend has for these arrays, and why no better ones, if it says so."""
    path = getattr(get_backend(name), "attention_path", None)
    return path(*heads.arrays)._asdict() if path else None
