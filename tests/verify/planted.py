"""Verdicts that a test plants."""

from dataclasses import replace

from hyperattention_ref.proofs_checks import Verdict


def verdict(left=0.0, **changes):
    fields = {
        "name": "planted",
        "paper": "Lemma 0",
        "statement": "left ≤ 1",
        "hypothesis": "none",
        "family": "planted",
        "left": left,
        "right": 1.0,
    }
    return Verdict(**(fields | changes))


def with_verdicts(full, *verdicts):
    return replace(full, verdicts=verdicts)
