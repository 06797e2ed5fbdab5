"""Backends: interchangeable arithmetic for one interface.

A backend is an object with the attributes of `Backend`. It makes no decision and draws no random number: everything of
that kind is in the `Plan` it is given. `reference`, `numpy`, `numba`, `numba-cuda` and `cupy` are built in. Other
packages add theirs through the entry-point group `hyperattention_ref.backends` and prove them with
`conformance.check_backend`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hyperattention_ref.measures.attention_sums import AttentionSums
from hyperattention_ref.memory import device_kind, library_of

ENTRY_POINT_GROUP = "hyperattention_ref.backends"

_BUILT_IN = {
    "reference": "hyperattention_ref.backends.reference:Reference",
    "numpy": "hyperattention_ref.backends.blocked_numpy:BlockedNumpy",
    "numba": "hyperattention_ref.backends.numba_cpu:NumbaCPU",
    "numba-cuda": "hyperattention_ref.backends.numba_cuda_backend:NumbaCuda",
    "cupy": "hyperattention_ref.backends.cupy_backend:CupyBackend",
}


@runtime_checkable
class Backend(Protocol):
    """What a backend must offer.

    Arrays are `(..., n, d)` with equal leading shapes; they may be views with any strides, stride 0 included. They
    have been checked: one floating dtype, finite, matching shapes, `scale` finite. `out` is `(..., n_q, d_v)` and
    `lse` `(..., n_q)`, the natural log of the softmax denominator.

    A backend whose arrays are not on the host has one more attribute, `memory`, a `hyperattention_ref.memory.Memory`:
    arrays arrive as its views, results are arrays of the caller's library. Plans, masks, hyperplanes, samples and caps
    are decisions and lie on the host. One that can go from noise to output without a Plan on the host may also offer
    `drawn_attention`, see `cuda_launcher.CudaBackend`.
    """

    name: str

    def unavailable(self) -> str | None:
        """Why this backend cannot run here, or None if it can."""

    def hash_codes(self, x, planes) -> Any:
        """Bucket numbers `(..., n)`, int64, of the rows of `x`; Definition 1."""

    def exact_attention(self, q, k, v, *, scale: float, is_causal: bool) -> tuple[Any, Any]:
        """(out, lse) of exact softmax attention."""

    def planned_attention(self, q, k, v, plan, *, scale: float) -> tuple[Any, Any]:
        """(out, lse) of the attention of `plan`; `plan.heads` follow the leading shape in row-major order."""

    def attention_sums(self, q, k, mask, *, scale: float, is_causal: bool) -> AttentionSums:
        """Row and column sums of one head, q `(n_q, d)` and k `(n_k, d)`.

        `mask` is a Rectangle (its views and exact keys mark pairs), a dense boolean array, or None.
        """

    def transposed_attention(self, q, k, y, lse, *, scale: float, is_causal: bool) -> Any:
        """P^T y `(n_k, c)` of one head, for y `(n_q, c)` and the log-sum-exps of the rows; P x is `exact_attention`."""

    def capped_sums(self, q, k, mask, samples, log_caps, *, scale: float) -> tuple[Any, Any]:
        """The capped sums of Algorithm 2 over sampled keys, of one head, q `(n_q, d)` and k `(n_k, d)`.

        With A = exp(scale q k^T), M the mask (as in `attention_sums`; the sampled keys of a Rectangle play no part),
        ℓ = `samples` `(m,)`, m >= 1, int64 keys with repetition, and log C = `log_caps` `(n_q,)` float64, +inf for no
        cap: `log_sums` `(n_q,)`, log Σ_r (1 - M_{i,ℓ_r}) min(A_{i,ℓ_r}, C_i), -inf for an empty sum, and `n_capped`
        `(n_q,)` int64, how many of these draws have A_{i,ℓ_r} > C_i.
        """


def _built_in(target: str) -> Callable[[], type]:
    module, _, attribute = target.partition(":")
    return lambda: getattr(import_module(module), attribute)


def _loaders() -> dict[str, Callable[[], type]]:
    """How to import each known backend class, by name."""
    loaders = {name: _built_in(target) for name, target in _BUILT_IN.items()}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in loaders:
            raise RuntimeError(f"entry point {point.value} redefines the backend {point.name!r}; rename or remove it")
        loaders[point.name] = point.load
    return loaders


def backend_status() -> dict[str, str | None]:
    """For every known backend, why it cannot run here, or None if it can."""
    return {name: _try_load(loader)[1] for name, loader in _loaders().items()}


def available_backends() -> list[str]:
    """Names of the backends that can run here."""
    return [name for name, reason in backend_status().items() if reason is None]


def get_backend(name: str) -> Backend:
    """The backend of that name, or a ValueError that says why it cannot be had."""
    # a built-in backend is had without asking the installed packages for theirs
    loaders = {name: _built_in(_BUILT_IN[name])} if name in _BUILT_IN else _loaders()
    if name not in loaders:
        raise ValueError(f"backend {name!r} is unknown; known here: {', '.join(loaders)}")
    backend, reason = _try_load(loaders[name])
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run here: {reason}; available: {', '.join(available_backends())}")
    return backend


def select(backend, query) -> Backend:
    """The backend that will run.

    None picks by the kind of array: `numba` for NumPy arrays and what NumPy converts; of arrays on a GPU `numba-cuda`
    for those of Numba and `cupy` for all others. A name or an instance is obeyed or refused; there is no fallback.
    """
    if backend is None:
        on_gpu = "numba-cuda" if library_of(query) == "numba" else "cupy"
        return get_backend(on_gpu if device_kind(query) else "numba")
    if isinstance(backend, str):
        return get_backend(backend)
    if isinstance(backend, Backend) and not isinstance(backend, type):
        if reason := backend.unavailable():
            raise ValueError(f"backend {backend.name!r} cannot run here: {reason}")
        return backend
    raise TypeError(f"backend is {backend!r}; it must be None, a name or an object with the attributes of Backend")


def each_head(plan_or_none, *arrays):
    """Iterate over heads in row-major order: the index, the HeadPlan (or None) and the (n, d) arrays of the head."""
    indices = np.ndindex(arrays[0].shape[:-2])
    for h, index in enumerate(indices):
        yield index, plan_or_none.heads[h] if plan_or_none else None, *(x[index] for x in arrays)


@cache
def _instance(kind: type) -> Any:
    """The only backend of its class that goes by name: it may keep what it has sent to a device, or compiled."""
    return kind()


def _try_load(loader: Callable[[], type]) -> tuple[Any, str | None]:
    try:
        backend = _instance(loader())
        return backend, backend.unavailable()
    except Exception as error:  # a broken plug-in must not take the others with it; its reason is shown instead
        return None, f"{type(error).__name__}: {error}"
