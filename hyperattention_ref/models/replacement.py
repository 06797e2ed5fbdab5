"""Replace the attention of a Hugging Face transformers model: in a block, or by name for good.

A call is replaced where a long text is attended to at once, the prefill. All else, such as the steps of a decoder,
stays exact, by PyTorch's attention, and the report says why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from weakref import WeakKeyDictionary

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.randomness import generator
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.maps.attention_interface import (
    attending,
    check_model,
    check_plain_softmax,
    is_causal_module,
    layer_number,
    numbers,
    register,
    shortly,
    valid_tokens,
)
from hyperattention_ref.models.scaled_dot_product import scaled_dot_hyper_attention
from hyperattention_ref.plan.recipe import as_recipe

NAME = "hyperattention"
"""The `attn_implementation` that `register_attention` brings."""
IN_A_BLOCK = "hyperattention_replacing"
"""The one that a model has within a block of `replacing`."""


class Outcome(StrEnum):
    """What became of a call: replaced, or why it stayed exact."""

    REPLACED = "replaced"
    NOT_CHOSEN = "not chosen"
    KEYS_OF_A_CACHE = "other numbers of queries and keys"
    SLIDING_WINDOW = "sliding window"
    OTHER_MASK = "a mask that is neither causal nor padding"
    SHORT = "no more than min_seq_len tokens"


@dataclass(frozen=True, eq=False, repr=False)
class ReplacementReport(Result):
    """What became of every call of the attention function, so far.

    Attributes
    ----------
    layers : for each layer that ran, how many calls had each `Outcome`.
    """

    layers: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    @property
    def replaced(self) -> int:
        """How many calls were replaced."""
        return sum(calls[Outcome.REPLACED] for calls in self.layers.values())

    @property
    def exact(self) -> Counter[str]:
        """How many calls stayed exact, by reason."""
        total = sum(self.layers.values(), Counter())
        return Counter({reason: count for reason, count in total.items() if reason != Outcome.REPLACED})

    def __str__(self) -> str:
        alike: dict[str, list[int]] = {}
        for layer, calls in sorted(self.layers.items()):
            words = ", ".join(f"{count} {outcome}" for outcome, count in sorted(calls.items()))
            alike.setdefault(words, []).append(layer)
        return "\n".join(f"layers {shortly(layers)}: {words}" for words, layers in alike.items()) or "no call"


@contextmanager
def replacing(model, *, layers="all", recipe=None, min_seq_len: int = 4096, rng=0) -> Iterator[ReplacementReport]:
    """Approximate the attention of a model's layers while the block runs; restore the model afterwards.

    Derived: `hyper_attention` in place of the attention function of `layers`, at the prefill.

    Parameters
    ----------
    model : a transformers model whose attention goes through transformers' AttentionInterface. Gradients go through
        it, too; see `scaled_dot_hyper_attention`.
    layers : "all"; "last:10", the last ten; a list of numbers from zero; or a function of the number. A layer has the
        number `layer_idx` of its attention module.
    recipe : None for the paper's, a `Recipe`, or the name of one; see `preset`.
    min_seq_len : texts up to this length stay exact, and causal ranges of longer ones; see `hyper_attention`.
    rng : None, seed or numpy.random.Generator. It decides the noise of every layer; all calls of a layer share it, so
        that the model stays a function of its inputs, and no text depends on the others of its batch.

    Yields
    ------
    ReplacementReport, which grows with every call.

    Raises
    ------
    ImportError
        if torch or transformers is missing.
    TypeError, ValueError
        for a model without the interface, for layers that it does not have, and for an unknown recipe; within the block
        for attention that is not plain softmax of scaled products (soft-capping, learned sinks, a position bias), and
        for dropout.
    """
    check_model(model)
    replacement = Replacement.by_recipe(recipe, min_seq_len, rng, chosen_layers(model, layers))
    with replacement.within(model):
        yield replacement.report


def register_attention(*, recipe=None, min_seq_len: int = 4096, rng=0) -> ReplacementReport:
    """Register HyperAttention with transformers, for models of `attn_implementation="hyperattention"`.

    Derived: as `replacing`, in all layers and for good. A second call replaces the settings of the first.

    Parameters
    ----------
    recipe, min_seq_len, rng : as in `replacing`.

    Returns
    -------
    ReplacementReport of all models that use it.
    """
    replacement = Replacement.by_recipe(recipe, min_seq_len, rng)
    register(NAME, replacement)
    return replacement.report


def chosen_layers(model, layers) -> frozenset[int]:
    """The numbers of the layers that the argument `layers` of `replacing` means."""
    known = sorted({x for module in model.modules() if isinstance(x := getattr(module, "layer_idx", None), int)})
    if not known:
        raise ValueError(f"{type(model).__name__} has no attention module with the number of its layer, layer_idx")
    if callable(layers):
        return frozenset(layer for layer in known if layers(layer))
    if layers == "all":
        return frozenset(known)
    if isinstance(layers, str):
        kind, _, count = layers.partition(":")
        if kind != "last" or not count.isdecimal() or not 1 <= int(count) <= len(known):
            raise ValueError(
                f'layers is {layers!r}; it must be "all", "last:1" to "last:{len(known)}", a list of numbers or a '
                "function of the number"
            )
        return frozenset(known[-int(count) :])
    chosen = numbers("layers", layers) or ()
    if missing := sorted(set(chosen) - set(known)):
        raise ValueError(f"layers has {missing}; the model has the layers {shortly(known)}")
    return frozenset(chosen)


class Replacement:
    """An attention function for transformers that hands long texts to another one.

    Parameters
    ----------
    attention : called with query (heads, n, d), key and value of perhaps fewer heads, and the keywords `is_causal`,
        `scale` and `layer`; returns (heads, n, d_v).
    min_seq_len : texts that are all no longer stay exact.
    layers : whose calls are replaced; None for all.
    """

    def __init__(self, attention: Callable, min_seq_len: int, layers: frozenset[int] | None = None) -> None:
        self.attention, self.layers = attention, layers
        self.min_seq_len = inputs.count("min_seq_len", min_seq_len)
        self.report = ReplacementReport()

    @classmethod
    def by_recipe(cls, recipe, min_seq_len: int, rng, layers: frozenset[int] | None = None) -> Replacement:
        """By HyperAttention of a recipe."""
        recipe, words = as_recipe(recipe), generator(rng).integers(2**32, size=4, dtype=np.uint32).tolist()

        def attention(query, key, value, *, is_causal, scale, layer):
            noise = np.random.SeedSequence(words, spawn_key=(layer,))
            options = {"recipe": recipe, "min_seq_len": min_seq_len, "rng": noise}
            return scaled_dot_hyper_attention(
                query, key, value, is_causal=is_causal, scale=scale, enable_gqa=True, **options
            )

        return cls(attention, min_seq_len, layers)

    @contextmanager
    def within(self, model) -> Iterator[None]:
        """Let a model attend so while the block runs; within another such block, the inner one counts."""
        register(IN_A_BLOCK, _attend_in_a_block)
        modules = list(model.modules())
        outer = {module: _replacements[module] for module in modules if module in _replacements}
        try:
            _replacements.update(dict.fromkeys(modules, self))
            with attending(model, IN_A_BLOCK):
                yield
        finally:
            for module in modules:
                del _replacements[module]
            _replacements.update(outer)

    def __call__(self, module, query, key, value, attention_mask, **options):
        """Attend as transformers asks: (texts, heads, n, d) in, (texts, n, heads, d_v) and no weights out."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        check_plain_softmax(module, options)
        layer = layer_number(module)
        if attention_mask is None and key.shape[2] > query.shape[2] > 1:
            # The prefill of a cache of fixed size: all queries, and room for keys to come.
            key, value = (x[:, :, : query.shape[2]] for x in (key, value))
        texts = self._texts(layer, module, query, key, attention_mask, options)
        self.report.layers[layer][Outcome.REPLACED if isinstance(texts, list) else texts] += 1
        if not isinstance(texts, list):
            return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        if options.get("dropout"):
            raise ValueError(f"layer {layer} has dropout {options['dropout']}; call model.eval(), which has none")
        output = query.new_zeros(*query.shape[:-1], value.shape[-1])
        for text, (valid, is_causal) in enumerate(texts):
            q, k, v = (x[text][:, valid] for x in (query, key, value))
            scale = options.get("scaling")
            output[text][:, valid] = self.attention(q, k, v, is_causal=is_causal, scale=scale, layer=layer)
        return output.transpose(1, 2).contiguous(), None

    def _texts(self, layer: int, module, query, key, mask, options) -> list | Outcome:
        """Of every text its valid tokens and whether it is causal, if the call is replaced; else why not."""
        import torch

        n_texts, _, n, _ = query.shape
        if self.layers is not None and layer not in self.layers:
            return Outcome.NOT_CHOSEN
        if n != key.shape[2]:
            return Outcome.KEYS_OF_A_CACHE
        if n <= self.min_seq_len:
            return Outcome.SHORT
        if mask is None:
            return [(slice(None), is_causal_module(module, options.get("is_causal")))] * n_texts
        texts = []
        if mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1] == 1:
            texts = [valid_tokens(x) for x in mask[:, 0].expand(n_texts, n, n)]
        if not texts or None in texts:
            return Outcome.OTHER_MASK if options.get("sliding_window") is None else Outcome.SLIDING_WINDOW
        if max(int(valid.sum()) for valid, _ in texts) <= self.min_seq_len:
            return Outcome.SHORT
        return texts


_replacements: WeakKeyDictionary = WeakKeyDictionary()
"""By module, the Replacement of the innermost block that its model is in."""


def _attend_in_a_block(module, *arrays, **options):
    return _replacements[module](module, *arrays, **options)
