"""Numbers and counts as a person writes them, for tables and sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(x: float | None) -> str:
    """Three significant digits; powers of ten outside 0.001 .. 100 000; a dash for None."""
    if x is None:
        return "–"
    if not math.isfinite(x):
        return "NaN" if math.isnan(x) else ("∞" if x > 0 else "−∞")
    if x and not 1e-3 <= abs(x) < 1e5:
        mantissa, exponent = f"{x:.1e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")
    return (f"{x:.0f}" if isinstance(x, int) or abs(x) >= 100 else f"{x:.3g}").replace("-", "−")


def seconds(x: float | None) -> str:
    """A time as a person writes it; a dash for None."""
    if x is None:
        return number(None)
    return f"{number(x)} s" if x >= 1 else f"{number(1e3 * x)} ms"


def label(name: str) -> str:
    """A recipe's name in sentences and tables."""
    return name.replace("_", " + ")


def printable(text: str) -> str:
    """Text in one line that no terminal takes for commands: escapes instead of what is not printable."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def span(values: Sequence[float]) -> str:
    """The smallest and the largest of some numbers."""
    return f"{number(min(values))} to {number(max(values))}"


def power_of_ten(log_x: float) -> str:
    """e^log_x as a power of ten with one decimal, of any size."""
    return f"10^{log_x / math.log(10):.1f}".replace("-", "−")


def heads_where(heads: Sequence, has_property: Callable) -> str:
    """How many heads, and which, have a property."""
    names = [head.name for head in heads if has_property(head)]
    if len(names) == len(heads):
        return f"all {len(heads)} heads"
    if not names:
        return f"none of the {len(heads)} heads"
    return f"{len(names)} of the {len(heads)} heads ({', '.join(names)})"
