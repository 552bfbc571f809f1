"""Recipes: read, override, validate, describe, digest.

Order: defaults < recipe file < overrides. Each ``XConfig`` stands beside its ``X``; this module knows none of them.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema

from raftdiff.errors import UserError
from raftdiff.recipes.encoding import decode
from raftdiff.recipes.fields import alternatives, is_text, kinds
from raftdiff.recipes.overrides import overridden
from raftdiff.recipes.sentences import NAME, chosen, dotted, quoted, sentence
from raftdiff.recipes.source import Place, Where, parse


class Config(BaseModel):
    """Immutable, no unknown keys, and the docstring under a field is its description in the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        """A list or mapping that may be left out is left out where it is null, as of a key with nothing behind it.

        A switch where a number belongs becomes a word, which is refused there: true would be taken for 1."""
        if not isinstance(data, Mapping):
            return data
        return {
            key: str(value).lower() if isinstance(value, bool) and _counts(cls, key) else value
            for key, value in data.items()
            if value is not None or not _may_lack(cls, key)
        }

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With null for what is left out so, lest editors call it wrong."""
        found = handler(core_schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for key, said in properties.items():
            if _may_lack(cls, key):
                about = {name: said[name] for name in ABOUT if name in said}
                kinds = {name: value for name, value in said.items() if name not in ABOUT}
                properties[key] = {"anyOf": [kinds, {"type": "null"}], **about}
        return found


Role = Literal["train", "hold_out", "veto", "constraint"]


class RewardConfig(Config):
    """What every reward has in a recipe beside its own keys."""

    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    role: Role = "train"
    """train: it ranks. hold_out: it looks on, scored and recorded, and never ranks. veto: candidates below 'at_least'
    are not chosen. constraint: candidates below 'at_least' come after all others. Only train reads the weight."""
    at_least: Annotated[float, Field(allow_inf_nan=False)] | Literal["median"] | None = None
    """Of a veto or a constraint: a score, or median for that of the prompt's candidates."""

    @model_validator(mode="after")
    def _bound(self) -> "RewardConfig":
        if self.role in ("veto", "constraint") and self.at_least is None:
            raise ValueError(f"role: {self.role} takes 'at_least', the lowest score that is good enough, or median")
        if self.role in ("train", "hold_out") and self.at_least is not None:
            raise ValueError(f"'at_least' says something with role: veto or constraint alone, and this is {self.role}")
        return self


C = TypeVar("C", bound=Config)
ABOUT = ("default", "description", "title")
"""Of a field in a schema: not what it takes."""
Named: TypeAlias = Annotated[str, Field(pattern=NAME)]
"""A part of a folder's name."""
Said: TypeAlias = Annotated[str, Field(min_length=1)]
"""A text that is looked for in others or asked about, which the empty one would be found in everywhere."""
COMMAND_LINE = "on the command line"


def read(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The recipe at ``path``, changed by ``key.path=value`` overrides, as a checked ``model``.

    Raises:
        UserError: the file is missing or no YAML, or a key, a value or an override is wrong; one line for each, with
            its place.
    """
    data, places = parse(_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file holds {type(data).__name__}.")
    if cut := list(_cut(model, data, str(path), places)):
        raise UserError("\n".join(cut))
    changed, brought, told = overridden(model, data, overrides)
    try:
        valid = model.model_validate(changed)
    except ValidationError as error:
        own = _own(model, data) if overrides else None
        for problem in chosen(model, error.errors()):
            in_file = own is None or _named(problem) in own
            name, held = (str(path), places) if in_file else (COMMAND_LINE, brought)
            told.append(sentence(model, problem, name, held))
    if told:
        raise UserError("\n".join(told))
    return valid


def check(model: type[C], data: Any, name: str = "recipe") -> C:
    """``data`` as a ``model``, or a ``UserError`` with a sentence a line for everything that is wrong with it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        told = [sentence(model, problem, name, {}) for problem in chosen(model, error.errors())]
        raise UserError("\n".join(told)) from None


def completed(data: Mapping[str, Any], kind: type[Config]) -> dict[str, Any]:
    """A recipe that was written once, with the default of every key that was yet to come then; as it is written where
    it is none of the ``kind``."""
    try:
        return plain(check(kind, data))
    except UserError:
        return dict(data)


def options(model: type[C], data: Mapping[str, Any], overrides: Sequence[str], name: str) -> C:
    """``data``, changed by ``key.path=value`` overrides, as a checked ``model``; ``name`` is what sentences call it.

    Raises:
        UserError: a key, a value or an override is wrong; a line for each.
    """
    changed, places, told = overridden(model, dict(data), overrides)
    try:
        valid = model.model_validate(changed)
    except ValidationError as error:
        told += [sentence(model, problem, name, places) for problem in chosen(model, error.errors())]
    if told:
        raise UserError("\n".join(told))
    return valid


def lines(path: Path) -> dict[Where, int]:
    """The line on which each key or item of a recipe file stands, from 1; for what is checked after ``read``."""
    return {where: place.line for where, place in parse(_text(path), str(path))[1].items()}


def plain(config: Config) -> dict[str, Any]:
    """The config as what YAML and JSON can hold, complete with every default."""
    return config.model_dump(mode="json")


def dump(recipe: Config | Mapping[str, Any]) -> str:
    """As YAML."""
    data = plain(recipe) if isinstance(recipe, Config) else dict(recipe)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)


def digest(data: Mapping[str, Any], exclude: Sequence[str] = ()) -> str:
    """Eight hex digits that name what ``data`` says, all of it but the ``exclude``d dotted paths."""
    kept = {key: value for key, value in flat(data).items() if not any(_under(key, out) for out in exclude)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]


def differing(one: Mapping[str, Any], other: Mapping[str, Any], exclude: Sequence[str] = ()) -> list[str]:
    """The dotted paths at which two recipes differ, but for the ``exclude``d ones."""
    a, b = flat(one), flat(other)
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    return [key for key in keys if not any(_under(key, out) for out in exclude)]


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted path. An empty mapping or list is a leaf too, so that adding a first entry is a difference.

    >>> flat({"a": {"b": 1}, "c": [2, 3]})
    {'a.b': 1, 'c.0': 2, 'c.1': 3}
    """
    if isinstance(data, Mapping) and data:
        children: Sequence[tuple[Any, Any]] = list(data.items())
    elif isinstance(data, list) and data:
        children = list(enumerate(data))
    else:
        return {prefix: data}
    join = f"{prefix}." if prefix else ""
    return {path: leaf for key, child in children for path, leaf in flat(child, f"{join}{key}").items()}


def put(data: Any, path: str, value: Any) -> None:
    """Set the leaf at a dotted path that ``flat`` named.

    >>> recipe = {"a": [{"b": 1}]}
    >>> put(recipe, "a.0.b", 2)
    >>> recipe
    {'a': [{'b': 2}]}
    """
    first, _, rest = path.partition(".")
    at: Any = int(first) if isinstance(data, list) else first
    if rest:
        put(data[at], rest, value)
    else:
        data[at] = value


def _may_lack(model: type[BaseModel], key: Any) -> bool:
    field = model.model_fields.get(key)
    if field is None or type(None) in alternatives(field.annotation):
        return False
    default = field.get_default(call_default_factory=True, validated_data={})
    return isinstance(default, list | tuple | dict | Config)


def _counts(model: type[BaseModel], key: Any) -> bool:
    """Whether a field takes a number, and neither a switch nor any text."""
    field = model.model_fields.get(key)
    kinds = [] if field is None else alternatives(field.annotation)
    return (int in kinds or float in kinds) and bool not in kinds and str not in kinds


def _under(key: str, ancestor: str) -> bool:
    return key == ancestor or key.startswith(ancestor + ".")


def _text(path: Path) -> str:
    try:
        return decode(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot read this recipe: {error.strerror or error}.") from None


def _cut(model: type[Config], data: Any, name: str, places: Mapping[Where, Place]) -> Iterator[str]:
    """A sentence for every text that YAML ends at a '#' which looks like a part of it."""
    for where, place in places.items():
        if place.lost and any(is_text(kind) for kind in kinds(model, data, where)):
            whole = f"{place.written} #{place.lost}".strip()
            yield (
                f"{name}:{place.line}: {dotted(where)}: YAML reads {place.written or 'nothing'!r} here and takes "
                f"'#{place.lost}' for a comment. If it is text, write {quoted(whole)}; if not, put a space after "
                "the '#'."
            )


def _own(model: type[Config], data: Any) -> set[str]:
    """What is wrong with a recipe file without its overrides."""
    try:
        model.model_validate(data)
    except ValidationError as error:
        return {_named(problem) for problem in error.errors()}
    return set()


def _named(problem: Any) -> str:
    given = problem.get("input")  # of one that holds others, overrides elsewhere in it are no change
    value = None if isinstance(given, dict | list) else given
    return repr((problem["loc"], problem["type"], problem["msg"], value))
