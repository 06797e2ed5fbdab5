"""What the script of the tables does in a browser; skipped where none is installed."""

import json
import re
import shutil
from pathlib import Path

import pytest

import hyperattention_ref

SCRIPT = (Path(hyperattention_ref.__file__).parent / "pages" / "table.js").read_text(encoding="utf-8")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SMALLER = ["−0.5", "3.1·10⁻⁴", "0.46 ± 0.02 ≤ 0.51", "3", "43 %", "103.4", "1.2e+05"]
ASCENDING = [*SMALLER, "1.2·10⁵", "∞", "L2", "L10", "–"]
DESCENDING = ["L10", "L2", "∞", "1.2e+05", "1.2·10⁵", *SMALLER[-2::-1], "–"]
ROWS = ["1.2e+05", "3", "1.2·10⁵", "10<sup>3.4</sup>", "–", "−0.5", "∞", "43 %", *SMALLER[2:0:-1], "L10", "L2"]
PAGE = """<!DOCTYPE html><meta charset="utf-8"><title>t</title><body>
<table class="sortable"><thead><tr><th>x</th><th data-filter="verdict">y</th></tr></thead><tbody>{rows}</tbody></table>
<script>{script}</script>
<script>
const rows = () => [...document.querySelectorAll("tbody tr")].filter((row) => !row.hidden);
const shown = () => rows().map((row) => row.cells[0].textContent);
const set = (x, value) => {{ x.value = value; x.dispatchEvent(new Event("input")); }};
const [heading, box, select] = ["thead button", "input", "select"].map((x) => document.querySelector(x));
const seen = {{ first: shown() }};
heading.click(); seen.ascending = shown();
heading.click(); seen.descending = shown();
set(box, "even L"); seen.box = shown();
set(box, ""); set(select, "odd"); seen.select = shown();
document.body.textContent = JSON.stringify(seen);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser: apt install chromium")
def test_tables_sort_and_filter(run_process, tmp_path):
    rows = "".join(f"<tr><td>{x}</td><td><b>{'odd' if i % 2 else 'even'}</b></td></tr>" for i, x in enumerate(ROWS))
    (tmp_path / "page.html").write_text(PAGE.format(rows=rows, script=SCRIPT), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    dom = run_process([BROWSER, *options, (tmp_path / "page.html").as_uri()], timeout=120).stdout
    seen = json.loads(re.search(r"\{.*\}", dom)[0])
    as_text = [re.sub("<.*?>", "", x) for x in ROWS]
    assert seen == {
        "first": as_text,
        "ascending": ASCENDING,
        "descending": DESCENDING,
        "box": ["L10"],
        "select": [x for x in DESCENDING if as_text.index(x) % 2],
    }


def test_the_script_loads_nothing():
    assert not re.search(r"https?:|fetch|import|XMLHttpRequest", SCRIPT)
