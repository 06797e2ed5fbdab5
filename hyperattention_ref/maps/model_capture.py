"""Take query, key and value out of a Hugging Face transformers model, as it hands them to its attention function.

transformers lets a model's attention function be chosen by name. The function registered here notes its arguments and
computes what `scaled_dot_product_attention` computes, so that the model's output stays what it was. Masks are chosen by
the same name in a second interface; a name that is missing there gets no mask at all, without a word.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.maps.map_file import LayerMaps, MapWriter

NAME = "hyperattention_capture"
"""Under which the attention function and the mask are registered with transformers."""
HARMLESS = {"position_ids", "cache_position"}
"""Tensors that models pass along and that do not enter the logits. Any other one might, and is refused."""
_record: ContextVar[Callable] = ContextVar(NAME)
"""What the innermost running `capturing` does with one call of the attention function."""


def capture(model, model_inputs: Mapping, path=None, *, layers=None, heads=None, source: str = ""):
    """Run a model once and keep query, key and value of its heads.

    Derived: the arrays are those that enter softmax(scale * query key^T) value, after rotary embeddings. Cost: one
    forward pass. With `path` one layer at a time is in memory, otherwise all are.

    Parameters
    ----------
    model : a transformers model in evaluation mode whose attention goes through transformers' AttentionInterface.
    model_inputs : what the tokenizer returned for one text, for example with `return_tensors="pt"`; passed to the
        model as keywords. A padded text is cut to its valid tokens.
    path : a `.npz` or `.safetensors` file, written by way of a temporary file that is renamed.
    layers, heads : numbers from zero of those to keep; None keeps all.
    source : the text's origin, kept with the maps.

    Returns
    -------
    maps : tuple of AttentionMap, by layer and head; or, with `path`, the path as a Path, to be read with MapFile.

    Raises
    ------
    ImportError
        if torch or transformers is missing.
    TypeError, ValueError
        for a model without the interface, in training mode, or whose attention is not plain softmax of scaled products
        (soft-capping, learned sinks, a position bias, cross-attention, a mask that is neither causal nor padding);
        for several texts at once, and for a layer or head that the model does not have. No file is written then.
    """
    if not isinstance(model_inputs, Mapping):
        raise TypeError(f"model_inputs is {type(model_inputs).__name__}; it must be a mapping, as a tokenizer returns")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    if path is None:
        taken: list[LayerMaps] = []
        _run(model, model_inputs, taken.append, layers, heads)
        return tuple(attention for layer in taken for attention in layer.maps(name, source))
    with MapWriter(path, model=name, source=source) as writer:
        _run(model, model_inputs, writer.add, layers, heads)
    return Path(path)


def capture_text(model_name_or_path, text_path, path, *, n=None, layers=None, heads=None) -> Path:
    """Load a model and its tokenizer, run the model on a text file and write its heads to `path`.

    Derived: as `capture`. Cost: one forward pass.

    Parameters
    ----------
    model_name_or_path : what transformers' `AutoModel.from_pretrained` takes: a name on the hub or a folder.
    text_path : a text in UTF-8.
    path : a `.npz` or `.safetensors` file.
    n : number of tokens to keep from the start of the text, counting those that the tokenizer adds; None keeps all.
    layers, heads : as in `capture`.

    Raises
    ------
    ValueError
        if the text has more tokens than the model takes, or fewer than `n`; and as `capture`.
    """
    _, transformers = _libraries()
    text_path = Path(text_path)
    text = text_path.read_text(encoding="utf-8")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_name_or_path)
    cut = {} if n is None else {"truncation": True, "max_length": inputs.count("n", n)}
    encoded = tokenizer(text, return_tensors="pt", verbose=False, **cut)
    config = transformers.AutoConfig.from_pretrained(model_name_or_path)
    length, most = encoded["input_ids"].shape[1], getattr(config, "max_position_embeddings", None)
    if n is not None and length < n:
        raise ValueError(f"n is {n} but {text_path} has {length} tokens; give a longer text or a smaller n")
    if most is not None and length > most:
        raise ValueError(f"{text_path} gives {length} tokens but the model takes {most}; pass n={most} or a smaller n")
    model = transformers.AutoModel.from_pretrained(model_name_or_path).eval()
    source = f"{text_path.name}, first {length} tokens"
    return capture(model, encoded, path, layers=layers, heads=heads, source=source)


@contextmanager
def capturing(model, take: Callable[[LayerMaps], object], *, layers=None, heads=None) -> Iterator[None]:
    """While the block runs, hand the maps of every layer to `take`; afterwards the model is as it was.

    Derived: as `capture`, for those who run the model themselves, once and on one text.

    Parameters
    ----------
    model : as in `capture`.
    take : called with a LayerMaps in the order in which the layers run, for example the `append` of a list.
    layers, heads : as in `capture`.

    Raises
    ------
    TypeError, ValueError
        as `capture`; within the block from the model's run, and at its end if a layer of `layers` did not run.
    """
    _, transformers = _libraries()
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"model is {type(model).__name__}; it must be a PreTrainedModel of transformers")
    if model.training:
        raise ValueError("model is in training mode, where dropout changes what is captured: call model.eval() first")
    transformers.AttentionInterface.register(NAME, _attend)
    transformers.AttentionMaskInterface.register(NAME, transformers.masking_utils.sdpa_mask)
    wanted = None if layers is None else _numbers("layers", layers)
    recorder = _Recorder(take, wanted, None if heads is None else _numbers("heads", heads))
    before = [(config, config._attn_implementation) for config in _configs(model)]
    token = _record.set(recorder.record)
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            raise ValueError(
                f"{type(model).__name__} does not go through transformers' AttentionInterface, so that its attention "
                "cannot be captured; save query, key and value yourself and read them with MapFile"
            )
        yield
        recorder.check_complete()
    finally:
        _record.reset(token)
        for config, implementation in before:
            config._attn_implementation = implementation


def _run(model, model_inputs: Mapping, take, layers, heads) -> None:
    torch, _ = _libraries()
    with capturing(model, take, layers=layers, heads=heads), torch.no_grad():
        # A cache of keys and values would hold a second copy of what is captured.
        extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        model(**{**extra, **model_inputs})


def _attend(module, query, key, value, attention_mask, **options):
    """What the model calls in place of its attention function."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _refuse_other_attention(module, options)
    _record.get()(module, query, key, value, attention_mask, options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


class _Recorder:
    """Turns calls of the attention function into LayerMaps."""

    def __init__(self, take, layers, heads) -> None:
        self._take, self._layers, self._heads = take, layers, heads
        self._seen: set[int] = set()

    def record(self, module, query, key, value, attention_mask, options) -> None:
        layer = _layer_number(module)
        if self._layers is not None and layer not in self._layers:
            return
        if layer in self._seen:
            raise ValueError(
                f"layer {layer} attends a second time in one run; a layer can be captured once: run the model once, "
                "and of an encoder-decoder model capture the encoder alone, model.get_encoder()"
            )
        if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
            raise ValueError(
                f"layer {layer} has {query.shape[0]} texts, {query.shape[2]} queries and {key.shape[2]} keys; capture "
                "takes one text, with as many keys as queries: no batch, no cache of earlier keys, no cross-attention"
            )
        valid, is_causal = _valid_tokens(layer, module, attention_mask, query.shape[2], options.get("is_causal"))
        query, key, value = (_array(x[0])[:, valid] for x in (query, key, value))
        heads, group = self._chosen_heads(layer, query.shape[0]), query.shape[0] // key.shape[0]
        shared = sorted({head // group for head in heads})
        scale = options.get("scaling")
        self._seen.add(layer)
        self._take(
            LayerMaps(
                layer=layer,
                heads=heads,
                query=query[list(heads)],
                key=key[shared],
                value=value[shared],
                key_rows=tuple(shared.index(head // group) for head in heads),
                scale=1.0 / math.sqrt(query.shape[2]) if scale is None else float(scale),
                is_causal=is_causal,
            )
        )

    def _chosen_heads(self, layer: int, n_heads: int) -> tuple[int, ...]:
        if self._heads is None:
            return tuple(range(n_heads))
        if max(self._heads) >= n_heads:
            raise ValueError(f"heads has {max(self._heads)}; layer {layer} has the heads 0 to {n_heads - 1}")
        return self._heads

    def check_complete(self) -> None:
        """Refuse to end with layers missing."""
        missing = sorted(set(self._layers or ()) - self._seen)
        if missing:
            raise ValueError(f"layers has {missing}, which did not run; look up the number of layers in model.config")
        if not self._seen:
            raise ValueError("no layer called its attention function; run the model within the block")


def _refuse_other_attention(module, options) -> None:
    """Refuse whatever else than scale, mask and dropout enters the softmax."""
    import torch

    found = None
    if options.get("softcap") is not None:
        found = "soft-capping of its logits"
    elif any(x is not None for x in (options.get("s_aux"), options.get("sinks"), getattr(module, "sinks", None))):
        found = "learned sinks"
    else:
        unknown = {name for name, x in options.items() if isinstance(x, torch.Tensor)} - HARMLESS
        if unknown:
            found = f"a bias or index ({', '.join(sorted(unknown))})"
    if found:
        raise ValueError(
            f"{type(module).__name__} has {found}; only plain softmax of scaled products can be captured, "
            "softmax(scale * query key^T) value"
        )


def _layer_number(module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ValueError(
            f"{type(module).__name__} has no number of its layer (layer_idx = {layer!r}), so its maps cannot be told "
            "apart; capture a part of the model whose attention has one, such as its language model"
        )
    return layer


def _valid_tokens(layer: int, module, mask, n: int, is_causal):
    """The tokens that are not padding, as an index, and whether attention among them is causal."""
    import torch

    if mask is None:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        return slice(None), bool(causal)
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[:2] != (1, 1):
        raise ValueError(
            f"layer {layer} has a mask of dtype {mask.dtype} and shape {tuple(mask.shape)}; it must be boolean and one "
            "for all heads: pass attention_mask as the tokenizer returns it, (1, n)"
        )
    mask = mask[0, 0].expand(n, n)
    valid = mask.any(dim=0)
    among = mask[valid][:, valid]
    if among.numel() and among.all():
        return valid.cpu().numpy(), False
    if among.numel() and torch.equal(among, torch.ones_like(among).tril()):
        return valid.cpu().numpy(), True
    raise ValueError(
        f"layer {layer} has a mask that is neither causal nor padding, such as a sliding window; leave the layer out "
        "by `layers`, or give a text that is shorter than the window"
    )


def _array(tensor) -> np.ndarray:
    """A copy in NumPy's memory; bfloat16, which NumPy does not have, becomes float32 without rounding."""
    import torch

    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())


def _numbers(name: str, given: Iterable[int]) -> tuple[int, ...]:
    """Layer or head numbers, ascending."""
    try:
        numbers = tuple(sorted({operator.index(x) for x in given}))
    except TypeError:
        raise TypeError(f"{name} is {given!r}; it must be a list of integers") from None
    if not numbers or numbers[0] < 0:
        raise ValueError(f"{name} is {given!r}; it must hold at least one number from zero")
    return numbers


def _configs(model) -> Iterator:
    """Every configuration that names an attention function, a model's before its parts', whose names it overwrites."""
    from transformers import PreTrainedModel

    waiting = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while waiting:
        config = waiting.pop(0)
        yield config
        parts = (getattr(config, name, None) for name in config.sub_configs)
        waiting.extend(part for part in parts if part is not None)


def _libraries():
    try:
        import torch
        import transformers.masking_utils
    except ImportError as error:
        raise ImportError(
            "capturing needs torch and transformers; install them with: pip install 'hyperattention-ref[models]'"
        ) from error
    return torch, transformers
