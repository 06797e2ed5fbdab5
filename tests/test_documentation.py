"""The documentation: every Python block runs, and the API page has every public name."""

import inspect
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import hyperattention_ref as hr

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = Sybil(parsers=[PythonCodeBlockParser()])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks_run_in_order_in_one_namespace(page, tmp_path, monkeypatch):
    document = BLOCKS.parse(page)
    monkeypatch.chdir(tmp_path)  # a block may write files
    for example in document.examples():
        example.evaluate()


def test_a_failing_code_block_is_noticed(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n")
    first, second = BLOCKS.parse(page).examples()
    first.evaluate()
    with pytest.raises(AssertionError):
        second.evaluate()


def test_api_page_has_the_home_of_every_public_name():
    listed = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").split()
    public = [getattr(hr, name) for name in hr.__all__]
    homes = {x.__name__ if inspect.ismodule(x) else x.__module__ for x in public if hasattr(x, "__name__")}
    assert "hyperattention_ref.attention" in homes
    assert homes <= set(listed)
