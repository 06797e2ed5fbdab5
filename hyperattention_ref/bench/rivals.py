"""Attention of other packages, as they ship it, on these queries, keys and values.

Nothing of a rival is rewritten. What surrounds its attention in a trained layer (projections, a convolution, rotary
positions) is switched off or replaced by the identity; random features are drawn before the clock starts. Arrays are
`(heads, n, d)` NumPy arrays and are shared with Torch, not copied.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO

import numpy as np

from hyperattention_ref.foundation.extras import install

EXTRA = install("bench")
OWN_BUDGET = 256
"""Landmarks, and keys in a window, where the contestant names no budget."""


@dataclass(frozen=True)
class Rival:
    """One attention of another package.

    Attributes
    ----------
    title : its name in tables.
    module : what is imported; the package has the same name, with hyphens.
    about : what is called, and with which options.
    prepare : from (q, k, v, scale, is_causal, budget, seed) to the call that is timed; budget None is the rival's own.
    budgets : of the plot of error against time; None for exact attention.
    budget_name : what a budget counts.
    reach : keys that a query meets for each unit of the budget.
    can_be_causal : whether it has a causal form.
    needs_equal_dims : why values must have as many coordinates as queries, or None.
    """

    title: str
    module: str
    about: str
    prepare: Callable[..., Callable[[], np.ndarray]]
    budgets: tuple[int, ...] | None = None
    budget_name: str = ""
    reach: int = 1
    can_be_causal: bool = True
    needs_equal_dims: str | None = None


def missing(names: Iterable[str]) -> str | None:
    """Which of these rivals are not installed, and what to do about it; None if all are there."""
    absent = [name for name in names if find_spec(RIVALS[name].module) is None]
    if not absent:
        return None
    packages = ", ".join(dict.fromkeys(RIVALS[name].module.replace("_", "-") for name in absent))
    return f"{', '.join(absent)}: needs {packages}, not installed here; {EXTRA}, or name others with --against"


def unsuited(name: str, settings) -> str | None:
    """Why this rival cannot do what the settings ask, or None if it can."""
    rival = RIVALS[name]
    if settings.is_causal and not rival.can_be_causal:
        return f"{rival.title} has no causal form"
    if settings.d_v != settings.dim and rival.needs_equal_dims:
        return f"{rival.title} needs values of the queries' dimension: {rival.needs_equal_dims}"
    return None


def _sdpa(q, k, v, *, scale, is_causal, budget, seed):
    import torch

    q, k, v = (torch.from_numpy(x[None]) for x in (q, k, v))
    attention = torch.nn.functional.scaled_dot_product_attention
    return _without_gradients(lambda: attention(q, k, v, scale=scale, is_causal=is_causal)[0])


def _performer(q, k, v, *, scale, is_causal, budget, seed):
    import torch

    features = max(1, int(q.shape[-1] * math.log(q.shape[-1])))
    with warnings.catch_warnings(), redirect_stdout(StringIO()), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # deprecated imports inside the package
        from performer_pytorch import FastAttention

        torch.manual_seed(seed)
        # Without CUDA the package takes its causal form in plain Torch, and says so on stdout.
        attention = FastAttention(dim_heads=q.shape[-1], nb_features=budget or features, causal=is_causal)
    q, k, v = (torch.from_numpy(x[None]) for x in (_with_default_scale(q, scale), k, v))
    return _without_gradients(lambda: attention(q, k, v)[0])


def _nystrom(q, k, v, *, scale, is_causal, budget, seed):
    import torch
    from nystrom_attention import NystromAttention

    d = q.shape[-1]
    attention = NystromAttention(dim=3 * d, dim_head=d, heads=1, num_landmarks=budget or OWN_BUDGET, residual=False)
    attention.to_qkv = attention.to_out = torch.nn.Identity()  # its input is split into query, key and value as it is
    x = torch.from_numpy(np.concatenate([_with_default_scale(q, scale), k, v], axis=-1))
    return _without_gradients(lambda: attention(x))


def _local(q, k, v, *, scale, is_causal, budget, seed):
    import torch
    from local_attention import LocalAttention

    options = {"causal": is_causal, "autopad": True, "use_rotary_pos_emb": False, "scale": scale}
    attention = LocalAttention(window_size=budget or OWN_BUDGET, **options)
    q, k, v = (torch.from_numpy(x) for x in (q, k, v))
    return _without_gradients(lambda: attention(q, k, v))


def _with_default_scale(q, scale: float) -> np.ndarray:
    """The queries for which the package's own factor 1/sqrt(d) gives logits of this scale."""
    return q * q.dtype.type(scale * math.sqrt(q.shape[-1]))


def _without_gradients(call) -> Callable[[], np.ndarray]:
    import torch

    def run():
        with torch.inference_mode():
            return call().numpy()

    return run


RIVALS = {
    "sdpa": Rival(
        "PyTorch SDPA",
        "torch",
        "torch.nn.functional.scaled_dot_product_attention: exact",
        _sdpa,
        needs_equal_dims="otherwise PyTorch forms the n x n matrix",
    ),
    "performer": Rival(
        "Performer",
        "performer_pytorch",
        "performer_pytorch.FastAttention: random features of the softmax kernel; causal in its form without CUDA, "
        "which the package calls inefficient",
        _performer,
        budgets=(32, 64, 128, 256, 512),
        budget_name="random features",
    ),
    "nystrom": Rival(
        "Nyström attention",
        "nystrom_attention",
        "nystrom_attention.NystromAttention: landmarks; projections replaced by the identity, no residual",
        _nystrom,
        budgets=(16, 32, 64, 128, 256, 512),
        budget_name="landmarks",
        can_be_causal=False,
        needs_equal_dims="it splits its input into three equal parts",
    ),
    "local": Rival(
        "local attention",
        "local_attention",
        "local_attention.LocalAttention: a window, the one before and, unless causal, the one after",
        _local,
        budgets=(32, 64, 128, 256, 512),
        budget_name="window",
        reach=3,
    ),
}
"""Rivals by the name that --against takes."""
