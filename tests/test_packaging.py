"""What is installed, under which names, and what importing it costs."""

import ast
import re
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

import hyperattention_ref as hr

ROOT = Path(__file__).parent.parent
MAPPED_FOLDERS = {"backends", "proofs_checks"}
SOURCES = [
    path
    for folder in ("hyperattention_ref", "backends", "proofs_checks", "tests", "docs")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def test_importing_the_package_imports_numpy_only(run_python, tmp_path):
    code = (
        "import sys; before = set(sys.modules)\n"
        "import hyperattention_ref\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - sys.stdlib_module_names))"
    )
    result = run_python(code, cwd=tmp_path)
    assert set(result.stdout.split()) - {"hyperattention_ref"} <= {"numpy", "lazy_loader"}


def test_every_public_name_can_be_had(run_python, tmp_path):
    run_python("import hyperattention_ref as h; [getattr(h, name) for name in h.__all__]", cwd=tmp_path)


def test_the_stub_names_what_the_package_has_and_where_it_is_defined():
    """Type checkers and editors read the stub, and so does the package itself."""
    tree = ast.parse((ROOT / "hyperattention_ref" / "__init__.pyi").read_text(encoding="utf-8"))
    (listed,) = [ast.literal_eval(x.value) for x in tree.body if isinstance(x, ast.Assign)]
    homes = {name.name: x.module for x in tree.body if isinstance(x, ast.ImportFrom) for name in x.names}
    assert set(listed) == set(hr.__all__) == {*homes, "__version__"}
    for name, home in homes.items():
        defined = getattr(getattr(hr, name), "__module__", None)
        assert defined is None or home is None or defined == f"hyperattention_ref.{home}", name


@pytest.mark.parametrize("name", sorted(MAPPED_FOLDERS))
def test_mapped_folders_are_no_top_level_packages(run_python, name, tmp_path):
    run_python(f"import hyperattention_ref.{name}", cwd=tmp_path)
    result = run_python(f"import {name}", cwd=tmp_path, check=False)
    assert result.returncode != 0
    assert f"No module named '{name}'" in result.stderr


def test_the_distribution_claims_one_top_level_name():
    assert distribution("hyperattention-ref").read_text("top_level.txt").split() == ["hyperattention_ref"]


def imported_names(path):
    """Top-level names of the absolute imports in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_a_mapped_folder_by_its_bare_name(path):
    assert MAPPED_FOLDERS.isdisjoint(imported_names(path))


def test_versions_agree():
    installed = version("hyperattention-ref")
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)[1]
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    assert installed == cited == declared
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = [x for x in re.findall(r"^## (\S+)", changelog, re.MULTILINE) if x != "Unreleased"]
    assert released[0] == declared


@pytest.mark.parametrize("file", ["py.typed", "__init__.pyi", "data/minilm_heads.npz"])
def test_data_files_are_installed(run_python, file, tmp_path):
    code = f"from importlib.resources import files; assert files('hyperattention_ref').joinpath('{file}').is_file()"
    run_python(code, cwd=tmp_path)
