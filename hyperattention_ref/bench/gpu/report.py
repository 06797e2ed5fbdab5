"""What a benchmark on a GPU found: rates beside the ceilings, times beside SDPA, in tables and in words.

A table is a `Grid` of words, which the terminal and the page in Markdown show alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from hyperattention_ref.bench.cases import EXACT, SDPA, THEIRS, WHOLE
from hyperattention_ref.bench.ceilings import Ceilings
from hyperattention_ref.bench.gpu.cases import HALF, GpuSettings
from hyperattention_ref.bench.report import megabytes, seconds
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.wording import number

TARGETS = {False: 120, True: 12}
"""How many times faster than the best of SDPA a causal call, or one that is not, should be in the case below."""
TARGET_CASE = {"n": 131072, "heads": 12, "dim": 64, "dtype": HALF, "block_size": 256, "sample_size": 256}


class Grid(NamedTuple):
    """A table in words: the first column is left-aligned, the others right."""

    title: str
    headings: list[str]
    lines: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        """The table as Markdown, under its title."""
        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [" | ".join(cells) for cells in (self.headings, rule, *self.lines)]
        return "\n".join([f"**{self.title}**", "", *(f"| {line} |" for line in lines), "", self.note]).strip()


@dataclass(frozen=True, eq=False, repr=False)
class GpuReport(Result):
    """What a benchmark on a GPU found.

    Attributes
    ----------
    settings : what was measured.
    command : the command line.
    environment : the machine, the GPU and the versions.
    ceilings : what the GPU can do at most; None if that could not be measured.
    conformance : for each backend what `conformance` returned.
    cases : what `measure_case` returned.
    left_out : the reason of everything that did not run.
    failures : the error of everything that broke.
    """

    settings: GpuSettings
    command: str
    environment: dict[str, Any]
    ceilings: Ceilings | None
    conformance: dict[str, dict]
    cases: tuple[dict, ...]
    left_out: dict[str, str]
    failures: dict[str, str]

    @property
    def wrong(self) -> list[str]:
        """The contestants that gave a wrong answer, and where; none of them was timed there."""
        return [
            f"{x['name']} in {case['name']}"
            for case in self.cases
            for x in case["contestants"]
            if not (x.get("failure") or right(x))
        ]

    @property
    def broken(self) -> list[str]:
        """What of ours raised an error, the conformance suite, or a whole case."""
        suite = [f"conformance of {name} ({x['failure']})" for name, x in self.conformance.items() if x.get("failure")]
        cases = [f"{name} ({reason})" for name, reason in self.failures.items()]
        return suite + cases + [words for kind, words in self._unable() if kind not in THEIRS]

    @property
    def absent(self) -> list[str]:
        """What did not run, with the reason, though nothing is wrong with it."""
        named = [f"{name}: {reason}" for name, reason in self.left_out.items()]
        return named + [words for kind, words in self._unable() if kind in THEIRS]

    @property
    def summary(self) -> str:
        """Whether everything that was timed was right, and whether everything ran."""
        words = []
        if self.wrong:
            words.append(f"WRONG, and not timed: {'; '.join(self.wrong)}.")
        if self.broken:
            words.append(f"FAILED: {'; '.join(self.broken)}.")
        if not any(right(x) for case in self.cases for x in case["contestants"]):
            words.append("Nothing was timed.")
        return " ".join(words) or "Every output agreed with float64 rows before it was timed."

    @property
    def is_right(self) -> bool:
        return not (self.wrong or self.broken)

    @property
    def findings(self) -> list[str]:
        """What the numbers say, in words."""
        return list(_findings(self))

    def rates(self, case: dict, contestant: dict) -> dict[str, float]:
        """What a call does in a second: operations and exponentials of its logits, bytes of inputs and output once."""
        t = contestant["device"]["median"]
        flops = 4.0 * contestant["logits"] * case["case"]["dim"]
        n_bytes = case["input_bytes"] + case["output_bytes"]
        return {"flops": flops / t, "exponentials": contestant["logits"] / t, "bytes": n_bytes / t}

    def shares(self, case: dict, contestant: dict) -> dict[str, float]:
        """These rates over the ceilings; nothing without ceilings."""
        limits = self.ceilings.to_dict() if self.ceilings else {}
        return {name: rate / limits[name] for name, rate in self.rates(case, contestant).items() if limits}

    def to_dict(self) -> dict:
        words = {"summary": self.summary, "findings": self.findings, "wrong": self.wrong, "broken": self.broken}
        data = super().to_dict()
        for case, case_data in zip(self.cases, data["cases"], strict=True):
            case_data["times_best_sdpa"] = times_best_sdpa(self, case)
            for x, entry in zip(case["contestants"], case_data["contestants"], strict=True):
                if right(x):
                    entry |= {"rates": self.rates(case, x), "shares_of_ceilings": self.shares(case, x)}
        return words | data

    def _unable(self) -> Iterator[tuple[str, str]]:
        """The kind of every contestant that raised an error, and where and how in words."""
        for case in self.cases:
            for x in case["contestants"]:
                if x.get("failure"):
                    yield x["kind"], f"{x['name']} in {case['name']}: {x['failure']}"


def right(contestant: dict) -> bool:
    """Whether its answer was right, so that it was timed."""
    return "failure" not in contestant and contestant["check"]["is_right"]


def find(case: dict, kind: str) -> dict | None:
    """The first contestant of a kind whose answer was right, or None."""
    return next((x for x in case["contestants"] if x["kind"] == kind and right(x)), None)


def best_sdpa(report: GpuReport, case: dict) -> tuple[float, str, bool] | None:
    """(wall seconds, backend of SDPA, whether it was measured) of the fastest; None if there is none.

    Where exact attention takes no part its time is predicted, see `predicted`.
    """
    times = [(x["wall"]["median"], x["engine"]) for x in case["contestants"] if x["kind"] == SDPA and right(x)]
    if times:
        return *min(times), True
    engines = {x["name"]: x["engine"] for y in group_of(report, case) for x in y["contestants"] if x["kind"] == SDPA}
    guesses = [(t, engine) for name, engine in engines.items() if (t := predicted(report, case, name)) is not None]
    return (*min(guesses), False) if guesses else None


def predicted(report: GpuReport, case: dict, name: str) -> float | None:
    """Seconds of exact attention where it takes no part, from its largest n in proportion to n^2; None if unknown."""
    if case["case"]["has_exact"]:
        return None
    known = [
        (y["case"]["n"], x["wall"]["median"])
        for y in group_of(report, case)
        for x in y["contestants"]
        if x["name"] == name and x["kind"] in (EXACT, SDPA) and right(x)
    ]
    n, time = max(known, default=(0, 0.0))
    return time * (case["case"]["n"] / n) ** 2 if known else None


def times_best_sdpa(report: GpuReport, case: dict) -> float | None:
    """How many times as long as HyperAttention, plan included, the best of SDPA takes, by the wall clock."""
    ours, best = find(case, WHOLE), best_sdpa(report, case)
    return best[0] / ours["wall"]["median"] if ours and best else None


def group_of(report: GpuReport, case: dict) -> list[dict]:
    """The cases that differ in n only."""
    return [x for x in report.cases if _group(x) == _group(case)]


def overviews(report: GpuReport) -> Iterator[Grid]:
    """For each kind of inputs one table: a line for each n, a column for each contestant, in wall time."""
    for cases in _groups(report):
        names = list(dict.fromkeys(x["name"] for case in cases for x in case["contestants"]))
        has_sdpa = any(x["kind"] == SDPA for case in cases for x in case["contestants"])
        more = ["times SDPA", "exact / SDPA"] if has_sdpa else []
        lines = [
            [
                str(case["case"]["n"]),
                *(_time_cell(report, case, name) for name in names),
                *(_ratio_cells(report, case) if has_sdpa else []),
                *_device_cells(case),
            ]
            for case in cases
        ]
        headings = ["n", *names, *more, "by events", "peak MB", "input MB"]
        yield Grid(_title(cases[0]), headings, lines, _overview_note(lines))


def details(report: GpuReport) -> Iterator[Grid]:
    """For each kind of inputs one table with a line for each n and contestant, and all that was measured."""
    headings = [
        "call", "n", "wall", "middle half", "device", "middle half", "runs", "first", "TFLOP/s", "GB/s", "of ceilings",
        "peak MB", "error", "of allowed",
    ]  # fmt: skip
    for cases in _groups(report):
        lines = [_detail(report, case, x) for case in cases for x in case["contestants"]]
        yield Grid(_title(cases[0]) + ", every call", headings, lines)


def markdown(report: GpuReport) -> str:
    """The whole report as a page in Markdown."""
    facts = [f"- {name}: {x}" for name, x in report.environment.items()]
    parts = ["# HyperAttention on a GPU", f"```sh\n{report.command}\n```", report.summary, "\n".join(facts)]
    parts += [_bullets(report.findings), _bullets([f"Left out: {words}" for words in report.absent])]
    parts += [grid.markdown() for grid in (*overviews(report), *details(report))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(sentences: list[str]) -> str:
    return "\n".join(f"- {words}" for words in sentences)


def _findings(report: GpuReport) -> Iterator[str]:
    for name, x in report.conformance.items():
        if not x.get("failure"):
            yield (
                f"{name} conforms: {x['examples']} examples, the largest error {number(x['worst_ratio'])} of what gate "
                "A allows."
            )
    if report.ceilings:
        yield (
            f"Ceilings: {number(report.ceilings.flops / 1e12)} TFLOP/s in a product of bfloat16 matrices, "
            f"{number(report.ceilings.exponentials / 1e12)}·10¹² exponentials/s, "
            f"{number(report.ceilings.bytes / 1e9)} GB/s copied, read and written bytes counted."
        )
    for case in report.cases:
        ours, best = find(case, WHOLE), best_sdpa(report, case)
        if ours and best and (case["case"]["n"] >= TARGET_CASE["n"]):
            yield _against_sdpa(report, case, ours, best)


def _against_sdpa(report: GpuReport, case: dict, ours: dict, best: tuple[float, str, bool]) -> str:
    time, name, was_measured = best
    how = "takes" if was_measured else "was not run and, in proportion to n², would take"
    ratio = times_best_sdpa(report, case)
    is_target = all(case["case"][field] == x for field, x in TARGET_CASE.items())
    aim = f"; the target is {TARGETS[case['case']['is_causal']]}" if is_target else ""
    return (
        f"n = {case['case']['n']}, d = {case['case']['dim']}, {_attention(case)}: HyperAttention, plan included, takes "
        f"{seconds(ours['wall']['median'])}, the best of SDPA ({name}) {how} {seconds(time)}: {number(ratio)} times as "
        f"long{aim}."
    )


def _group(case: dict) -> tuple:
    return tuple(case["case"][name] for name in ("dtype", "heads", "dim", "is_causal"))


def _groups(report: GpuReport) -> list[list[dict]]:
    """The cases of each kind, short ones first."""
    groups: dict[tuple, list[dict]] = {}
    for case in report.cases:
        groups.setdefault(_group(case), []).append(case)
    return [sorted(cases, key=lambda case: case["case"]["n"]) for cases in groups.values()]


def _attention(case: dict) -> str:
    return "causal" if case["case"]["is_causal"] else "not causal"


def _title(case: dict) -> str:
    x = case["case"]
    heads = f"{x['heads']} head{'s' if x['heads'] > 1 else ''}"
    leaves = f", leaves of {x['min_seq_len']}" if x["is_causal"] else ""
    keys = f"b = {x['block_size']}, m = {x['sample_size']}"
    return f"{heads}, d = {x['dim']}, {x['dtype']}, {_attention(case)}, {keys}{leaves}"


def _overview_note(lines: list[list[str]]) -> str:
    words = "Wall time of a call, medians. By events, peak: of HyperAttention on the first backend."
    has_guesses = any("≈" in cell for line in lines for cell in line)
    return words + (" ≈: not run, in proportion to n²." if has_guesses else "")


def _time_cell(report: GpuReport, case: dict, name: str) -> str:
    x = next((x for x in case["contestants"] if x["name"] == name), None)
    if x is None:
        guess = predicted(report, case, name)
        return "–" if guess is None else f"≈ {seconds(guess)}"
    if "failure" in x:
        return "–" if x["kind"] in THEIRS else "FAILED"
    return seconds(x["wall"]["median"]) if right(x) else "WRONG"


def _ratio_cells(report: GpuReport, case: dict) -> list[str]:
    """Times the best of SDPA, and our exact attention in it."""
    ratio, exact, best = times_best_sdpa(report, case), find(case, EXACT), best_sdpa(report, case)
    if best is None:
        return ["–", "–"]
    mark = "" if best[2] else "≈ "
    times = "–" if ratio is None else mark + number(ratio)
    return [times, number(exact["wall"]["median"] / best[0]) if exact else "–"]


def _device_cells(case: dict) -> list[str]:
    """Seconds by device events and peak of HyperAttention; the inputs."""
    ours = find(case, WHOLE)
    cells = [seconds(ours["device"]["median"]), megabytes(ours["peak_bytes"])] if ours else ["–", "–"]
    return [*cells, megabytes(case["input_bytes"])]


def _detail(report: GpuReport, case: dict, x: dict) -> list[str]:
    head = [x["name"], str(case["case"]["n"])]
    if not right(x):
        return [*head, f"failed: {x['failure']}" if "failure" in x else "WRONG, not timed", *["–"] * 11]
    rates, shares = report.rates(case, x), report.shares(case, x)
    nearest = max(shares, key=lambda name: shares[name], default=None)
    words = {"flops": "products", "exponentials": "exponentials", "bytes": "memory"}
    return [
        *head,
        seconds(x["wall"]["median"]),
        _middle(x["wall"]),
        seconds(x["device"]["median"]),
        _middle(x["device"]),
        f"{len(x['wall']['seconds'])} of {x['calls_in_a_run']}",
        seconds(x["first_seconds"]),
        number(rates["flops"] / 1e12),
        number(rates["bytes"] / 1e9),
        f"{shares[nearest]:.0%} {words[nearest]}" if nearest else "–",
        megabytes(x["peak_bytes"]),
        number(x["relative_error"]),
        f"{x['check']['worst']:.0%}",
    ]


def _middle(times: dict) -> str:
    return " – ".join(seconds(t) for t in times["quartiles"])
