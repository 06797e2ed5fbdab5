"""Two surveys beside each other: what changed, head by head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hyperattention_ref.foundation.results import Result, plain
from hyperattention_ref.surveys.head_measures import HeadMeasures

SCALARS = ("alpha", "log_kappa")
"""The fields of HeadHardness that are compared."""


@dataclass(frozen=True, repr=False)
class Change(Result):
    """A value in the other survey, and in this one."""

    before: float | str
    after: float | str

    @property
    def is_real(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True, repr=False)
class HeadChanges(Result):
    """One head in both surveys.

    Attributes
    ----------
    name : of the head.
    alpha, log_kappa, verdict : as in its `HeadMeasures`.
    errors, bounds : by recipe that both have, the estimated and the bounded relative error.
    """

    name: str
    alpha: Change
    log_kappa: Change
    errors: dict[str, Change]
    bounds: dict[str, Change]
    verdict: Change

    @property
    def is_real(self) -> bool:
        """Whether anything differs."""
        changes = (self.alpha, self.log_kappa, self.verdict, *self.errors.values(), *self.bounds.values())
        return any(change.is_real for change in changes)


@dataclass(frozen=True, repr=False)
class Comparison(Result):
    """What changed since another survey.

    Attributes
    ----------
    against : name of the other survey's folder.
    settings : the settings that differ, by name, as text; also "file" and "sha256" of the maps.
    heads : those in both, matched by layer and head.
    only_before, only_after : names of the heads that only the other, or only this survey has.
    """

    against: str
    settings: dict[str, Change]
    heads: tuple[HeadChanges, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]

    @property
    def changed(self) -> list[HeadChanges]:
        """The heads in which anything differs."""
        return [head for head in self.heads if head.is_real]

    @property
    def recipes(self) -> list[str]:
        """The recipes that both surveys have."""
        return list(self.heads[0].errors) if self.heads else []

    @property
    def findings(self) -> list[str]:
        """What changed, in words."""
        return list(_findings(self))


Survey = tuple[dict, list[HeadMeasures]]
"""The record of a survey and its heads, from `load_survey`."""


def compare(against: str, before: Survey, after: Survey) -> Comparison:
    """Compare two surveys; `against` is the name of the first."""
    there, here = ({(head.layer, head.head): head for head in heads} for _, heads in (before, after))
    return Comparison(
        against=against,
        settings=_setting_changes(before[0], after[0]),
        heads=tuple(_head_changes(there[place], here[place]) for place in sorted(there.keys() & here.keys())),
        only_before=tuple(there[place].name for place in sorted(there.keys() - here.keys())),
        only_after=tuple(here[place].name for place in sorted(here.keys() - there.keys())),
    )


def table(comparison: Comparison) -> Iterator[dict]:
    """One row of the CSV file for each head that both surveys have."""
    for head in comparison.heads:
        changes = {name: getattr(head, name) for name in (*SCALARS, "verdict")}
        changes |= {f"error_{name}": change for name, change in head.errors.items()}
        changes |= {f"error_high_{name}": change for name, change in head.bounds.items()}
        row = {"name": head.name}
        for name, change in changes.items():
            row |= {f"{name}_before": change.before, f"{name}_after": change.after}
        yield row


def _head_changes(before: HeadMeasures, after: HeadMeasures) -> HeadChanges:
    def errors(field: str) -> dict[str, Change]:
        shared = [name for name in after.recipes if name in before.recipes]
        return {name: Change(*(getattr(x.recipes[name], field) for x in (before, after))) for name in shared}

    return HeadChanges(
        name=after.name,
        **{name: Change(*(getattr(x.hardness, name) for x in (before, after))) for name in SCALARS},
        errors=errors("relative_frobenius_estimate"),
        bounds=errors("relative_frobenius"),
        verdict=Change(before.verdict, after.verdict),
    )


def _setting_changes(before: dict, after: dict) -> dict[str, Change]:
    there, here = ({"file": x["file"], "sha256": x["sha256"], **plain(x["settings"])} for x in (before, after))
    pairs = {name: Change(_words(there.get(name)), _words(here.get(name))) for name in {**there, **here}}
    return {name: change for name, change in pairs.items() if change.is_real}


def _words(x) -> str:
    """A setting as text."""
    return ", ".join(map(str, x)) if isinstance(x, list) else "default" if x is None else str(x)


def _findings(comparison: Comparison) -> Iterator[str]:
    heads = comparison.heads
    verdicts = [head for head in heads if head.verdict.is_real]
    yield (
        f"Against {comparison.against}: {len(comparison.changed)} of {len(heads)} heads changed, "
        f"{len(verdicts)} of them in their verdict."
    )
    if comparison.settings:
        said = (f"{name} {change.before:.60} → {change.after:.60}" for name, change in comparison.settings.items())
        yield f"What was surveyed differs: {'; '.join(said)}."
    for where, names in (("there", comparison.only_before), ("here", comparison.only_after)):
        if names:
            yield f"Only {where}: {', '.join(names)}."
