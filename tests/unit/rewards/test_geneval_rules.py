"""GenEval's rules on detections whose answers are known: one test a rule."""

from collections.abc import Sequence
from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.rewards.geneval_rules import Box, Detection, Verdict, judge, kept, relations, wanted
from raftdiff.types import Reason

BENCH = {"tag": "single_object", "include": [{"class": "bench", "count": 1}]}


def found(*objects: tuple[str, float, Box]) -> dict[str, list[Detection]]:
    return kept([Detection(*one) for one in objects], 0.3)


def verdict(meta: dict[str, Any], *objects: tuple[str, float, Box], colours: Sequence[str] = ()) -> Verdict:
    return judge(wanted(meta, "here"), found(*objects), lambda seen, label: list(colours)[: len(seen)])


LEFT, RIGHT, HERE = (0, 40, 20, 60), (80, 40, 100, 60), (40, 40, 60, 60)


def test_an_object_that_is_found_is_right_and_one_that_is_not_is_told() -> None:
    assert verdict(BENCH, ("bench", 0.9, HERE)) == (True, ())
    missing = Reason("missing", "expected bench>=1, found 0")
    assert verdict(BENCH, ("cat", 0.9, HERE)) == (False, (missing,))
    assert verdict(BENCH, ("bench", 0.3, HERE)) == (False, (missing,))  # not surer than 0.3


def test_more_than_asked_is_wrong_only_where_it_is_excluded() -> None:
    three = [("bench", 0.9, HERE), ("bench", 0.8, LEFT), ("bench", 0.7, RIGHT)]
    two = {"tag": "counting", "include": [{"class": "bench", "count": 2}]}
    assert verdict(two, *three).right
    exactly = {**two, "exclude": [{"class": "bench", "count": 3}]}
    assert verdict(exactly, *three) == (False, (Reason("too many", "expected bench<3, found 3"),))
    assert verdict(exactly, *three[:2]).right
    assert verdict(exactly, three[0]).reasons == (Reason("too few", "expected bench>=2, found 1"),)


def test_every_class_must_be_there() -> None:
    both = {"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "cat", "count": 1}]}
    assert verdict(both, ("bench", 0.9, LEFT), ("cat", 0.5, RIGHT)).right
    assert verdict(both, ("bench", 0.9, LEFT)).reasons == (Reason("missing", "expected cat>=1, found 0"),)


def test_the_colour_of_the_surest_objects_counts() -> None:
    red = {"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "red"}]}
    two = [("bench", 0.6, LEFT), ("bench", 0.9, RIGHT)]
    assert verdict(red, *two, colours=["red", "blue"]).right  # only the surest is asked about
    (reason,) = verdict(red, *two, colours=["blue", "red"]).reasons
    assert reason == ("another colour", "expected red bench>=1, found blue")
    asked: list[Box] = []

    def colours(objects: Sequence[Detection], label: str) -> list[str]:
        asked.extend(one.box for one in objects)
        return ["red"] * len(objects)

    assert judge(wanted(red, "here"), found(*two), colours).right
    assert asked == [RIGHT]


@pytest.mark.parametrize(
    ("place", "word"),
    [
        ((0, 40, 20, 60), "left of"),
        ((80, 40, 100, 60), "right of"),
        ((40, 0, 60, 20), "above"),
        ((40, 80, 60, 100), "below"),
    ],
)
def test_each_relation_is_known_by_the_boxes(place: Box, word: str) -> None:
    assert relations(place, HERE) == {word}
    meta = {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "bench", "count": 1, "position": [word, 0]}],
    }
    assert verdict(meta, ("cat", 0.9, HERE), ("bench", 0.9, place)).right
    turned = verdict(meta, ("cat", 0.9, place), ("bench", 0.9, HERE))
    assert not turned.right
    assert turned.reasons[0].kind == "another place"
    assert turned.reasons[0].text.startswith(f"expected bench {word} target, found ")


def test_a_diagonal_is_both_and_what_is_nearer_than_the_margin_is_neither() -> None:
    assert relations((0, 0, 20, 20), HERE) == {"left of", "above"}
    # two objects of 20 pixels: the margin is 0.1 * 40 = 4 pixels between their middles
    assert relations((36, 40, 56, 60), HERE) == frozenset()
    # 8 pixels: (8 - 4) / 8 is exactly half of the distance, and it must be more
    assert relations((32, 40, 52, 60), HERE) == frozenset()
    assert relations((31, 40, 51, 60), HERE) == {"left of"}
    # far along one axis, a little along the other: 30 of 31.6 against 10 less 4
    assert relations((10, 30, 30, 50), HERE) == {"left of"}
    assert relations(HERE, HERE) == frozenset()


def test_nothing_stands_relative_to_what_is_not_right() -> None:
    meta = {
        "tag": "position",
        "include": [{"class": "cat", "count": 1}, {"class": "bench", "count": 1, "position": ["above", 0]}],
    }
    assert verdict(meta, ("bench", 0.9, HERE)).reasons == (
        ("missing", "expected cat>=1, found 0"),
        ("no target", "no target for bench to be above"),
    )


def test_a_class_gives_its_surest_sixteen() -> None:
    many = [Detection("bench", 0.31 + n / 100, HERE) for n in range(20)]
    held = kept(many, 0.3)["bench"]
    assert [one.score for one in held] == sorted((one.score for one in many), reverse=True)[:16]
    assert kept(many, 0.9) == {}


@pytest.mark.parametrize(
    ("meta", "sentence"),
    [
        ({}, "there is no 'include' and 'tag'"),
        ({"tag": "x", "include": [{"class": "cat"}]}, "is no object with a 'class' and a 'count' from 1"),
        ({"tag": "x", "include": [{"class": "cat", "count": 0}]}, "a 'count' from 1"),
        ({"tag": "x", "include": [{"class": "cat", "count": 1, "color": "mauve"}]}, "'mauve' is no colour"),
        ({"tag": "x", "include": [{"class": "cat", "count": 1, "position": ["near", 0]}]}, "is not one of left of"),
        ({"tag": "x", "include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, "before it there are 0"),
        ({**BENCH, "exclude": "cat"}, "'exclude' is str and no list"),
    ],
)
def test_a_row_of_another_form_is_refused(meta: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^here: .*{sentence}"):
        wanted(meta, "here")
