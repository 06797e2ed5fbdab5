"""What every test run shares: the check that the package is installed, and the Hypothesis profile."""

import importlib.util

import pytest


def pytest_configure(config):
    # backends/ becomes hyperattention_ref.backends when the package is installed; a bare checkout does not have it.
    try:
        installed = importlib.util.find_spec("hyperattention_ref.backends") is not None
    except ModuleNotFoundError:
        installed = False
    if not installed:
        raise pytest.UsageError(
            "hyperattention_ref is not installed. Install first: run `make test`, or `pip install -e '.[test]'` and "
            "then `pytest`. (With an installed wheel run `pytest`, not `python -m pytest`: the latter puts this "
            "folder before the installed package.)"
        )
    from hypothesis import HealthCheck, settings

    # The same examples on every run and machine; time limits would only measure the machine.
    settings.register_profile(
        "reproducible",
        derandomize=True,
        deadline=None,
        max_examples=50,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("reproducible")
