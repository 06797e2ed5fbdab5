"""One survey with bounds from half of the rows, run by the command, for all tests that read what it writes."""

import numpy as np
import pytest

from hyperattention_ref.surveys.survey import load_results

from .small_maps import OPTIONS, arrays


@pytest.fixture(scope="session")
def surveyed(tmp_path_factory, invoke):
    """What the command printed, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("measure")
    np.savez(folder / "maps.npz", **arrays())
    return invoke("measure", folder / "maps.npz", *OPTIONS, "--out", folder / "out"), folder / "out"


@pytest.fixture(scope="session")
def heads(surveyed):
    return list(load_results(surveyed[1]))
