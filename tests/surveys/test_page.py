"""The files of a survey hold every head, and the page stands alone."""

import base64
import csv
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.surveys.page import write_report
from hyperattention_ref.surveys.report import SurveyReport, error_number, error_words, limits

from .small_maps import OPTIONS, arrays


def test_json_and_csv_hold_every_head(surveyed, heads):
    _, out = surveyed
    data = json.loads((out / "measures.json").read_text(encoding="utf-8"))
    assert data["heads"] == [head.to_dict() for head in heads]
    assert sum(data["verdicts"].values()) == len(heads) == 4
    with (out / "measures.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["L0H0", "L0H1", "L3H0", "L3H1"]
    for row, head in zip(rows, heads, strict=True):
        assert float(row["alpha"]) == head.hardness.alpha
        heavy = head.recipes["heavy"]
        assert (float(row["keys_heavy"]), float(row["logits_heavy"])) == (16, 48)  # the pilot has 32 rows
        assert float(row["error_heavy"]) == heavy.relative_frobenius_estimate
        assert float(row["standard_error_heavy"]) == heavy.relative_frobenius_standard_error > 0
        assert float(row["error_low_heavy"]) == heavy.relative_frobenius_low < heavy.relative_frobenius_estimate
        assert float(row["error_high_heavy"]) == heavy.relative_frobenius > heavy.relative_frobenius_estimate
        assert float(row["error_limit_heavy"]) == heavy.relative_limit
        assert float(row["error_zero"]) == 1
        assert row["verdict"] == head.verdict


def test_the_page_stands_alone_and_shows_every_head_verdict_and_rule(surveyed, heads):
    _, out = surveyed
    page = (out / "report.html").read_text(encoding="utf-8")
    for outside in ("http:", "https:", "<script ", "<link", "url(", "@import", "file:"):
        assert outside not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(picture) for picture in pictures} == {path.read_bytes() for path in out.glob("*.png")}
    assert len(pictures) == 6
    for head in heads:
        assert page.count(f'<a href="#{head.name}"><b>{head.name}</b></a>') == 3
        assert page.count(f'<details id="{head.name}">') == 1
        assert re.search(rf'<a href="#{head.name}" class="k\d" title="{head.name}: {re.escape(head.verdict)};', page)
        assert f"<b>{head.verdict}</b><small>{head.rule}</small>" in page
    assert "heavy, 16 keys, 48 logits</th>" in page
    assert "nan" not in page.lower().split("<figure>")[0]


def test_the_page_says_how_it_was_made(surveyed):
    _, out = surveyed
    page = (out / "report.html").read_text(encoding="utf-8")
    command = ["hyperattention", "measure", "maps.npz", *OPTIONS, "--out", "out"]
    assert shlex.split(re.search("<code>(.*?)</code>", page)[1]) == command
    assert str(out.parent) not in page
    for fact in ("numba", np.__version__, platform.python_version()):
        assert f"<dd>{fact}</dd>" in page


def test_the_page_shows_estimates_bounds_and_what_the_rows_can_certify(surveyed, heads):
    page = (surveyed[1] / "report.html").read_text(encoding="utf-8")
    for head in heads:
        estimate, _, rest = error_words(head, "paper").partition(" ± ")
        deviation, _, bound = rest.partition(" ≤ ")
        assert f"{estimate}<small>± {deviation}</small><small>≤ {bound}</small>" in page
        x = head.recipes["paper"]
        interval = f"{error_number(x.relative_frobenius_low)} to {error_number(x.relative_frobenius)}"
        assert f'<td data-label="interval">{interval}</td>' in page
    assert f"which cannot certify less than {limits(heads)}" in page


def test_exact_errors_are_numbers_alone(invoke, tmp_path):
    np.savez(tmp_path / "maps.npz", **arrays(64))
    result = invoke("measure", tmp_path / "maps.npz", "--exact", "--recipes", "paper", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for text in (result.output, page):
        assert "±" not in text
        assert "exact" in text
        assert "cannot certify" not in text


def test_the_rows_drawn_decide_how_loose_the_bounds_are(surveyed, heads):
    _, out = surveyed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "from 80 exact rows," in page
    for head in heads:
        recipe = head.recipes["paper"]
        assert recipe.relative_frobenius > recipe.relative_frobenius_estimate
        assert head.is_useful("paper") == (
            recipe.relative_frobenius_estimate < head.baselines["mean"].relative_frobenius_estimate
        )
        assert recipe.mass.low < recipe.mass.estimate < recipe.mass.high


def test_a_report_can_be_made_of_heads_with_infinite_bounds_and_without_prefixes(tmp_path):
    np.savez(tmp_path / "maps.npz", **arrays())
    settings, out = hr.SurveySettings(recipes=("paper",), n=20), tmp_path / "out"
    first, second, *others = hr.survey(tmp_path / "maps.npz", out, settings)
    first = replace(first, recipes={"paper": replace(first.recipes["paper"], relative_frobenius=np.inf)})
    second = replace(second, hardness=replace(second.hardness, log_kappa_shifted=None, stable_rank=None))
    write_report(SurveyReport("maps.npz", settings, (first, second, *others), "hyperattention measure", {}), out)
    with (out / "measures.csv").open(encoding="utf-8", newline="") as file:
        row, *_ = csv.DictReader(file)
    assert (row["alpha_32"], row["error_high_paper"]) == ("", "inf")
    assert "∞" in (out / "report.html").read_text(encoding="utf-8")
    assert not (out / "growth.png").exists()


def test_figures_do_not_depend_on_the_users_matplotlib(surveyed, tmp_path):
    """Drawn again by a command whose matplotlibrc and backend are a user's, they are the same bytes."""
    _, out = surveyed
    shutil.copytree(out, tmp_path / "out", ignore=shutil.ignore_patterns("*.png"))
    (tmp_path / "matplotlibrc").write_text(
        "text.usetex: True\nfont.family: serif\nfont.size: 30\naxes.facecolor: red\nmathtext.fontset: stix\n"
        "savefig.bbox: tight\nsavefig.transparent: True\nfigure.dpi: 20\n"
    )
    command = [
        sys.executable,
        "-c",
        "from hyperattention_ref.cli import main; main()",
        "measure",
        out.parent / "maps.npz",
    ]
    environment = {"MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command += [*OPTIONS, "--out", tmp_path / "out"]
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in out.glob("*.png"))
    assert names
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (out / name).read_bytes(), name
