"""The numba backend beyond the conformance suite: head dimensions, arrays, limits, compilation."""

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.backends.numba_cpu import backend

NUMBA = backend.NumbaCPU()


def test_default_for_numpy_arrays_is_numba():
    assert hr.backends.select(None, np.zeros((2, 2))).name == "numba"


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
    """Kernels get the memory of read-only arrays, and are not compiled again for them."""
    k, v = np.random.default_rng(0).standard_normal((2, 3, 100, 24), dtype=np.float32)
    v.setflags(write=False)
    seen = backend._plain(v, np.dtype(np.float32))
    assert np.shares_memory(seen, v)
    assert seen.flags.writeable
    shared = np.broadcast_to(k, (4, *k.shape))
    assert np.shares_memory(backend._plain(shared[1], np.dtype(np.float32)), k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_up_to_the_limit_of_the_input_checks(dtype, sign):
    """Hidden logits and those of an empty state lie below every logit that the input checks admit."""
    top = float(np.finfo(dtype).max) / 4.1
    q, k = np.full((3, 1), sign, dtype), np.array([[top], [top / 2]], dtype)
    v = np.array([[1.0], [2.0]], dtype)
    out, lse = hr.exact_attention(q, k, v, scale=1.0, return_lse=True)
    np.testing.assert_array_equal(out, 1 if sign > 0 else 2)
    np.testing.assert_allclose(lse, top if sign > 0 else -top / 2, rtol=1e-6)


def test_the_transposed_product_makes_up_for_the_rounding_of_the_log_sum_exp():
    """Logits of 721 and 720 in base 2, exact in float32; their log-sum-exp is not, by up to 3e-5."""
    q, k, y = np.ones((8, 1), np.float32), np.array([[721.0], [720.0]], np.float32), np.ones((8, 1), np.float32)
    lse = np.full(8, np.log(2) * (721 + np.log2(1.5)))
    product = NUMBA.transposed_attention(q, k, y, lse, scale=np.log(2), is_causal=False)
    np.testing.assert_allclose(product[:, 0], [8 * 2 / 3, 8 / 3], rtol=8 * np.finfo(np.float32).eps)


def test_without_compilation_the_backend_says_that_it_cannot_run(run_python):
    script = """
        import numpy as np, hyperattention_ref as hr
        print(hr.backend_status()["numba"])
        try:
            hr.exact_attention(*np.zeros((3, 2, 2)))
        except ValueError as error:
            print(error)
    """
    status, error = run_python(script, NUMBA_DISABLE_JIT="1").stdout.splitlines()
    assert status == "NUMBA_DISABLE_JIT is set, and its kernels exist only compiled; unset it"
    assert status in error
    assert "available: reference, numpy" in error


def test_import_is_lazy(run_python):
    assert "False" in run_python("import hyperattention_ref, sys; print('numba' in sys.modules)").stdout
