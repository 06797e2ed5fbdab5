"""How a statement is judged, from its trials."""

import math
from bisect import bisect_left

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from hyperattention_ref.proofs_checks.settings import Settings
from hyperattention_ref.proofs_checks.verdict import (
    FAILS,
    HOLDS,
    LEVEL,
    NOT_REFUTED,
    Verdict,
    clopper_pearson,
    detectable,
    judge,
    trials_to_detect,
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


def refuted(failure_probability, trials, claim, runs=4000):
    """Of many runs of that many trials, how many judge a claim to fail, simulated; its Clopper-Pearson limits."""
    counts = np.random.default_rng(0).binomial(trials, failure_probability, size=runs)
    limits = {k: clopper_pearson(k, trials) for k in set(counts.tolist())}
    verdicts = [judge(k, *limits[k], claim, provable=True) for k in counts.tolist()]
    return clopper_pearson(verdicts.count(FAILS), runs)


@pytest.mark.parametrize(("trials", "claim"), [(1, 0.0), (20, 0.0), (300, 0.0), (20, 1e-5), (50, 0.1), (400, 0.01)])
def test_the_detectable_discrepancy_is_refuted_with_probability_99_percent_and_no_smaller_one(trials, claim):
    p = verdict(np.zeros(trials), claim=claim).detectable
    low, high = refuted(p, trials, claim)
    assert low <= 0.99 <= high
    assert refuted(0.8 * p, trials, claim)[1] < 0.99


def test_trials_of_which_no_outcome_refutes_detect_nothing():
    assert verdict(np.ones(5) * 2, claim=0.1).verdict == NOT_REFUTED
    assert verdict(np.zeros(5), claim=0.1).detectable is None


@given(trials=st.integers(1, 300), claim=st.sampled_from([0.0, 1e-5, 0.01, 0.1, 0.5]))
def test_detectable_is_the_exact_binomial_tail(trials, claim):
    p = float(detectable(trials, claim))

    def fails(k):
        return judge(k, *clopper_pearson(k, trials), claim, provable=True) == FAILS

    least = bisect_left(range(trials + 1), True, key=fails)
    if least > trials:
        assert math.isnan(p)
    else:
        assert binom.sf(least - 1, trials, p) == pytest.approx(0.99)
        assert p > claim


@pytest.mark.parametrize(("power", "claim"), [(0.2, 0.0), (0.05, 0.0), (0.2, 0.1), (0.05, 0.01), (0.05, 1e-6)])
def test_trials_to_detect_is_the_least_number_that_does(power, claim):
    trials = trials_to_detect(power, claim)
    assert detectable(trials, claim) <= power
    assert not np.any(detectable(np.arange(1, trials), claim) <= power)
    assert Settings(power=power, trials=3).trials_for(claim, times=2) == trials


def test_what_a_statement_allows_cannot_be_detected():
    assert trials_to_detect(0.1, 0.1) is None
    assert Settings(power=0.1, trials=3).trials_for(0.1, times=5) == trials_to_detect(0.1, 0.0) == 44
    assert Settings(power=0.1, trials=30).trials_for(0.1, times=5) == trials_to_hold(0.1)


def test_without_power_trials_are_a_multiple_but_no_more_than_prove_the_claim():
    assert Settings(trials=7).trials_for() == 7
    assert Settings(trials=7).trials_for(times=3) == 21
    assert Settings(trials=7).trials_for(0.5, times=3) == trials_to_hold(0.5)


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
        ({"power": 1.0}, ValueError, "power is 1.0; it must be a probability from 0.0001 and below 1"),
        ({"power": 1e-5}, ValueError, "power is 1e-05"),
        ({"power": True}, TypeError, "power is True; it must be a real number"),
        ({"epsilon": "0.5"}, TypeError, "epsilon is '0.5'; it must be a real number"),
        ({"families": ("flat", "round")}, ValueError, "families has round; known: gaussian"),
    ],
)
def test_bad_settings_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        Settings(**options)
