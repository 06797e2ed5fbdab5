"""Attention maps in memory: query, key and value of one head, and of all heads of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hyperattention_ref.foundation.results import Result
from hyperattention_ref.maps.metadata import Facts


@dataclass(frozen=True, eq=False, repr=False)
class AttentionMap(Facts, Result):
    """One head's attention: softmax(scale * query key^T) value, causal or not.

    Derived: measured, not synthetic.

    Attributes
    ----------
    query, key : (n, d), floating point, finite. A grouped-query head comes with the key head that it shares.
    value : (n, d_v).
    scale : multiplies the logits.
    is_causal : whether query i sees the keys 0..i only.
    layer, head : numbers of the layer and head in the model, from zero.
    model : the model's name, or "".
    source : the text's origin, or "".
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    is_causal: bool
    layer: int
    head: int
    model: str
    source: str

    @property
    def name(self) -> str:
        return f"L{self.layer}H{self.head}"


@dataclass(frozen=True, eq=False, repr=False)
class LayerMaps(Facts, Result):
    """The heads of one layer, as the model passes them to its attention function.

    Derived: measured.

    Attributes
    ----------
    layer : the layer's number in the model, from zero.
    heads : the model's numbers of the query heads, in the order of `query`.
    query : (heads, n, d).
    key, value : (key heads, n, d) and (key heads, n, d_v).
    key_rows : for each query head, the row of `key` and `value` that it uses.
    scale, is_causal : as in AttentionMap.
    """

    layer: int
    heads: tuple[int, ...]
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    key_rows: tuple[int, ...]
    scale: float
    is_causal: bool

    def maps(self, model: str = "", source: str = "") -> Iterator[AttentionMap]:
        """Yield each head; its arrays are views."""
        for head, query, row in zip(self.heads, self.query, self.key_rows, strict=True):
            key, value = self.key[row], self.value[row]
            yield AttentionMap(query, key, value, self.scale, self.is_causal, self.layer, head, model, source)
