"""A small file of maps, and a report of known numbers."""

import numpy as np
import pytest

from hyperattention_ref.bench.check import Check
from hyperattention_ref.bench.heads.report import HeadResult, HeadsReport, Point
from hyperattention_ref.bench.heads.settings import HeadsSettings

SMALL = HeadsSettings(
    recipes=("paper", "pages"), budgets=(8, 32), against=(), min_seq_len=16, backend="numpy", repeats=3, threads=1
)


def write_maps(path, n=96, **facts):
    """Two heads of layer 0 and two of layer 3, causal."""
    query, key, value = np.random.default_rng(5).standard_normal((3, 4, n, 8)).astype(np.float32)
    both = {"layer": [0, 0, 3, 3], "head": [0, 1, 0, 1], "is_causal": True}
    np.savez(path, **{"query": 2 * query, "key": key, "value": value} | both | facts)
    return path


def point(method, budget, error, seconds, **facts):
    return Point(method, budget, budget or 96.0, Check(True, 0.1), error, 1.0, (seconds,) * 3, seconds, **facts)


def head(name, factor=1.0):
    """Exact attention takes 1 s; the error of "pages" is 1 over the seconds in tenths."""
    points = [point("exact", None, 0.0, 1.0), point("sdpa", None, 1e-7, 2.0)]
    points += [point("paper", x, factor * 0.9, 0.01 * x) for x in (8, 32)]
    points += [point("pages", x, factor * 0.8 / x, 0.1 * x) for x in (2, 4, 32)]
    return HeadResult(name, 96, True, tuple(points), {})


@pytest.fixture
def report():
    return HeadsReport("maps.npz", SMALL, (head("L0H0"), head("L0H1", 0.5), head("L3H0", 2.0)), "hyperattention", {})
