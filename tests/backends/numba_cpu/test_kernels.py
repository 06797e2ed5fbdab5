"""The compiled kernels: the exponential, other instruction sets, planted bugs."""

import types
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from hyperattention_ref.backends.conformance import check_backend, suite
from hyperattention_ref.backends.numba_cpu import backend, kernels

# --- the exponential -------------------------------------------------------------------------------------------------


@njit
def exp2_of(x, out):
    for i in range(x.size):
        out[i] = kernels.exp2(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_is_within_two_units_in_the_last_place(dtype):
    lowest = np.log2(float(np.finfo(dtype).tiny))
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(-1, 0.5, 2**20), rng.uniform(lowest, 1, 2**20), -np.logspace(-30, 2, 2**12)])
    x = np.concatenate([x, np.arange(lowest, 1), np.arange(lowest, 1) + 0.5, [0.0, -0.0]]).astype(dtype)
    out = np.empty_like(x)
    exp2_of(x, out)
    exact = np.exp2(x.astype(np.longdouble))
    units = np.abs(out - exact) / np.spacing(exact.astype(dtype)).astype(np.longdouble)
    assert units.max() <= 2
    np.testing.assert_array_equal(out[-2:], 1)


def polynomial_error(coefficients):
    """The largest relative error of the polynomial on [-1/2, 1/2], evaluated without rounding."""
    f = np.linspace(-0.5, 0.5, 4001, dtype=np.longdouble)
    return np.abs(np.polynomial.polynomial.polyval(f, coefficients) / np.exp2(f) - 1).max()


@pytest.mark.parametrize(
    ("function", "degree", "error"),
    [(kernels._exp2_float32, 6, 2.6e-9), (kernels._exp2_float64, 11, 4.3e-17)],  # with float64 coefficients
)
def test_the_polynomial_of_exp2_is_the_one_of_least_error(function, degree, error):
    """Too small an error for the units above to show; nor would they show a coefficient that is off by 1e-7."""
    constants = [x for x in function.__code__.co_consts if isinstance(x, float) and 0 < x <= 1]
    right = np.array(sorted({1.0, *constants}, reverse=True), np.longdouble)  # each is smaller than the one before
    assert len(right) == degree + 1
    assert polynomial_error(right) <= error
    for one in np.eye(degree + 1)[1:]:
        assert min(polynomial_error(right + off * one) for off in (1e-7, -1e-7)) > 1.4 * error


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_is_zero_below_the_normal_numbers(dtype):
    limits = np.finfo(dtype)
    x = np.array([np.log2(float(limits.tiny)) - 0.01, -1e30, -float(limits.max), -np.inf], dtype)
    out = np.ones_like(x)
    exp2_of(x, out)
    np.testing.assert_array_equal(out, 0)


# --- instruction sets ------------------------------------------------------------------------------------------------

INSTRUCTION_SETS = {
    "plain": {"NUMBA_CPU_NAME": "generic"},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_other_instruction_sets_conform(run_python, name, tmp_path):
    """The code paths of lesser CPUs, compiled for them and run on this one."""
    if name == "avx2" and kernels.VECTOR_BYTES < 32:
        pytest.skip("this CPU lacks AVX2, whose code it cannot run")
    script = """
        from hyperattention_ref.backends.numba_cpu import kernels
        from hyperattention_ref.backends.conformance import check_backend
        print(kernels.VECTOR_BYTES, kernels.IS_FUSED, check_backend("numba", max_examples=40).examples)
    """
    out = run_python(script, timeout=1800, NUMBA_CACHE_DIR=str(tmp_path), **INSTRUCTION_SETS[name]).stdout
    assert out.split()[:2] == (["16", "False"] if name == "plain" else ["32", "True"])
    assert int(out.split()[2]) >= 320


# --- planted bugs ----------------------------------------------------------------------------------------------------

BUGS = {
    "tile bound": (
        "dot(tile, k[key:], n, lanes)\n            if is_causal:\n                hide_future(tile.logits",
        "n = max(1, n - 1)\n            dot(tile, k[key:], n, lanes)\n            if is_causal:\n"
        "                hide_future(tile.logits",
    ),
    "causal bound": ("if rows[lane] < first_key + j:", "if rows[lane] <= first_key + j and j > 0:"),
    "missing merge": ("load_state(tile, state, rows, is_new and is_first)", "load_state(tile, state, rows, is_first)"),
    "former sums not rescaled": (
        "total[lane] = total[lane] * decay[lane] + part[lane]",
        "total[lane] = total[lane] + part[lane]",
    ),
    "sampled pair not hidden": (
        "_set_equal(row, lanes, tile.blocks[view], shared.blocks[view, start + j], hidden_logit(row))",
        "pass",
    ),
    "earlier view not hidden": (
        "_set_equal(row, lanes, tile.blocks[earlier], mask.key_blocks[earlier, key], hidden_logit(row))",
        "pass",
    ),
    "only the last keys of a block kept": ("state, rows, is_new and is_first)", "state, rows, is_new)"),
    "a draw at its cap counted as capped": ("row[lane] > caps[lane]", "row[lane] >= caps[lane]"),
    "neighbouring blocks mixed": ("groups[g, 4] > 1, True", "groups[g, 4] > 2, True"),
    "lanes of the last vector": ("return (n + 15) // 16 * 16", "return max(16, n // 16 * 16)"),
}


LAUNCH_BUGS = {"what is left of the mask not summed again": ("if lost.size:", "if False:")}


def source_of(name):
    """The file that a planted bug changes."""
    return Path((kernels if name in BUGS else backend).__file__).read_text(encoding="utf-8")


def with_bug(original, name):
    """The backend's kernels or launches with one line changed, compiled in memory."""
    right, wrong = (BUGS | LAUNCH_BUGS)[name]
    source = source_of(name)
    module = types.ModuleType(f"{original.__package__}.with_a_bug")
    module.__package__ = original.__package__
    code = source.replace(right, wrong).replace("dispatcher._cache = CompileCache(function)", "pass")
    exec(compile(code, f"{original.__name__} with the bug {name!r}", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize("name", [*BUGS, *LAUNCH_BUGS])
def test_planted_bugs_have_a_place(name):
    """The lines that they change; cheap, so that a change of the kernels that moves one is seen at once."""
    right, _ = (BUGS | LAUNCH_BUGS)[name]
    assert source_of(name).count(right) == 1, f"{right!r} must occur once"


@pytest.fixture
def no_shrinking(monkeypatch):
    """The first example that fails is enough."""
    monkeypatch.setattr(suite, "PHASES", ("generate",))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name, monkeypatch, no_shrinking):
    module = with_bug(kernels, name)
    monkeypatch.setattr(backend, "_kernels", lambda: module)
    with pytest.raises(AssertionError, match="backend 'numba' fails"):
        check_backend("numba")


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCH_BUGS)
def test_planted_bugs_in_the_launches_are_caught(name, no_shrinking):
    with pytest.raises(AssertionError, match="backend 'numba' fails"):
        check_backend(with_bug(backend, name).NumbaCPU())
