"""The threads of the numba backend: pieces of work, the pool, and the same bits for every number of threads."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance import attention_inputs, check_backend
from hyperattention_ref.backends.conformance.strategies import sums_inputs, transposed_inputs
from hyperattention_ref.backends.numba_cpu import backend, threads
from hyperattention_ref.backends.numba_cpu.backend import NumbaCPU

NUMBA = NumbaCPU()


@given(n=st.integers(1, 5000), count=st.integers(1, 9), at_most=st.sampled_from([None, 512]))
def test_pieces_are_a_partition(n, count, at_most):
    """Two pieces that overlap would be two threads that write one row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "n_threads", lambda: count)
        pieces = threads.pieces(n, at_most=at_most)
    covered = np.concatenate([np.arange(*piece) for piece in pieces])
    np.testing.assert_array_equal(covered, np.arange(n))


def on_threads(count, example):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "n_threads", lambda: count)
        return example.call(NUMBA)


@settings(max_examples=60)
@given(st.one_of(attention_inputs(), attention_inputs(planned=True), sums_inputs(), transposed_inputs()))
def test_bits_do_not_depend_on_the_number_of_threads(example):
    alone = on_threads(1, example)
    for count in (2, 5):
        for name, x in on_threads(count, example).items():
            np.testing.assert_array_equal(x, alone[name])


def test_pieces_are_spread_over_threads(monkeypatch):
    seen = set()
    monkeypatch.setattr(threads, "n_threads", lambda: 3)
    barrier = threading.Barrier(3, timeout=60)

    def kernel(piece):
        barrier.wait()  # passes only if three pieces run at a time
        seen.add(threading.get_ident())

    threads.run(kernel, [(piece,) for piece in range(3)])
    assert len(seen) == 3


def test_calls_from_several_threads_at_a_time():
    q, k, v = np.random.default_rng(0).standard_normal((3, 700, 24), dtype=np.float32)
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


def test_threads_respect_the_setting_and_the_affinity(run_python):
    ask = "from hyperattention_ref.backends.numba_cpu.threads import n_threads; print(n_threads())"
    assert run_python(ask, NUMBA_NUM_THREADS="1").strip() == "1"
    assert run_python(f"import numba; numba.set_num_threads(1)\n{ask}").strip() == "1"
    if hasattr(os, "sched_setaffinity"):
        one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n{ask}"
        assert run_python(one_core).strip() == "1"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_gets_threads_of_its_own(run_python):
    """A pool that was started before the fork has no threads in the child: a call that used it would hang."""
    script = """
        import os, numpy as np
        from hyperattention_ref.backends.numba_cpu import backend, threads
        threads.n_threads = lambda: 2
        q = np.ones((300, 4), np.float32)
        backend.NumbaCPU().exact_attention(q, q, q, scale=1.0, is_causal=False)
        child = os.fork()
        if not child:
            out, _ = backend.NumbaCPU().exact_attention(q, q, q, scale=1.0, is_causal=False)
            os._exit(int(out[0, 0]))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_python(script).strip() == "1"


def test_a_race_is_caught(monkeypatch):
    """Pieces that share a tile: it reads the state of a query that another piece has finished already."""
    right = threads.pieces

    def overlapping(n, **options):
        return [(max(0, first - 1), stop) for first, stop in right(n, **options)]

    monkeypatch.setattr(backend, "pieces", overlapping)
    with pytest.raises(AssertionError, match="backend 'numba' fails"):
        check_backend("numba")
