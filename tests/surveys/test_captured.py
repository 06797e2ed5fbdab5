"""One command from a model to the verdict: what is captured when, and what is refused in one line."""

import json
import os

import pytest

from hyperattention_ref.surveys import captured
from hyperattention_ref.surveys.captured import asked_for
from hyperattention_ref.surveys.settings import SurveySettings
from hyperattention_ref.surveys.survey import load_results

from ..maps.map_examples import layer_maps, write

FEW = ("--recipes", "paper", "--budget", 8)


@pytest.fixture
def text(tmp_path):
    (tmp_path / "book.txt").write_text("a text")
    return tmp_path / "book.txt"


@pytest.fixture
def captures(monkeypatch):
    """A stand-in for the model, and the files that it has written."""
    files = []

    def capture_text(model, text, path, *, n, layers, heads):
        files.append(path)
        layer = layer_maps(n=n or 32, d=4, d_v=4, heads=2, key_heads=2)
        return write(path, layer, model=model, source=f"{text.name}, first {n or 32} tokens")

    monkeypatch.setattr(captured, "capture_text", capture_text)
    return files


def measured(invoke, *arguments):
    result = invoke("measure", *arguments, *FEW)
    assert result.exit_code == 0, result.output
    return result


def refused(result, *words):
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("hyperattention: ")
    assert "Traceback" not in result.output
    for word in words:
        assert word in line


def test_a_model_is_captured_to_a_file_that_is_gone_afterwards(invoke, captures, text, tmp_path):
    result = measured(invoke, "org/model", text, "--n", 24, "--out", tmp_path / "out")
    (file,) = captures
    assert file.name == "model.npz"
    assert not file.parent.exists()
    assert [(head.name, head.n) for head in load_results(tmp_path / "out")] == [("L0H0", 24), ("L0H1", 24)]
    assert "capturing the maps of org/model" in result.stderr
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<code>hyperattention measure org/model book.txt --n 24" in page


def test_a_finished_survey_of_a_model_is_shown_without_capturing_again(invoke, captures, text, tmp_path):
    arguments = ("org/model", text, "--out", tmp_path / "out")
    first = measured(invoke, *arguments)
    assert measured(invoke, *arguments).stdout == first.stdout
    assert len(captures) == 1
    (tmp_path / "out" / "heads" / "L0H1.json").unlink()
    assert measured(invoke, *arguments).stdout == first.stdout
    assert len(captures) == 2


def test_a_kept_file_is_captured_once(invoke, captures, text, tmp_path):
    kept = tmp_path / "kept.safetensors"
    measured(invoke, "org/model", text, "--keep", kept, "--out", tmp_path / "a")
    measured(invoke, "org/model", text, "--keep", kept, "--seed", 1, "--out", tmp_path / "b")
    assert captures == [kept]
    result = invoke("measure", "org/model", text, "--keep", kept, "--layers", 1, "--out", tmp_path / "c")
    refused(result, "layer 1 is not in", "kept.safetensors")


@pytest.mark.parametrize(("model", "name"), [("org/other", "book.txt"), ("org/model", "poem.txt")])
def test_a_kept_file_of_something_else_is_refused(invoke, captures, text, tmp_path, model, name):
    kept = tmp_path / "kept.npz"
    measured(invoke, "org/model", text, "--keep", kept, "--out", tmp_path / "a")
    (tmp_path / name).write_text("a text")
    result = invoke("measure", model, tmp_path / name, "--keep", kept, "--out", tmp_path / "b")
    refused(result, "kept.npz holds maps of org/model on book.txt, first 32 tokens", f"not of {model} on {name}")
    assert not (tmp_path / "b").exists()


def test_what_was_asked_for_changes_with_the_text_the_settings_and_the_weights(text, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"12")

    def asked(settings=None, **chosen):
        return asked_for(str(model), text, settings or SurveySettings(), **({"layers": None, "heads": None} | chosen))

    seen = [asked(), asked(SurveySettings(seed=1)), asked(layers=[1])]
    text.write_text("another text")
    seen.append(asked())
    os.utime(model / "weights", ns=(0, 0))
    seen.append(asked())
    assert all(seen.count(x) == 1 for x in seen)
    assert asked() == json.loads(json.dumps(seen[-1]))


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"asked": {}, "heads": 3}'])
def test_a_damaged_note_is_one_line(invoke, captures, text, tmp_path, content):
    arguments = ("org/model", text, "--out", tmp_path / "out")
    measured(invoke, *arguments)
    (tmp_path / "out" / "finished.json").write_text(content)
    result = invoke("measure", *arguments, *FEW)
    if '"asked"' in content:  # of something else
        assert result.exit_code == 0, result.output
    else:
        refused(result, "finished.json is damaged", "remove it and run again")


def test_a_text_that_is_missing_is_one_line(invoke, captures, tmp_path):
    result = invoke("measure", "org/model", tmp_path / "none.txt", "--out", tmp_path / "out")
    refused(result, "none.txt: No such file or directory")
    assert not captures


def test_a_trained_model_is_captured_and_measured(invoke, minilm_folder, tmp_path):
    (tmp_path / "long.txt").write_text("A text of many words. " * 20)
    choice = ("--n", 48, "--layers", 2, "--heads", 7)
    result = measured(invoke, minilm_folder, tmp_path / "long.txt", *choice, "--out", tmp_path / "out")
    assert "1 heads" in result.output
    (head,) = load_results(tmp_path / "out")
    assert (head.name, head.n) == ("L2H7", 48)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert str(minilm_folder) not in page
    (tmp_path / "out" / "heads" / "L2H7.json").unlink()
    again = measured(invoke, minilm_folder, tmp_path / "long.txt", *choice, "--out", tmp_path / "out")
    assert again.stdout == result.stdout  # what is captured again has the same bytes


def test_what_no_model_can_be_captured_of_is_one_line(invoke, minilm_folder, tmp_path):
    (tmp_path / "short.txt").write_text("few words")
    (tmp_path / "empty").mkdir()
    out = ("--out", tmp_path / "out")
    for model in ("no-such/model", tmp_path / "empty"):
        result = invoke("measure", model, tmp_path / "short.txt", *out)
        refused(result, f"{model} is no model that transformers can load (", "a folder with configuration, weights")
    result = invoke("measure", minilm_folder, tmp_path / "short.txt", "--n", 64, *out)
    refused(result, "n is 64 but", "short.txt has 4 tokens; give a longer text or a smaller n")
    assert not (tmp_path / "out").exists()
