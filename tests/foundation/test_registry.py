"""The registry of backends: which there are, which can run, and how one is selected."""

from importlib.metadata import EntryPoint

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref import backends
from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.foundation import registry


def heads():
    return np.random.default_rng(0).standard_normal((3, 12, 4))


class Mine(BlockedNumpy):
    name = "mine"


class Absent(BlockedNumpy):
    name = "absent"

    def unavailable(self):
        return "needs a device that is not here"


class RaisesWhenAsked(BlockedNumpy):
    name = "raises"

    def unavailable(self):
        raise OSError("driver missing")


def register(monkeypatch, *classes):
    points = [EntryPoint(cls.name, f"{__name__}:{cls.__name__}", backends.ENTRY_POINT_GROUP) for cls in classes]
    points.append(EntryPoint("broken", "no_such_module:Backend", backends.ENTRY_POINT_GROUP))
    known = {backends.ENTRY_POINT_GROUP: points}
    monkeypatch.setattr(registry, "entry_points", lambda *, group: known.get(group, []))


def test_built_in_backends_are_available():
    status = hr.backend_status()
    assert status["reference"] is None
    assert status["numpy"] is None
    assert {"reference", "numpy"} <= set(hr.available_backends())


def test_every_absentee_has_its_reason_and_harms_no_other(monkeypatch):
    built_in = hr.available_backends()
    register(monkeypatch, Mine, Absent, RaisesWhenAsked)
    status = hr.backend_status()
    assert hr.available_backends() == [*built_in, "mine"]
    assert status["absent"] == "needs a device that is not here"
    assert "driver missing" in status["raises"]
    assert "no_such_module" in status["broken"]


def test_an_absent_backend_is_refused_with_its_reason_never_replaced(monkeypatch):
    register(monkeypatch, Absent)
    q, k, v = heads()
    with pytest.raises(ValueError, match=r"'absent' cannot run here: needs a device.*available: reference, numpy"):
        hr.exact_attention(q, k, v, backend="absent")
    with pytest.raises(ValueError, match="no_such_module"):
        hr.exact_attention(q, k, v, backend="broken")
    with pytest.raises(ValueError, match=r"backend 'nobody' is unknown; known here: reference, numpy, .*absent"):
        hr.exact_attention(q, k, v, backend="nobody")


def test_an_instance_that_cannot_run_is_refused():
    q, k, v = heads()
    with pytest.raises(ValueError, match="needs a device that is not here"):
        hr.exact_attention(q, k, v, backend=Absent())


def test_entry_point_cannot_replace_a_built_in_backend(monkeypatch):
    point = EntryPoint("numpy", f"{__name__}:Mine", backends.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    with pytest.raises(RuntimeError, match=r"redefines the backend 'numpy'"):
        hr.available_backends()


@pytest.mark.parametrize("wrong", [BlockedNumpy, 3, object(), ["numpy"]])
def test_backend_must_be_a_name_or_an_instance(wrong):
    q, k, v = heads()
    for call in (hr.exact_attention, hr.hyper_attention):
        with pytest.raises(TypeError, match=r"backend is .*must be None, a name or an object"):
            call(q, k, v, backend=wrong)
    with pytest.raises(TypeError, match="backend is"):
        hr.make_plan(q, k, backend=wrong)


def test_what_a_backend_lacks_is_named(monkeypatch):
    class Half:
        name = "half"
        hash_codes = exact_attention = planned_attention = attention_sums = None

    lacks = "lacks unavailable, attention_gradient, transposed_attention, capped_sums"
    with pytest.raises(TypeError, match=f"backend is .*Half.*: it {lacks}$"):
        hr.exact_attention(*heads(), backend=Half())
    with pytest.raises(TypeError, match=r"not a class: pass an instance, Mine\(\)"):
        hr.exact_attention(*heads(), backend=Mine)
    point = EntryPoint("half", "collections:OrderedDict", backends.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    assert hr.backend_status()["half"].startswith("collections:OrderedDict lacks name, unavailable, hash_codes, ")


def test_none_picks_numba_and_an_instance_is_obeyed():
    q, k, v = heads()
    np.testing.assert_array_equal(hr.exact_attention(q, k, v), hr.exact_attention(q, k, v, backend="numba"))
    asked = []

    class Spy(BlockedNumpy):
        def exact_attention(self, *args, **kwargs):
            asked.append("exact")
            return super().exact_attention(*args, **kwargs)

        def hash_codes(self, *args):
            asked.append("hash")
            return super().hash_codes(*args)

        def planned_attention(self, *args, **kwargs):
            asked.append("planned")
            return super().planned_attention(*args, **kwargs)

    hr.exact_attention(q, k, v, backend=Spy())
    hr.hyper_attention(q, k, v, rng=0, backend=Spy())
    assert asked == ["exact", "hash", "hash", "planned"]
