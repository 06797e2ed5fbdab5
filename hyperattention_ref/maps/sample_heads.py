"""Six attention heads of a real encoder, shipped with the package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

import numpy as np

from hyperattention_ref.foundation.results import Result

_DESCRIPTIONS = {
    "L0H3": "local and diffuse: no sink, many effective keys",
    "L1H9": "a sink, few effective keys, row sums of very different size (large kappa)",
    "L2H6": "a sink, otherwise diffuse",
    "L3H6": "the strongest sink of the six: alpha is about 0.18 n^2",
    "L3H9": "a sink and local attention",
    "L5H0": "diffuse, with a weak sink",
}


@dataclass(frozen=True, eq=False, repr=False)
class SampleHead(Result):
    """One real attention head.

    Derived: measured, not synthetic; `data/README.md` states the origin and the licences.

    Attributes
    ----------
    name : layer and head from zero, as in "L0H3".
    description : the head's characteristic properties.
    query, key, value : (512, 32) float32, read-only, as the model passes them to its attention function.
    layer, head, scale, is_causal : as in `AttentionMap`; 1/sqrt(32), and False, since the model is an encoder.
    token_ids : (512,) int32, read-only, the word piece of each row.
    """

    name: str
    description: str
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    layer: int
    head: int
    scale: float
    is_causal: bool
    token_ids: np.ndarray


def load_sample_heads() -> tuple[SampleHead, ...]:
    """The six heads of the sentence encoder all-MiniLM-L6-v2 that ship with the package, in the order of its layers.

    Derived: measured on 512 word pieces of the Python language reference. Cost: one read of 1.2 MB.
    """
    path = resources.files("hyperattention_ref") / "data" / "minilm_heads.npz"
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    for array in arrays.values():
        array.setflags(write=False)
    heads = zip(*(arrays[name] for name in ("layer", "head", "query", "key", "value")), strict=True)
    return tuple(
        SampleHead(
            name=f"L{layer}H{head}",
            description=_DESCRIPTIONS[f"L{layer}H{head}"],
            query=query,
            key=key,
            value=value,
            layer=int(layer),
            head=int(head),
            scale=float(arrays["scale"]),
            is_causal=bool(arrays["is_causal"]),
            token_ids=arrays["token_ids"],
        )
        for layer, head, query, key, value in heads
    )
