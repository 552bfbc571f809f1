"""Every mistake in a value of a recipe is told in our words, at the key that a person wrote."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from raftdiff.diffusion.recipe import Recipe
from raftdiff.errors import UserError
from raftdiff.llm.pipeline import PipelineRecipe
from raftdiff.llm.recipe import TextRecipe
from raftdiff.llm.reward_runs.recipe import RewardRecipe
from raftdiff.recipes.config import Config, Named, check
from raftdiff.recipes.fields import alternatives, is_model
from raftdiff.recipes.sentences import PATTERNS, STAGE

PYDANTIC = (
    "Input should",
    "valid string",
    "valid integer",
    "valid number",
    "valid boolean",
    "valid dictionary",
    "valid list",
    "valid tuple",
    "instance of",
    "unable to",
    "union_tag",
    "Extra inputs",
    "Field required",
    "String should",
    "List should",
    "Tuple should",
    "after validation",
    "literal[",
    "tuple[",
    "list[",
    "dict[",
    "function-",
    "constrained",
)
WRONG = [None, -1e12, "a word", [[1], {}], {"a": b"x"}, {"type": "nothing"}]


def configs(*models: type[Config]) -> Iterator[type[Config]]:
    """Every config that recipes are made of."""
    seen, waiting = set[type[Config]](), [*models]
    while waiting:
        model = waiting.pop()
        if model in seen:
            continue
        seen.add(model)
        yield model
        for field in model.model_fields.values():
            waiting += [kind for kind in _leaves(field.annotation) if is_model(kind)]


def _leaves(annotation: Any) -> Iterator[Any]:
    for kind in alternatives(annotation):
        yield kind
        for argument in getattr(kind, "__args__", ()):
            yield from _leaves(argument)


def told(model: type[Config], data: Any) -> list[str]:
    """What is said of some data, line by line."""
    try:
        check(model, data, "mine")
    except UserError as error:
        return str(error).splitlines()
    return []


def test_no_field_of_any_recipe_answers_a_wrong_value_in_pydantics_words() -> None:
    lines = [
        line
        for model in configs(Recipe, TextRecipe, RewardRecipe, PipelineRecipe)
        for name in model.model_fields
        for value in WRONG
        for line in told(model, {name: value})
    ]
    assert len(lines) > 2000, len(lines)
    assert [line for line in lines if any(words in line for words in PYDANTIC)] == []


class Red(Config):
    type: Literal["red"] = "red"
    depth: int = Field(default=1, ge=1)


class Blue(Config):
    type: Literal["blue"] = "blue"


class Part(Config):
    one: int = 1


class Needy(Config):
    model: str
    """A folder, or
    a name."""
    bare: int


def test_a_key_that_is_missing_is_told_with_what_it_is() -> None:
    assert told(Needy, {}) == [
        "mine: model: this key is required. A folder, or a name.",
        "mine: bare: this key is required.",
    ]


class Odd(Config):
    """Each kind of union that a recipe can have."""

    auto: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    layers: Literal["all", "none"] | tuple[str, ...] = "all"
    sizes: int | list[int] | None = None
    part: Part | None = None
    colour: Annotated[Red | Blue, Field(discriminator="type")] | None = None
    colours: list[Annotated[Red | Blue, Field(discriminator="type")]] = Field(default_factory=list)
    rows: list[str | dict[str, str]] = Field(default_factory=list)
    pair: tuple[float, float] = (0.0, 1.0)
    words: dict[str, int] = Field(default_factory=dict)
    on: bool | None = None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"auto": "soon"}, "auto: this should be a number or 'auto', and 'soon' is read here."),
        ({"auto": -1}, "auto: this should be at least 0 (given: -1)."),
        ({"layers": "al"}, "layers: this should be 'all', 'none' or a list of texts, and 'al' is read here. Did you"),
        ({"layers": ["a", 2]}, "layers.1: this should be a text, and the number 2 is read here; put it in quotes."),
        ({"layers": None}, "layers: this should be 'all', 'none' or a list of texts, and nothing (null) is read here."),
        ({"sizes": "big"}, "sizes: this should be a whole number, a list of whole numbers or null, and 'big' is read"),
        ({"sizes": [1, "x"]}, "sizes.1: this should be a whole number, and 'x' is read here."),
        ({"part": 3}, "part: this should be a mapping with keys such as one or null, and the number 3 is read here."),
        ({"part": {"tow": 3}}, "part.tow: unknown key. Known: one."),
        (
            {"colour": "red"},
            "colour: this should be a mapping with 'type' (red, blue) and its keys or null, and 'red' ",
        ),
        ({"colour": "red"}, "Write {type: red}."),
        ({"colour": {"type": "rad"}}, "colour: 'rad' is not a colour. Did you mean 'red'?"),
        ({"colour": {"depth": 1}}, "colour: the key 'type' is required here"),
        ({"colour": {"type": "red", "depth": 0}}, "colour.depth: this should be at least 1 (given: 0)."),
        ({"colours": "red"}, "colours: this should be a list of mappings with 'type', and 'red' is read here."),
        ({"colours": [{"type": "blue", "depth": 1}]}, "colours.0.depth: unknown key. Known: type."),
        ({"rows": [3]}, "rows.0: this should be a text or a mapping of names to texts, and the number 3 is read here."),
        ({"rows": [{"a": 3}]}, "rows.0.a: this should be a text, and the number 3 is read here"),
        ({"pair": [1]}, "pair.1: this item is required."),
        ({"pair": [1, 2, 3]}, "pair: this should have at most 2 items."),
        ({"pair": 1}, "pair: this should be a list of 2 numbers, and the number 1 is read here."),
        ({"words": {"a": "x"}}, "words.a: this should be a whole number, and 'x' is read here."),
        ({"on": 7}, "on: this should be true, false or null, and the number 7 is read here."),
        (3, "the recipe: this should be a mapping with keys such as auto, layers"),
    ],
)
def test_what_a_value_may_be_is_said_and_what_is_read_instead(data: Any, sentence: str) -> None:
    (line,) = told(Odd, data)
    assert sentence in line


def test_every_pattern_that_a_text_may_have_is_told_in_words() -> None:
    asked = {
        constraint.pattern
        for model in configs(Recipe, TextRecipe, RewardRecipe, PipelineRecipe)
        for field in model.model_fields.values()
        for constraint in field.metadata
        if getattr(constraint, "pattern", None)
    }
    assert asked == PATTERNS.keys()

    class Two(Config):
        name: Named
        id: str = Field(pattern=STAGE)

    assert told(Two, {"name": "my run", "id": "1st"}) == [
        "mine: name: this should consist of letters a to z and A to Z, digits, '_' and '-' alone (given: 'my run').",
        "mine: id: this should begin with a letter and consist of letters a to z and A to Z, digits, '_' and '-' alone "
        "(given: '1st').",
    ]
