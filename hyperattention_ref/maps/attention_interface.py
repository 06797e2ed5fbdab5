"""The attention interface of Hugging Face transformers: what capturing maps and replacing attention share.

transformers selects a model's attention function by name. A mask function is registered under the same name in a
second interface; without it, transformers would silently build no mask.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hyperattention_ref.foundation.extras import install

IGNORED_TENSORS = {"position_ids", "cache_position"}
"""Tensor arguments that do not enter the logits. Any other tensor argument might, and is refused."""


def libraries():
    """The packages torch and transformers."""
    try:
        import torch
        import transformers.masking_utils
    except ImportError as error:
        raise ImportError(f"a model needs torch and transformers; install them with: {install('models')}") from error
    return torch, transformers


def register(name: str, attend: Callable) -> None:
    """Register an attention function, and with it the mask function that PyTorch's attention takes."""
    _, transformers = libraries()
    transformers.AttentionInterface.register(name, attend)
    transformers.AttentionMaskInterface.register(name, transformers.masking_utils.sdpa_mask)


def check_model(model) -> None:
    """Refuse what is no model of transformers."""
    _, transformers = libraries()
    if not isinstance(model, transformers.PreTrainedModel):
        raise TypeError(f"model is {type(model).__name__}; it must be a PreTrainedModel of transformers")


def check_evaluating(model) -> None:
    """Refuse a model in training mode."""
    if model.training:
        raise ValueError("model is in training mode, where dropout changes attention: call model.eval() first")


@contextmanager
def attending(model, name: str) -> Iterator[None]:
    """Let a model attend by the function of this name while the block runs; restore the model afterwards."""
    original = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        model.set_attn_implementation(name)
        if model.config._attn_implementation != name:
            raise ValueError(
                f"{type(model).__name__} does not go through transformers' AttentionInterface, so that its attention "
                "can neither be captured nor replaced; call the functions of this library on query, key and value "
                "where the model computes them"
            )
        yield
    finally:
        for config, implementation in original:
            config._attn_implementation = implementation


def check_plain_softmax(module, options) -> None:
    """Raise an error if anything but scale, mask and dropout enters the softmax."""
    import torch

    unknown = {name for name, x in options.items() if isinstance(x, torch.Tensor)} - IGNORED_TENSORS
    if options.get("softcap") is not None:
        obstacle = "soft-capping of its logits"
    elif any(x is not None for x in (options.get("s_aux"), options.get("sinks"), getattr(module, "sinks", None))):
        obstacle = "learned sinks"
    elif unknown:
        obstacle = f"a bias or index ({', '.join(sorted(unknown))})"
    else:
        return
    raise ValueError(
        f"{type(module).__name__} has {obstacle}; only plain softmax of scaled products is supported, "
        "softmax(scale * query key^T) value"
    )


def layer_number(module) -> int:
    """The number of an attention module's layer."""
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise ValueError(
            f"{type(module).__name__} has no number of its layer (layer_idx = {layer!r}), so its layers cannot be told "
            "apart; take a part of the model whose attention has one, such as its language model"
        )
    return layer


def is_causal_module(module, is_causal) -> bool:
    """Whether attention without a mask is causal: what the model passes, or else what the module says."""
    return bool(is_causal if is_causal is not None else getattr(module, "is_causal", True))


def valid_tokens(mask):
    """Which tokens are no padding, and whether attention among them is causal.

    Parameters
    ----------
    mask : (n, n) boolean tensor, true where a query sees a key.

    Returns
    -------
    ((n,) boolean tensor, bool); or None if the mask is neither causal nor padding. Cost O(n^2).
    """
    import torch

    valid = mask.any(dim=0)
    visible = mask[valid][:, valid]
    if visible.numel() and visible.all():
        return valid, False
    if visible.numel() and torch.equal(visible, torch.ones_like(visible).tril()):
        return valid, True
    return None


def numbers(name: str, selection: Iterable[int] | None) -> tuple[int, ...] | None:
    """The selected layer or head numbers, ascending; None for all."""
    if selection is None:
        return None
    try:
        selection = list(selection)
        if any(isinstance(x, bool) for x in selection):
            raise TypeError
        found = tuple(sorted({operator.index(x) for x in selection}))
    except TypeError:
        raise TypeError(f"{name} is {selection!r}; it must be a list of integers") from None
    if not found or found[0] < 0:
        raise ValueError(f"{name} is {selection!r}; it must hold at least one number from zero")
    return found


def shortly(numbers: list[int]) -> str:
    """Ascending numbers as in "0 to 5", where none is left out."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"


@contextmanager
def loading(model_name_or_path) -> Iterator[None]:
    """Whatever transformers raises where there is no model becomes one line that names the model."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ValueError(
            f"{model_name_or_path} is no model that transformers can load ({reason}); give a name on the hub, or a "
            "folder with configuration, weights and tokenizer"
        ) from error


def _configs(model) -> Iterator:
    """Every configuration that names an attention function; a model's comes before its parts', which it overwrites."""
    from transformers import PreTrainedModel

    queue = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while queue:
        config = queue.pop(0)
        yield config
        sub_configs = (getattr(config, name, None) for name in config.sub_configs)
        queue.extend(x for x in sub_configs if x is not None)
