"""How a statement is judged, from its trials."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from hyperattention_ref.proofs_checks.settings import Settings
from hyperattention_ref.proofs_checks.verdict import (
    FAILS,
    HOLDS,
    LEVEL,
    NOT_REFUTED,
    Verdict,
    clopper_pearson,
    trials_to_hold,
)


def verdict(left, right=1.0, **fields):
    return Verdict("name", "paper", "left ≤ right", "none", "family", left, right, **fields)


@pytest.mark.parametrize(("failures", "trials"), [(0, 5), (3, 40), (40, 40)])
def test_each_limit_has_a_tail_of_the_level(failures, trials):
    low, high = clopper_pearson(failures, trials)
    assert low == 0 if failures == 0 else binom.sf(failures - 1, trials, low) == pytest.approx(LEVEL, rel=1e-6)
    assert high == 1 if failures == trials else binom.cdf(failures, trials, high) == pytest.approx(LEVEL, rel=1e-6)


def test_a_verdict_has_the_limits_of_its_failures():
    one = verdict([2.0, 0.0, 2.0, 0.0, 0.0])
    assert (one.failures, one.low, one.high) == (2, *clopper_pearson(2, 5))


@pytest.mark.parametrize("claim", [0.5, 0.1, 0.01])
def test_trials_to_hold_is_the_least_number_that_suffices_without_failure(claim):
    trials = trials_to_hold(claim)
    assert verdict(np.zeros(trials), claim=claim).verdict == HOLDS
    assert verdict(np.zeros(trials - 1), claim=claim).verdict == NOT_REFUTED


@pytest.mark.parametrize(
    ("left", "fields", "expected"),
    [
        ([0.0, 1.0], {}, HOLDS),
        ([0.0, 1.0], {"provable": False}, NOT_REFUTED),
        ([0.0, 1.1], {}, FAILS),
        ([0.0, math.nan], {}, FAILS),
        ([0.0, 1.1], {"claim": 0.1}, NOT_REFUTED),
        ([2.0] * 20, {"claim": 0.1}, FAILS),
        ([0.0] * 1000, {"claim": 0.1, "provable": False}, NOT_REFUTED),
    ],
)
def test_verdict_follows_the_failures_and_the_claim(left, fields, expected):
    assert verdict(left, **fields).verdict == expected


def test_a_verdict_is_as_expected_unless_it_contradicts():
    assert verdict(0.0).as_expected
    assert not verdict(2.0).as_expected
    assert verdict(2.0, expected=FAILS).as_expected
    assert not verdict(0.0, expected=FAILS).as_expected
    assert verdict(2.0, expected=None).as_expected


def test_sides_are_broadcast_and_zero_over_zero_is_zero():
    v = verdict([0.0, 1.0], right=[0.0, 2.0])
    assert v.trials == 2
    np.testing.assert_array_equal(v.ratios, [0, 0.5])
    assert verdict([1.0, 2.0], right=4).right.tolist() == [4, 4]


def test_a_verdict_is_vacuous_where_it_asks_for_more_samples_than_tokens():
    assert verdict(0.0, n=10, m_asked=11).vacuous
    assert not verdict(0.0, n=10, m_asked=10).vacuous
    assert not verdict(0.0, n=10).vacuous


def test_every_name_has_its_stream_and_every_seed_its_own():
    draws = {Settings(seed=seed).rng(*name).random() for seed in (0, 1) for name in (("a",), ("a", 1), ("b",))}
    assert len(draws) == 6
    assert Settings().rng("a").random() == Settings().rng("a").random()


def test_problems_are_those_of_the_settings_or_the_default_ones():
    assert [p.name for p in Settings(n=8).problems(("flat", "sink"))] == ["flat", "sink"]
    (problem,) = Settings(n=8, families=("gaussian",)).problems(("flat", "sink"), n=5)
    assert (problem.name, len(problem.query)) == ("gaussian", 5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n": 1}, ValueError, "n is 1; it must be at least 2"),
        ({"n": 256.0}, TypeError, "n is 256.0; it must be an integer"),
        ({"trials": 0}, ValueError, "trials is 0; it must be at least 1"),
        ({"seed": True}, TypeError, "seed is True; it must be an integer"),
        ({"seed": -1}, ValueError, "seed is -1; it must be at least 0"),
        ({"epsilon": 0.0}, ValueError, "epsilon is 0.0; it must be above 0 and at most 1"),
        ({"epsilon": 1.5}, ValueError, "epsilon is 1.5; it must be above 0 and at most 1"),
        ({"epsilon": "0.5"}, TypeError, "epsilon is '0.5'; it must be a real number"),
        ({"families": ("flat", "round")}, ValueError, "families has round; known: gaussian"),
    ],
)
def test_bad_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Settings(**options)
