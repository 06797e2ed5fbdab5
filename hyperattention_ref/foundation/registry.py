"""The registry of backends: their names, whether they can run here, and which of them a call uses.

Modules are named by strings and imported on demand, so this module imports no backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from hyperattention_ref.foundation.backend import Backend
from hyperattention_ref.foundation.memory import device_kind, library_of

ENTRY_POINT_GROUP = "hyperattention_ref.backends"

_BUILT_IN = {
    "reference": "hyperattention_ref.backends.reference:Reference",
    "numpy": "hyperattention_ref.backends.blocked_numpy:BlockedNumpy",
    "numba": "hyperattention_ref.backends.numba_cpu:NumbaCPU",
    "numba-cuda": "hyperattention_ref.backends.numba_cuda:NumbaCuda",
    "cupy": "hyperattention_ref.backends.cuda_cpp:CupyBackend",
}


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
    """The backend of that name; a ValueError says why it is unavailable."""
    # A built-in backend does not need the entry points of installed packages.
    loaders = {name: _built_in(_BUILT_IN[name])} if name in _BUILT_IN else _loaders()
    if name not in loaders:
        raise ValueError(f"backend {name!r} is unknown; known here: {', '.join(loaders)}")
    backend, reason = _try_load(loaders[name])
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
    if isinstance(backend, Backend) and not isinstance(backend, type):
        if reason := backend.unavailable():
            raise ValueError(f"backend {backend.name!r} cannot run here: {reason}")
        return backend
    raise TypeError(f"backend is {backend!r}; it must be None, a name or an object with the attributes of Backend")


@cache
def _instance(kind: type) -> Any:
    """The one instance of a named backend: it may cache arrays on a device, or compiled code."""
    return kind()


def _try_load(loader: Callable[[], type]) -> tuple[Any, str | None]:
    try:
        backend = _instance(loader())
        return backend, backend.unavailable()
    except Exception as error:  # a broken plug-in must not disable the others; its error is reported instead
        return None, f"{type(error).__name__}: {error}"
