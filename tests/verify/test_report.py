"""What came out, and whether it was expected."""

import math
from dataclasses import replace

import pytest

from hyperattention_ref.pages.wording import number
from hyperattention_ref.verify.report import FAILS_AS_IT_MUST, INFORMATION, UNEXPECTED, limit, outcome, statements

from .planted import verdict, with_verdicts


@pytest.mark.parametrize(
    ("left", "expected", "kind"),
    [
        (0.0, "holds", "holds"),
        (2.0, "holds", UNEXPECTED),
        (2.0, "fails", FAILS_AS_IT_MUST),
        (0.0, "fails", UNEXPECTED),
        (0.0, None, INFORMATION),
        (2.0, None, INFORMATION),
        (math.nan, "holds", UNEXPECTED),
    ],
)
def test_outcome_sees_the_verdict_in_the_light_of_what_was_expected(left, expected, kind):
    assert outcome(verdict(left, expected=expected)) == kind


def test_a_random_statement_with_few_trials_is_not_refuted():
    assert outcome(verdict(claim=0.1)) == "not refuted"


def test_counts_and_sections_hold_every_verdict_once(full):
    assert sum(full.counts.values()) == len(full.verdicts)
    sections = full.sections()
    gathered = [v for verdicts in sections.values() for group in statements(verdicts) for v in group]
    assert sorted(map(id, gathered)) == sorted(map(id, full.verdicts))
    assert [title.split(":")[0] for title in sections][-2:] == ["Counterexamples", "For information"]
    assert len(list(sections.values())[-2]) == full.counts[FAILS_AS_IT_MUST]


def test_an_unexpected_counterexample_stays_with_its_paper_item(full):
    sections = with_verdicts(full, verdict(expected="fails")).sections()
    assert list(sections) == ["Lemma 0"]


def test_the_limit_beside_the_count_is_the_one_that_decides():
    assert limit(verdict()) == ""
    clean = verdict([0.0] * 200, claim=0.1)
    assert limit(clean) == f"≤ {number(clean.high)}"
    assert limit(verdict([2.0] * 200, claim=0.1)).startswith("≥ 0.9")


def test_the_summary_says_how_many_outcomes_have_the_power(full):
    settings = replace(full.settings, power=0.1)
    verdicts = verdict([0.0] * 44), verdict([0.0] * 43), verdict([0.0] * 44, claim=0.1)
    summary = replace(with_verdicts(full, *verdicts), settings=settings).summary
    assert "1 of them would have noticed a failure probability of 0.1 with probability 0.99" in summary
    assert "noticed" not in full.summary
