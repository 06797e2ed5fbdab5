"""Tensors of PyTorch on the CPU: read in place, results of the same kind, and what cannot be read refused by name."""

import warnings

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.foundation.host_arrays import host_array

torch = pytest.importorskip("torch", reason="needs PyTorch; `make models` runs it")

SIZES = {"block_size": 16, "sample_size": 16, "rng": 0}


def heads(dtype=torch.float32, lead=(2,), n=70, d=8):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*lead, n, d, generator=generator).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("backend", ["numba", "numpy", "reference"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention"])
def test_a_tensor_gives_a_tensor_with_the_bits_of_the_array(function, dtype, backend):
    tensors = heads(dtype)
    options = {"return_lse": True, "backend": backend} | (SIZES if function == "hyper_attention" else {})
    results = getattr(hr, function)(*tensors, **options)
    expected = getattr(hr, function)(*(x.numpy() for x in tensors), **options)
    for result, array in zip(results, expected, strict=True):
        assert isinstance(result, torch.Tensor)
        assert np.array_equal(result.numpy(), array)
        assert result.numpy().dtype == array.dtype
    assert results[0].dtype == (torch.float64 if backend == "reference" else dtype)


@pytest.mark.parametrize("function", ["exact_attention", "hyper_attention"])
def test_bfloat16_is_computed_in_float32_and_rounded_once(function):
    tensors = heads(torch.bfloat16)
    options = {"return_lse": True} | (SIZES if function == "hyper_attention" else {})
    out, lse = getattr(hr, function)(*tensors, **options)
    wide_out, wide_lse = getattr(hr, function)(*(x.float() for x in tensors), **options)
    assert torch.equal(out, wide_out.to(torch.bfloat16))
    assert torch.equal(lse, wide_lse)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("is_causal", [False, True])
def test_exact_attention_is_that_of_pytorch(is_causal):
    tensors = heads(torch.float64)
    ours = hr.exact_attention(*tensors, attn_mask=None, dropout_p=0.0, is_causal=is_causal)
    theirs = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=is_causal)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def test_tensors_are_read_in_place_and_never_written():
    tensors = heads()
    before = [x.clone() for x in tensors]
    for x in (*tensors, tensors[0].transpose(-1, -2).contiguous().transpose(-1, -2)):
        assert np.shares_memory(host_array("x", x), x.numpy())
    hr.hyper_attention(*tensors, **SIZES)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_views_of_every_kind_are_read_right():
    q, k, v = heads(torch.float64)
    expected = hr.exact_attention(q, k, v)
    negated = torch.complex(q, -q).conj().imag  # carries the negative bit
    expanded = [x[:1].expand(2, -1, -1) for x in (k, v)]
    assert torch.equal(hr.exact_attention(negated, k, v), expected)
    assert torch.equal(hr.exact_attention(q.mT.contiguous().mT, k, v), expected)
    one = hr.exact_attention(q[:1], k[:1], v[:1])
    assert torch.equal(hr.exact_attention(q[:1].expand(2, -1, -1), *expanded)[1:], one)


def test_a_gradient_is_not_silently_lost():
    q, k, v = (x.requires_grad_() for x in heads())
    with pytest.raises(TypeError, match=r"query .* requires a gradient.*\.detach\(\).*no_grad"):
        hr.exact_attention(q, k, v)
    with torch.no_grad():
        assert not hr.exact_attention(q, k, v).requires_grad


def test_merging_and_measures_take_tensors():
    q, k, v = heads(torch.bfloat16, lead=())
    pair = hr.exact_attention(q, k, v, return_lse=True)
    out, lse = hr.merge_attention(hr.NEUTRAL, pair)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, pair[0])
    assert isinstance(hr.hardness(q, k, rng=0).alpha, float)
    assert isinstance(hr.attention_probabilities(q, k), np.ndarray)
    assert hr.make_plan(q[None], k[None], rng=0).shape == (1,)


def jagged():
    return torch.nested.nested_tensor([torch.ones(3, 8), torch.ones(4, 8)], layout=torch.jagged)


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4, 8), 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: torch.ones(4, 8).to(torch.float8_e4m3fn), ("float8_e4m3fn", "float16, bfloat16, float32")),
        (lambda: torch.ones(4, 8, dtype=torch.int64), ("dtype int64", ".double()")),
        (lambda: torch.ones(4, 8, dtype=torch.complex64), ("dtype complex64", "must be float16")),
        (lambda: torch.ones(4, 8).to_sparse(), ("layout torch.sparse_coo", ".to_dense()")),
        (lambda: torch.ones(4, 8).to_sparse_csr(), ("layout torch.sparse_csr", ".to_dense()")),
        (lambda: torch.ones(4, 8, device="meta"), ("device meta", "no entries")),
        (jagged, ("layout nested", ".to_dense()")),
        (quantized, ("qint8", ".dequantize()")),
        (lambda: torch.ones(0, 8), ("has shape (0, 8)",)),
        (lambda: torch.full((4, 8), torch.nan), ("non-finite",)),
    ],
    ids=lambda x: None if callable(x) else x[0],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_cannot_be_read_is_refused_by_name(make, parts, position):
    tensors = [torch.ones(4, 8) for _ in range(3)]
    tensors[position] = make()
    with pytest.raises((TypeError, ValueError)) as caught:
        hr.hyper_attention(*tensors)
    message = str(caught.value)
    assert message.startswith(("query", "key", "value")[position])
    for part in parts:
        assert part in message


def test_types_that_differ_are_named_as_pytorch_names_them():
    q, k, v = heads()
    with pytest.raises(TypeError, match="query bfloat16, key float32, value float32"):
        hr.exact_attention(q.bfloat16(), k, v)


def test_under_a_transform_of_torch_func_there_is_one_clear_error():
    q = heads()[0]
    with pytest.raises(TypeError, match="query is a torch tensor"):
        torch.vmap(lambda x: hr.exact_attention(x, x, x))(q)
    with pytest.raises(TypeError, match="query is a torch tensor that requires a gradient"):
        torch.func.grad(lambda x: hr.exact_attention(x, x, x).sum())(q)
