"""A benchmark: case by case, each written when it is finished, resumable.

The cases are the ceilings of the machine, every length, and every family on which error is set against time.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from hyperattention_ref.bench.cases import (
    FAMILIES,
    RIVAL,
    BenchSettings,
    Contestant,
    Heads,
    contestants,
    logits,
    make_heads,
    planned,
    prepare,
    sweep,
    with_budget,
)
from hyperattention_ref.bench.ceilings import measure_ceilings
from hyperattention_ref.bench.check import check, exact_rows, mean_of_values, planned_rows, relative_error
from hyperattention_ref.bench.peak_memory import peak_memory
from hyperattention_ref.bench.stages import measure_stages
from hyperattention_ref.bench.sums import measure_sums
from hyperattention_ref.bench.timing import limited_threads, median, quartiles, take_turns, timed
from hyperattention_ref.foundation.results import Result, plain
from hyperattention_ref.pages.files import write_whole

PACKAGES = (
    "hyperattention-ref", "numpy", "numba", "torch", "performer-pytorch", "nystrom-attention", "local-attention",
)  # fmt: skip
ROWS_SEED = 1
"""Added to the seed for the rows that are compared."""


def benchmark(settings: BenchSettings, out, progress: Callable[[str, int, int], None] | None = None) -> dict:
    """Run every case that has no result in `out` yet.

    Parameters
    ----------
    settings : what to measure.
    out : folder for one JSON file per case, written when the case is finished.
    progress : called with the name of the case that begins, how many are finished, and how many there are.

    Returns
    -------
    dict with "environment", "ceilings", "lengths" and "families".

    Raises
    ------
    ValueError : `out` holds a benchmark with other settings or of another machine.
    """
    out, facts = Path(out), environment()
    claim(out, settings, facts)
    cases: dict[str, Callable[[], dict]] = {"ceilings": lambda: measure_ceilings(settings).to_dict()}
    cases |= {f"n={n}": partial(measure_length, settings, n) for n in settings.n}
    cases |= {family: partial(measure_family, settings, family) for family in settings.families}
    results: dict[str, dict] = {}
    with limited_threads(settings.threads):
        for name, case in cases.items():
            if progress:
                progress(name, len(results), len(cases))
            results[name] = once(out / "cases" / f"{name}.json", case)
    return {
        "environment": facts,
        "ceilings": results["ceilings"],
        "lengths": [results[f"n={n}"] for n in settings.n],
        "families": [results[family] for family in settings.families],
    }


def measure_length(settings: BenchSettings, n: int) -> dict:
    """Check, time and weigh every contestant at one length; stages of the call, and the measures if wanted."""
    heads = make_heads(settings, FAMILIES[0], n)
    judge = _Judge(settings, heads)
    calls, results = {}, {}
    for contestant in contestants(settings):
        calls[contestant.name], results[contestant.name] = judge.first_run(contestant)
    right = {name: call for name, call in calls.items() if results[name]["check"]["is_right"]}
    _note_times(results, take_turns(right, settings.repeats, settings.seconds))
    for contestant in contestants(settings):
        if contestant.name in right:
            results[contestant.name]["peak_bytes"] = peak_memory(settings, n, contestant)
    trusted = [
        name
        for name in settings.backends
        if all(x["check"]["is_right"] for x in results.values() if x["kind"] != RIVAL and x["engine"] == name)
    ]
    return {
        "n": n,
        "input_bytes": heads.n_bytes,
        "output_bytes": heads.value.nbytes,
        "contestants": list(results.values()),
        "baselines": judge.baselines(),
        "stages": {name: measure_stages(settings, heads, name) for name in trusted},
        "sums": {name: measure_sums(settings, heads, name) for name in trusted} if settings.measure else {},
    }


def measure_family(settings: BenchSettings, family: str) -> dict:
    """Error and time of every approximation at several budgets, on inputs of one family."""
    heads = make_heads(settings, family, settings.shown_n)
    judge = _Judge(settings, heads)
    calls, results = {}, {}
    for contestant in sweep(settings, heads.n):
        calls[contestant.name], results[contestant.name] = judge.first_run(contestant)
    right = {name: call for name, call in calls.items() if results[name]["check"]["is_right"]}
    _note_times(results, take_turns(right, settings.repeats, settings.seconds))
    return {"family": family, "n": heads.n, "points": list(results.values()), "baselines": judge.baselines()}


class _Judge:
    """Runs a contestant for the first time and compares what it returns with float64 rows."""

    def __init__(self, settings: BenchSettings, heads: Heads):
        self.settings, self.heads = settings, heads
        self.seed = settings.seed + ROWS_SEED
        self.exact = exact_rows(heads, is_causal=settings.is_causal, seed=self.seed)
        self._planned: dict[tuple, tuple] = {}

    def first_run(self, contestant: Contestant):
        """The call, and what its first run took and returned; an approximation of others must only be finite."""
        call = prepare(contestant, self.settings, self.heads)
        output, seconds = timed(call)
        plan, truth = self._truth(contestant)
        if truth:
            verdict = check(output, truth).to_dict()
        else:
            verdict = {"is_right": bool(np.isfinite(output).all() and output.shape == self.heads.value.shape)}
        count = logits(contestant, plan, self.heads, self.settings.is_causal)
        result = contestant.to_dict() | {"name": contestant.name, "check": verdict, "first_seconds": seconds}
        return call, result | {"logits": count, "relative_error": relative_error(output, self.exact)}

    def baselines(self) -> dict[str, float]:
        """Relative errors of the two estimates that look at no query."""
        mean = mean_of_values(self.heads, self.settings.is_causal)
        return {"zero": 1.0, "mean": relative_error(mean, self.exact)}

    def _truth(self, contestant: Contestant) -> tuple:
        """The plan, if the contestant has one, and the rows that its output must agree with, if any."""
        if contestant.is_exact:
            return None, self.exact
        if contestant.kind == RIVAL:
            return None, None
        key = (contestant.engine, contestant.budget)
        if key not in self._planned:
            plan = planned(with_budget(self.settings, contestant), self.heads, contestant.engine)
            self._planned[key] = plan, planned_rows(self.heads, plan, seed=self.seed)
        return self._planned[key]


def _note_times(results: dict[str, dict], times: dict[str, list[float]]) -> None:
    for name, runs in times.items():
        low, high = quartiles(runs)
        results[name] |= {"seconds": runs, "median": median(runs), "quartiles": [low, high]}


def environment(packages: tuple[str, ...] = PACKAGES) -> dict[str, str | int]:
    """The machine and the versions of what is compared."""
    facts: dict[str, str | int] = {"processor": _processor(), "cores": os.cpu_count() or 1}
    facts |= {"system": f"{platform.system()} {platform.machine()}", "Python": platform.python_version()}
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _processor() -> str:
    """The model of the processor as the system names it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def claim(out: Path, settings: Result, facts: dict) -> None:
    """Write what this folder is a benchmark of, or refuse a folder that is one of something else."""
    content = json.dumps({"settings": settings.to_dict(), "environment": facts})
    record = out / "settings.json"
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is no folder; name a folder for the results")
    if record.exists() and record.read_text() != content:
        raise ValueError(f"{out} holds a benchmark with other settings or of another machine; name another folder")
    if not record.exists() and out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds files of something else; name another folder")
    (out / "cases").mkdir(parents=True, exist_ok=True)
    write_whole(record, content.encode())


def once(path: Path, case: Callable[[], dict], keeps: Callable[[dict], bool] = lambda result: True) -> dict:
    """The result of a case: from its file if there is one, else it runs, and what `keeps` approves of is written."""
    if path.exists():
        return json.loads(path.read_text())
    text = json.dumps(plain(case()), allow_nan=False)
    result = json.loads(text)
    if keeps(result):
        write_whole(path, text.encode())
    return result
