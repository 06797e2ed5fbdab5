"""The command on a tiny model: its losses are the model's own, it resumes, and refuses bad input in one line.

torch and transformers belong to no default install; where they are missing most of these tests skip.
"""

import json
import shutil

import numpy as np
import pytest

from hyperattention_ref.perplexity.language_model import LanguageModel, read_text
from hyperattention_ref.perplexity.methods import WINDOW
from hyperattention_ref.perplexity.settings import PerplexitySettings

FEW = ("--n", 128, "--min-seq-len", 16, "--budget", 8, "--recipes", "paper,local_heavy", "--layers", "1,2")


@pytest.fixture(scope="module")
def compared(invoke, model_folder, text_file, tmp_path_factory):
    """What the command printed, and its folder."""
    out = tmp_path_factory.mktemp("perplexity") / "out"
    result = invoke("perplexity", model_folder, text_file, *FEW, "--out", out)
    assert result.exit_code == 0, result.output
    return result, out


def rows(out):
    return json.loads((out / "perplexity.json").read_text(encoding="utf-8"))["rows"]


def refused(result, out, *words):
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    line = " ".join(result.stderr.replace("│", " ").split())
    for word in words:
        assert word in line
    assert not out.exists()


def test_every_method_is_compared_at_every_count(compared):
    result, out = compared
    found = [(row["method"].split(",")[0], row["layers"], row["replaced"]) for row in rows(out)]
    methods = ("leaves only", WINDOW, WINDOW, "paper", "local_heavy")
    assert found == [("exact", 0, 0), *((name, count, count) for count in (1, 2) for name in methods)]
    assert len(list((out / "cases").iterdir())) == 11
    for words in ("tiny-llama", "words.txt", "local + heavy", "127 scored tokens of 128", "The report is"):
        assert words in result.output


def test_the_exact_loss_is_the_models_own(compared, transformers, model_folder, text_file):
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    ids = transformers.AutoTokenizer.from_pretrained(model_folder)(text_file.read_text(), return_tensors="pt")
    ids = ids["input_ids"][:, :128]
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    exact = rows(compared[1])[0]
    assert exact["loss"] == pytest.approx(loss, abs=1e-5)
    assert exact["perplexity"] == pytest.approx(np.exp(loss), rel=1e-5)


def test_a_recipe_of_all_pairs_costs_nothing_and_others_do(invoke, model_folder, text_file, compared, tmp_path):
    options = ("--n", 128, "--min-seq-len", 16, "--budget", 127, "--recipes", "window_sinks", "--layers", 2)
    result = invoke("perplexity", model_folder, text_file, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    by_name = {row["method"]: row for row in rows(tmp_path / "out")}
    assert abs(by_name["window_sinks"]["difference"]) < 1e-4
    assert max(map(abs, by_name["window_sinks"]["by_position"])) < 1e-3
    few = [
        row for row in rows(compared[1])[1:] if not row["method"].startswith(WINDOW)
    ]  # which has the keys of a costly pilot
    assert all(max(map(abs, row["by_position"])) > 1e-3 for row in few)


def test_losses_of_a_piece_do_not_depend_on_how_they_are_cut(model_folder, text_file, monkeypatch):
    settings = PerplexitySettings(n=128, min_seq_len=16, budget=8, last=50)
    text = read_text(model_folder, text_file, settings)
    model = LanguageModel(model_folder, text.ids)
    hidden, _ = model.prefill(text.ids)
    whole = model.losses(hidden, text)
    assert len(whole) == 50
    monkeypatch.setattr("hyperattention_ref.perplexity.language_model.MOST_LOGITS", 350)
    np.testing.assert_allclose(model.losses(hidden, text), whole, rtol=1e-5)
    np.testing.assert_allclose(model.losses(hidden, text._replace(first=1))[-50:], whole, rtol=1e-5)


def test_the_mark_of_the_beginning_stays_in_front(model_folder, text_file):
    settings = PerplexitySettings(n=128, min_seq_len=16, budget=8, retrieval="repeated")
    ids, first = read_text(model_folder, text_file, settings)
    assert ids[0] == 0
    assert (ids == 0).sum() == 1
    assert first == 1 + 61 + 1
    np.testing.assert_array_equal(ids[62:123], ids[1:62])


def test_a_finished_comparison_runs_nothing(invoke, compared, model_folder, text_file, monkeypatch):
    _, out = compared
    before = rows(out)
    monkeypatch.setattr(LanguageModel, "prefill", lambda *_: pytest.fail("a finished case ran again"))
    again = invoke("perplexity", model_folder, text_file, *FEW, "--out", out)
    assert again.exit_code == 0, again.output
    assert rows(out) == before


def test_an_interrupted_comparison_goes_on(invoke, model_folder, text_file, tmp_path, monkeypatch):
    prefill, calls = LanguageModel.prefill, []

    def interrupted(self, ids):
        calls.append(len(ids))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return prefill(self, ids)

    monkeypatch.setattr(LanguageModel, "prefill", interrupted)
    arguments = ("perplexity", model_folder, text_file, *FEW, "--out", tmp_path / "out")
    first = invoke(*arguments)
    assert first.exit_code == 130
    assert "interrupted; finished prefills are in" in first.stderr
    assert len(list((tmp_path / "out" / "cases").iterdir())) == 2
    assert invoke(*arguments).exit_code == 0
    assert len(calls) == 5 + 2 * 9


def test_a_folder_of_another_comparison_is_refused(invoke, compared, model_folder, text_file):
    _, out = compared
    result = invoke("perplexity", model_folder, text_file, *FEW, "--seed", 1, "--out", out)
    assert result.exit_code == 2
    assert "settings.seed is 0 there and 1 here" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--n", 300), "n is 300 and the model was trained for 256 tokens; take fewer, or allow it with --beyond"),
        (("--n", 400, "--beyond-context"), "has 301 tokens; give a longer text or a smaller n"),
        (("--n", 128, "--layers", "3"), "layers is 3; the model has 2 layers"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(invoke, model_folder, text_file, tmp_path, options, words):
    few = ("--min-seq-len", 16, "--budget", 8)
    result = invoke("perplexity", model_folder, text_file, *few, *options, "--out", tmp_path / "out")
    refused(result, tmp_path / "out", words)


def test_beyond_the_context_is_allowed_if_asked_for(invoke, model_folder, text_file, tmp_path):
    options = ("--n", 300, "--beyond-context", "--min-seq-len", 16, "--budget", 8, "--recipes", "paper", "--layers", 0)
    result = invoke("perplexity", model_folder, text_file, *options, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert [row["method"] for row in rows(tmp_path / "out")] == ["exact"]


def test_a_model_that_has_no_more_positions_is_refused(transformers, model_folder, text_file, tmp_path):
    from ..tiny_models import build

    build(transformers, "GPT2", "LMHeadModel").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the model cannot run on 65 tokens .*; take fewer"):
        LanguageModel(tmp_path, np.arange(8)).prefill(np.arange(65) % 50)


@pytest.mark.parametrize(
    ("style", "changes", "words"),
    [
        ("Cohere", {"logit_scale": 0.1}, "CohereForCausalLM changes the logits after its output layer"),
        ("Gemma2", {"final_logit_softcapping": None}, "Gemma2Attention has soft-capping of its logits"),
        ("Bloom", {}, "BloomForCausalLM does not go through transformers' AttentionInterface"),
    ],
)
def test_a_model_that_cannot_be_compared_is_refused(
    invoke, transformers, model_folder, text_file, tmp_path, style, changes, words
):
    from ..tiny_models import build

    build(transformers, style, "ForCausalLM", **changes).save_pretrained(tmp_path / "model")
    for path in model_folder.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "model")
    few = ("--n", 64, "--min-seq-len", 16, "--budget", 8)
    result = invoke("perplexity", tmp_path / "model", text_file, *few, "--out", tmp_path / "out")
    refused(result, tmp_path / "out", words)


def test_what_is_no_model_or_no_text_is_refused(invoke, transformers, model_folder, text_file, tmp_path):
    out = tmp_path / "out"
    nothing = invoke("perplexity", tmp_path / "nowhere", text_file, "--out", out)
    refused(nothing, out, "is no model that transformers can load")
    refused(invoke("perplexity", model_folder, tmp_path / "nowhere.txt", "--out", out), out, "nowhere.txt", "No such")
    (tmp_path / "latin.txt").write_bytes("Übersicht".encode("latin1"))
    refused(invoke("perplexity", model_folder, tmp_path / "latin.txt", "--out", out), out, "is no text in UTF-8")


def test_bad_options_are_refused_before_anything_is_loaded(invoke, tmp_path):
    out = tmp_path / "out"
    for options, words in (
        (("--layers", "1,x"), "--layers is '1,x'"),
        (("--recipes", "papper"), "recipe 'papper' is unknown"),
        (("--n", 10), "n is 10; it must be at least 64"),
        (("--retrieval", "backwards"), "retrieval is 'backwards'"),
    ):
        refused(invoke("perplexity", "model", "text.txt", *options, "--out", out), out, words)
