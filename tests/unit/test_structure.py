"""The house keeps its shape: no circles, no room over a dozen files, no file over 400 lines, doors that say what is in.

What may import what is a matter of ``lint-imports``, whose contracts stand in ``pyproject.toml``.
"""

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
MOST_FILES, MOST_LINES = 12, 400
LARGER = {"raftdiff.rewards"}
"""One reward a file, however many there are."""


@pytest.fixture(scope="module")
def structure() -> ModuleType:
    spec = importlib.util.spec_from_file_location("structure", ROOT / "tests" / "benchmarks" / "structure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def graph(structure: ModuleType) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = structure.imports()
    return found


def test_no_two_files_import_each_other(structure: ModuleType, graph: dict[str, frozenset[str]]) -> None:
    assert structure.circles(graph) == []
    for package in structure.packages(graph):
        assert structure.circles(structure.inside(graph, package)) == [], package


def test_no_room_holds_more_than_a_dozen_files(structure: ModuleType, graph: dict[str, frozenset[str]]) -> None:
    held = structure.held(graph)
    assert {name for name, modules in held.items() if len(modules) > MOST_FILES} <= LARGER


def test_every_room_says_what_is_inside_and_what_to_import() -> None:
    doors = [*(ROOT / "raftdiff").glob("**/__init__.py"), *ROOT.glob("llm/**/__init__.py")]
    doors += [ROOT / "rewards" / "__init__.py", ROOT / "apps" / "__init__.py"]
    for door in set(doors) - {ROOT / "raftdiff" / "__init__.py"}:
        said = ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))) or ""
        assert len(said.split("\n\n")) >= 2, f"{door.relative_to(ROOT)}: two lines, what is inside and what to import"


@pytest.mark.parametrize("top", ["raftdiff", "llm", "rewards", "apps", "tests/benchmarks"])
def test_no_file_is_longer_than_400_lines(top: str) -> None:
    long = {
        str(file): count
        for file in (ROOT / top).glob("**/*.py")
        if (count := len(file.read_text().splitlines())) > MOST_LINES
    }
    assert long == {}


def test_circles_chains_and_inside_views_on_a_small_house(structure: ModuleType) -> None:
    """a.x <-> b.y in two packages; c above, d below."""
    house = {
        "h": frozenset[str](),
        "h.a": frozenset[str](),
        "h.b": frozenset[str](),
        "h.a.x": frozenset({"h.b.y", "h.d"}),
        "h.b.y": frozenset({"h.a.x"}),
        "h.c": frozenset({"h.a.x"}),
        "h.d": frozenset[str](),
    }
    assert structure.circles(house) == [["h.a.x", "h.b.y"]]
    assert structure.longest_chain(house) == ["h.c", "h.a.x", "h.d"]
    inside = structure.inside(house, "h")
    assert inside == {"h.a": {"h.b", "h.d"}, "h.b": {"h.a"}, "h.c": {"h.a"}, "h.d": frozenset()}
    assert structure.held(house) == {"h": ["h.c", "h.d"], "h.a": ["h.a.x"], "h.b": ["h.b.y"]}
