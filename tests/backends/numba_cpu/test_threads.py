"""The threads of the numba backend: pieces of work, the pool, and the same bits for every number of threads."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.backends.conformance import attention_inputs, check_backend
from hyperattention_ref.backends.conformance.strategies import gradient_inputs, sums_inputs, transposed_inputs
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
@given(
    st.one_of(attention_inputs(), attention_inputs(planned=True), gradient_inputs(), sums_inputs(), transposed_inputs())
)
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
    assert run_python(ask, NUMBA_NUM_THREADS="1").stdout.strip() == "1"
    assert run_python(f"import numba; numba.set_num_threads(1)\n{ask}").stdout.strip() == "1"
    if hasattr(os, "sched_setaffinity"):
        one_core = f"import os; os.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\n{ask}"
        assert run_python(one_core).stdout.strip() == "1"


def test_an_error_in_a_piece_stops_the_call_and_is_raised(monkeypatch):
    monkeypatch.setattr(threads, "n_threads", lambda: 2)
    done = []

    def kernel(piece):
        if piece == 3:
            raise ValueError("piece 3")
        done.append(piece)

    with pytest.raises(ValueError, match="piece 3"):
        threads.run(kernel, [(piece,) for piece in range(1000)])
    assert len(done) < 1000
    threads.run(kernel, [(piece,) for piece in range(4, 8)])  # and the helpers are as good as new
    assert set(done[-4:]) == {4, 5, 6, 7}


def test_without_helpers_a_call_finishes_alone(monkeypatch):
    def no_thread(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "n_threads", lambda: 7)  # a pool of its own
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    done = []
    threads.run(done.append, [(piece,) for piece in range(9)])
    assert done == list(range(9))


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize(
    "late", ["atexit.register(call)", "threading.Thread(target=lambda: (gate.wait(), call())).start()"]
)
def test_it_computes_after_the_main_thread_has_ended(run_python, late, is_warm):
    script = f"""
        import atexit, threading, numpy as np, hyperattention_ref as hr
        from hyperattention_ref.backends.numba_cpu import threads
        threads.n_threads = lambda: 2
        q = np.ones((700, 4), np.float32)
        gate = threading.Event()
        def call():
            print(hr.exact_attention(q, q, q).sum())
        {"hr.exact_attention(q, q, q)" if is_warm else ""}
        {late}
        threading._register_atexit(gate.set)  # once the main thread has ended
    """
    assert run_python(script).stdout.strip() == "2800.0"


FORKS = """
    import os, signal, threading, time
    import numpy as np
    import hyperattention_ref as hr
    from hyperattention_ref.backends.numba_cpu import threads
    threads.n_threads = lambda: 2
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 600, 16), dtype=np.float32)

    def work():
        out = hr.hyper_attention(q, k, v, block_size=64, sample_size=32, rng=0)
        return out.tobytes(), hr.hardness(q, k, rng=0, op_norm=False).alpha.tobytes()

    def load():
        while not ended.is_set():
            work()

    expected, ended = work(), threading.Event()
    loaders = [threading.Thread(target=load) for _ in range(4)]
    for loader in loaders:
        loader.start()
    for _ in range(N_FORKS):
        time.sleep(0.01)
        child = os.fork()
        if not child:
            signal.alarm(60)
            os._exit(work() != expected)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    ended.set()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("forks", [8, pytest.param(120, marks=pytest.mark.slow)])
def test_a_child_that_is_forked_while_other_threads_compute_does_not_hang(run_python, forks):
    script = FORKS.replace("N_FORKS", str(forks))
    assert run_python(script).stdout.split() == ["0"] * forks


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_that_is_forked_while_another_thread_compiles_does_not_hang(run_python, tmp_path):
    script = """
        import os, signal, threading, time
        import numpy as np
        from hyperattention_ref.backends.numba_cpu import backend, kernels
        from numba.core.compiler_lock import global_compiler_lock
        q = np.ones((300, 4), np.float32)

        def work():
            return backend.NumbaCPU().exact_attention(q, q, q, scale=1.0, is_causal=False)

        compiling = threading.Thread(target=work)
        compiling.start()
        while global_compiler_lock._lock.acquire(blocking=False):
            global_compiler_lock._lock.release()
            time.sleep(0.001)
        child = os.fork()
        if not child:
            signal.alarm(120)
            os._exit(int(work()[0][0, 0]) - 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert run_python(script, NUMBA_CACHE_DIR=str(tmp_path)).stdout.strip() == "0"


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
    assert run_python(script).stdout.strip() == "1"


def test_a_race_is_caught(monkeypatch):
    """Pieces that share a tile: it reads the state of a query that another piece has finished already."""
    right = threads.pieces

    def overlapping(n, **options):
        return [(max(0, first - 1), stop) for first, stop in right(n, **options)]

    monkeypatch.setattr(backend, "pieces", overlapping)
    with pytest.raises(AssertionError, match="backend 'numba' fails"):
        check_backend("numba")
