"""A causal language model of transformers: loaded, its prefill timed, the loss of every token of a text."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np

from hyperattention_ref.foundation.named_file import utf8_text
from hyperattention_ref.maps.attention_interface import libraries, loading
from hyperattention_ref.models.replacement import Replacement
from hyperattention_ref.models.scaled_dot_product import scaled_dot_hyper_attention
from hyperattention_ref.perplexity.settings import PerplexitySettings
from hyperattention_ref.perplexity.texts import Text, made_text

MOST_LOGITS = 2**25
"""Of the output layer at a time: 128 MB."""
FEW = 8
"""Tokens that try a model."""


def read_text(model_name_or_path: str, path: Path, settings: PerplexitySettings) -> Text:
    """The tokens of a text file for a model, as the settings ask for.

    Raises
    ------
    ValueError : the model cannot be loaded, or was trained for fewer tokens; the text is not in UTF-8 or too short.
    """
    _, transformers = libraries()
    text, n = utf8_text(path), settings.n
    with loading(model_name_or_path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_name_or_path)
        config = transformers.AutoConfig.from_pretrained(model_name_or_path).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    if context is not None and n > context and not settings.beyond_context:
        raise ValueError(
            f"n is {n} and the model was trained for {context} tokens; take fewer, or allow it with --beyond-context"
        )
    ids = np.array(tokenizer(text, verbose=False)["input_ids"])[:n]
    if len(ids) < n:
        raise ValueError(f"n is {n} but {path} has {len(ids)} tokens; give a longer text or a smaller n")
    return made_text(ids, int(ids[0] == tokenizer.bos_token_id), settings)


class LanguageModel:
    """A model in float32 on the CPU, in evaluation mode, that can be compared.

    Parameters
    ----------
    model_name_or_path : of `AutoModelForCausalLM.from_pretrained`.
    ids : (n,) token ids of some text; the first few try the model.

    Raises
    ------
    ValueError : no causal language model can be loaded, its attention cannot be replaced, or it changes the logits
        after its output layer.
    """

    def __init__(self, model_name_or_path: str, ids: np.ndarray) -> None:
        self._torch, transformers = libraries()
        with loading(model_name_or_path):
            self.model = transformers.AutoModelForCausalLM.from_pretrained(
                model_name_or_path, dtype=self._torch.float32
            ).eval()
        few = self._tensor(ids[:FEW])
        nothing = Replacement(scaled_dot_hyper_attention, FEW)
        with self._torch.no_grad(), nothing.within(self.model):  # refuses what could not be replaced in a longer text
            own = self.model(input_ids=few, use_cache=False).logits
            head = self.model.get_output_embeddings()(self._hidden(few))
        if not self._torch.allclose(own[..., : head.shape[-1]], head, rtol=1e-4, atol=1e-3):
            raise ValueError(
                f"{type(self.model).__name__} changes the logits after its output layer (a scale or a soft cap), which "
                "the losses here would not contain; take another model"
            )

    @property
    def n_layers(self) -> int:
        """The number of layers."""
        return self.model.config.get_text_config().num_hidden_layers

    def prefill(self, ids: np.ndarray):
        """The last hidden states (n, d) of a text, and the seconds that they took."""
        start = perf_counter()
        try:
            with self._torch.no_grad():
                hidden = self._hidden(self._tensor(ids))[0]
        except IndexError as error:  # a table of positions has no more
            raise ValueError(f"the model cannot run on {len(ids)} tokens ({error}); take fewer") from error
        return hidden, perf_counter() - start

    def losses(self, hidden, text: Text) -> np.ndarray:
        """-ln of the probability of every scored token given those before it, in nats."""
        torch, head, targets = self._torch, self.model.get_output_embeddings(), self._tensor(text.ids)[0]
        step = max(1, MOST_LOGITS // head.weight.shape[0])
        found = []
        with torch.no_grad():
            for a in range(text.first, len(targets), step):
                c = min(a + step, len(targets))
                logits = head(hidden[a - 1 : c - 1])
                found.append(torch.nn.functional.cross_entropy(logits, targets[a:c], reduction="none"))
        return torch.cat(found).double().numpy()

    def _hidden(self, ids):
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def _tensor(self, ids: np.ndarray):
        return self._torch.from_numpy(np.asarray(ids, np.int64))[None]
