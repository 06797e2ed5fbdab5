"""A benchmark: case by case, each written when it is finished, so that it resumes.

The cases are the ceilings of the machine, every length, and every family on which error is set against time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hyperattention_ref.bench.cases import FAMILIES, RIVAL, BenchSettings, Contestant, contestants, make_heads, sweep
from hyperattention_ref.bench.device import Ceilings, Device, measure_ceilings
from hyperattention_ref.bench.output_checker import OutputChecker
from hyperattention_ref.bench.peak_memory import peak_memory
from hyperattention_ref.bench.report import BenchReport
from hyperattention_ref.bench.results import FamilyResult, HostContestantResult, LengthResult
from hyperattention_ref.bench.stages import measure_stages, measure_sums
from hyperattention_ref.bench.timing import take_turns
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.environment import environment
from hyperattention_ref.pages.progress import Step
from hyperattention_ref.pages.results_folder import ResultsFolder
from hyperattention_ref.pages.threads import limited_threads

PACKAGES = (
    "hyperattention-ref", "numpy", "numba", "torch", "performer-pytorch", "nystrom-attention", "local-attention",
)  # fmt: skip


def benchmark(settings: BenchSettings, out, progress: Step = lambda name, finished, total: None) -> BenchReport:
    """Run every case that has no result in `out` yet.

    Parameters
    ----------
    settings : what to measure.
    out : folder for one JSON file per case, written when the case is finished.
    progress : called with the name of the case that begins, how many are finished, and how many there are.

    Raises
    ------
    ValueError : `out` holds a benchmark with other settings or of another machine.
    """
    facts = environment(PACKAGES)
    folder = claimed_folder(out, settings, facts)
    cases: dict[str, tuple[Callable[[], Result], type[Result]]] = {
        "ceilings": (lambda: measure_ceilings(Device(settings)), Ceilings)
    }
    cases |= {f"n={n}": (partial(measure_length, settings, n), LengthResult) for n in settings.n}
    cases |= {family: (partial(measure_family, settings, family), FamilyResult) for family in settings.families}
    results: dict[str, Any] = {}
    with limited_threads(settings.threads):
        for name, (measure, kind) in cases.items():
            progress(name, len(results), len(cases))
            results[name] = folder.once(name, measure, kind)
    lengths, families = (results[f"n={n}"] for n in settings.n), (results[family] for family in settings.families)
    return BenchReport(settings, facts, results["ceilings"], tuple(lengths), tuple(families))


def measure_length(settings: BenchSettings, n: int) -> LengthResult:
    """Check, time and weigh every contestant at one length; stages of the call, and the measures if wanted."""
    heads = make_heads(settings, FAMILIES[0], n)
    checker = OutputChecker(Device(settings), settings, heads)
    results = tuple(
        replace(x, peak_bytes=peak_memory(settings, n, x)) if x.is_right else x
        for x in checked_and_timed(checker, contestants(settings), settings)
    )
    right_backends = [
        name for name in settings.backends if all(x.is_right for x in results if x.kind != RIVAL and x.engine == name)
    ]
    return LengthResult(
        n=n,
        input_bytes=heads.n_bytes,
        output_bytes=heads.value.nbytes,
        contestants=results,
        baselines=checker.baselines(),
        stages={name: measure_stages(settings, heads, name) for name in right_backends},
        sums={name: measure_sums(settings, heads, name) for name in right_backends} if settings.measure else {},
    )


def measure_family(settings: BenchSettings, family: str) -> FamilyResult:
    """Error and time of every approximation at several budgets, on inputs of one family."""
    heads = make_heads(settings, family, settings.shown_n)
    checker = OutputChecker(Device(settings), settings, heads)
    points = checked_and_timed(checker, sweep(settings, heads.n), settings)
    return FamilyResult(family=family, n=heads.n, points=tuple(points), baselines=checker.baselines())


def checked_and_timed(
    checker: OutputChecker, contestants: Iterable[Contestant], settings: BenchSettings
) -> list[HostContestantResult]:
    """The result of each contestant; calls are timed where the output of the first run was right."""
    first_runs = [checker.first_run(contestant, HostContestantResult) for contestant in contestants]
    times = take_turns({x.name: call for call, x in first_runs if x.is_right}, settings.repeats, settings.seconds)
    return [replace(x, **vars(times[x.name])) if x.is_right else x for _, x in first_runs]


def claimed_folder(out, settings: Result, facts: dict) -> ResultsFolder:
    """The folder of the results, with a record of the settings and the machine; a folder of another run is refused."""
    folder = ResultsFolder(Path(out), record="settings.json", parts="cases")
    content = {"settings": settings.to_dict(), "environment": facts}
    folder.claim(content, "a benchmark with other settings or of another machine")
    return folder
