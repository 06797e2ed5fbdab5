"""The tables and the files of a benchmark on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hyperattention_ref.bench.cases import EXACT, EXTERNAL, SDPA, WHOLE
from hyperattention_ref.bench.gpu.cases import GpuCase
from hyperattention_ref.bench.gpu.report import GpuReport, attention
from hyperattention_ref.bench.gpu.results import GpuCaseResult, GpuContestantResult
from hyperattention_ref.bench.report import megabytes, middle_half
from hyperattention_ref.pages.files import write_json, write_text
from hyperattention_ref.pages.grid import Grid
from hyperattention_ref.pages.wording import number, seconds


def overviews(report: GpuReport) -> Iterator[Grid]:
    """For each kind of inputs one table: a line for each n, a column for each contestant, in wall time."""
    for cases in report.groups().values():
        contestants = [x for case in cases for x in case.contestants]
        names = list(dict.fromkeys(x.name for x in contestants))
        has_sdpa = any(x.kind == SDPA for x in contestants)
        headings = ["n", *names, *(["times SDPA", "exact / SDPA"] if has_sdpa else [])]
        lines = [_overview(report, case, names, has_sdpa) for case in cases]
        note = "Wall time of a call, medians. By events, peak: of HyperAttention on the first backend."
        if any("≈" in cell for line in lines for cell in line):
            note += " ≈: not run, in proportion to n²."
        yield Grid(_title(cases[0].case), [*headings, "by events", "peak MB", "input MB"], lines, note)


def details(report: GpuReport) -> Iterator[Grid]:
    """For each kind of inputs one table with a line for each n and contestant, and all that was measured."""
    headings = [
        "call", "n", "wall", "middle half", "device", "middle half", "runs", "first", "TFLOP/s", "GB/s", "of ceilings",
        "peak MB", "error", "of allowed",
    ]  # fmt: skip
    for cases in report.groups().values():
        lines = [_detail(report, case, x) for case in cases for x in case.contestants]
        yield Grid(_title(cases[0].case) + ", every call", headings, lines)


def write_report(report: GpuReport, folder: Path) -> None:
    """Write gpu.json and results.md."""
    write_json(folder / "gpu.json", report.to_dict())
    write_text(folder / "results.md", markdown(report))


def markdown(report: GpuReport) -> str:
    """The whole report as a page in Markdown."""
    parts = ["# HyperAttention on a GPU", f"```sh\n{report.command}\n```", report.summary]
    parts += [_bullets(f"{name}: {x}" for name, x in report.environment.items())]
    parts += [_bullets(report.findings), _bullets(f"Left out: {reason}" for reason in report.absent)]
    parts += [grid.markdown() for grid in (*overviews(report), *details(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(sentences) -> str:
    return "\n".join(f"- {words}" for words in sentences)


def _title(case: GpuCase) -> str:
    heads = f"{case.heads} head{'s' if case.heads > 1 else ''}"
    leaves = f", leaves of {case.min_seq_len}" if case.is_causal else ""
    keys = f"b = {case.block_size}, m = {case.sample_size}"
    return f"{heads}, d = {case.dim}, {case.dtype}, {attention(case)}, {keys}{leaves}"


def _overview(report: GpuReport, case: GpuCaseResult, names: list[str], has_sdpa: bool) -> list[str]:
    hyper, exact, best = case.find(WHOLE), case.find(EXACT), report.best_sdpa(case)
    line = [str(case.case.n), *(_time_cell(report, case, name) for name in names)]
    if has_sdpa:
        ratio = report.times_best_sdpa(case)
        mark = "≈ " if ratio and best and not best.is_measured else ""
        line += [mark + number(ratio), number(exact.median / best.seconds if exact and exact.median and best else None)]
    device, peak = (hyper.device, hyper.peak_bytes) if hyper else (None, None)
    return [*line, seconds(device.median if device else None), megabytes(peak), megabytes(case.input_bytes)]


def _time_cell(report: GpuReport, case: GpuCaseResult, name: str) -> str:
    x = next((x for x in case.contestants if x.name == name), None)
    if x is None:
        time = report.predicted(case, name)
        return "–" if time is None else f"≈ {seconds(time)}"
    if x.failure:
        return "–" if x.kind in EXTERNAL else "FAILED"
    return seconds(x.median) if x.is_right else "WRONG"


def _detail(report: GpuReport, case: GpuCaseResult, x: GpuContestantResult) -> list[str]:
    start = [x.name, str(case.case.n)]
    if x.wall is None or x.device is None or x.check is None:
        return [*start, f"failed: {x.failure}" if x.failure else "WRONG, not timed", *["–"] * 11]
    rates, shares = report.rates(case, x), report.shares(case, x)
    nearest = max(shares, key=lambda name: shares[name], default=None)
    words = {"flops": "products", "exponentials": "exponentials", "bytes": "memory"}
    return [
        *start,
        seconds(x.wall.median),
        middle_half(x.wall),
        seconds(x.device.median),
        middle_half(x.device),
        f"{len(x.wall.seconds)} of {x.calls_in_a_run}",
        seconds(x.first_seconds),
        number(rates["flops"] / 1e12),
        number(rates["bytes"] / 1e9),
        f"{shares[nearest]:.0%} {words[nearest]}" if nearest else "–",
        megabytes(x.peak_bytes),
        number(x.relative_error),
        f"{x.check.worst:.0%}",
    ]
