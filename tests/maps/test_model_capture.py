"""What is captured is what the model computes: softmax(scale * query key^T) value is its attention's output.

torch, transformers and the weights of MiniLM belong to no default install; where they are missing these tests skip.
"""

import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.maps import model_capture
from hyperattention_ref.maps.map_file import MapFile
from hyperattention_ref.maps.model_capture import NAME, capture, capture_text, capturing
from hyperattention_ref.maps.sample_heads import load_sample_heads

from ..tiny_models import GROUPED, STYLES, build, cache_name, text_inputs


@pytest.fixture(scope="module")
def torch(transformers):
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def minilm(transformers, minilm_folder):
    return transformers.AutoModel.from_pretrained(minilm_folder).eval()


def own_outputs(torch, model, model_inputs):
    """The output of every attention function of the model when it runs in its own, eager way: {layer: (n, h * d_v)}."""
    last = {
        "GPT2Attention": "c_proj",
        "LlamaAttention": "o_proj",
        "MistralAttention": "o_proj",
        "Qwen2Attention": "o_proj",
    }
    outputs, hooks = {}, []
    for module in model.modules():
        kind = type(module).__name__
        if kind in last:
            note = lambda _, arguments, layer=module.layer_idx: outputs.update({layer: arguments[0][0]})  # noqa: E731
            hooks.append(getattr(module, last[kind]).register_forward_pre_hook(note))
        elif kind in ("BertSelfAttention", "RobertaSelfAttention"):
            note = lambda _, __, output, layer=module.layer_idx: outputs.update({layer: output[0][0]})  # noqa: E731
            hooks.append(module.register_forward_hook(note))
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            final = model(**model_inputs).last_hidden_state[0]
    finally:
        model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    return {layer: x.numpy() for layer, x in outputs.items()}, final.numpy()


def recomputed(maps):
    """softmax(scale * query key^T) value of captured heads, side by side as the model has them, in float64."""
    heads = [
        hr.exact_attention(
            *(x.astype(np.float64) for x in (m.query, m.key, m.value)), scale=m.scale, is_causal=m.is_causal
        )
        for m in maps
    ]
    return np.concatenate(heads, axis=1)


def layer_of(maps, layer):
    return [m for m in maps if m.layer == layer]


@pytest.mark.parametrize("style", STYLES)
def test_captured_arrays_give_the_models_own_attention_output(transformers, torch, style):
    model, encoded = build(transformers, style), text_inputs(torch)
    expected, _ = own_outputs(torch, model, encoded)
    maps = capture(model, encoded)
    assert sorted(expected) == [0, 1]
    assert [(m.layer, m.head) for m in maps] == [(layer, head) for layer in range(2) for head in range(4)]
    for layer in (0, 1):
        np.testing.assert_allclose(recomputed(layer_of(maps, layer)), expected[layer], rtol=0, atol=1e-5)
    assert {m.is_causal for m in maps} == {style not in ("Bert", "Roberta")}


def test_captured_arrays_of_minilm_give_its_own_attention_output(torch, minilm):
    encoded = {"input_ids": torch.tensor(load_sample_heads()[0].token_ids[None].astype(np.int64))}
    expected, _ = own_outputs(torch, minilm, encoded)
    maps = capture(minilm, encoded)
    assert len(maps) == 72
    for layer in range(6):
        np.testing.assert_allclose(recomputed(layer_of(maps, layer)), expected[layer], rtol=0, atol=1e-5)


def test_the_shipped_heads_are_captured_again(torch, minilm):
    shipped = load_sample_heads()
    maps = capture(minilm, {"input_ids": torch.tensor(shipped[0].token_ids[None].astype(np.int64))})
    by_name = {m.name: m for m in maps}
    for head in shipped:
        again = by_name[head.name]
        assert again.scale == pytest.approx(head.scale, rel=1e-15)
        assert again.is_causal is head.is_causal
        for part in ("query", "key", "value"):
            # Entries reach 8 and are sums of 384 float32 products; five layers before them round as well. Where sums
            # are taken in the same order, all bits agree.
            np.testing.assert_allclose(getattr(again, part), getattr(head, part), rtol=0, atol=1e-5)


@pytest.mark.skipif(sys.version_info[:3] != (3, 11, 7), reason="the topics of pydoc are others in every Python release")
def test_the_shipped_token_ids_are_those_of_the_documented_text(transformers, minilm_folder):
    from pydoc_data.topics import topics

    text = "\n".join(topics.values())[40000:]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    token_ids = tokenizer(text, truncation=True, max_length=512)["input_ids"]
    assert np.array_equal(token_ids, load_sample_heads()[0].token_ids)


@pytest.mark.parametrize(("name", "least"), [("capturing.md", 4), ("in_a_model.md", 2)])
def test_every_block_of_the_pages_about_models_runs(minilm_folder, name, least, tmp_path, monkeypatch):
    sybil = pytest.importorskip("sybil", reason="sybil is not installed (extra `test`), so no page can be run")
    from sybil.parsers.myst import PythonCodeBlockParser

    page = Path(__file__).parents[2] / "docs" / name
    examples = list(sybil.Sybil(parsers=[PythonCodeBlockParser()]).parse(page).examples())
    assert len(examples) == page.read_text(encoding="utf-8").count("python\n") >= least
    monkeypatch.chdir(tmp_path)
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("style", STYLES)
def test_padding_is_cut_off(transformers, torch, style, side):
    model, n, padding = build(transformers, style), 11, 5
    encoded = text_inputs(torch, n + padding)
    valid = slice(padding, None) if side == "left" else slice(n)
    encoded["attention_mask"][:] = 0
    encoded["attention_mask"][:, valid] = 1
    expected, _ = own_outputs(torch, model, encoded)
    maps = capture(model, encoded)
    assert all(m.query.shape == m.key.shape == (n, 6) for m in maps)
    assert {m.is_causal for m in maps} == {style not in ("Bert", "Roberta")}
    for layer in (0, 1):
        np.testing.assert_allclose(recomputed(layer_of(maps, layer)), expected[layer][valid], rtol=0, atol=1e-5)


@pytest.mark.parametrize("style", ["Bert", "GPT2", "Llama"])
@pytest.mark.parametrize("padding", [0, 4])
def test_the_models_output_is_unchanged_while_capturing(transformers, torch, style, padding):
    model, encoded = build(transformers, style), text_inputs(torch)
    encoded["attention_mask"][:, 17 - padding :] = 0
    _, expected = own_outputs(torch, model, encoded)
    layers = []
    with capturing(model, layers.append), torch.no_grad():
        output = model(**encoded).last_hidden_state[0].numpy()
    assert [m.layer for m in layers] == [0, 1]
    np.testing.assert_allclose(output[: 17 - padding], expected[: 17 - padding], rtol=0, atol=2e-5)


def test_grouped_query_heads_share_key_heads_and_rotary_positions_are_in_them(transformers, torch):
    model = build(transformers, "Llama")
    ids = torch.full((1, 6), 7)
    with capturing(model, (layers := []).append), torch.no_grad():
        model(input_ids=ids)
    assert layers[0].query.shape == (4, 6, 6)
    assert layers[0].key.shape == layers[0].value.shape == (2, 6, 6)
    assert layers[0].key_rows == (0, 0, 1, 1)
    # One token repeated: values repeat, and keys differ by their rotation, which keeps their length.
    np.testing.assert_allclose(layers[0].value[:, 1:], layers[0].value[:, :-1], atol=1e-6)
    assert np.abs(np.diff(layers[0].key, axis=1)).max() > 0.1
    lengths = np.linalg.norm(layers[0].key, axis=2)
    np.testing.assert_allclose(lengths, lengths[:, :1].repeat(6, 1), rtol=1e-5)


def test_the_scale_is_the_one_passed_in(transformers, torch):
    model = build(transformers, "GPT2")
    assert {m.layer: m.scale for m in capture(model, text_inputs(torch))} == pytest.approx({0: 6**-0.5, 1: 6**-0.5 / 2})


def test_chosen_layers_and_heads_are_those_of_the_whole_capture(transformers, torch):
    model, encoded = build(transformers, "Llama"), text_inputs(torch)
    whole = {m.name: m for m in capture(model, encoded)}
    part = capture(model, encoded, layers=[1], heads=[3, 1])
    assert [m.name for m in part] == ["L1H1", "L1H3"]
    for m in part:
        assert all(np.array_equal(getattr(m, x), getattr(whole[m.name], x)) for x in ("query", "key", "value"))


@pytest.mark.parametrize("ending", [".npz", ".safetensors"])
def test_a_captured_file_holds_what_is_captured_in_memory(transformers, torch, tmp_path, ending):
    model, encoded = build(transformers, "Llama"), text_inputs(torch)
    path = capture(model, encoded, tmp_path / f"maps{ending}", source="random numbers")
    with MapFile(path) as file:
        assert (file.model, file.source) == ("LlamaModel", "random numbers")
        for read, expected in zip(file, capture(model, encoded), strict=True):
            assert (read.name, read.scale, read.is_causal) == (expected.name, expected.scale, expected.is_causal)
            assert all(np.array_equal(getattr(read, x), getattr(expected, x)) for x in ("query", "key", "value"))
    assert list(tmp_path.iterdir()) == [path]


def test_one_layer_at_a_time_is_in_memory_on_the_way_to_a_file(transformers, torch, tmp_path):
    model, n = build(transformers, "Llama", num_hidden_layers=10, max_position_embeddings=1024), 1024
    one_layer = n * (24 + 12 + 12) * 4
    tracemalloc.start()
    try:
        capture(model, text_inputs(torch, n), tmp_path / "maps.npz")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * one_layer  # a layer, a copy on the way, and what Python itself keeps


@pytest.mark.parametrize(
    ("dtype", "kept"), [("bfloat16", np.float32), ("float16", np.float16), ("float64", np.float64)]
)
def test_bfloat16_becomes_float32_and_other_types_stay(transformers, torch, dtype, kept):
    model = build(transformers, "Llama").to(getattr(torch, dtype))
    maps = capture(model, text_inputs(torch))
    assert {x.dtype for m in maps for x in (m.query, m.key, m.value)} == {np.dtype(kept)}


# The model afterwards


@pytest.mark.parametrize("before", ["eager", "sdpa"])
def test_the_model_is_restored_after_success_and_after_failure(transformers, torch, before):
    model, encoded = build(transformers, "Llama"), text_inputs(torch)
    model.set_attn_implementation(before)
    capture(model, encoded)
    assert model.config._attn_implementation == before
    with pytest.raises(ZeroDivisionError), capturing(model, lambda layer: 1 / 0):
        model(**encoded)
    assert model.config._attn_implementation == before


def test_parts_of_a_model_get_their_own_attention_function_back(transformers, torch):
    text = {**GROUPED, "model_type": "llama"}
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 32, "image_size": 8, "patch_size": 4,
    }  # fmt: skip
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_id=49)
    model = transformers.LlavaModel(config).eval()
    model.set_attn_implementation({"text_config": "eager", "vision_config": "sdpa"})
    parts = [model.config, model.config.text_config, model.config.vision_config]
    before = [part._attn_implementation for part in parts]
    assert before[1:] == ["eager", "sdpa"]
    ids = torch.arange(2, 12)[None]
    assert len(capture(model, {"input_ids": ids})) == 8
    assert [part._attn_implementation for part in parts] == before


# What is refused


def refused(model, inputs, match, kind=ValueError, **choice):
    before = model.config._attn_implementation
    with pytest.raises(kind, match=match):
        capture(model, inputs, **choice)
    assert model.config._attn_implementation == before != NAME


def test_soft_capping_is_refused(transformers, torch):
    refused(build(transformers, "Gemma2"), text_inputs(torch), "Gemma2Attention has soft-capping")


def test_learned_sinks_are_refused(transformers, torch):
    model = build(transformers, "GptOss", num_local_experts=2, num_experts_per_tok=1)
    refused(model, text_inputs(torch), "GptOssAttention has learned sinks")


def test_a_position_bias_is_refused(transformers, torch):
    config = transformers.T5Config(vocab_size=50, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    model = transformers.T5EncoderModel(config).eval()
    # T5 came to the interface late; before, it is refused for its absence.
    refused(model, text_inputs(torch), r"T5Attention has a bias or index \(position_bias\)|does not go through")


def test_a_model_without_the_interface_is_refused(transformers, torch):
    model = transformers.BloomModel(transformers.BloomConfig(vocab_size=50, hidden_size=24, n_layer=2, n_head=4)).eval()
    refused(model, text_inputs(torch), "BloomModel does not go through transformers' AttentionInterface")


def test_attention_without_a_layer_number_is_refused(transformers, torch):
    config = transformers.DistilBertConfig(vocab_size=50, dim=24, n_layers=2, n_heads=4, hidden_dim=32)
    model = transformers.DistilBertModel(config).eval()
    refused(model, text_inputs(torch), "has no number of its layer")


def test_a_sliding_window_is_refused_unless_the_text_fits_in_it(transformers, torch):
    model = build(transformers, "Mistral", sliding_window=8)
    refused(model, text_inputs(torch, 17), "layer 0 has a mask that is neither causal nor padding")
    assert all(m.is_causal for m in capture(model, text_inputs(torch, 7)))


def test_a_mask_of_numbers_is_refused(transformers, torch):
    encoded = text_inputs(torch)
    encoded["attention_mask"] = torch.zeros(1, 1, 17, 17)
    refused(build(transformers, "Llama"), encoded, r"has a mask of dtype torch\.float32 .* must be boolean")


def test_several_texts_are_refused(transformers, torch):
    encoded = {name: x.repeat(2, 1) for name, x in text_inputs(torch).items()}
    refused(build(transformers, "Llama"), encoded, "layer 0 has 2 texts")


def test_a_cache_of_earlier_keys_is_refused(transformers, torch):
    model = build(transformers, "Llama")
    name = cache_name(model)
    with torch.no_grad():
        cache = model(input_ids=torch.full((1, 4), 3), use_cache=True)[name]
    refused(model, {"input_ids": torch.full((1, 2), 3), name: cache}, "2 queries and 6 keys")


def test_an_encoder_decoder_model_is_refused_and_its_encoder_is_not(transformers, torch):
    config = transformers.BartConfig(
        vocab_size=50, d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.BartModel(config).eval()
    refused(model, text_inputs(torch), r"layer 0 attends a second time .* model\.get_encoder\(\)")
    assert len(capture(model.get_encoder(), text_inputs(torch))) == 8


def test_a_layer_or_head_that_the_model_lacks_is_refused(transformers, torch, tmp_path):
    model, encoded = build(transformers, "Llama"), text_inputs(torch)
    path = tmp_path / "maps.npz"
    refused(model, encoded, r"layers has \[2\], which did not run; 2 layers did: 0, 1", path=path, layers=[1, 2])
    refused(model, encoded, "heads has 4; layer 0 has the heads 0 to 3", path=path, heads=[4])
    refused(model, encoded, "heads is .* at least one number", path=path, heads=[])
    refused(model, encoded, "layers is .* from zero", path=path, layers=[-1])
    refused(model, encoded, "layers is 1; it must be a list of integers", TypeError, path=path, layers=1)
    for heads in ([0.5], ["1"], [True]):
        refused(model, encoded, "heads is .* must be a list of integers", TypeError, path=path, heads=heads)
    assert not list(tmp_path.iterdir())


def test_training_mode_is_refused(transformers, torch):
    refused(build(transformers, "Llama").train(), text_inputs(torch), "training mode")


def test_what_is_no_model_or_no_mapping_is_refused(transformers, torch):
    with pytest.raises(TypeError, match="model is Linear"):
        capture(torch.nn.Linear(2, 2), {})
    with pytest.raises(TypeError, match="model_inputs is Tensor"):
        capture(build(transformers, "Llama"), torch.ones(1, 4))


def test_missing_libraries_are_named_with_the_extra_that_brings_them(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[models\]" in a clone'):
        capture(object(), {}, tmp_path / "maps.npz")
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_replaced_only_if_asked_and_before_the_model_runs(transformers, torch, tmp_path):
    model, encoded, path = build(transformers, "Llama"), text_inputs(torch), tmp_path / "maps.npz"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"exists already; .*overwrite=True \(--force\)") as caught:
        capture(model, {"no such": "input"}, path)
    assert caught.value.filename == str(path)
    with pytest.raises(TypeError, match="overwrite is 1; it must be True or False"):
        capture(model, encoded, path, overwrite=1)
    assert path.read_text() == "mine"
    with MapFile(capture(model, encoded, path, overwrite=True)) as maps:
        assert len(maps) == 8
    with pytest.raises(ValueError, match=r"ends in '\.pt'"):
        capture(model, {"no such": "input"}, tmp_path / "maps.pt")
    with pytest.raises(FileExistsError):  # neither is the model loaded, nor the text read
        capture_text("no-such-model", tmp_path / "nowhere.txt", path)


@pytest.mark.parametrize("name", [None, "maps.npz", "maps.safetensors"])
def test_entries_that_are_not_finite_are_refused_with_their_layer(transformers, torch, tmp_path, name):
    model = build(transformers, "Llama")
    with torch.no_grad():
        model.layers[1].self_attn.k_proj.weight[0, 0] = torch.nan
    path = None if name is None else tmp_path / name
    refused(model, text_inputs(torch), "key of layer 1 has non-finite entries", path=path)
    assert not list(tmp_path.iterdir())
    assert len(capture(model, text_inputs(torch), layers=[0])) == 4


# From a text file


def test_a_text_file_is_captured_by_the_models_own_tokenizer(minilm_folder, minilm, transformers, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Attention is a weighted mean of the values. " * 5, encoding="utf-8")
    path = capture_text(minilm_folder, text, tmp_path / "maps.safetensors", n=32, layers=[2], heads=[0, 7])
    encoded = transformers.AutoTokenizer.from_pretrained(minilm_folder)(
        text.read_text(encoding="utf-8"), truncation=True, max_length=32, return_tensors="pt"
    )
    with MapFile(path) as file:
        assert file.source == "text.txt, first 32 tokens"
        assert file.model == str(minilm_folder)
        for read, expected in zip(file, capture(minilm, encoded, layers=[2], heads=[0, 7]), strict=True):
            assert read.name == expected.name
            assert np.array_equal(read.query, expected.query)
            assert read.query.shape == (32, 32)


def test_a_text_in_another_encoding_is_refused_by_name(monkeypatch, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes("un caf\xe9 noir".encode("latin-1"))
    monkeypatch.setattr(model_capture, "libraries", lambda: (None, None))
    with pytest.raises(ValueError, match=r"text\.txt is no text in UTF-8 .*0xe9 in position 6.*save it in UTF-8"):
        capture_text("model", text, tmp_path / "maps.npz")


def test_a_text_that_is_too_long_or_too_short_is_refused(minilm_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("word " * 600, encoding="utf-8")
    with pytest.raises(ValueError, match="has 602 tokens but the model takes 512; pass n=512"):
        capture_text(minilm_folder, text, tmp_path / "maps.npz")
    with pytest.raises(ValueError, match=r"n is 700 but .* has 602 tokens"):
        capture_text(minilm_folder, text, tmp_path / "maps.npz", n=700)
    with pytest.raises(FileNotFoundError):
        capture_text(minilm_folder, tmp_path / "nowhere.txt", tmp_path / "maps.npz")
    assert list(tmp_path.iterdir()) == [text]


def test_a_text_that_is_no_utf8_is_refused_by_its_name(minilm_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes("Übersicht".encode("latin1"))
    with pytest.raises(ValueError, match=r"text\.txt is no text in UTF-8 .*; save it in UTF-8"):
        capture_text(minilm_folder, text, tmp_path / "maps.npz")


def test_the_name_of_a_text_may_be_no_utf8(minilm_folder, tmp_path):
    text = tmp_path / os.fsdecode(b"\xff.txt")
    text.write_text("word " * 20, encoding="utf-8")
    with MapFile(capture_text(minilm_folder, text, tmp_path / "maps.safetensors", n=8, layers=[0])) as maps:
        assert maps.source == "?.txt, first 8 tokens"
