"""The real heads' table says what direct measurement says, and its sentences follow its numbers."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.special import logsumexp

import hyperattention_ref as hr
from hyperattention_ref.proofs_checks import dense
from hyperattention_ref.verify import sample_head_measures
from hyperattention_ref.verify.sample_head_measures import (
    MEAN,
    METHODS,
    PRACTICAL,
    ZERO,
    MethodError,
    findings,
    measure_sample_heads,
)


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_head_measures, "RUNS", 2)
        yield measure_sample_heads(epsilon=0.5, seed=0)


def arrays(head):
    return [x.astype(np.float64) for x in (head.query, head.key, head.value)]


def test_one_row_for_each_head_that_json_takes(rows):
    assert [row.name for row in rows] == [head.name for head in hr.load_sample_heads()]
    assert json.loads(json.dumps(rows[0].to_dict()))["n"] == 512


def test_hardness_is_that_of_the_heads(rows):
    for row, head in zip(rows, hr.load_sample_heads(), strict=True):
        p = hr.attention_probabilities(*arrays(head)[:2], scale=head.scale)
        columns = np.sort((p**2).sum(axis=0))[::-1]
        for k, alpha in row.alpha.items():
            assert alpha == pytest.approx(512 * columns[k])
        assert row.heaviest_key == np.argmax((p**2).sum(axis=0))
        assert 512**row.alpha_exponent == pytest.approx(row.alpha[0])
        assert 512**row.kappa_exponent == pytest.approx(math.exp(row.log_kappa))
        assert row.stable_rank == pytest.approx(np.sum(p**2) / np.linalg.norm(p, 2) ** 2)


def test_baselines_and_practical_errors_are_those_of_spectral_error(rows):
    runs = np.random.default_rng(0).integers(2**32, size=2).tolist()
    for row, head in zip(rows, hr.load_sample_heads(), strict=True):
        q, k, v = arrays(head)
        outputs = [
            hr.hyper_attention(q, k, v, scale=head.scale, block_size=32, sample_size=32, rng=run) for run in runs
        ]
        errors = [hr.spectral_error(q, k, v, output, scale=head.scale) for output in outputs]
        assert row.errors[PRACTICAL].ratio == pytest.approx(np.median([error.ratio for error in errors]))
        relative = np.median([error.relative_frobenius for error in errors])
        assert row.errors[PRACTICAL].relative_frobenius == pytest.approx(relative)
        assert row.errors[ZERO].ratio == pytest.approx(errors[0].ratio_zero)
        assert row.errors[ZERO].relative_frobenius == 1
        assert row.errors[MEAN].ratio == pytest.approx(errors[0].ratio_mean)
        assert row.errors[MEAN].relative_frobenius == pytest.approx(errors[0].relative_frobenius_mean)


def test_the_kappa_that_algorithm_3_is_told_is_exact_for_its_own_pilot(monkeypatch):
    seen = []

    def record(q, k, v, mask, *, kappa, scale, **rest):
        result = hr.literal_hyper_attention(q, k, v, mask, kappa=kappa, scale=scale, **rest)
        open_entries = scale * q @ k.T if mask is None else np.where(mask.toarray(), -np.inf, scale * q @ k.T)
        rescaled = logsumexp(open_entries, axis=1) - result.diagonal.log_pilot
        seen.append((kappa, math.exp(np.ptp(rescaled))))
        return result

    class Recording:
        literal_hyper_attention = staticmethod(record)

        def __getattr__(self, name):
            return getattr(hr, name)

    monkeypatch.setattr(dense, "hr", Recording())
    monkeypatch.setattr(sample_head_measures, "RUNS", 1)
    measure_sample_heads(seed=3)
    assert len(seen) == 6 * 3
    assert all(told == pytest.approx(exact) for told, exact in seen)


def test_same_seed_same_table(rows, monkeypatch):
    monkeypatch.setattr(sample_head_measures, "RUNS", 2)
    again = measure_sample_heads(epsilon=0.5, seed=0)
    assert [row.to_dict() for row in again] == [row.to_dict() for row in rows]


def test_the_theorem_asks_for_more_samples_than_tokens_on_every_head(rows):
    assert all(row.vacuous and min(row.m_asked, row.m_usable) > 512 for row in rows)
    assert "promises nothing" in findings(rows, 0.5)[0]


def test_sentences_follow_the_numbers(rows):
    exact = MethodError(ratio=0.0, relative_frobenius=0.0)
    far = MethodError(ratio=9.0, relative_frobenius=9.0)

    def altered(**changes):
        return tuple(dataclasses.replace(row, **changes) for row in rows)

    good = altered(m_usable=100, errors=dict.fromkeys(METHODS, far) | {PRACTICAL: exact})
    text = " ".join(findings(good, 0.5))
    assert "promises nothing" not in text
    assert "more samples than there are tokens on none of the 6 heads" in text
    assert "is closer to attention than the mean of V, which looks at no query, on 6 of 6" in text
    assert "by the practical algorithm on all 6 heads, by the zero matrix on none" in text
    bad = altered(errors=dict.fromkeys(METHODS, exact) | {PRACTICAL: far})
    text = " ".join(findings(bad, 0.5))
    assert "is no closer to attention than the mean of V, which looks at no query, on 6 of 6" in text
    assert "by the practical algorithm on none of the 6 heads, but the zero matrix meets it on all 6 heads" in text
    one = (good[0], *bad[1:])
    assert "closer than the mean of V on 1 of the 6 heads (L0H3)" in " ".join(findings(one, 0.5))
