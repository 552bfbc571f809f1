"""Verdicts on scenes made by hand, by the rules that the judge applies to what it finds."""

from dataclasses import replace

import pytest

from raftdiff.embedded.scenes.rules import FACTORS, Found, verdicts
from raftdiff.embedded.scenes.world import Scene, parse

CAT = Found("cat", "cartoon", 20.0, 40.0, 40.0, 0.9)
FOX = Found("fox", "red", 60.0, 42.0, 30.0, 0.8)


def scene(caption: str) -> Scene:
    found = parse(caption)
    assert found is not None
    return found


def wrong(caption: str, *found: Found, ground: str | None = None) -> set[str]:
    return {name for name, value in verdicts(scene(caption), found, ground).items() if value is False}


def test_all_that_is_asked_for_is_right() -> None:
    asked = scene("a large cartoon cat left of a small red sketched fox on a white background")
    assert verdicts(asked, [CAT, FOX], "white") == dict.fromkeys((*FACTORS, "exact"), True)


def test_what_is_not_asked_has_no_verdict() -> None:
    said = verdicts(scene("a cat and a fox"), [CAT, FOX], None)
    assert {name for name, value in said.items() if value is None} == {"relation", "size", "style", "colour", "ground"}
    assert said["exact"] is True


@pytest.mark.parametrize(
    ("caption", "found", "factors"),
    [
        ("a cat", [], {"object", "count"}),
        ("a cat", [CAT, FOX], {"object"}),
        ("two cats", [CAT], {"count"}),
        ("two cats", [CAT, replace(CAT, x=60.0), replace(CAT, y=70.0)], {"count"}),
        ("a cat right of a fox", [CAT, FOX], {"relation"}),
        ("a cat above a fox", [CAT, FOX], {"relation"}),
        ("a cat left of a fox", [FOX], {"object", "count", "relation"}),
        ("a small cat", [CAT], {"size"}),
        ("a sketched cat", [CAT], {"style"}),
        ("a blue sketched fox", [FOX], {"colour"}),
        ("two cartoon cats", [CAT, replace(CAT, look="blue")], {"style"}),
    ],
)
def test_each_mistake_costs_its_factor_and_exact(caption: str, found: list[Found], factors: set[str]) -> None:
    assert wrong(caption, *found) == factors | {"exact"}


def test_the_ground_is_judged_where_it_is_named() -> None:
    assert wrong("a cat on a pink background", CAT, ground="white") == {"ground", "exact"}
    assert wrong("a cat on a pink background", CAT, ground=None) == {"ground", "exact"}
    assert wrong("a cat", CAT, ground="white") == set()
