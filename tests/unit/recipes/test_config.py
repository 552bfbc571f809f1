"""Recipes: every mistake gets a sentence with file, line, key and the nearest right one."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, check, completed, differing, digest, dump, flat, options, plain, read
from raftdiff.recipes.prompts import Asked


class Red(Config):
    type: Literal["red"] = "red"
    weight: float = 1.0


class Blue(Config):
    type: Literal["blue"] = "blue"
    depth: int = Field(default=2, ge=1)


class Tuner(Config):
    learning_rate: float = 1e-4
    rank: int = 4


class Texts(Config):
    """Fields that are texts, or may be."""

    base: str = "x"
    file: str | None = None
    captions: list[Asked] = Field(default_factory=list)
    target: Literal["all", "none"] | tuple[str, ...] = "all"
    extra: dict[str, Any] = Field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.99)


class Toy(Config):
    name: str
    tuner: Tuner = Tuner()
    texts: Texts = Texts()
    objective: Annotated[Red | Blue, Field(discriminator="type")] = Red()
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
            "toy.yaml:8: rewards.1.depth: this should be at least 1 (given: 0)",
        ),
        ("name: toy", "nane: toy", "toy.yaml: name: this key is required."),
        ("rank: 8", "rank: many", "toy.yaml:3: tuner.rank: this should be a whole number, and 'many' is read here"),
        ("rank: 8", "rank: true", "toy.yaml:3: tuner.rank: this should be a whole number, and 'true' is read here"),
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
        ("tuner=[", "not valid YAML; a text with signs such as"),
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


def test_a_recipe_of_before_a_key_was_known_has_the_keys_default() -> None:
    now = Toy(name="a", tuner=Tuner(rank=5))
    before = plain(now)
    del before["tuner"]["learning_rate"]
    assert completed(before, Toy) == plain(now)
    assert completed({**before, "tuner": {"rank": 6}}, Toy) == plain(Toy(name="a", tuner=Tuner(rank=6)))
    assert completed({"strange": 1}, Toy) == {"strange": 1}


def test_whatever_holds_others_and_may_be_left_out_may_be_null(recipe: Path) -> None:
    """A config, a choice of configs, a list, a tuple and a mapping; what has to be there may not."""
    left_out = ["tuner=null", "objective=null", "rewards=null", "texts.captions=null", "texts.extra=null"]
    assert read(Toy, recipe, [*left_out, "texts.betas=null"]) == Toy(name="toy")
    assert read(Toy, recipe, ["tuner=null", "tuner.rank=5"]).tuner == Tuner(rank=5)
    with pytest.raises(UserError, match="name: this should be a text"):
        check(Toy, {"name": None})
    said = Toy.model_json_schema()
    for model, keys in (("Toy", ["tuner", "objective", "rewards", "texts"]), ("Texts", ["betas", "captions", "extra"])):
        properties = (said if model == "Toy" else said["$defs"][model])["properties"]
        nullable = [key for key, field in properties.items() if {"type": "null"} in field.get("anyOf", [])]
        assert sorted(nullable) == sorted([*keys, *(["file"] if model == "Texts" else [])])
    assert said["properties"]["tuner"]["default"] == {"learning_rate": 1e-4, "rank": 4}


def test_a_first_list_entry_is_a_difference() -> None:
    assert flat({"a": []}) != flat({"a": [0]})


TEXTUAL = "name: toy\ntexts:\n  base: x # a comment\n  captions: [old]\n"


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        ("ugly #2", "ugly #2"),
        ("(worst quality: 1.4)", "(worst quality: 1.4)"),
        ("low quality: bad", "low quality: bad"),
        ("[deformed], ugly", "[deformed], ugly"),
        ("*blurry*", "*blurry*"),
        ("#frame", "#frame"),
        ("", ""),
        ("no", "no"),
        ("1984", "1984"),
        ("C:\\new\\table", "C:\\new\\table"),
        ("'in quotes'", "in quotes"),
        ('"cat" on a mat', '"cat" on a mat'),
    ],
)
def test_an_override_of_a_text_is_that_text(recipe: Path, value: str, read_as: str) -> None:
    recipe.write_text(TEXTUAL)
    texts = read(Toy, recipe, [f"texts.base={value}", f"texts.captions.0={value}"]).texts
    assert (texts.base, texts.captions) == (read_as, [read_as])


def test_an_override_of_what_may_be_a_text_is_read_by_its_form(recipe: Path) -> None:
    recipe.write_text(TEXTUAL)
    overrides = ["texts.file=null", "texts.target=none", "texts.captions.0={id: x, caption: y}", "texts.extra={a: no}"]
    texts = read(Toy, recipe, overrides).texts
    assert (texts.file, texts.target, texts.captions, texts.extra) == (
        None,
        "none",
        [{"id": "x", "caption": "y"}],
        {"a": False},
    )
    assert read(Toy, recipe, ["texts.target=[q_proj, on_top]"]).texts.target == ("q_proj", "on_top")
    assert read(Toy, recipe, ["texts.file=no"]).texts.file == "no"


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("a cat #2", "toy.yaml:3: texts.captions.0: YAML reads 'a cat' here and takes '#2' for a comment. If it is "
         "text, write 'a cat #2'; if not, put a space after the '#'."),
        ("#frame", "YAML reads 'nothing' here and takes '#frame' for a comment"),
        ("no", "toy.yaml:3: texts.captions.0: this should be a text, and YAML reads no as false; put it in quotes"),
        ("12:30", "YAML reads 12:30 as the number 750; put it in quotes: '12:30'."),
        ("1984", "YAML reads 1984 as the number 1984"),
        ("2024-01-02", "YAML reads 2024-01-02 as a date"),
        ("~", "this should be a text, and nothing is read here; the empty text is written ''."),
        ("portrait of it's: oil", "of it's: oil as a mapping; put it in quotes: 'portrait of it''s: oil'."),
        ("{a cat}", "YAML reads {a cat} as a mapping"),
        ("[a], b", "toy.yaml:3: this is not valid YAML: "),
        ("&a [*a]", "refers to itself by an anchor"),
        ("[" * 3000 + "]" * 3000, "nested too deeply"),
        ("1" * 5000, "toy.yaml: this is not valid YAML: Exceeds the limit"),
        ("2024-13-45", "toy.yaml: this is not valid YAML: month must be in 1..12"),
    ],
)  # fmt: skip
def test_what_yaml_makes_of_an_unquoted_text_is_named(tmp_path: Path, item: str, sentence: str) -> None:
    path = tmp_path / "toy.yaml"
    path.write_text(f"texts:\n  captions:\n    - {item}\nname: toy\n")
    with pytest.raises(UserError) as caught:
        read(Toy, path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bomb_of_anchors_is_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))
    (tmp_path / "toy.yaml").write_text(bomb)
    with pytest.raises(UserError, match=r"toy.yaml: the anchors of this YAML repeat more than 100,000 values"):
        read(Toy, tmp_path / "toy.yaml")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tuner.rnk=1"], "on the command line: tuner.rnk: unknown key. Did you mean 'rank'"),
        (["tunr.rank=1"], "on the command line: tunr: unknown key. Did you mean 'tuner'"),
        (["rewards.0.type=blu"], "on the command line: rewards.0: 'blu' is not a reward. Did you mean 'blue'"),
        (["objective.type=nothing"], "on the command line: objective: 'nothing' is not an objective."),
        (["tuner.rank=many"], "on the command line: tuner.rank: this should be a whole number"),
        (["texts.captions=[no, a: b]"], "on the command line: texts.captions.0: this should be a text, and"),
        (["texts.betas=[0.9]"], "on the command line: texts.betas.1: this item is required."),
        (["texts.betas=[2,x]"], "on the command line: texts.betas.1: this should be a number, and 'x'"),
        (["texts.betas=[1, " + "9" * 400 + "]"], "on the command line: texts.betas.1: "),
    ],
)  # fmt: skip
def test_a_mistake_of_an_override_is_on_the_command_line(recipe: Path, overrides: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        read(Toy, recipe, overrides)
    assert sentence in str(caught.value)


def test_every_mistake_of_the_overrides_is_told_at_once_with_those_of_the_file(recipe: Path) -> None:
    recipe.write_text(TEXT.replace("weight: 2", "wait: 2"))
    wrong = ["rewards.9.weight=1", "tuner.rnk=1", "name.first=x", "tuner", "texts.bse=1", "tuner.rank=[", "name=ok"]
    with pytest.raises(UserError) as caught:
        read(Toy, recipe, wrong)
    told = [line.replace(f"{recipe.parent}/", "") for line in str(caught.value).splitlines()]
    assert [line[:37] for line in told] == [
        "'rewards.9.weight=1': nothing is call",
        "'name.first=x': nothing is called 'fi",
        "'tuner': an override is written key.p",
        "'tuner.rank=[': the value after '=' i",
        "on the command line: tuner.rnk: unkno",
        "on the command line: texts.bse: unkno",
        "toy.yaml:6: rewards.0.wait: unknown k",
    ]
    with pytest.raises(UserError) as caught:
        options(Tuner, {}, ["rnk=1", "rank=[", "learning_rate=many"], "mine")
    assert [line[:20] for line in str(caught.value).splitlines()] == [
        "'rank=[': the value ",
        "mine: learning_rate:",
        "mine: rnk: unknown k",
    ]


def test_an_override_that_cannot_be_applied_leaves_nothing_behind(recipe: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(Toy, recipe, ["texts.captions.0=x", "objective.part.0.y=["])
    assert len(str(caught.value).splitlines()) == 2, "no 'objective.part: unknown key' besides"


@pytest.mark.parametrize("word", ["null", "~", ""])
def test_a_list_or_mapping_that_may_be_left_out_may_be_null(recipe: Path, word: str) -> None:
    recipe.write_text(TEXT + f"texts:\n  captions: {word}\n  extra: {word}\n")
    assert read(Toy, recipe) == read(Toy, recipe, [f"texts.captions={word}", f"texts.extra={word}"])
    assert read(Toy, recipe, [f"rewards={word}"]).rewards == []


def test_what_null_cannot_say_is_told_with_what_holds_where_it_is_left_out(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"tuner.rank: .* \(null\) is read here. Left out, it is the number 4\."):
        read(Toy, recipe, ["tuner.rank=null"])


def test_an_override_of_a_wrong_value_by_a_wrong_value_is_on_the_command_line(recipe: Path) -> None:
    recipe.write_text(TEXT.replace("rank: 8", "rank: many"))
    with pytest.raises(UserError, match="^on the command line: tuner.rank: .* 'few' is read here"):
        read(Toy, recipe, ["tuner.rank=few"])


def test_a_mistake_of_the_file_keeps_its_line_beside_one_of_an_override(recipe: Path) -> None:
    recipe.write_text(TEXT.replace("rank: 8", "rnk: 8"))
    with pytest.raises(UserError) as caught:
        read(Toy, recipe, ["rewards.0.wait=1"])
    told = str(caught.value).splitlines()
    assert [line.rpartition(str(recipe.parent) + "/")[2][:30] for line in told] == [
        "toy.yaml:3: tuner.rnk: unknown",
        "on the command line: rewards.0",
    ]
