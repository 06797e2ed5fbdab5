"""What `bench` compares: its settings, its inputs, and every contestant as a call without arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from hyperattention_ref import synthetic
from hyperattention_ref.attention import exact_attention, hyper_attention
from hyperattention_ref.bench.rivals import RIVALS, missing, unsuited
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.registry import get_backend
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.maps.sample_heads import load_sample_heads
from hyperattention_ref.pages.threads import available_cores
from hyperattention_ref.plan.plan import Plan
from hyperattention_ref.plan.planner import make_plan

SAMPLE_HEADS = "sample_heads"
FAMILIES = ("gaussian", "planted_clusters", SAMPLE_HEADS, "sphere", "cones", "sink", "flat", "low_rank")
"""Synthetic families of any n and d, first the one on which calls are timed at every n; and the six real heads that
ship with the package, which always have 512 tokens and d = 32."""
DTYPES = ("float32", "float64")
WHOLE, PLANNED, EXACT, RIVAL = "HyperAttention", "given a plan", "exact", "rival"
"""Kinds of contestants: a backend's whole call, the same without making the plan, exact attention, and the rivals."""
SDPA = "PyTorch SDPA"
LEAVES = "leaves of HyperAttention"
"""Two more kinds, on a GPU: exact attention of PyTorch by the backend of SDPA that the engine names, and HyperAttention
whose causal leaves that backend computes."""
EXTERNAL = (SDPA, LEAVES)
"""Kinds that need a kernel of PyTorch: where it has none, nothing of this library is broken."""
GPU_BACKENDS = ("cupy", "numba-cuda")
"""They take device arrays; `bench-gpu` times them."""
SWEEP_BUDGETS = (64, 128, 256, 512, 1024, 2048)
"""Keys for each query of HyperAttention, half in its block and half sampled, where error is plotted against time."""


@dataclass(frozen=True, kw_only=True, repr=False)
class CallSettings(Result):
    """The arguments of `hyper_attention` besides its inputs.

    Attributes
    ----------
    block_size, sample_size, min_seq_len : of `hyper_attention`.
    seed : of everything random.
    """

    block_size: int = 256
    sample_size: int = 256
    min_seq_len: int = 4096
    seed: int = 0

    def with_budget(self, budget: int | None) -> CallSettings:
        """The same with this budget of keys, half of it in blocks and half sampled, unless it is None."""
        return self if budget is None else replace(self, block_size=budget // 2, sample_size=budget // 2)

    @property
    def plan_options(self) -> dict[str, Any]:
        """The arguments by name."""
        return {name: getattr(self, name) for name in ("block_size", "sample_size", "min_seq_len")} | {"rng": self.seed}


@dataclass(frozen=True, kw_only=True, repr=False)
class RunSettings(CallSettings):
    """What both benchmarks are told; see also `CallSettings`.

    Attributes
    ----------
    n : lengths, in ascending order.
    heads : of the inputs.
    backends : names; everything is compared with HyperAttention of the first.
    repeats : timed runs of each call.
    seconds : a call that has taken so long in all is run three times only.
    """

    n: tuple[int, ...]
    heads: int
    backends: tuple[str, ...]
    repeats: int
    seconds: float

    def __post_init__(self):
        for name in ("heads", "block_size", "sample_size", "min_seq_len", "repeats"):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name)))
        object.__setattr__(self, "n", tuple(sorted({inputs.count("n", n, least=2) for n in self.n})))
        object.__setattr__(self, "seconds", inputs.positive("seconds", self.seconds))
        object.__setattr__(self, "seed", inputs.count("seed", self.seed, least=0))
        object.__setattr__(self, "backends", tuple(dict.fromkeys(self.backends)))


@dataclass(frozen=True, kw_only=True, repr=False)
class BenchSettings(RunSettings):
    """What is measured, on what, and how often; see also `RunSettings`.

    Attributes
    ----------
    dim, value_dim : coordinates of a query and of a value; `value_dim` None means `dim`.
    is_causal : causal attention.
    against : names of rivals, see `rivals.py`.
    families : inputs on which error is measured against time, see FAMILIES.
    dtype : float32 or float64.
    measure : also time the exact measures that `hardness` is made of.
    threads : for every library alike; by default the cores that this process may use.
    """

    n: tuple[int, ...] = (4096, 16384, 32768)
    heads: int = 1
    dim: int = 64
    value_dim: int | None = None
    is_causal: bool = False
    backends: tuple[str, ...] = ("numba",)
    against: tuple[str, ...] = tuple(RIVALS)
    families: tuple[str, ...] = FAMILIES[:3]
    dtype: str = "float32"
    repeats: int = 7
    seconds: float = 10.0
    measure: bool = False
    threads: int = field(default_factory=lambda: available_cores())

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "dim", inputs.count("dim", self.dim))
        if self.value_dim is not None:
            object.__setattr__(self, "value_dim", inputs.count("value_dim", self.value_dim))
        object.__setattr__(self, "threads", inputs.count("threads", self.threads, most=available_cores()))
        for name in ("is_causal", "measure"):
            inputs.boolean(name, getattr(self, name))
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; it must be one of {', '.join(DTYPES)}")
        for name, known in (("against", tuple(RIVALS)), ("families", FAMILIES)):
            names = getattr(self, name)
            if unknown := [x for x in names if x not in known]:
                raise ValueError(f"{name}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
            object.__setattr__(self, name, tuple(dict.fromkeys(names)))
        if not (self.n and self.backends and self.families):
            raise ValueError("nothing to time; give at least one n, one backend and one family")
        for name in self.backends:
            if name in GPU_BACKENDS:
                raise ValueError(f"backend {name!r} takes device arrays; time it with: hyperattention bench-gpu")
            get_backend(name)
        if reason := missing(self.against):
            raise ValueError(reason)

    @property
    def d_v(self) -> int:
        """Coordinates of a value."""
        return self.value_dim or self.dim

    @property
    def shown_n(self) -> int:
        """The length at which error is plotted against time: the largest up to 16384, else the least.

        A planted mask is dense, n^2 bytes.
        """
        return max((n for n in self.n if n <= 16384), default=min(self.n))


class Heads(NamedTuple):
    """The inputs of one case: arrays `(heads, n, d)` and `(heads, n, d_v)`, the scale of the logits, and the mask."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scale: float
    is_causal: bool = False

    @property
    def n(self) -> int:
        return self.query.shape[1]

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.query, self.key, self.value

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of attention besides the arrays."""
        return {"scale": self.scale, "is_causal": self.is_causal}

    @property
    def n_bytes(self) -> int:
        return sum(x.nbytes for x in self.arrays)


def make_heads(settings: BenchSettings, family: str, n: int) -> Heads:
    """Heads of one synthetic family, drawn independently; or the real ones."""
    if family == SAMPLE_HEADS:
        heads: list[Any] = list(load_sample_heads())
    else:
        generate = getattr(synthetic, family)
        streams = np.random.default_rng([settings.seed, n]).spawn(settings.heads)
        heads = [generate(n, settings.dim, rng=rng, d_v=settings.d_v) for rng in streams]
    q, k, v = (np.stack([getattr(h, x) for h in heads]).astype(settings.dtype) for x in ("query", "key", "value"))
    return Heads(q, k, v, heads[0].scale, settings.is_causal)


@dataclass(frozen=True, repr=False)
class Contestant(Result):
    """Something that is timed.

    Attributes
    ----------
    engine : name of a backend, of a rival or of a backend of SDPA.
    kind : one of WHOLE, PLANNED, EXACT, RIVAL, SDPA and LEAVES.
    budget : keys for each query, or what the rival's budget counts; None for the settings', or the rival's own.
    """

    engine: str
    kind: str
    budget: int | None = None

    @property
    def name(self) -> str:
        name = RIVALS[self.engine].title if self.kind == RIVAL else f"{self.engine}: {self.kind}"
        return name if self.budget is None else f"{name}, {self.budget}"

    @property
    def backend(self) -> str:
        """The backend that runs the call and makes its plan."""
        return "cupy" if self.kind == LEAVES else self.engine

    @property
    def is_exact(self) -> bool:
        """Whether it is attention without approximation."""
        return self.kind in (EXACT, SDPA) or (self.kind == RIVAL and RIVALS[self.engine].budgets is None)

    @property
    def is_planned(self) -> bool:
        return self.kind in (WHOLE, PLANNED, LEAVES)


def backend_calls(backends: Iterable[str], *, has_exact: bool = True) -> list[Contestant]:
    """The calls of each backend that are timed."""
    kinds = (WHOLE, PLANNED, EXACT) if has_exact else (WHOLE, PLANNED)
    return [Contestant(name, kind) for name in backends for kind in kinds]


def contestants(settings: BenchSettings) -> list[Contestant]:
    """What is timed at every n: three calls of each backend, and the rivals that support the settings."""
    return backend_calls(settings.backends) + [
        Contestant(name, RIVAL) for name in settings.against if name not in left_out(settings)
    ]


def sweep(settings: BenchSettings, n: int) -> list[Contestant]:
    """What is on the plot of error against time: every approximation at budgets up to n/2, and exact attention."""
    most = n // 2
    approximate = [Contestant(name, WHOLE, x) for name in settings.backends for x in SWEEP_BUDGETS if x <= most]
    rivals = [name for name in settings.against if name not in left_out(settings)]
    for name in rivals:
        budgets = RIVALS[name].budgets or ()
        approximate += [Contestant(name, RIVAL, x) for x in budgets if x * RIVALS[name].reach <= most]
    exact = [Contestant(settings.backends[0], EXACT)]
    return approximate + exact + [Contestant(name, RIVAL) for name in rivals if RIVALS[name].budgets is None]


def left_out(settings: BenchSettings) -> dict[str, str]:
    """The rivals that do not support the settings, with the reason."""
    reasons = {name: unsuited(name, settings) for name in settings.against}
    return {name: reason for name, reason in reasons.items() if reason}


def planned(settings: CallSettings, heads: Heads, backend: str) -> Plan:
    """The plan that the whole call makes from the same seed."""
    return make_plan(heads.query, heads.key, backend=backend, **settings.plan_options, **heads.options)


def prepare(contestant: Contestant, settings: CallSettings, heads: Heads, backend=None) -> Callable[[], np.ndarray]:
    """The call to be timed; what is not part of it (the plan of a PLANNED call, a rival's features) is made here.

    `backend` is the one that runs, if the contestant's engine does not name it.
    """
    q, k, v = heads.arrays
    if contestant.kind == RIVAL:
        rival = RIVALS[contestant.engine]
        return rival.prepare(q, k, v, budget=contestant.budget, seed=settings.seed, **heads.options)
    options = heads.options | {"backend": backend or contestant.engine}
    if contestant.kind == EXACT:
        return lambda: exact_attention(q, k, v, **options)
    settings = settings.with_budget(contestant.budget)
    if contestant.kind == PLANNED:
        plan = planned(settings, heads, contestant.engine)
        return lambda: hyper_attention(q, k, v, plan=plan, **options)
    return lambda: hyper_attention(q, k, v, **settings.plan_options, **options)


def logits(contestant: Contestant, plan: Plan | None, heads: Heads) -> int | None:
    """Logits that the call evaluates, from its plan or from the lengths; None for a rival's approximation."""
    if contestant.is_planned and plan is not None:
        return plan.n_logits
    if contestant.is_exact:
        return len(heads.query) * (math.comb(heads.n + 1, 2) if heads.is_causal else heads.n**2)
    return None
