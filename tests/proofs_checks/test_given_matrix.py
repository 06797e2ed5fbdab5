"""The statements about one given matrix: which are checked, what is promised, and what is refused."""

import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref import proofs_checks
from hyperattention_ref.paper import lemma_2_sampled_product
from hyperattention_ref.proofs_checks import OF_A_MATRIX, STATEMENTS, Settings, run_checks
from hyperattention_ref.proofs_checks.dense import Dense
from hyperattention_ref.proofs_checks.verdict import FAILS, HOLDS

from .test_planted_bugs import plant

QUICK = tuple(set(OF_A_MATRIX) - {"lemma_1_rate", "lemma_1_usable", "lemma_2", "practical", "lemma_2_expectation"})


def matrix(n_q=12, n_k=12, d=4, seed=0, **changes):
    rng = np.random.default_rng(seed)
    parts = {"query": (n_q, d), "key": (n_k, d), "value": (n_k, 3)}
    return SimpleNamespace(**{name: rng.standard_normal(shape) for name, shape in parts.items()} | changes)


def test_the_statements_of_a_matrix_are_those_that_have_a_check_of_one():
    has_check = {
        name for name in STATEMENTS if hasattr(import_module(f"{proofs_checks.__name__}.{name}"), "check_matrix")
    }
    assert has_check == set(OF_A_MATRIX)
    kinds = {"square", "rectangular", "causal"}
    assert all(set(x) <= kinds for x in OF_A_MATRIX.values())


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (matrix(), "square"),
        (matrix(mask=np.eye(12, dtype=bool)), "square"),
        (matrix(n_k=9), "rectangular"),
        (matrix(n_q=9, mask=np.zeros((9, 12), bool)), "rectangular"),
        (matrix(is_causal=True), "causal"),
    ],
)
def test_every_statement_of_the_kind_is_checked_and_none_contradicts(given, kind):
    seen = []
    verdicts = list(run_checks(Settings(trials=1, epsilon=1.0), progress=seen.append, matrix=given))
    assert seen == [name for name in STATEMENTS if kind in OF_A_MATRIX.get(name, ())]
    assert [v.name for v in verdicts if not v.as_expected] == []
    assert {v.n for v in verdicts} == {len(given.key)}
    assert {v.family.split(",")[0] for v in verdicts} == {"matrix"}
    assert all(v.m_used >= v.m_asked for v in verdicts if v.m_asked and v.expected == HOLDS)


@settings(max_examples=15)
@given(
    n_q=st.integers(2, 12),
    n_k=st.integers(2, 12),
    scale=st.floats(1e-3, 10),
    marked=st.sampled_from([None, 0.0, 0.3, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_matrix_contradicts_what_is_promised(n_q, n_k, scale, marked, seed):
    mask = None if marked is None else np.random.default_rng(seed).random((n_q, n_k)) < marked
    one = Dense.of_matrix(matrix(n_q, n_k, seed=seed, scale=scale, mask=mask))
    names = tuple(name for name in QUICK if one.kind in OF_A_MATRIX[name] and name not in ("lemma_1", "theorem_1"))
    verdicts = list(run_checks(Settings(trials=1, seed=seed), only=names, matrix=one))
    assert [v.name for v in verdicts if not v.as_expected] == []


def test_the_values_of_a_verdict_are_those_of_the_matrix():
    given = matrix(30, 30, mask=np.tri(30, dtype=bool))
    (verdict,) = run_checks(Settings(trials=2), only=("lemma_1",), matrix=given)
    hardness = hr.hardness(given.query, given.key, given.mask, scale=0.5)
    assert verdict.measured["alpha"] == pytest.approx(hardness.alpha)
    assert verdict.measured["log kappa"] == pytest.approx(hardness.log_kappa)
    assert verdict.measured["op norm of P"] == pytest.approx(hardness.op_norm)
    assert verdict.expected is None
    assert verdict.m_asked > verdict.m_used


def test_the_page_says_which_statements_speak_of_which_matrices():
    page = (Path(__file__).parents[2] / "docs" / "verifying.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([a-z, ]+) \|$", page, flags=re.MULTILINE)
    assert {name: set(kinds.split(", ")) for name, kinds in rows} == OF_A_MATRIX


def test_real_heads_and_problems_are_matrices():
    head = hr.load_sample_heads()[0]
    short = replace(head, query=head.query[:32], key=head.key[:32], value=head.value[:32])
    assert [v.family for v in run_checks(Settings(trials=1), only=("range_facts",), matrix=short)] == ["L0H3"] * 6
    problem = hr.synthetic.planted_clusters(20, 4, rng=0)
    assert Dense.of_matrix(problem).mask.any()


def test_where_more_is_asked_than_can_be_drawn_nothing_is_promised(monkeypatch):
    monkeypatch.setattr("hyperattention_ref.proofs_checks.dense.LARGEST_WORK", 12 * 10)
    verdicts = list(run_checks(Settings(trials=1), only=("lemma_1_usable", "lemma_2"), matrix=matrix()))
    assert {(v.m_used, v.expected) for v in verdicts} == {(10, None)}


def test_a_bug_in_the_sampled_product_is_seen_on_a_given_matrix(monkeypatch):
    plant(
        monkeypatch,
        lemma_2_sampled_product,
        "sampled_product",
        "x[:, sample.indices] * sample.weights",
        "x[:, sample.indices]",
    )
    verdicts = list(run_checks(Settings(trials=2), only=("lemma_2_expectation",), matrix=matrix()))
    assert any(v.verdict == FAILS and not v.as_expected for v in verdicts)


def test_statements_come_once_and_in_the_order_of_the_paper():
    seen = []
    list(
        run_checks(Settings(n=64, trials=1), only=("merge_monoid", "algorithm_1", "merge_monoid"), progress=seen.append)
    )
    assert seen == ["algorithm_1", "merge_monoid"]


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        ({"value": None}, {}, TypeError, "the matrix lacks value; it must have query, key and value"),
        ({"key": np.ones((12, 5))}, {}, ValueError, "query has d = 4 and key has d = 5"),
        ({"value": np.ones((11, 3))}, {}, ValueError, "value has 11 rows and key has 12"),
        ({"query": np.full((12, 4), np.nan)}, {}, ValueError, "query has non-finite entries"),
        ({"query": np.ones((12, 4), int)}, {}, TypeError, "query has dtype int64"),
        ({"mask": np.zeros((12, 11), bool)}, {}, ValueError, r"mask has shape \(12, 11\)"),
        ({"mask": np.zeros((12, 12))}, {}, TypeError, "mask has dtype float64"),
        ({"scale": 0.0}, {}, ValueError, "scale is 0.0; it must be positive"),
        ({"is_causal": 1}, {}, TypeError, "is_causal is 1; it must be True or False"),
        ({"is_causal": True, "query": np.ones((11, 4))}, {}, ValueError, "is_causal with 11 queries and 12 keys"),
        ({"is_causal": True, "mask": np.eye(12) > 0}, {}, ValueError, "the statements need either"),
        ({"value": np.zeros((12, 3))}, {}, ValueError, "value is zero everywhere"),
        ({"query": np.full((4097, 4), 1.0)}, {}, ValueError, "take 2 to 4096 of each: .*hyperattention measure"),
        ({"query": np.ones((1, 4))}, {}, ValueError, "the matrix has 1 queries and 12 keys"),
        (
            {"query": 1e3 * np.eye(12, 4)},
            {},
            ValueError,
            "the logits span .* up to 600 are taken: scale the queries down",
        ),
        ({}, {"only": ("lemma_9",)}, ValueError, "unknown statements: lemma_9; known: definition_1, "),
        (
            {},
            {"only": ("definition_1",)},
            ValueError,
            "definition_1 cannot be checked on a given square matrix; these ",
        ),
        ({}, {"settings": Settings(families=("flat",))}, ValueError, "families is .* beside a matrix"),
    ],
)
def test_bad_matrices_are_refused(changes, options, error, message):
    with pytest.raises(error, match=message):
        run_checks(**options, matrix=matrix(**changes))
