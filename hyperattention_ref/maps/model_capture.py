"""Capture query, key and value of a Hugging Face transformers model where it calls its attention function.

The attention function registered here (`attention_interface`) records its arguments and calls
`scaled_dot_product_attention`, so the model's output is unchanged.
"""

from __future__ import annotations

import errno
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.named_file import utf8_text
from hyperattention_ref.maps.array_files import layout
from hyperattention_ref.maps.attention_interface import (
    attending,
    check_evaluating,
    check_model,
    check_plain_softmax,
    is_causal_module,
    layer_number,
    libraries,
    loading,
    numbers,
    register,
    shortly,
    valid_tokens,
)
from hyperattention_ref.maps.attention_map import LayerMaps
from hyperattention_ref.maps.map_file import MapWriter, checked_parts

NAME = "hyperattention_capture"
"""Name under which the attention and mask functions are registered with transformers."""
_record: ContextVar[Callable] = ContextVar(NAME)
"""Called by the attention function with its arguments; set by the innermost active `capturing` block."""


def capture(
    model, model_inputs: Mapping, path=None, *, layers=None, heads=None, source: str = "", overwrite: bool = False
):
    """Run a model once and keep query, key and value of its heads.

    Derived: the arrays are those that enter softmax(scale * query key^T) value, after rotary embeddings. Cost: one
    forward pass. With `path` one layer is in memory at a time, otherwise all are.

    Parameters
    ----------
    model : a transformers model in evaluation mode whose attention goes through transformers' AttentionInterface.
    model_inputs : the tokenizer's output for one text, for example with `return_tensors="pt"`; passed to the
        model as keywords. A padded text is cut to its valid tokens.
    path : a `.npz` or `.safetensors` file, written whole or not at all.
    layers, heads : numbers from zero of those to keep; None keeps all.
    source : the text's origin, kept with the maps.
    overwrite : whether a file that is there already may be replaced.

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
        for several texts at once, for a layer or head that the model does not have, and for entries that are not
        finite. No file is written then.
    FileExistsError
        if `path` is there already, without `overwrite`; the model does not run.
    """
    if not isinstance(model_inputs, Mapping):
        raise TypeError(f"model_inputs is {type(model_inputs).__name__}; it must be a mapping, as a tokenizer returns")
    name = getattr(model, "name_or_path", "") or type(model).__name__
    if path is None:
        captured: list[LayerMaps] = []

        def keep(maps: LayerMaps) -> None:
            checked_parts(maps)
            captured.append(maps)

        _run(model, model_inputs, keep, layers, heads)
        return tuple(attention_map for layer in captured for attention_map in layer.maps(name, source))
    _check_target(path, overwrite)
    with MapWriter(path, model=name, source=source) as writer:
        _run(model, model_inputs, writer.add, layers, heads)
    return Path(path)


def capture_text(
    model_name_or_path, text_path, path, *, n=None, layers=None, heads=None, overwrite: bool = False
) -> Path:
    """Load a model and its tokenizer, run the model on a text file and write its heads to `path`.

    Derived: as `capture`. Cost: one forward pass.

    Parameters
    ----------
    model_name_or_path : argument of transformers' `AutoModel.from_pretrained`: a name on the hub or a folder.
    text_path : a UTF-8 text file.
    path : a `.npz` or `.safetensors` file.
    n : number of tokens to keep from the start of the text, counting those that the tokenizer adds; None keeps all.
    layers, heads, overwrite : as in `capture`.

    Raises
    ------
    ValueError
        if transformers cannot load the model; if the text is not in UTF-8, has more tokens than the model takes, or
        fewer than `n`; and as `capture`.
    """
    _, transformers = libraries()
    _check_target(path, overwrite)
    text_path = Path(text_path)
    text = utf8_text(text_path)
    with loading(model_name_or_path):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_name_or_path)
        config = transformers.AutoConfig.from_pretrained(model_name_or_path)
    truncation = {} if n is None else {"truncation": True, "max_length": inputs.count("n", n)}
    encoded = tokenizer(text, return_tensors="pt", verbose=False, **truncation)
    length, limit = encoded["input_ids"].shape[1], getattr(config, "max_position_embeddings", None)
    if n is not None and length < n:
        raise ValueError(f"n is {n} but {text_path} has {length} tokens; give a longer text or a smaller n")
    if limit is not None and length > limit:
        raise ValueError(f"{text_path} has {length} tokens but the model takes {limit}; pass n={limit} or a smaller n")
    with loading(model_name_or_path):
        model = transformers.AutoModel.from_pretrained(model_name_or_path).eval()
    name = text_path.name.encode("utf-8", "replace").decode()  # a file's name may be no UTF-8
    source = f"{name}, first {length} tokens"
    return capture(model, encoded, path, layers=layers, heads=heads, source=source, overwrite=overwrite)


def _check_target(path, overwrite: bool) -> None:
    """Refuse to replace a file unasked, and names of other kinds of files, before anything takes time."""
    layout(Path(path))
    if Path(path).exists() and not inputs.boolean("overwrite", overwrite):
        reason = "exists already; name another file, or replace it with overwrite=True (--force)"
        raise FileExistsError(errno.EEXIST, reason, str(path))


@contextmanager
def capturing(model, take: Callable[[LayerMaps], object], *, layers=None, heads=None) -> Iterator[None]:
    """Pass the maps of every layer to `take` while the block runs the model; restore the model afterwards.

    Derived: as `capture`, but the caller runs the model, once and on one text.

    Parameters
    ----------
    model : as in `capture`.
    take : called with the LayerMaps of each layer, in the order in which the layers run; for example a list's `append`.
    layers, heads : as in `capture`.

    Raises
    ------
    TypeError, ValueError
        as `capture`; within the block while the model runs, and at its end if a layer of `layers` did not run.
    """
    check_model(model)
    check_evaluating(model)
    recorder = _Recorder(take, numbers("layers", layers), numbers("heads", heads))
    register(NAME, _attend)
    token = _record.set(recorder.record)
    try:
        with attending(model, NAME):
            yield
            recorder.check_complete()
    finally:
        _record.reset(token)


def _run(model, model_inputs: Mapping, take, layers, heads) -> None:
    torch, _ = libraries()
    with capturing(model, take, layers=layers, heads=heads), torch.no_grad():
        # A cache of keys and values would hold a second copy of the captured arrays.
        no_cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        model(**{**no_cache, **model_inputs})


def _attend(module, query, key, value, attention_mask, **options):
    """Record the call, then compute attention; the model calls this in place of its attention function."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    check_plain_softmax(module, options)
    _record.get()(module, query, key, value, attention_mask, options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


class _Recorder:
    """Converts calls of the attention function into LayerMaps."""

    def __init__(self, take, layers, heads) -> None:
        self._take, self._layers, self._heads = take, layers, heads
        self._recorded: set[int] = set()
        self._ran: set[int] = set()

    def record(self, module, query, key, value, attention_mask, options) -> None:
        layer = layer_number(module)
        self._ran.add(layer)
        if self._layers is not None and layer not in self._layers:
            return
        if layer in self._recorded:
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
        heads, group = self._selected_heads(layer, query.shape[0]), query.shape[0] // key.shape[0]
        key_heads = sorted({head // group for head in heads})
        scale = options.get("scaling")
        self._recorded.add(layer)
        self._take(
            LayerMaps(
                layer=layer,
                heads=heads,
                query=query[list(heads)],
                key=key[key_heads],
                value=value[key_heads],
                key_rows=tuple(key_heads.index(head // group) for head in heads),
                scale=1.0 / math.sqrt(query.shape[2]) if scale is None else float(scale),
                is_causal=is_causal,
            )
        )

    def _selected_heads(self, layer: int, n_heads: int) -> tuple[int, ...]:
        if self._heads is None:
            return tuple(range(n_heads))
        if max(self._heads) >= n_heads:
            raise ValueError(f"heads has {max(self._heads)}; layer {layer} has the heads 0 to {n_heads - 1}")
        return self._heads

    def check_complete(self) -> None:
        """Raise an error if requested layers, or all layers, are missing."""
        missing = sorted(set(self._layers or ()) - self._recorded)
        if missing:
            raise ValueError(
                f"layers has {missing}, which did not run; {len(self._ran)} layers did: {shortly(sorted(self._ran))}"
            )
        if not self._recorded:
            raise ValueError("no layer called its attention function; run the model within the block")


def _valid_tokens(layer: int, module, mask, n: int, is_causal):
    """Index of the tokens that are not padding, and whether attention among them is causal."""
    import torch

    if mask is None:
        return slice(None), is_causal_module(module, is_causal)
    if mask.dtype != torch.bool or mask.ndim != 4 or mask.shape[:2] != (1, 1):
        raise ValueError(
            f"layer {layer} has a mask of dtype {mask.dtype} and shape {tuple(mask.shape)}; it must be boolean and one "
            "for all heads: pass attention_mask as the tokenizer returns it, (1, n)"
        )
    found = valid_tokens(mask[0, 0].expand(n, n))
    if found is None:
        raise ValueError(
            f"layer {layer} has a mask that is neither causal nor padding, such as a sliding window; leave the layer "
            "out by `layers`, or give a text that is shorter than the window"
        )
    valid, among_valid = found
    return valid.cpu().numpy(), among_valid


def _array(tensor) -> np.ndarray:
    """A NumPy copy; bfloat16, which NumPy lacks, becomes float32 without rounding."""
    import torch

    tensor = tensor.detach().cpu()
    return np.array((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
