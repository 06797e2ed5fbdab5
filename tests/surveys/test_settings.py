"""The settings of a survey refuse what cannot be measured."""

import pytest

import hyperattention_ref as hr


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"recipes": ("best",)}, ValueError, "recipe 'best' is unknown"),
        ({"recipes": ()}, ValueError, "recipes is empty"),
        ({"budget": 0}, ValueError, "budget is 0"),
        ({"rows": 1.5}, TypeError, "rows is 1.5"),
        ({"confidence": 1.0}, ValueError, "confidence is 1.0"),
        ({"tolerance": 0}, ValueError, "tolerance is 0.0"),
        ({"n": True}, TypeError, "n is True"),
        ({"op_norm": "no"}, TypeError, "op_norm is 'no'"),
        ({"seed": True}, TypeError, "seed is True"),
        ({"seed": -1}, ValueError, "seed is -1"),
    ],
)
def test_bad_settings_are_refused(options, kind, message):
    with pytest.raises(kind, match=message):
        hr.SurveySettings(**options)
