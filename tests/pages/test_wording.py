"""Numbers and counts as a person writes them."""

import math
from types import SimpleNamespace

import pytest

from hyperattention_ref.pages.wording import heads_where, number, power_of_ten, span


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.0, "0"),
        (256, "256"),
        (1234, "1234"),
        (99999.4, "99999"),
        (0.25, "0.25"),
        (0.0012, "0.0012"),
        (123456, "1.2·10⁵"),
        (-1.5e-7, "−1.5·10⁻⁷"),
        (-0.5, "−0.5"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_as_a_person_writes_them(x, text):
    assert number(x) == text


def test_words_for_powers_spans_and_heads():
    assert power_of_ten(math.log(1e29)) == "10^29.0"
    assert power_of_ten(2000.0) == "10^868.6"
    assert span([3, 1, 2e7]) == "1 to 2.0·10⁷"
    heads = [SimpleNamespace(name=name) for name in "ab"]
    assert heads_where(heads, lambda head: True) == "all 2 heads"
    assert heads_where(heads, lambda head: False) == "none of the 2 heads"
    assert heads_where(heads, lambda head: head.name == "b") == "1 of the 2 heads (b)"
