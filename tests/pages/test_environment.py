"""The facts of a run are this machine's."""

import os
import platform

import numpy as np

from hyperattention_ref.pages.environment import environment


def test_the_facts_name_the_machine_and_each_package():
    facts = environment(["numpy", "no-such-package"])
    assert facts["Python"] == platform.python_version()
    assert facts["numpy"] == np.__version__
    assert facts["no-such-package"] == "not installed"
    assert facts["cores"] == os.cpu_count()
    assert facts["processor"]
