"""A tiny language model with a tokenizer in a folder, a text for it, and a report that needs neither."""

import numpy as np
import pytest

from hyperattention_ref.perplexity.methods import EXACT, LEAVES, WINDOW
from hyperattention_ref.perplexity.report import Case, PerplexityReport, Row
from hyperattention_ref.perplexity.settings import PerplexitySettings

from ..tiny_models import build

WORDS = 40
"""Of the tokenizer, beside the marks of beginning and end and one for what it does not know."""


@pytest.fixture(scope="session")
def model_folder(transformers, tmp_path_factory):
    """A Llama of two layers of random weights, for at most 256 tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("tiny-llama")
    vocabulary = {name: i for i, name in enumerate(["<s>", "</s>", "?", *(f"w{i}" for i in range(WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "?"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    build(transformers, "Llama", "ForCausalLM", max_position_embeddings=256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory):
    """Three hundred words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(f"w{i}" for i in np.random.default_rng(0).integers(WORDS, size=300)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def report():
    """Two recipes in one and in two layers; the exact losses are known."""
    settings = PerplexitySettings(n=129, min_seq_len=16, budget=8, recipes=("paper", "local_heavy"), layers=(1, 2))
    rng = np.random.default_rng(0)
    losses = rng.exponential(2, 128)
    cases = [Case(EXACT, 0, 0, 0.0, 2.0, tuple(losses))]
    costs = {LEAVES: (0.5, 5), f"{WINDOW}, 40": (0.1, 40), f"{WINDOW}, 20": (0.3, 20)}
    costs |= {"paper": (0.7, 18), "local_heavy": (0.05, 36)}
    for count in (1, 2):
        for name, (cost, logits) in costs.items():
            more = count * cost + 0.1 * rng.standard_normal(128)
            cases.append(Case(name, count, count, float(logits), 2.0 / (1 + cost), tuple(losses + more)))
    rows = tuple(Row.of(case, cases[0]) for case in cases)
    facts = {"processor": "a slow one", "cores": 2}
    return PerplexityReport("tiny", "words.txt", 2, 128, settings, rows, "hyperattention perplexity", facts)
