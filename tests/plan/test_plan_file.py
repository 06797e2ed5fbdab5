"""The file of a Plan: every bit comes back, and what is no plan is refused."""

import numpy as np
import pytest
from hypothesis import given, settings

import hyperattention_ref as hr
from hyperattention_ref import Plan
from hyperattention_ref.backends.conformance import plans

rng = np.random.default_rng


@settings(max_examples=40)
@given(plans())
def test_saving_and_loading_keeps_every_bit(tmp_path_factory, plan):
    path = tmp_path_factory.mktemp("plan") / "plan.npz"
    plan.save(path)
    loaded = Plan.load(path)
    before, after = plan.to_arrays(), loaded.to_arrays()
    assert before.keys() == after.keys()
    for name, x in before.items():
        assert (x.dtype, x.shape, x.tobytes()) == (after[name].dtype, after[name].shape, after[name].tobytes())
    assert repr(loaded) == repr(plan)


def test_a_loaded_plan_gives_the_same_bits(tmp_path):
    q, k, v = rng(0).standard_normal((3, 2, 50, 4))
    plan = hr.make_plan(q, k, is_causal=True, block_size=4, sample_size=5, min_seq_len=8, rng=0)
    plan.save(tmp_path / "plan.npz")
    loaded = Plan.load(str(tmp_path / "plan.npz"))
    np.testing.assert_array_equal(*(hr.hyper_attention(q, k, v, is_causal=True, plan=p) for p in (plan, loaded)))


def test_the_file_is_one_npz_without_pickle(tmp_path):
    q, k = rng(0).standard_normal((2, 12, 4))
    hr.make_plan(q, k, block_size=4, sample_size=5, rng=0).save(tmp_path / "plan.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.npz"]  # nothing partial is left
    with np.load(tmp_path / "plan.npz", allow_pickle=False) as file:
        assert all(not file[name].dtype.hasobject for name in file.files)


def test_saving_replaces_an_older_file_and_leaves_it_alone_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "plan.npz"
    old, new = (Plan.from_views([], shape=(2, 2), exact_keys=[j]) for j in (0, 1))
    old.save(path)
    new.save(path)
    assert Plan.load(path).heads[0].rectangles[0].exact_keys.tolist() == [1]

    def fails(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fails)
    with pytest.raises(OSError, match="disk full"):
        old.save(path)
    assert Plan.load(path).heads[0].rectangles[0].exact_keys.tolist() == [1]
    assert [x.name for x in tmp_path.iterdir()] == ["plan.npz"]


@pytest.fixture
def saved(tmp_path):
    q, k = rng(0).standard_normal((2, 12, 4))
    path = tmp_path / "plan.npz"
    hr.make_plan(q, k, is_causal=True, block_size=2, sample_size=3, min_seq_len=4, rng=0).save(path)
    return path


def test_a_file_damaged_anywhere_is_refused_or_harmless(saved):
    """One byte turned at many places: a ValueError that names the file, or (padding, time stamps) the same plan."""
    good, arrays = saved.read_bytes(), Plan.load(saved).to_arrays()
    messages = []
    for place in range(0, len(good), 97):
        damaged = bytearray(good)
        damaged[place] ^= 0xFF
        saved.write_bytes(bytes(damaged))
        try:
            loaded = Plan.load(saved).to_arrays()
        except ValueError as error:
            messages.append(str(error))
        else:
            assert all(np.array_equal(arrays[name], loaded[name]) for name in arrays)
    assert len(messages) > len(good) / 97 / 2
    assert all(str(saved) in message for message in messages)


@pytest.mark.parametrize("content", ["empty", "text", "half", "all but one byte", "array", "other archive", "pickle"])
def test_a_file_that_holds_no_plan_is_refused_with_its_name(saved, content):
    good = saved.read_bytes()
    if content in ("empty", "text", "half", "all but one byte"):
        parts = {"empty": b"", "text": b"no plan at all", "half": good[: len(good) // 2], "all but one byte": good[:-1]}
        saved.write_bytes(parts[content])
    else:
        with open(saved, "wb") as file:
            if content == "array":
                np.save(file, np.arange(3))
            elif content == "other archive":
                np.savez(file, a=np.arange(3))
            else:
                arrays = Plan.from_views([], shape=(2, 2), exact_keys=[0]).to_arrays()
                arrays["0/0/exact_keys"] = np.array([[1], [1, 2]], dtype=object)
                np.savez(file, **arrays)
    with pytest.raises(ValueError, match=r"plan\.npz .*plan") as caught:
        Plan.load(saved)
    assert str(saved) in str(caught.value)
    with pytest.raises(FileNotFoundError):
        Plan.load(saved.with_name("absent.npz"))


TAMPERED = {
    "another format": {"format": np.array(1)},
    "a format that is no number": {"format": np.array([1, 1])},
    "three lengths": {"lengths": np.array([12, 12, 12])},
    "wrong lengths": {"lengths": np.array([12, 13])},
    "too many heads": {"shape": np.array([2])},
    "no head": {"shape": np.array([0])},
    "a view too many": {"0/views": np.array([2, 1, 1])},
    "no view counts": {"0/views": np.array([], np.int64)},
    "flat places": {"0/places": np.array([1, 2, 3, 4])},
    "flat leaves": {"0/leaves": np.array([0, 12])},
    "an open range": {"0/leaves": np.array([[0, 3]])},
    "a key that is not there": {"0/0/sampled_keys": np.array([0, 1, 99])},
    "too few weights": {"0/0/log_weights": np.zeros(2)},
    "an infinite weight": {"0/0/log_weights": np.array([0, 0, np.inf])},
    "keys that are no integers": {"0/0/exact_keys": np.array([0.5])},
    "an order that is no permutation": {"0/0/0/query_order": np.zeros(3, np.int64)},
    "offsets that fall": {"0/0/0/key_offsets": np.array([0, 3, 2, 3])},
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_plan_with_impossible_content_is_refused(saved, what):
    arrays = Plan.load(saved).to_arrays()
    assert TAMPERED[what].keys() <= arrays.keys()
    with open(saved, "wb") as file:
        np.savez(file, **(arrays | TAMPERED[what]))
    with pytest.raises((ValueError, TypeError)) as caught:
        Plan.load(saved)
    assert caught.type in (ValueError, TypeError)
