"""The Numba backend beyond the conformance suite: threads, instruction sets, the exponential, planted bugs."""

import os
import subprocess
import sys
import textwrap
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance import attention_inputs, check_backend
from hyperattention_ref.backends.conformance.strategies import sums_inputs, transposed_inputs
from hyperattention_ref.backends.numba_cpu import backend, kernels
from hyperattention_ref.backends.numba_cpu.backend import NumbaCPU

NUMBA = NumbaCPU()


def run_python(script, **environment):
    """Run a script in a process of its own; return its output."""
    code = textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def heads(n=700, d=24, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal((3, n, d)).astype(dtype)


def test_default_for_numpy_arrays_is_numba():
    assert hr.backends.select(None, np.zeros((2, 2))).name == "numba"


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


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exp2_is_zero_below_the_normal_numbers(dtype):
    limits = np.finfo(dtype)
    x = np.array([np.log2(float(limits.tiny)) - 0.01, -1e30, -float(limits.max), -np.inf], dtype)
    out = np.ones_like(x)
    exp2_of(x, out)
    np.testing.assert_array_equal(out, 0)


# --- threads ---------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 5000), threads=st.integers(1, 9), at_most=st.sampled_from([None, 512]))
def test_pieces_are_a_partition(n, threads, at_most):
    """Two pieces that overlap would be two threads that write one row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "n_threads", lambda: threads)
        pieces = backend._pieces(n, at_most=at_most)
    covered = np.concatenate([np.arange(*piece) for piece in pieces])
    np.testing.assert_array_equal(covered, np.arange(n))


def on_threads(threads, example):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "n_threads", lambda: threads)
        return example.call(NUMBA)


@settings(max_examples=60)
@given(st.one_of(attention_inputs(), attention_inputs(planned=True), sums_inputs(), transposed_inputs()))
def test_bits_do_not_depend_on_the_number_of_threads(example):
    alone = on_threads(1, example)
    for threads in (2, 5):
        for name, x in on_threads(threads, example).items():
            np.testing.assert_array_equal(x, alone[name])


def test_pieces_are_spread_over_threads(monkeypatch):
    seen = set()
    monkeypatch.setattr(backend, "n_threads", lambda: 3)
    barrier = threading.Barrier(3, timeout=60)

    def kernel(piece):
        barrier.wait()  # passes only if three pieces run at a time
        seen.add(threading.get_ident())

    backend._run(kernel, [(piece,) for piece in range(3)])
    assert len(seen) == 3


def test_calls_from_several_threads_at_a_time():
    q, k, v = heads()
    plan = hr.make_plan(q, k, block_size=64, sample_size=32, rng=0)
    expected = hr.hyper_attention(q, k, v, plan=plan)
    results = [None] * 6

    def call(i):
        results[i] = hr.hyper_attention(q, k, v, plan=plan)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    for result in results:
        np.testing.assert_array_equal(result, expected)


def test_threads_respect_the_setting_and_the_affinity():
    ask = "from hyperattention_ref.backends.numba_cpu.backend import n_threads; print(n_threads())"
    assert run_python(ask, NUMBA_NUM_THREADS="1").strip() == "1"
    assert run_python(f"import numba; numba.set_num_threads(1)\n{ask}").strip() == "1"
    if hasattr(os, "sched_setaffinity"):
        one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n{ask}"
        assert run_python(one_core).strip() == "1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_threads_of_its_own():
    """A pool that was started before the fork has no threads in the child: a call that used it would hang."""
    script = """
        import os, numpy as np
        from hyperattention_ref.backends.numba_cpu import backend
        backend.n_threads = lambda: 2
        q = np.ones((300, 4), np.float32)
        backend.NumbaCPU().exact_attention(q, q, q, scale=1.0, is_causal=False)
        child = os.fork()
        if not child:
            out, _ = backend.NumbaCPU().exact_attention(q, q, q, scale=1.0, is_causal=False)
            os._exit(int(out[0, 0]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_python(script).strip() == "1"


# --- arrays ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "d_v"), [(1, 1), (1, 130), (256, 3), (96, 96), (200, 256)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_every_head_dimension(d, d_v, is_causal):
    rng = np.random.default_rng(d)
    q, k = rng.standard_normal((2, 150, d), dtype=np.float32)
    v = rng.standard_normal((150, d_v), dtype=np.float32)
    plan = hr.make_plan(q, k, is_causal=is_causal, block_size=30, sample_size=20, min_seq_len=40, rng=0)
    for name, call in {
        "planned": lambda backend: hr.hyper_attention(q, k, v, plan=plan, is_causal=is_causal, backend=backend),
        "exact": lambda backend: hr.exact_attention(q, k, v, is_causal=is_causal, backend=backend),
    }.items():
        assert np.abs(call("numba") - call("reference")).max() <= 2e-5, name


def test_grouped_heads_and_read_only_arrays_are_not_copied():
    """Of read-only arrays kernels get the same memory; nothing is compiled anew for them."""
    _, k, v = heads(n=100)
    v.setflags(write=False)
    seen = backend._plain(v, np.dtype(np.float32))
    assert np.shares_memory(seen, v)
    assert seen.flags.writeable
    shared = np.broadcast_to(k, (4, *k.shape))
    assert np.shares_memory(backend._plain(shared[1], np.dtype(np.float32)), k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_up_to_the_limit_of_the_door(dtype, sign):
    """Hidden logits and those of an empty state lie below every logit that the door lets pass."""
    top = float(np.finfo(dtype).max) / 4.1
    q, k = np.full((3, 1), sign, dtype), np.array([[top], [top / 2]], dtype)
    v = np.array([[1.0], [2.0]], dtype)
    out, lse = hr.exact_attention(q, k, v, scale=1.0, return_lse=True)
    np.testing.assert_array_equal(out, 1 if sign > 0 else 2)
    np.testing.assert_allclose(lse, top if sign > 0 else -top / 2, rtol=1e-6)


# --- compilation -----------------------------------------------------------------------------------------------------


def test_unwritable_cache_is_refused_with_the_remedy():
    script = """
        import numpy as np, hyperattention_ref as hr
        try:
            hr.exact_attention(*np.zeros((3, 2, 2)))
        except ValueError as error:
            print(error)
        print(hr.exact_attention(*np.zeros((3, 2, 2)), backend="numpy").sum())
    """
    where = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": os.devnull + "/cache"}
    out = run_python(script, **where)
    assert "'numba' cannot run here" in out
    assert "set NUMBA_CACHE_DIR to a folder that can be written" in out
    assert out.endswith("0.0\n")


def test_import_is_lazy():
    assert "False" in run_python("import hyperattention_ref, sys; print('numba' in sys.modules)")


INSTRUCTION_SETS = {
    "plain": {"NUMBA_CPU_NAME": "generic"},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_other_instruction_sets_conform(name, tmp_path):
    """The code paths of lesser CPUs, compiled for them and run on this one."""
    if name == "avx2" and kernels.VECTOR_BYTES < 32:
        pytest.skip("this CPU lacks AVX2, whose code it cannot run")
    script = """
        from hyperattention_ref.backends.numba_cpu import kernels
        from hyperattention_ref.backends.conformance import check_backend
        print(kernels.VECTOR_BYTES, kernels.IS_FUSED, check_backend("numba").examples)
    """
    out = run_python(script, NUMBA_CACHE_DIR=str(tmp_path), **INSTRUCTION_SETS[name])
    assert out.split()[:2] == (["16", "False"] if name == "plain" else ["32", "True"])
    assert int(out.split()[2]) >= 600


# --- planted bugs ----------------------------------------------------------------------------------------------------

BUGS = {
    "tile bound": (
        "dot(tile, k[key:], n, lanes)\n            if is_causal:\n                hide_future(tile.logits",
        "n = max(1, n - 1)\n            dot(tile, k[key:], n, lanes)\n            if is_causal:\n"
        "                hide_future(tile.logits",
    ),
    "causal bound": ("if rows[lane] < first_key + j:", "if rows[lane] <= first_key + j and j > 0:"),
    "missing merge": ("take_up(tile, state, rows, is_new and is_first)", "take_up(tile, state, rows, is_first)"),
    "former sums not rescaled": (
        "total[lane] = total[lane] * decay[lane] + part[lane]",
        "total[lane] = total[lane] + part[lane]",
    ),
    "sampled pair not hidden": (
        "_set_equal(row, lanes, tile.blocks[view], shared.blocks[view, start + j], hidden(row))",
        "pass",
    ),
    "earlier view not hidden": (
        "_set_equal(row, lanes, tile.blocks[earlier], mask.key_blocks[earlier, key], hidden(row))",
        "pass",
    ),
    "neighbouring blocks mixed": ("groups[g, 4] > 1", "groups[g, 4] > 2"),
    "lanes of the last vector": ("return (n + 15) // 16 * 16", "return max(16, n // 16 * 16)"),
}


def with_bug(name):
    """The backend's kernels with one line changed, compiled in memory."""
    right, wrong = BUGS[name]
    source = Path(kernels.__file__).read_text(encoding="utf-8")
    assert source.count(right) == 1, f"{right!r} must occur once"
    module = types.ModuleType("kernels_with_a_bug")
    code = source.replace(right, wrong).replace("cache=True", "cache=False")
    exec(compile(code, f"kernels with the bug {name!r}", "exec"), module.__dict__)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_planted_bugs_are_caught(name, monkeypatch):
    module = with_bug(name)
    monkeypatch.setattr(backend, "_kernels", lambda: module)
    with pytest.raises(AssertionError, match="backend 'numba' fails"):
        check_backend("numba")


def test_a_race_is_caught(monkeypatch):
    """Pieces that share a tile: its queries take up their state after another piece has already finished it."""
    right = backend._pieces

    def overlapping(n, **options):
        return [(max(0, first - 1), stop) for first, stop in right(n, **options)]

    monkeypatch.setattr(backend, "_pieces", overlapping)
    with pytest.raises(AssertionError, match="backend 'numba' fails"):
        check_backend("numba")
