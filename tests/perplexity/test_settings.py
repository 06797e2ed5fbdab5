"""What the settings refuse, each in one line that says what to do."""

import pytest

from hyperattention_ref.perplexity.run import layer_counts
from hyperattention_ref.perplexity.settings import PerplexitySettings


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n": 40}, "n is 40; it must be at least 64"),
        ({"n": 512}, "n is 512 and min_seq_len 512, so that nothing is replaced; take more tokens or a smaller"),
        ({"layers": (-1,)}, "layers is -1"),
        ({"recipes": ()}, "recipes is empty; name at least one of paper"),
        ({"recipes": ("papper",)}, "recipe 'papper' is unknown"),
        ({"budget": 0}, "budget is 0"),
        ({"budget": 4096}, "budget is 4096 keys for each query, and n is 4096; take fewer keys"),
        ({"last": 8}, "last is 8; it must be between 32 and 4095"),
        ({"last": 4096}, "last is 4096"),
        ({"retrieval": "reversed"}, "retrieval is 'reversed'; it must be one of original, repeated, shuffled"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        PerplexitySettings(**options)


def test_layers_are_numbers_of_the_model():
    assert layer_counts(PerplexitySettings(), 30) == (10, 30)
    assert layer_counts(PerplexitySettings(), 2) == (1, 2)
    assert layer_counts(PerplexitySettings(layers=(5, 0, 1, 5)), 6) == (1, 5)
    assert layer_counts(PerplexitySettings(layers=(0,)), 6) == ()
    with pytest.raises(ValueError, match="layers is 1, 7; the model has 6 layers"):
        layer_counts(PerplexitySettings(layers=(7, 1)), 6)
