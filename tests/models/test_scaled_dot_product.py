"""The function with PyTorch's signature: PyTorch's own where a text is short, HyperAttention where it is long."""

import inspect

import numpy as np
import pytest

import hyperattention_ref as hr


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: pip install '.[models]'")


@pytest.fixture(scope="module")
def sdpa(torch):
    return torch.nn.functional.scaled_dot_product_attention


def heads(torch, n_q=48, n_k=48, dtype="float32"):
    draw = torch.Generator().manual_seed(n_q)
    shapes = ((2, 4, n_q, 8), (2, 2, n_k, 8), (2, 2, n_k, 5))
    return [torch.randn(shape, generator=draw).to(getattr(torch, dtype)) for shape in shapes]


def test_the_signature_begins_with_pytorchs(sdpa):
    names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"]
    documented = sdpa.__doc__.split("scaled_dot_product_attention(")[1].split(")")[0]
    parameters = inspect.signature(hr.scaled_dot_hyper_attention).parameters
    assert [x.strip().split("=")[0].split(":")[0] for x in documented.split(",") if x.strip() != "*"][:8] == names
    assert list(parameters)[:8] == names
    assert all(x.kind is inspect.Parameter.KEYWORD_ONLY for x in list(parameters.values())[8:])


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_long_texts_get_hyper_attention(torch, sdpa, dtype, is_causal):
    arrays = heads(torch, dtype=dtype)
    common = {"is_causal": is_causal, "enable_gqa": True, "scale": 0.4}
    options = {"recipe": hr.Recipe(block_size=8, sample_size=4), "min_seq_len": 16, "rng": 5}
    found = hr.scaled_dot_hyper_attention(*arrays, **common, **options)
    assert found.dtype == arrays[0].dtype
    assert torch.equal(found, hr.hyper_attention(*arrays, **common, **options))
    everything = hr.Recipe(views=("local",), block_size=48, sample_size=0)
    exact = hr.scaled_dot_hyper_attention(*arrays, **common, recipe=everything, min_seq_len=16)
    tolerance = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 2e-2}[dtype]
    assert (exact - sdpa(*arrays, **common)).abs().max() < tolerance


@pytest.mark.parametrize(("n_q", "n_k"), [(48, 48), (1, 200), (200, 3)])
def test_short_sides_are_pytorchs_own_with_any_argument(torch, sdpa, n_q, n_k):
    arrays = heads(torch, n_q, n_k)
    mask = torch.rand(n_q, n_k) < 0.7
    mask[:, 0] = True
    for options in ({}, {"attn_mask": mask}, {"is_causal": True}):
        found = hr.scaled_dot_hyper_attention(*arrays, **options, enable_gqa=True, min_seq_len=48)
        assert torch.equal(found, sdpa(*arrays, **options, enable_gqa=True))


def test_what_cannot_be_honoured_is_refused(torch):
    arrays = heads(torch)
    options = {"enable_gqa": True, "min_seq_len": 16}
    with pytest.raises(TypeError, match="attn_mask is given, and no mask is supported"):
        hr.scaled_dot_hyper_attention(*arrays, torch.ones(48, 48, dtype=torch.bool), **options)
    with pytest.raises(ValueError, match=r"dropout_p is 0\.1"):
        hr.scaled_dot_hyper_attention(*arrays, dropout_p=0.1, **options)
    with pytest.raises(ValueError, match="is_causal with 48 queries and 60 keys"):
        hr.scaled_dot_hyper_attention(*heads(torch, 48, 60), is_causal=True, **options)
    with pytest.raises(TypeError, match="query is ndarray; it must be a torch tensor"):
        hr.scaled_dot_hyper_attention(*(np.ones((4, 8)) for _ in range(3)))
    with pytest.raises(ValueError, match="min_seq_len is 0"):
        hr.scaled_dot_hyper_attention(*arrays, min_seq_len=0)
