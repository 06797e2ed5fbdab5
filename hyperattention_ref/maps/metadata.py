"""What is known of heads beside their arrays: one schema, whoever makes, writes or reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields

from hyperattention_ref.foundation import inputs, strict_json

FORMAT = 1
"""Of the text in a captured file."""
LARGEST_NUMBER = 2**31 - 1


def _number(name: str, x) -> int:
    return inputs.count(name, x, least=0, most=LARGEST_NUMBER)


def _numbers(name: str, x) -> tuple[int, ...]:
    if isinstance(x, str) or not isinstance(x, Iterable):
        raise TypeError(f"{name} is {x!r}; it must be a list of integers")
    return tuple(_number(name, item) for item in x)


def _text(name: str, x) -> str:
    """Any text that files can hold; those who print it must take nothing in it for markup."""
    if not isinstance(x, str):
        raise TypeError(f"{name} is {x!r}; it must be a string")
    try:
        x.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is {x!r}, which UTF-8 cannot hold; replace the surrogates") from None
    return x


CHECKS = {
    "layer": _number,
    "head": _number,
    "heads": _numbers,
    "key_rows": _numbers,
    "scale": inputs.finite,
    "is_causal": inputs.boolean,
    "model": _text,
    "source": _text,
}
"""What each fact must be; the check returns it as a built-in type."""


class Facts:
    """Base of the frozen dataclasses that have such facts as fields: each is checked when the object is made."""

    def __post_init__(self):
        for name, check in CHECKS.items():
            if hasattr(self, name):
                object.__setattr__(self, name, check(name, getattr(self, name)))


@dataclass(frozen=True)
class LayerFacts(Facts):
    """Of one layer in a file; as in `LayerMaps`."""

    layer: int
    heads: tuple[int, ...]
    key_rows: tuple[int, ...]
    scale: float
    is_causal: bool


@dataclass(frozen=True)
class FileFacts(Facts):
    """Of a captured file: the text that it holds beside the arrays."""

    model: str
    source: str
    layers: tuple[LayerFacts, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        numbers = [layer.layer for layer in self.layers]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"layers has the numbers {numbers}; each layer must be there once")

    def to_text(self) -> str:
        """In JSON."""
        text = json.dumps({"format": FORMAT, **asdict(self)})
        if len(text) > strict_json.LARGEST:
            raise ValueError(f"the text about {len(self.layers)} layers has {len(text)} bytes; write several files")
        return text

    @classmethod
    def from_text(cls, text: str) -> FileFacts:
        """Inverse of `to_text`, with every check."""
        content = strict_json.parse(text)
        if isinstance(content, dict) and (version := inputs.count("format", content.pop("format", None))) != FORMAT:
            raise ValueError(f"it has format {version}; this version reads format {FORMAT}")
        content = strict_json.entries("the text", content, _names(cls))
        layers = content["layers"]
        if not isinstance(layers, list) or not layers:
            raise ValueError(f"layers is {layers!r:.40}; it must name at least one layer")
        records = [strict_json.entries(f"layers[{i}]", x, _names(LayerFacts)) for i, x in enumerate(layers)]
        return cls(content["model"], content["source"], tuple(LayerFacts(**x) for x in records))


def _names(kind) -> list[str]:
    return [field.name for field in fields(kind)]
