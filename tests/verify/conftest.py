"""The sample heads' measures and a report, for all tests that read them."""

import pytest

from hyperattention_ref.pages.environment import environment
from hyperattention_ref.proofs_checks import Settings, run_checks
from hyperattention_ref.verify import sample_head_measures
from hyperattention_ref.verify.console import PACKAGES
from hyperattention_ref.verify.report import Report

CHECKS = ("definition_1", "range_facts", "lemma_1_rate", "merge_monoid", "counterexamples")


@pytest.fixture(scope="session")
def heads():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_head_measures, "RUNS", 1)
        return sample_head_measures.measure_sample_heads()


@pytest.fixture(scope="session")
def full(heads):
    settings = Settings(n=64, trials=2)
    return Report(
        settings, tuple(run_checks(settings, only=CHECKS)), heads, 12.0, environment(PACKAGES), "hyperattention verify"
    )
