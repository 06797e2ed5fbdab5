"""The storeys of the library: no import leads from a lower one to a higher one, and none leads sideways."""

import ast
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hyperattention_ref"
STOREYS = (
    {"foundation"},
    {"plan"},
    {"paper"},
    {"backends"},
    {"attention", "measures", "synthetic", "maps"},
    {"attention_gradient"},
    {"proofs_checks", "pages", "models"},
    {"verify", "surveys", "perplexity", "bench", "backend_tools"},
    {"cli"},
    {"__main__"},
)
"""Rooms from the ground up: folders, or single modules. CONTRIBUTING.md has the same picture."""
LEVELS = {room: level for level, rooms in enumerate(STOREYS) for room in rooms}
MODULES = {
    ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
    for base, folder in ((ROOT / PACKAGE, ""), (ROOT, "backends"), (ROOT, "proofs_checks"))
    for path in sorted((base / folder).rglob("*.py"))
    if path != ROOT / PACKAGE / "__init__.py"
}


@cache
def public_names():
    """The room that each public name comes from, as the stub says."""
    tree = ast.parse((ROOT / PACKAGE / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module or alias.name for node in imports for alias in node.names}


def imported(module, path):
    """Every module of the library that a module imports, wherever in it, below `hyperattention_ref`."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.removeprefix(f"{PACKAGE}.") for alias in node.names if alias.name.startswith(PACKAGE)]
            yield from (name for name in names if name != PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            target = ".".join([*start, *([node.module] if node.module else [])])
            if not node.level and target.split(".")[0] != PACKAGE:
                continue
            target = target.removeprefix(PACKAGE).removeprefix(".")
            yield from ([target] if target else (public_names().get(x.name, x.name) for x in node.names))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hr":
            yield from (room for name, room in public_names().items() if name == node.attr)


@pytest.mark.parametrize("module", MODULES)
def test_imports_lead_down(module):
    room = module.split(".")[0]
    for target in imported(module, MODULES[module]):
        other = target.split(".")[0]
        assert other == room or LEVELS[other] < LEVELS[room], f"{module} imports {target}, which is not below it"


@pytest.mark.parametrize("room", ["backends", "proofs_checks"])
def test_mapped_folders_import_their_own_modules_relatively(room):
    """So that a tool that reads the tree, which does not know the mapping, can follow."""
    for module, path in MODULES.items():
        if module.split(".")[0] == room:
            nodes = [x for x in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(x, ast.ImportFrom)]
            assert not [x.module for x in nodes if not x.level and x.module.startswith(f"{PACKAGE}.{room}")], module


def test_every_room_has_its_storey():
    assert {module.split(".")[0] for module in MODULES} == set(LEVELS)


def test_backends_know_of_each_other_only_what_they_share():
    """A backend is a room of its own: what two of them need is a module beside their folders."""
    rooms = {"numba_cpu", "numba_cuda", "cuda_cpp"}
    for module, path in MODULES.items():
        parts = module.split(".")
        if parts[0] == "backends" and parts[1:2] and parts[1] in rooms:
            others = {name.split(".")[1] for name in imported(module, path) if name.startswith("backends.")}
            assert not others & (rooms - {parts[1]}), module


def test_contributing_shows_the_storeys():
    """The picture has one line for each storey, the highest first."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = page.split("```text\n")[1].split("```")[0].splitlines()
    assert len(lines) == len(STOREYS)
    for rooms, line in zip(reversed(STOREYS), lines, strict=True):
        assert all(f"{room}/" in line or f"{room}.py" in line for room in rooms), line
