"""A replaced model computes what it did where all pairs are exact, and says what it did not replace.

torch and transformers belong to no default install; where they are missing these tests skip.
"""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hyperattention_ref as hr
from hyperattention_ref.models.replacement import NAME, Outcome, Replacement, chosen_layers

from ..tiny_models import STYLES, build, cache_name, text_inputs

EXACT = hr.Recipe(views=("random",), block_size=10**6, sample_size=0)
"""All pairs of every rectangle are in one block."""
SMALL = hr.Recipe(block_size=4, sample_size=4, lsh_bits=3)
"""The paper's, of so few keys that it is wrong on short texts."""
CAUSAL = [style for style in STYLES if style not in ("Bert", "Roberta")]


@pytest.fixture(scope="module")
def torch(transformers):
    return pytest.importorskip("torch")


def batch(torch, lengths, side):
    """Token ids of several texts, padded on one side, and their mask."""
    n = max(lengths)
    ids = torch.randint(2, 50, (len(lengths), n), generator=torch.Generator().manual_seed(n))
    places = torch.arange(n)
    valid = [places >= n - length if side == "left" else places < length for length in lengths]
    return {"input_ids": ids, "attention_mask": torch.stack(valid).long()}


def hidden(torch, model, encoded):
    with torch.no_grad():
        return model(**encoded)[0]


def differences(torch, model, encoded, **options):
    """Largest difference to the model's own outputs at tokens that are no padding, and the report."""
    expected = hidden(torch, model, encoded)
    with hr.replacing(model, recipe=EXACT, **options) as report:
        found = hidden(torch, model, encoded)
    valid = encoded["attention_mask"].bool()
    assert torch.isfinite(found).all()
    return (found - expected)[valid].abs().max().item(), report


@pytest.mark.parametrize("style", [*STYLES, "Qwen3"])
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 33), min_size=1, max_size=3),
    side=st.sampled_from(["left", "right"]),
    min_seq_len=st.integers(1, 9),
)
def test_where_all_pairs_are_exact_outputs_are_the_models_own(transformers, torch, style, lengths, side, min_seq_len):
    model = build(transformers, style)
    difference, report = differences(torch, model, batch(torch, lengths, side), min_seq_len=min_seq_len)
    assert difference < 1e-4
    assert report.replaced == (2 if max(lengths) > min_seq_len else 0)
    assert sum(report.exact.values()) == 2 - report.replaced


def test_logits_of_a_causal_language_model_stay(transformers, torch):
    for style, kind in [("GPT2", "LMHeadModel"), *((style, "ForCausalLM") for style in ("Llama", "Mistral", "Qwen2"))]:
        model = build(transformers, style, kind)
        difference, report = differences(torch, model, batch(torch, (29, 40), "left"), min_seq_len=4)
        assert difference < 1e-4
        assert report.replaced == 2


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("style", CAUSAL)
def test_generation_replaces_the_prefill_and_keeps_the_steps_exact(transformers, torch, style, cache):
    model = build(transformers, style, "LMHeadModel" if style == "GPT2" else "ForCausalLM")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    options |= {"pad_token_id": 0}
    encoded = batch(torch, (30, 30), "left")
    expected = model.generate(**encoded, **options)
    with hr.replacing(model, recipe=EXACT, min_seq_len=4) as report:
        found = model.generate(**encoded, **options)
    assert torch.equal(found, expected)
    calls = {Outcome.REPLACED: 1, Outcome.KEYS_OF_A_CACHE: 5}
    assert report.layers == {0: calls, 1: calls}
    assert str(report) == "layers 0, 1: 5 other numbers of queries and keys, 1 replaced"


def test_padded_texts_are_generated_from_as_by_the_model_itself(transformers, torch):
    model = build(transformers, "Llama", "ForCausalLM")
    encoded = batch(torch, (21, 30), "left")
    expected = model.generate(**encoded, max_new_tokens=5, do_sample=False)
    with hr.replacing(model, recipe=EXACT, min_seq_len=4):
        assert torch.equal(model.generate(**encoded, max_new_tokens=5, do_sample=False), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_text_does_not_depend_on_its_batch(transformers, torch, side):
    model, lengths = build(transformers, "Llama"), (40, 23, 31)
    encoded = batch(torch, lengths, side)
    # Rotary positions, by default those in the padded text, turn queries and keys, and so change their hashes.
    encoded["position_ids"] = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
    with hr.replacing(model, recipe=SMALL, min_seq_len=4):
        together = hidden(torch, model, encoded)
        for i, length in enumerate(lengths):
            valid = slice(40 - length, None) if side == "left" else slice(length)
            alone = hidden(torch, model, {"input_ids": encoded["input_ids"][i : i + 1, valid]})
            np.testing.assert_allclose(together[i, valid], alone[0], rtol=0, atol=1e-4)


def test_the_seed_decides_and_a_layer_draws_alone(transformers, torch):
    model, encoded = build(transformers, "Llama"), text_inputs(torch, 48)

    def run(**options):
        with hr.replacing(model, recipe=SMALL, min_seq_len=4, **options):
            return hidden(torch, model, encoded), hidden(torch, model, encoded)

    first, again = run(rng=3)
    assert torch.equal(first, again)
    assert torch.equal(run(rng=np.random.default_rng(3))[0], first)
    assert not torch.equal(run(rng=4)[0], first)
    drawn = Replacement.by_recipe(SMALL, 4, 3).attention
    x = torch.randn(3, 4, 48, 6)
    options = {"is_causal": True, "scale": None}
    one, other = (drawn(*x, layer=layer, **options) for layer in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(one, drawn(*x, layer=0, **options))


def test_chosen_layers_are_replaced_and_no_others(transformers, torch):
    model, encoded = build(transformers, "Llama", num_hidden_layers=4), text_inputs(torch, 20)
    for layers, chosen in [
        ("all", {0, 1, 2, 3}),
        ("last:1", {3}),
        ("last:3", {1, 2, 3}),
        ([2, 0, 2], {0, 2}),
        (range(1, 3), {1, 2}),
        (lambda layer: layer % 2, {1, 3}),
    ]:
        assert chosen_layers(model, layers) == chosen
        with hr.replacing(model, layers=layers, recipe=EXACT, min_seq_len=4) as report:
            hidden(torch, model, encoded)
        assert {layer for layer, calls in report.layers.items() if calls[Outcome.REPLACED]} == chosen
        assert report.exact == ({Outcome.NOT_CHOSEN: 4 - len(chosen)} if len(chosen) < 4 else {})


def test_a_trained_encoder_gives_its_own_outputs(transformers, torch, minilm_folder):
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    ids = torch.from_numpy(hr.load_sample_heads()[0].token_ids.astype(np.int64))
    encoded = {"input_ids": torch.stack([ids, ids.flip(0)]), "attention_mask": torch.ones(2, 512, dtype=torch.long)}
    encoded["attention_mask"][1, 300:] = 0
    difference, report = differences(torch, model, encoded, layers="last:4", min_seq_len=128)
    assert difference < 1e-4
    assert (report.replaced, report.exact) == (4, {Outcome.NOT_CHOSEN: 2})


# What stays exact


def test_short_texts_stay_exact(transformers, torch):
    model = build(transformers, "Llama")
    difference, report = differences(torch, model, batch(torch, (20, 20), "left"), min_seq_len=20)
    assert (difference, report.exact) == (0, {Outcome.SHORT: 2})
    difference, report = differences(torch, model, batch(torch, (9, 20), "left"), min_seq_len=19)
    assert report.replaced == 2


@pytest.mark.parametrize(("n", "outcome"), [(17, Outcome.SLIDING_WINDOW), (7, Outcome.REPLACED)])
def test_a_sliding_window_stays_exact_where_it_is_shorter_than_the_text(transformers, torch, n, outcome):
    model = build(transformers, "Mistral", sliding_window=8)
    difference, report = differences(torch, model, batch(torch, (n,), "left"), min_seq_len=4)
    assert difference < 1e-4
    assert report.layers == {0: {outcome: 1}, 1: {outcome: 1}}


def test_layers_of_one_model_may_differ_in_their_windows(transformers, torch):
    types = ["sliding_attention", "full_attention"]
    model = build(transformers, "Qwen3", sliding_window=8, use_sliding_window=True, layer_types=types)
    difference, report = differences(torch, model, batch(torch, (30,), "left"), min_seq_len=4)
    assert difference < 1e-4
    assert report.layers == {0: {Outcome.SLIDING_WINDOW: 1}, 1: {Outcome.REPLACED: 1}}


def test_masks_of_another_kind_stay_exact(transformers, torch):
    model, n = build(transformers, "Llama"), 17
    packed = torch.ones(n, n, dtype=torch.bool).tril()
    packed[9:, :9] = False
    for mask in (packed, torch.zeros(n, n).masked_fill(~packed, -1e9)):
        encoded = {"input_ids": text_inputs(torch, n)["input_ids"], "attention_mask": mask[None, None]}
        expected = hidden(torch, model, encoded)
        with hr.replacing(model, recipe=EXACT, min_seq_len=4) as report:
            found = hidden(torch, model, encoded)
        assert torch.equal(found, expected)
        assert report.exact == {Outcome.OTHER_MASK: 2}


def test_a_second_piece_of_a_prefill_stays_exact(transformers, torch):
    model, ids = build(transformers, "Llama"), text_inputs(torch, 30)["input_ids"]
    expected = hidden(torch, model, {"input_ids": ids})
    with hr.replacing(model, recipe=EXACT, min_seq_len=4) as report, torch.no_grad():
        name = cache_name(model)
        cache = model(input_ids=ids[:, :20], use_cache=True)[name]
        second = model(input_ids=ids[:, 20:], **{name: cache})[0]
    np.testing.assert_allclose(second, expected[:, 20:], rtol=0, atol=1e-4)
    assert report.layers[0] == {Outcome.REPLACED: 1, Outcome.KEYS_OF_A_CACHE: 1}


# The model afterwards


@pytest.mark.parametrize("before", ["eager", "sdpa"])
def test_the_model_is_restored_after_success_and_after_failure(transformers, torch, before):
    model, encoded = build(transformers, "Llama"), text_inputs(torch)
    model.set_attn_implementation(before)
    expected = hidden(torch, model, encoded)
    with hr.replacing(model, recipe=SMALL, min_seq_len=4):
        hidden(torch, model, encoded)
    assert model.config._attn_implementation == before
    with pytest.raises(ZeroDivisionError), hr.replacing(model):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == before
    assert torch.equal(hidden(torch, model, encoded), expected)


def test_blocks_of_two_models_and_of_one_keep_their_own_settings(transformers, torch):
    one, two, encoded = build(transformers, "Llama"), build(transformers, "Qwen2"), text_inputs(torch, 20)
    with (
        hr.replacing(one, recipe=EXACT, min_seq_len=4) as outer,
        hr.replacing(two, layers=[1], recipe=EXACT, min_seq_len=4) as other,
    ):
        hidden(torch, one, encoded)
        hidden(torch, two, encoded)
        assert (outer.replaced, other.replaced) == (2, 1)
        with hr.replacing(one, layers=[0], recipe=EXACT, min_seq_len=4) as inner:
            hidden(torch, one, encoded)
        assert (outer.replaced, inner.replaced) == (2, 1)
        hidden(torch, one, encoded)
        assert (outer.replaced, inner.replaced, other.replaced) == (4, 1, 1)


# By name


def test_a_model_takes_the_registered_attention_by_name(transformers, torch):
    report = hr.register_attention(recipe=EXACT, min_seq_len=4)
    model = build(transformers, "Llama")
    encoded = batch(torch, (30, 19), "right")
    expected = hidden(torch, model, encoded)
    named = transformers.LlamaModel._from_config(model.config, attn_implementation=NAME).eval()
    named.load_state_dict(model.state_dict())
    found = hidden(torch, named, encoded)
    valid = encoded["attention_mask"].bool()
    assert (found - expected)[valid].abs().max() < 1e-4
    assert report.layers == {0: {Outcome.REPLACED: 1}, 1: {Outcome.REPLACED: 1}}
    later = hr.register_attention(recipe=EXACT, min_seq_len=64)
    hidden(torch, named, encoded)
    assert (report.replaced, later.exact) == (2, {Outcome.SHORT: 2})


def test_dropout_in_training_is_refused(transformers, torch):
    hr.register_attention(recipe=EXACT, min_seq_len=4)
    model = build(transformers, "Llama", attention_dropout=0.5)
    model.set_attn_implementation(NAME)
    with pytest.raises(ValueError, match=r"layer 0 has dropout 0\.5; call model\.eval\(\)"):
        hidden(torch, model.train(), text_inputs(torch))


def test_bfloat16_is_computed_in_float32_and_returned_as_it_came(transformers, torch):
    model = build(transformers, "Llama").to(torch.bfloat16)
    encoded = text_inputs(torch, 40)
    expected = hidden(torch, model, encoded)
    with hr.replacing(model, recipe=EXACT, min_seq_len=4) as report:
        found = hidden(torch, model, encoded)
    assert (report.replaced, found.dtype) == (2, torch.bfloat16)
    # Outputs are normed, so of size 1; each of two layers rounds to 8 bits a few times.
    assert (found - expected).float().abs().mean() < 0.05


# What is refused


def refused(transformers, torch, model, match, kind=ValueError, **options):
    before = model.config._attn_implementation
    with pytest.raises(kind, match=match), hr.replacing(model, **{"recipe": EXACT, "min_seq_len": 4, **options}):
        hidden(torch, model, text_inputs(torch))
    assert model.config._attn_implementation == before


def test_attention_that_is_no_plain_softmax_is_refused_by_name(transformers, torch):
    refused(transformers, torch, build(transformers, "Gemma2"), "Gemma2Attention has soft-capping")
    sinks = build(transformers, "GptOss", num_local_experts=2, num_experts_per_tok=1)
    refused(transformers, torch, sinks, "GptOssAttention has learned sinks")
    config = transformers.T5Config(vocab_size=50, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    bias = transformers.T5EncoderModel(config).eval()
    refused(transformers, torch, bias, r"T5Attention has a bias or index \(position_bias\)|does not go through")


def test_models_that_cannot_be_replaced_are_refused(transformers, torch):
    bloom = transformers.BloomModel(transformers.BloomConfig(vocab_size=50, hidden_size=24, n_layer=2, n_head=4)).eval()
    refused(transformers, torch, bloom, "BloomModel does not go through transformers' AttentionInterface")
    config = transformers.DistilBertConfig(vocab_size=50, dim=24, n_layers=2, n_heads=4, hidden_dim=32)
    refused(transformers, torch, transformers.DistilBertModel(config).eval(), "has no attention module with the number")
    with pytest.raises(TypeError, match="model is Linear"), hr.replacing(torch.nn.Linear(2, 2)):
        pass


def test_gradients_go_through_a_replaced_model(transformers, torch):
    """Where all pairs are exact they are those of the model."""
    model, encoded = build(transformers, "Llama").train(), text_inputs(torch)

    def gradients():
        model.zero_grad()
        hidden = model(**encoded).last_hidden_state  # its length is normalised: take a direction
        (hidden * torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape)).sum().backward()
        return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}

    exact = gradients()
    with hr.replacing(model, recipe=EXACT, min_seq_len=4) as report:
        found = gradients()
    assert report.replaced
    assert found.keys() == exact.keys()
    for name, x in found.items():
        assert (x - exact[name]).abs().max() <= 1e-4 * (1e-3 + exact[name].abs().max()), name


@pytest.mark.parametrize(
    ("options", "kind", "match"),
    [
        ({"layers": [1, 2]}, ValueError, r"layers has \[2\]; the model has the layers 0, 1"),
        ({"layers": "last:3"}, ValueError, r'layers is \'last:3\'; it must be "all", "last:1" to "last:2"'),
        ({"layers": "last:0"}, ValueError, "layers is 'last:0'"),
        ({"layers": "first:1"}, ValueError, "layers is 'first:1'"),
        ({"layers": []}, ValueError, "at least one number"),
        ({"layers": 1}, TypeError, "it must be a list of integers"),
        ({"recipe": "papper"}, ValueError, "recipe 'papper' is unknown"),
        ({"recipe": 3}, TypeError, "recipe is 3"),
        ({"min_seq_len": 0}, ValueError, "min_seq_len is 0"),
        ({"rng": "0"}, TypeError, "rng is '0'"),
    ],
)
def test_arguments_are_checked_at_the_door(transformers, torch, options, kind, match):
    refused(transformers, torch, build(transformers, "Llama"), match, kind, **options)
