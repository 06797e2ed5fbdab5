"""The conformance suite: one call tells the author of a backend whether it may be trusted.

    from hyperattention_ref.backends.conformance import check_backend
    check_backend("mine")

`suite.py` has the check and its two gates, `strategies.py` the arrays and plans that Hypothesis makes, `examples.py`
the arguments of each operation, `error_bound.py` what rounding allows. Names are loaded at first use (`__init__.pyi`
lists them), because `error_bound` needs no Hypothesis.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
