"""Attention of other packages: which can take part, and whether it is attention."""

from dataclasses import replace

import pytest

from hyperattention_ref.bench import rivals
from hyperattention_ref.bench.cases import RIVAL, Contestant, contestants, make_heads, prepare, sweep
from hyperattention_ref.bench.check import true_rows
from hyperattention_ref.bench.device import Device
from hyperattention_ref.bench.report import BenchReport
from hyperattention_ref.bench.rivals import RIVALS
from tests.bench.planted import CEILINGS, SMALL, check


def test_rivals_that_cannot_do_it_are_left_out_with_the_reason(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: True)
    causal = replace(SMALL, against=tuple(RIVALS), is_causal=True)
    assert [x.engine for x in contestants(causal) if x.kind == RIVAL] == ["sdpa", "performer", "local"]
    narrow = replace(SMALL, against=tuple(RIVALS), value_dim=3)
    assert [x.engine for x in contestants(narrow) if x.kind == RIVAL] == ["performer", "local"]
    budgets = {(x.engine, x.budget) for x in sweep(causal, 512) if x.kind == RIVAL}
    assert {x for name, x in budgets if name == "performer"} == {32, 64, 128, 256}
    assert {x for name, x in budgets if name == "local"} == {32, 64}  # 128 would be 384 of 512 keys
    assert {x for name, x in budgets if name == "sdpa"} == {None}
    reasons = BenchReport(narrow, {}, CEILINGS, (), ()).left_out
    assert len(reasons) == 2
    assert all("needs values of the queries' dimension" in reason for reason in reasons)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("name", RIVALS)
def test_rivals_are_attention_on_the_given_arrays(name, is_causal):
    """With a budget that covers everything every rival comes near exact attention, at another scale as well."""
    pytest.importorskip(RIVALS[name].module, reason='rivals belong to the extra "bench"')
    settings = replace(SMALL, heads=2, against=(name,), is_causal=is_causal)
    if rivals.unsuited(name, settings):
        return
    heads = make_heads(settings, "sphere", 64)._replace(scale=1.0)
    truth = true_rows(heads, seed=1)
    before = [x.tobytes() for x in heads.arrays]
    run = prepare(Contestant(name, RIVAL, 2048 if name == "performer" else 64), settings, heads)
    output = run()
    assert output.shape == heads.value.shape
    assert [x.tobytes() for x in heads.arrays] == before
    assert run().tobytes() == output.tobytes()
    if Contestant(name, RIVAL).is_exact:
        assert check(output, truth).is_right
    # Performer's features are random, Nyström's pseudo-inverse is iterative; at the usual scale both would be 0.2 off
    assert truth.relative_error(Device(SMALL).rows(output, truth.rows)) < {"performer": 0.1, "nystrom": 0.1}.get(
        name, 1e-5
    )
