"""The shipped heads are what their descriptions say."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.special import logsumexp

from hyperattention_ref.maps.sample_heads import load_sample_heads

NAMES = ["L0H3", "L1H9", "L2H6", "L3H6", "L3H9", "L5H0"]


@pytest.fixture(scope="module")
def heads():
    return load_sample_heads()


def attention(head):
    """P and log D, in float64."""
    logits = head.scale * (head.query.astype(float) @ head.key.astype(float).T)
    log_d = logsumexp(logits, axis=1)
    return np.exp(logits - log_d[:, None]), log_d


def test_six_heads_of_the_stated_shape_type_and_name(heads):
    assert isinstance(heads, tuple)
    assert [head.name for head in heads] == NAMES
    for head in heads:
        assert head.name == f"L{head.layer}H{head.head}"
        assert head.scale == 1 / math.sqrt(32)
        assert head.is_causal is False
        assert head.token_ids.shape == (512,)
        assert head.token_ids.dtype == np.int32
        for x in (head.query, head.key, head.value):
            assert x.shape == (512, 32)
            assert x.dtype == np.float32
            assert np.isfinite(x).all()


def test_the_heads_differ(heads):
    assert len({head.query.tobytes() for head in heads}) == 6
    assert len({head.description for head in heads}) == 6


def test_heads_cannot_be_changed(heads):
    with pytest.raises(dataclasses.FrozenInstanceError):
        heads[0].scale = 1.0
    with pytest.raises(ValueError, match="read-only"):
        heads[0].query[0, 0] = 1.0


def test_a_head_is_readable_and_json_able(heads):
    assert "array(512, 32)" in repr(heads[0])
    assert json.loads(json.dumps(heads[0].to_dict()))["name"] == "L0H3"


def test_alpha_is_decided_by_the_first_token_in_every_head_called_a_sink(heads):
    heaviest = {h.name: int(np.argmax(np.square(attention(h)[0]).sum(axis=0))) for h in heads}
    assert all(heaviest[h.name] == 0 for h in heads if "sink" in h.description and "no sink" not in h.description)
    assert heaviest["L0H3"] != 0


def test_L3H6_has_the_largest_alpha_about_0_18_n_squared(heads):
    alpha_over_n_squared = {h.name: np.square(attention(h)[0]).sum(axis=0).max() / 512 for h in heads}
    assert max(alpha_over_n_squared, key=alpha_over_n_squared.get) == "L3H6"
    assert alpha_over_n_squared["L3H6"] == pytest.approx(0.18, abs=0.005)


def test_L1H9_has_the_largest_kappa_and_the_fewest_effective_keys(heads):
    log_kappa = {h.name: np.ptp(attention(h)[1]) for h in heads}
    effective_keys = {h.name: np.median(1 / np.square(attention(h)[0]).sum(axis=1)) for h in heads}
    assert max(log_kappa, key=log_kappa.get) == "L1H9"
    assert min(effective_keys, key=effective_keys.get) == "L1H9"


def test_local_heads_attend_within_eight_tokens_and_diffuse_heads_to_many_keys(heads):
    i = np.arange(512)
    band = np.abs(i[:, None] - i) <= 8
    for head in heads:
        p = attention(head)[0]
        if "local" in head.description:
            assert (p * band).sum(axis=1).mean() > 0.25  # random attention: 17/512 = 0.03
        if "diffuse" in head.description:
            assert np.median(1 / np.square(p).sum(axis=1)) > 80
