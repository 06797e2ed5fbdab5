"""What `bench-gpu` compares: its settings, its cases in the order in which they run, and the contestants of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import product

from hyperattention_ref.bench.cases import (
    GPU_BACKENDS,
    LEAVES,
    SDPA,
    CallSettings,
    Contestant,
    RunSettings,
    backend_calls,
)
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.registry import backend_status

HALF, SINGLE = "bfloat16", "float32"
HALF_BACKENDS = ("cupy",)
"""The backends that take bfloat16."""
SINGLE_HEADS = 1
"""Heads of the cases in float32, in which the slower backend in Python takes part."""
MOST_EXAMPLES = 100


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuSettings(RunSettings):
    """What is measured, on what, and how often; see also `RunSettings`; `heads` are those of the cases in bfloat16.

    Attributes
    ----------
    dims : head dimensions, the most important first; values have as many coordinates.
    causal : kinds of attention, not causal and causal.
    exact_up_to : n beyond which only HyperAttention runs, and not causal; exact attention would take most of the time.
    single_up_to : the largest n in float32.
    examples : of the conformance suite, for each operation.
    """

    n: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536, 131072, 1048576)
    dims: tuple[int, ...] = (64, 128)
    causal: tuple[bool, ...] = (False, True)
    heads: int = 12
    exact_up_to: int = 131072
    single_up_to: int = 16384
    backends: tuple[str, ...] = GPU_BACKENDS
    repeats: int = 9
    seconds: float = 3.0
    examples: int = 25

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "examples", inputs.count("examples", self.examples, most=MOST_EXAMPLES))
        object.__setattr__(self, "dims", tuple(dict.fromkeys(inputs.count("dim", d) for d in self.dims)))
        object.__setattr__(self, "causal", tuple(dict.fromkeys(inputs.boolean("causal", x) for x in self.causal)))
        for name in self.backends:
            if name not in GPU_BACKENDS:
                raise ValueError(f"backend {name!r} does not run on a GPU; it must be one of {', '.join(GPU_BACKENDS)}")
        if not (self.n and self.dims and self.causal and self.backends):
            raise ValueError("nothing to time; give at least one n, one dimension and one backend")


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuCase(CallSettings):
    """One set of inputs; see also `CallSettings`.

    Attributes
    ----------
    n, heads, dim, dtype : shape and type of the inputs.
    is_causal : causal attention.
    backends : names of those that take part.
    has_exact : whether exact attention takes part.
    """

    n: int
    heads: int
    dim: int
    dtype: str
    is_causal: bool
    backends: tuple[str, ...]
    has_exact: bool

    @property
    def name(self) -> str:
        return f"{self.dtype}-d{self.dim}-{'causal' if self.is_causal else 'full'}-n{self.n}"

    @property
    def group(self) -> tuple:
        """What the cases of one table have in common; they differ in n only."""
        return self.dtype, self.heads, self.dim, self.is_causal

    def contestants(self, sdpa: Iterable[str]) -> list[Contestant]:
        """The calls of the backends; SDPA, which is for 16 bits, alone and for leaves."""
        contestants = backend_calls(self.backends, has_exact=self.has_exact)
        if self.has_exact and self.dtype == HALF:
            external = (LEAVES, SDPA) if self.is_causal else (SDPA,)
            contestants += [Contestant(name, kind) for kind in external for name in sdpa]
        return contestants


def obstacles(settings: GpuSettings) -> dict[str, str]:
    """The backends that cannot run here, with the reason."""
    status = backend_status()
    return {name: reason for name in settings.backends if (reason := status[name])}


def cases(settings: GpuSettings, usable: list[str], dim: int, dtype: str) -> Iterator[GpuCase]:
    """The cases in one type, short ones first."""
    is_half = dtype == HALF
    backends = tuple(name for name in usable if name in HALF_BACKENDS or not is_half)
    options = {field.name: getattr(settings, field.name) for field in fields(CallSettings)}
    for n, is_causal in product(settings.n if backends else (), settings.causal):
        most = settings.single_up_to if not is_half else settings.exact_up_to if is_causal else n
        if n <= most:
            yield GpuCase(
                n=n,
                heads=settings.heads if is_half else SINGLE_HEADS,
                dim=dim,
                is_causal=is_causal,
                dtype=dtype,
                backends=backends,
                has_exact=n <= settings.exact_up_to,
                **options,
            )
