"""What `bench-gpu` compares: its settings, its cases in the order in which they run, and the contestants of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from hyperattention_ref.bench.cases import EXACT, GPU_BACKENDS, LEAVES, PLANNED, SDPA, WHOLE, CallSettings, Contestant
from hyperattention_ref.foundation import inputs
from hyperattention_ref.foundation.registry import backend_status
from hyperattention_ref.foundation.results import Result

HALF, SINGLE = "bfloat16", "float32"
HALF_BACKENDS = ("cupy",)
"""The backends that take bfloat16."""
SINGLE_HEADS = 1
"""Heads of the cases in float32, in which the slower backend in Python takes part."""
MOST_EXAMPLES = 100


@dataclass(frozen=True, kw_only=True, repr=False)
class GpuSettings(Result):
    """What is measured, on what, and how often.

    Attributes
    ----------
    n : lengths, in ascending order.
    dims : head dimensions, the most important first; values have as many coordinates.
    causal : kinds of attention, not causal and causal.
    heads : of the cases in bfloat16.
    exact_up_to : n beyond which only HyperAttention runs, and not causal; exact attention would take most of the time.
    single_up_to : the largest n in float32.
    backends : names out of GPU_BACKENDS; those that cannot run here are left out with the reason.
    block_size, sample_size, min_seq_len : of `hyper_attention`.
    repeats : timed runs of each call.
    seconds : a call that has taken so long in all is run three times only.
    examples : of the conformance suite, for each operation.
    seed : of everything random.
    """

    n: tuple[int, ...] = (4096, 8192, 16384, 32768, 65536, 131072, 1048576)
    dims: tuple[int, ...] = (64, 128)
    causal: tuple[bool, ...] = (False, True)
    heads: int = 12
    exact_up_to: int = 131072
    single_up_to: int = 16384
    backends: tuple[str, ...] = GPU_BACKENDS
    block_size: int = 256
    sample_size: int = 256
    min_seq_len: int = 4096
    repeats: int = 9
    seconds: float = 3.0
    examples: int = 25
    seed: int = 0

    def __post_init__(self):
        for name in ("heads", "block_size", "sample_size", "min_seq_len", "repeats"):
            object.__setattr__(self, name, inputs.count(name, getattr(self, name)))
        object.__setattr__(self, "n", tuple(sorted({inputs.count("n", n, least=2) for n in self.n})))
        object.__setattr__(self, "seconds", inputs.positive("seconds", self.seconds))
        object.__setattr__(self, "seed", inputs.count("seed", self.seed, least=0))
        object.__setattr__(self, "examples", inputs.count("examples", self.examples, most=MOST_EXAMPLES))
        object.__setattr__(self, "dims", tuple(dict.fromkeys(inputs.count("dim", d) for d in self.dims)))
        for name in ("causal", "backends"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
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
    n, heads, dtype : shape and type of the inputs.
    backends : names of those that take part.
    has_exact : whether exact attention takes part.
    """

    n: int
    heads: int
    dtype: str
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
        kinds = (WHOLE, PLANNED, EXACT) if self.has_exact else (WHOLE, PLANNED)
        contestants = [Contestant(name, kind) for name in self.backends for kind in kinds]
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
    names = ("block_size", "sample_size", "min_seq_len", "seed")
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
                **{name: getattr(settings, name) for name in names},
            )
