"""Recipes: every mistake gets a sentence with file, line, key and the nearest right one."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, differing, digest, dump, flat, plain, read


class Red(Config):
    type: Literal["red"] = "red"
    weight: float = 1.0


class Blue(Config):
    type: Literal["blue"] = "blue"
    depth: int = Field(default=2, ge=1)


class Tuner(Config):
    learning_rate: float = 1e-4
    rank: int = 4


class Toy(Config):
    name: str
    tuner: Tuner = Tuner()
    rewards: list[Annotated[Red | Blue, Field(discriminator="type")]] = Field(default_factory=list)


TEXT = """name: toy
tuner:
  rank: 8
rewards:
  - type: red
    weight: 2
  - type: blue
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(TEXT)
    return path


def broken(recipe: Path, old: str, new: str) -> str:
    recipe.write_text(TEXT.replace(old, new))
    with pytest.raises(UserError) as caught:
        read(Toy, recipe)
    return str(caught.value).replace(str(recipe.parent) + "/", "")


def test_reads_the_file_over_the_defaults_and_the_overrides_over_the_file(recipe: Path) -> None:
    toy = read(Toy, recipe, ["tuner.rank=16", "rewards.0.weight=0.5"])
    assert toy.tuner == Tuner(rank=16, learning_rate=1e-4)
    assert toy.rewards == [Red(weight=0.5), Blue()]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("rank: 8", "rnk: 8", "toy.yaml:3: tuner.rnk: unknown key. Did you mean 'rank'? Known: learning_rate, rank."),
        (
            "type: red",
            "type: rad",
            "toy.yaml:5: rewards.0: 'rad' is not a reward. Did you mean 'red'? Known: blue, red.",
        ),
        ("weight: 2", "wieght: 2", "toy.yaml:6: rewards.0.wieght: unknown key. Did you mean 'weight'?"),
        (
            "type: blue",
            "type: blue\n    depth: 0",
            "toy.yaml:8: rewards.1.depth: Input should be greater than or equal",
        ),
        ("name: toy", "nane: toy", "toy.yaml: name: this key is required."),
        ("rank: 8", "rank: many", "toy.yaml:3: tuner.rank: Input should be a valid integer"),
        ("rank: 8", "rank: 8\n  rank: 9", "toy.yaml:4: 'rank' is given twice; keep one of the two."),
        ("  - type: blue", "  - depth: 2", "rewards.1: the key 'type' is required here"),
        ("name: toy", "name: [", "this is not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_line(recipe: Path, old: str, new: str, sentence: str) -> None:
    assert sentence in broken(recipe, old, new)


def test_every_mistake_is_named_at_once(recipe: Path) -> None:
    assert len(broken(recipe, "  rank: 8", "  rnk: 8\n  learning_rat: 1").splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tuner.rank", "written key.path=value"),
        ("rewards.7.weight=1", "whose items are named 0 to 1"),
        ("name.first=1", "nothing is called 'first' there"),
        ("name=[", "not valid YAML"),
        ("tuner.rnk=1", "tuner.rnk: unknown key. Did you mean 'rank'"),
    ],
)
def test_a_wrong_override_is_named(recipe: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(Toy, recipe, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: cannot read this recipe: No such file"):
        read(Toy, tmp_path / "nowhere.yaml")


def test_dump_reads_back_as_the_same_recipe(recipe: Path) -> None:
    toy = read(Toy, recipe)
    recipe.write_text(dump(toy))
    assert read(Toy, recipe) == toy


def test_the_digest_covers_every_value_but_the_excluded_ones() -> None:
    one, other = plain(Toy(name="a")), plain(Toy(name="a", tuner=Tuner(rank=5)))
    assert digest(one) != digest(other)
    assert digest(one, ["tuner"]) == digest(other, ["tuner"])
    assert differing(one, other) == ["tuner.rank"]
    assert differing(one, other, ["tuner"]) == []


def test_a_first_list_entry_is_a_difference() -> None:
    assert flat({"a": []}) != flat({"a": [0]})
