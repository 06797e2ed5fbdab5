"""The files of a survey hold every head, and the page stands alone."""

import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np

import hyperattention_ref as hr
from hyperattention_ref.surveys.page import write_report
from hyperattention_ref.surveys.report import SurveyReport

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
        assert float(row["error_heavy"]) == head.recipes["heavy"].relative_frobenius
        assert float(row["error_zero"]) == head.baselines["zero"].relative_frobenius >= 1
        assert row["verdict"] == head.verdict


def test_the_page_stands_alone_and_shows_every_head_verdict_and_rule(surveyed, heads):
    _, out = surveyed
    page = (out / "report.html").read_text(encoding="utf-8")
    for outside in ("http:", "https:", "<script", "<link", "url(", "@import", "file:"):
        assert outside not in page
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert {base64.b64decode(picture) for picture in pictures} == {path.read_bytes() for path in out.glob("*.png")}
    assert len(pictures) == 6
    for head in heads:
        assert page.count(f"<b>{head.name}</b>") == 2
        assert f"<b>{head.verdict}</b><small>{head.rule}</small>" in page
    assert "16 + 32 pilot" in page
    assert "nan" not in page.lower().split("<figure>")[0]


def test_the_rows_drawn_decide_how_loose_the_bounds_are(surveyed, heads):
    _, out = surveyed
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "from 80 exact rows;" in page
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
    write_report(SurveyReport("maps.npz", settings, (first, second, *others)), out)
    with (out / "measures.csv").open(encoding="utf-8", newline="") as file:
        row, *_ = csv.DictReader(file)
    assert (row["alpha_32"], row["error_paper"]) == ("", "inf")
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
