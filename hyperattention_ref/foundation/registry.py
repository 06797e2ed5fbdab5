"""The registry of backends: their names, whether they can run here, and which of them a call uses.

Every backend is an entry point, imported on demand, so this module imports no backend.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from hyperattention_ref.foundation.backend import Backend, missing_members
from hyperattention_ref.foundation.memory import device_kind, library_of

ENTRY_POINT_GROUP = "hyperattention_ref.backends"

_BUILT_IN = {
    name: EntryPoint(name, f"hyperattention_ref.backends.{target}", ENTRY_POINT_GROUP)
    for name, target in {
        "reference": "reference:Reference",
        "numpy": "blocked_numpy:BlockedNumpy",
        "numba": "numba_cpu:NumbaCPU",
        "numba-cuda": "numba_cuda:NumbaCuda",
        "cupy": "cuda_cpp:CupyBackend",
    }.items()
}


def _known() -> dict[str, EntryPoint]:
    """Where each known backend class is, by name."""
    known = dict(_BUILT_IN)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in known:
            raise RuntimeError(f"entry point {point.value} redefines the backend {point.name!r}; rename or remove it")
        known[point.name] = point
    return known


def backend_status() -> dict[str, str | None]:
    """For every known backend, why it cannot run here, or None if it can."""
    return {name: _try_load(point)[1] for name, point in _known().items()}


def available_backends() -> list[str]:
    """Names of the backends that can run here."""
    return [name for name, reason in backend_status().items() if reason is None]


def get_backend(name: str) -> Backend:
    """The backend of that name; a ValueError says why it is unavailable."""
    # A built-in backend does not need the entry points of installed packages.
    known = _BUILT_IN if name in _BUILT_IN else _known()
    if name not in known:
        raise ValueError(f"backend {name!r} is unknown; known here: {', '.join(known)}")
    backend, reason = _try_load(known[name])
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run here: {reason}; available: {', '.join(available_backends())}")
    return backend


def select(backend, query, default: str | None = None) -> Backend:
    """The backend that will run.

    None means `default`. Without a default, the type of the array decides: `numba` for NumPy arrays and objects that
    NumPy converts, `numba-cuda` for Numba's arrays on a GPU, `cupy` for all other arrays on a GPU. A named backend or
    an instance runs or raises an error; there is no fallback.
    """
    if backend is None and default is not None:
        return get_backend(default)
    if backend is None:
        on_gpu = "numba-cuda" if library_of(query) == "numba" else "cupy"
        return get_backend(on_gpu if device_kind(query) else "numba")
    if isinstance(backend, str):
        return get_backend(backend)
    need = f"backend is {backend!r}; it must be None, a name or an object with the attributes of Backend"
    if isinstance(backend, type):
        raise TypeError(f"{need}, not a class: pass an instance, {backend.__name__}()")
    if absent := missing_members(backend):
        raise TypeError(f"{need}: it lacks {', '.join(absent)}")
    if reason := backend.unavailable():
        raise ValueError(f"backend {backend.name!r} cannot run here: {reason}")
    return backend


@cache
def _instance(kind: type) -> Any:
    """The one instance of a named backend: it may cache arrays on a device, or compiled code."""
    return kind()


def _try_load(point: EntryPoint) -> tuple[Any, str | None]:
    try:
        backend = _instance(point.load())
        if absent := missing_members(backend):
            return None, f"{point.value} lacks {', '.join(absent)}, which Backend has"
        return backend, backend.unavailable()
    except Exception as error:  # a broken plug-in must not disable the others; its error is reported instead
        return None, f"{type(error).__name__}: {error}"
