"""What `bench-heads` compares: recipes at several budgets, and rivals."""

from __future__ import annotations

from dataclasses import dataclass, field

from hyperattention_ref.bench.cases import GPU_BACKENDS
from hyperattention_ref.bench.rivals import missing
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.registry import get_backend
from hyperattention_ref.foundation.results import Result
from hyperattention_ref.pages.threads import available_cores
from hyperattention_ref.plan.recipe import RECIPES, preset

EXACT, SDPA, FLEX = "exact", "sdpa", "flex"
"""Exact attention of the backend, and the rivals, both of PyTorch: exact attention, and FlexAttention on pages."""
RIVALS = (SDPA, FLEX)


@dataclass(frozen=True, kw_only=True, repr=False)
class HeadsSettings(Result):
    """What is compared, and how often it is timed.

    Attributes
    ----------
    n : tokens, a prefix of every head; None for all.
    layers, heads : numbers of those that are compared; None for all.
    recipes : names from `RECIPES`.
    budgets : keys per query, ascending; each recipe at each that is less than n.
    against : names from `RIVALS`.
    min_seq_len : causal ranges up to this length are exact.
    backend : of recipes and of exact attention.
    repeats : timed runs of each call.
    seconds : a call that has taken so long in all is run three times only.
    threads : for every library alike; by default the cores that this process may use.
    seed : of everything random.
    """

    n: int | None = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    recipes: tuple[str, ...] = tuple(RECIPES)
    budgets: tuple[int, ...] = (32, 64, 128, 256, 512)
    against: tuple[str, ...] = RIVALS
    min_seq_len: int = 512
    backend: str = "numba"
    repeats: int = 5
    seconds: float = 2.0
    threads: int = field(default_factory=lambda: available_cores())
    seed: int = 0

    def __post_init__(self):
        if self.n is not None:
            inputs.count("n", self.n, least=2)
        for name in ("min_seq_len", "repeats"):
            inputs.count(name, getattr(self, name))
        inputs.positive("seconds", self.seconds)
        inputs.count("threads", self.threads, most=available_cores())
        inputs.count("seed", self.seed, least=0)
        object.__setattr__(self, "recipes", tuple(dict.fromkeys(self.recipes)))
        object.__setattr__(self, "budgets", tuple(sorted({inputs.count("budgets", x) for x in self.budgets})))
        if not self.recipes or not self.budgets:
            raise ValueError("recipes or budgets is empty; name at least one of each")
        for name in self.recipes:
            preset(name)
        if unknown := [name for name in self.against if name not in RIVALS]:
            raise ValueError(f"against: unknown {', '.join(unknown)}; known: {', '.join(RIVALS)}")
        if self.backend in GPU_BACKENDS:
            raise ValueError(f"backend {self.backend!r} takes device arrays; bench-heads times backends of the host")
        get_backend(self.backend)
        if self.against and (reason := missing([SDPA])):
            raise ValueError(reason)
