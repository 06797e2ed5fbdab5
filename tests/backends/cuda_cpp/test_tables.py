"""The tables that the attention kernels read: of exact attention, of a Plan, and of noise before any data is seen."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

import hyperattention_ref as hr
from hyperattention_ref.backends.cuda_cpp.device import Layouts
from hyperattention_ref.backends.cuda_cpp.sort_lsh import DrawnIndices
from hyperattention_ref.backends.cuda_cpp.tables import drawn_tables, exact_tables, plan_tables
from hyperattention_ref.paper.definition_1_sorted_lsh import hamming_sorted_lsh
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.noise import Draw
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.tiling import causal_tiling

from .emulation.battery import battery
from .emulation.device import EmulatedDevice, missing_compiler
from .emulation.drawn import stored

emulated = pytest.mark.skipif(missing_compiler() is not None, reason=str(missing_compiler()))


def test_rectangles_of_a_causal_plan_run_in_waves_over_all_heads():
    q, k = np.random.default_rng(0).standard_normal((2, 3, 64, 8))
    plan = hr.make_plan(q, k, is_causal=True, min_seq_len=8, block_size=4, sample_size=4, rng=0)
    tables = plan_tables(plan)
    waves = [wave.sweeps.records for wave in tables.waves]
    assert [len(wave) for wave in waves] == [24, 12, 6, 3]  # 8 leaves, then 4, 2 and 1 rectangles of 3 heads
    assert sum(int(w["last"] @ w["n_q"]) for w in waves) == 3 * 64  # every query is finished once
    assert sum(int(w["first"] @ w["n_q"]) for w in waves) == 3 * 64


def test_exact_attention_carries_no_state():
    assert not exact_tables(12, 100, 100, True).carries


def test_an_empty_plan_still_finishes_its_queries():
    head = hr.HeadPlan(5, 6, (hr.Rectangle(5, 6),))
    (wave,) = plan_tables(Plan((), (head,))).waves
    assert wave.sweeps.records["n_segments"].tolist() == [0]
    assert wave.sweeps.records["last"].tolist() == [1]


def test_tables_without_leaves_have_only_sweeps_that_take_up_a_state():
    with_leaves, without = (plan_tables(battery()[3].plan, leaves) for leaves in (True, False))
    assert [set(w.sweeps.records["first"].tolist()) for w in with_leaves.waves] == [
        {1},
        *[{0}] * (len(with_leaves.waves) - 1),
    ]
    assert [set(w.sweeps.records["first"].tolist()) for w in without.waves] == [{0}] * len(without.waves)
    assert len(without.segments) < len(with_leaves.segments)
    assert without.carries
    alone = HeadPlan(150, 150, (), ((0, 150),))
    lone = plan_tables(Plan((1,), (alone,)), leaves=False)
    assert (lone.waves, len(lone.segments)) == ((), 0)
    free = battery()[2].plan  # a plan that is not causal has no leaves to leave out
    assert set(plan_tables(free, leaves=False).waves[0].sweeps.records["first"].tolist()) == {1}


def spelled_out(tables, indices_of, block_size):
    """The sweeps of each wave in their order, with the arrays they refer to in place of positions.

    `indices(wave)` is the table of indices that the wave finds.
    """

    def part(array, position, n):
        return None if position < 0 else array[position : position + n].tolist()

    def segment(s, indices):
        n_blocks = -(-s["n"] // min(block_size, s["n"]))
        keys, offsets = part(indices, s["keys"], s["n"]), part(indices, s["offsets"], n_blocks + 1)
        return s["n"], keys, offsets, part(tables.weights, s["weights"], s["n"]), s["views"], s["inside"], s["causal"]

    def sweep(s, indices):
        place = [int(s[name]) for name in ("head", "query_start", "key_start", "n_q", "n_k", "first", "last")]
        orders = [part(indices, s[name], s["n_q"]) for name in ("query_order", "query_blocks")]
        segments = tables.segments[s["segment"] : s["segment"] + s["n_segments"]]
        return place, orders, part(indices, s["key_blocks"], s["n_k"]), [segment(x, indices) for x in segments]

    return [[sweep(s, indices_of(number)) for s in wave.sweeps.records] for number, wave in enumerate(tables.waves)]


def paper_plan(x, leaves, places, draw, block_size) -> Plan:
    """What `make_plan` makes of this noise, by NumPy."""

    def rectangle(head, r):
        query_start, _, key_start, _ = places[r]
        q, k = (np.asarray(y.owner)[head, a:c] for y, a, c in zip(x, places[r][::2], places[r][1::2], strict=True))
        orders = [np.argsort(hamming_sorted_lsh(rows, draw.planes[head, r]), kind="stable") for rows in (q, k)]
        keys = (draw.uniforms[head, r] * len(k)).astype(int)
        weights = np.full(keys.size, math.log(len(k) / max(keys.size, 1)))
        view = BlockMask.from_orders(*orders, block_size)
        return Rectangle(len(q), len(k), (view,), (), keys, weights, query_start, key_start)

    n_heads, n_q, n_k = x[0].shape[0], x[0].shape[1], x[1].shape[1]
    rows = [tuple(rectangle(head, r) for r in range(len(places))) for head in range(n_heads)]
    return Plan((n_heads,), tuple(HeadPlan(n_q, n_k, rectangles, leaves) for rectangles in rows))


def tiling(n_q: int, n_k: int, min_seq_len):
    """Leaves and rectangles as `drawn_tables` takes them; None is not causal."""
    if min_seq_len is None:
        return (), ((0, n_q, 0, n_k),)
    leaves, triples = causal_tiling(n_q, min_seq_len)
    return leaves, tuple((s, c, a, s) for a, s, c in triples)


@pytest.mark.parametrize(
    ("n_q", "n_k", "min_seq_len", "block_size", "sample_size", "n_bits"),
    [
        (150, 203, None, 48, 70, 7),
        (201, 64, None, 1000, 5, 12),
        (1, 1, None, 1, 0, 1),
        (203, 203, 30, 16, 20, 5),
        (97, 97, 50, 32, 0, 9),
        (40, 40, 64, 32, 7, 3),
    ],
)
def test_tables_made_ahead_lead_to_the_attention_of_the_plan(n_q, n_k, min_seq_len, block_size, sample_size, n_bits):
    rng = np.random.default_rng(n_q)
    device = EmulatedDevice("random", 5)
    q, k = (stored(rng.standard_normal((2, n, 16)), "float32") for n in (n_q, n_k))
    leaves, places = tiling(n_q, n_k, min_seq_len)
    draw = Draw(rng.standard_normal((2, len(places), n_bits, 16)), rng.random((2, len(places), sample_size)))
    tables = drawn_tables(2, n_q, leaves, places, block_size=block_size, sample_size=sample_size)
    planner = SimpleNamespace(recipe=SimpleNamespace(lsh_bits=n_bits), places=places)
    facts = {"planner": planner, "noise": lambda: draw, "path": "auto", "extremes": None}
    drawn = DrawnIndices(Layouts(device), tables.uploaded(device), query=q, key=k, **facts)

    planned = plan_tables(paper_plan((q, k), leaves, places, draw, block_size))
    found = spelled_out(tables, lambda wave: np.asarray(drawn.before(wave).owner), block_size)
    assert found == spelled_out(planned, lambda wave: planned.indices, block_size)


def test_rectangles_of_as_many_keys_share_offsets_and_weights():
    leaves, places = tiling(256, 256, 32)
    tables = drawn_tables(3, 256, leaves, places, block_size=16, sample_size=9)
    lengths = (32, 64, 128)
    assert tables.indices.size == sum(n // 16 + 1 for n in lengths)
    assert tables.weights.size == 9 * len(lengths)
    assert tables is drawn_tables(3, 256, leaves, places, block_size=16, sample_size=9)
