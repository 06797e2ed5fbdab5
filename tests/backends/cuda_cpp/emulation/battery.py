"""A few heads that use every part of the attention kernels; what a planted bug must not survive."""

from dataclasses import replace

import numpy as np

from hyperattention_ref.backends import reference
from hyperattention_ref.backends.conformance.strategies import AttentionInputs
from hyperattention_ref.plan.block_mask import BlockMask
from hyperattention_ref.plan.head_plan import HeadPlan, Rectangle
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.tiling import causal_tiling

from .device import EmulatedBackend, from_bfloat, to_bfloat

U_BFLOAT = 2.0**-8


def battery() -> list[AttentionInputs]:
    """Ragged lengths, exact and planned, causal and not; bfloat16 numbers in float32 arrays."""
    rng = np.random.default_rng(5)

    def rows(n, d):
        return from_bfloat(to_bfloat(rng.standard_normal((2, n, d))))

    def rectangle(n_q, n_k, query_start=0, key_start=0):
        views = [BlockMask.from_orders(rng.permutation(n_q), rng.permutation(n_k), 48) for _ in range(2)]
        drawn = rng.integers(n_k, size=70)
        keys = {"exact_keys": rng.choice(n_k, 5, replace=False), "sampled_keys": drawn}
        weights = np.full(drawn.size, np.log(n_k / drawn.size))
        return Rectangle(
            n_q, n_k, tuple(views), log_weights=weights, query_start=query_start, key_start=key_start, **keys
        )

    def causal_head(n):
        leaves, places = causal_tiling(n, 40)
        return HeadPlan(n, n, tuple(rectangle(c - s, s - a, s, a) for a, s, c in places), leaves)

    def one_rectangle(n_q, n_k, n_drawn, views=(), exact_keys=()):
        drawn = rng.integers(n_k, size=n_drawn)
        return HeadPlan(n_q, n_k, (Rectangle(n_q, n_k, views, exact_keys, drawn, np.linspace(0, 3, n_drawn)),))

    def blocks(query_offsets, key_offsets):
        orders = (rng.permutation(offsets[-1]) for offsets in (query_offsets, key_offsets))
        return (BlockMask(*orders, query_offsets, key_offsets),)

    q, k, v = rows(150, 24), rows(203, 24), rows(203, 16)
    long_q = rows(300, 24)
    # Blocks that hold whole tiles, and one that ends within a tile; blocks without keys; no block, and no key at all.
    wide, holes = ([0, 200, 300], [0, 100, 203]), ([0, 128, 129, 200, 300], [0, 0, 70, 70, 203])
    sampled = Plan((2,), tuple(one_rectangle(300, 203, 70, blocks(*wide), exact) for exact in ((), (3, 90, 200))))
    holed = Plan((2,), tuple(one_rectangle(300, 203, n_drawn, blocks(*holes)) for n_drawn in (0, 70)))
    viewless = Plan((2,), tuple(one_rectangle(300, 203, n_drawn) for n_drawn in (0, 70)))
    whole = Plan((2,), tuple(HeadPlan(150, 203, (rectangle(150, 203),)) for _ in range(2)))
    causal = Plan((2,), tuple(causal_head(150) for _ in range(2)))
    k_same, v_same = k[:, :150], v[:, :150]
    return [
        AttentionInputs(4 * q, k, v, 0.25, False),
        AttentionInputs(q, k_same, v_same, 0.25, True),
        AttentionInputs(q, k, v, 0.25, False, whole),
        AttentionInputs(q, k_same, v_same, 0.25, True, causal),
        AttentionInputs(4 * long_q, k, v, 0.25, False, sampled),
        AttentionInputs(long_q, k, v, -0.25, False, holed),
        AttentionInputs(long_q, k, v, 0.25, False, viewless),
        AttentionInputs(q, k, v, 0.0, False, whole),
    ]


def judge(example: AttentionInputs, results: dict[str, np.ndarray], storage: str) -> None:
    """An AssertionError if `out` and `lse`, computed from arrays of dtype `storage`, leave the derived bounds."""
    exact = example.call(reference.Reference())
    bounds = example.bounds(exact, {"out": np.float32, "lse": np.float32})
    if storage == "bfloat16":
        bounds["out"] += bfloat_bound(example, exact)
    for name, x in results.items():
        error = np.abs(np.where(x == exact[name], 0, x) - np.where(x == exact[name], 0, exact[name]))
        worst = np.max(error - bounds[name])
        if not (worst <= 0):
            raise AssertionError(f"{name} is wrong by {np.max(error)}, allowed {np.max(bounds[name])}: {example!r}")


def on_storage(example: AttentionInputs, backend: EmulatedBackend, storage: str) -> dict[str, np.ndarray]:
    """The results of the backend on arrays of that dtype, as float32."""
    q, k, v = example.arrays.values()
    if storage == "bfloat16":
        q, k, v = (backend.device.upload(to_bfloat(x), storage) for x in (q, k, v))
    else:
        q, k, v = (backend.device.upload_view(x) for x in (q, k, v))
    results = replace(example, query=q, key=k, value=v).call(backend)
    out, lse = (np.asarray(x) for x in results.values())
    return {"out": from_bfloat(out) if storage == "bfloat16" else out, "lse": lse}


def bfloat_bound(example: AttentionInputs, exact) -> np.ndarray:
    """What weights and outputs rounded to bfloat16 add: u (sum of p |v|) and u |out|, with a tenth for second order."""
    spread = AttentionInputs(
        example.query, example.key, np.abs(example.value), example.scale, example.is_causal, example.plan
    )
    return 1.1 * U_BFLOAT * (spread.call(reference.Reference())["out"] + np.abs(exact["out"]))
