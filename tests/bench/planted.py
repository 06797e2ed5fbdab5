"""What the tests of the benchmark share: small settings, known ceilings, and planted backends."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import numpy as np

from hyperattention_ref.backends.blocked_numpy import BlockedNumpy
from hyperattention_ref.bench.cases import BenchSettings
from hyperattention_ref.bench.device import Ceilings, Device
from hyperattention_ref.foundation import registry

SMALL = BenchSettings(
    n=(64, 128),
    dim=8,
    backends=("numpy",),
    against=(),
    block_size=16,
    sample_size=16,
    min_seq_len=32,
    repeats=3,
    threads=1,
    families=("gaussian", "planted_clusters"),
)
TICK = 0.5  # seconds that every timed call takes on the clock of the tests
CEILINGS = Ceilings(1e9, 1e9, 1e9)


def plant(monkeypatch, planted, name="planted"):
    """Make an instance of this class the backend of that name."""
    module = ModuleType(f"planted_{name.replace('-', '_')}")
    module.Planted = type("Planted", (planted,), {"name": name})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    point = EntryPoint(name, f"{module.__name__}:Planted", registry.ENTRY_POINT_GROUP)
    monkeypatch.setitem(registry._BUILT_IN, name, point)


def check(output, truth):
    """Judge the drawn rows of an output."""
    return truth.check(Device(SMALL).rows(output, truth.rows))


def files(folder):
    """The content of every file, by its path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class OneKeyShort(BlockedNumpy):
    """Forgets the last key."""

    def exact_attention(self, q, k, v, **options):
        return super().exact_attention(q, k[..., :-1, :], v[..., :-1, :], **options)


class Biased(BlockedNumpy):
    def planned_attention(self, q, k, v, plan, *, scale):
        out, lse = super().planned_attention(q, k, v, plan, scale=scale)
        return out + np.float32(1e-3), lse
