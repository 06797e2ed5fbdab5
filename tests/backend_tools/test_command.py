"""`hyperattention backends`, `warmup` and `check-backend`."""

import sys

import pytest
from typer.testing import CliRunner

import hyperattention_ref as hr
from hyperattention_ref import cli
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.backends.numba_cpu import NumbaCPU, warmup


class Wrong(BlockedNumpy):
    """A backend that is a hundredth off."""

    name = "wrong"

    def exact_attention(self, q, k, v, *, scale, is_causal):
        out, lse = super().exact_attention(q, k, v, scale=scale, is_causal=is_causal)
        return out * out.dtype.type(1.01), lse


class Needy(BlockedNumpy):
    def __init__(self, device):
        pass


def invoke(*arguments):
    return CliRunner().invoke(cli.app(), list(map(str, arguments)), env={"COLUMNS": None})


def test_backends_lists_every_backend_and_the_reason_of_each_absentee(monkeypatch):
    status = {"numpy": None, "[gpu]": "needs [cupy] :eye:, which is not installed"}
    monkeypatch.setattr(hr, "backend_status", lambda: status)
    result = invoke("backends")
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "numpy  can run here",
        "[gpu]  cannot run here: needs [cupy] :eye:, which is not installed",
    ]


def test_warmup_shows_each_step_and_where_the_code_is(monkeypatch):
    monkeypatch.setattr(
        warmup, "warm_up", lambda: iter([("hash_codes, float32", 8.07), ("capped_sums, float64", 0.01)])
    )
    result = invoke("warmup")
    assert result.exit_code == 0, result.output
    first, second, last = result.output.splitlines()
    assert (first, second) == ("hash_codes, float32: 8.1 s", "capped_sums, float64: 0.0 s")
    assert last.startswith("ready after 0 s; the compiled code is kept in /")


def test_warmup_says_why_numba_cannot_run(monkeypatch):
    monkeypatch.setattr(NumbaCPU, "unavailable", lambda self: "compiling is switched off")
    result = invoke("warmup")
    assert result.exit_code == 2
    assert "backend 'numba' cannot run here: compiling is switched off" in result.stderr


def test_a_backend_that_passes_gets_its_figures():
    result = invoke("check-backend", "numpy", "--examples", 5, "--seed", 3)
    assert result.exit_code == 0, result.output
    assert "backend 'numpy' passed 40 examples in " in result.stdout
    assert "operations: hash_codes, capped_sums, exact_attention, planned_attention, attention_s" in result.stdout
    assert "of what rounding allows" in result.stdout
    assert "40  hash_codes" in result.stderr  # the progress
    assert "hash_codes" not in result.stdout.splitlines()[0]


def test_a_violation_is_exit_code_1_with_the_smallest_example(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_backend", sys.modules[__name__])
    result = invoke("check-backend", "own_backend:Wrong", "--examples", 20)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    last = result.stderr.splitlines()[-1]
    assert last.startswith("hyperattention: backend 'wrong' fails exact_attention: out[")
    assert "exceeds" in last
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nobody"], "backend 'nobody' is unknown; known here: reference, numpy, numba"),
        (["numpy", "--examples", "0"], "examples is 0; it must be at least 1"),
        (["numpy", "--seed", "-1"], "seed is -1; it must be at least 0"),
        (["no_such_module:Backend"], "no_such_module:Backend gives no backend (ModuleNotFoundError: "),
        (["own_backend:Nothing"], "own_backend:Nothing gives no backend (AttributeError: "),
        (["own_backend:Needy"], "own_backend:Needy gives no backend (TypeError: "),
        (["own backend:"], "own backend: gives no backend ("),
        (["collections:OrderedDict"], "backend is OrderedDict(); it must be None, a name or an object"),
    ],
)
def test_bad_arguments_are_one_line(monkeypatch, arguments, words):
    monkeypatch.setitem(sys.modules, "own_backend", sys.modules[__name__])
    result = invoke("check-backend", *arguments)
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith(f"hyperattention: {words}")


def test_without_hypothesis_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "hyperattention_ref.backends.conformance", None)
    result = invoke("check-backend", "numpy")
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
