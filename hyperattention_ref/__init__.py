"""The numerical reference for HyperAttention (arXiv 2310.05869).

Public names are loaded at first use; `__init__.pyi` lists them with the modules that define them, for this loader, type
checkers and editors alike. No module bears the name of a public function, so that `hyperattention_ref.approx_d` is the
function whatever has been imported before.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("hyperattention-ref")
    if name in __all__:
        return _load(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
