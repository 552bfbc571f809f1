"""Recipes: read, override, validate, describe, digest.

Order: defaults < recipe file < overrides. Each ``XConfig`` stands beside its ``X``; this module knows none of them.
"""

import hashlib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from raftdiff.errors import UserError, nearest

Where = tuple[str | int, ...]


class Config(BaseModel):
    """Immutable, no unknown keys, and the docstring under a field is its description in the schema."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


def read(model: type[C], path: Path, overrides: Sequence[str] = ()) -> C:
    """The recipe at ``path``, changed by ``key.path=value`` overrides, as a checked ``model``.

    Raises:
        UserError: the file is missing or no YAML, or a key or value is wrong; one line for each, with file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read this recipe: {error.strerror or error}.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: this recipe is not UTF-8 text; save it as UTF-8.") from None
    try:
        data, lines = yaml.safe_load(text), dict(_lines(yaml.compose(text, Loader=yaml.SafeLoader), path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: this is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values; this file holds {type(data).__name__}.")
    for override in overrides:
        _override(data, override)
    return check(model, data, str(path), lines)


def check(model: type[C], data: Any, name: str = "recipe", lines: Mapping[Where, int] | None = None) -> C:
    """``data`` as a ``model``, or a ``UserError`` with a sentence a line for everything that is wrong with it."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        sentences = [_sentence(model, data, problem, name, lines or {}) for problem in error.errors()]
        raise UserError("\n".join(sentences)) from None


def lines(path: Path) -> dict[Where, int]:
    """The line on which each key or item of a recipe file stands, from 1; for what is checked after ``read``."""
    return dict(_lines(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader), path))


def plain(config: Config) -> dict[str, Any]:
    """The config as what YAML and JSON can hold, complete with every default."""
    return config.model_dump(mode="json")


def dump(config: Config) -> str:
    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True, width=100)


def digest(data: Mapping[str, Any], exclude: Sequence[str] = ()) -> str:
    """Eight hex digits that name what ``data`` says, all of it but the ``exclude``d dotted paths."""
    kept = {key: value for key, value in flat(data).items() if not any(_under(key, out) for out in exclude)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


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


def _under(key: str, ancestor: str) -> bool:
    return key == ancestor or key.startswith(ancestor + ".")


def _override(data: dict[str, Any], override: str) -> None:
    """Apply ``key.path=value``; the value is read as YAML, list items are named by their index."""
    dotted, equals, text = override.partition("=")
    if not equals or not dotted:
        raise UserError(f"'{override}': an override is written key.path=value, for example loop.rounds=5.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"'{override}': the value after '=' is not valid YAML.") from None
    *parents, last = dotted.split(".")
    node: Any = data
    for key in parents:
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[_index(node, key, override)]
    node[_index(node, last, override)] = value


def _index(node: Any, key: str, override: str) -> str | int:
    if isinstance(node, dict):
        return key
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return int(key)
    held = f"a list of {len(node)}, whose items are named 0 to {len(node) - 1}" if isinstance(node, list) else "a value"
    raise UserError(f"'{override}': nothing is called '{key}' there: the recipe holds {held}.")


def _lines(node: yaml.Node | None, path: Path, where: Where = ()) -> Iterator[tuple[Where, int]]:
    """The line on which each key or item stands, from 1; refuses a key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise UserError(f"{path}:{line}: '{key.value}' is given twice; keep one of the two.")
            seen.add(key.value)
            yield (*where, key.value), line
            yield from _lines(value, path, (*where, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*where, index), value.start_mark.line + 1
            yield from _lines(value, path, (*where, index))


def _sentence(model: type[Config], data: Any, problem: Any, name: str, lines: Mapping[Where, int]) -> str:
    where, owner = _locate(model, data, problem["loc"])
    line = next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), None)
    place = f"{name}:{line}: " if line else f"{name}: "
    path = ".".join(map(str, where)) or "the recipe"
    kind, given = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        valid = owner.model_fields if owner else {}
        return f"{place}{path}: unknown key. {nearest(str(where[-1]), valid)}"
    if kind == "missing":
        return f"{place}{path}: this key is required."
    if kind == "union_tag_invalid":
        known = [tag.strip().strip("'") for tag in problem["ctx"]["expected_tags"].split(",")]
        noun = str(where[-2] if where and isinstance(where[-1], int) else where[-1]).removesuffix("s")
        return f"{place}{path}: '{problem['ctx']['tag']}' is not a {noun}. {nearest(problem['ctx']['tag'], known)}"
    if kind == "union_tag_not_found":
        return f"{place}{path}: the key 'type' is required here; it says which kind is meant."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
    return f"{place}{path}: {message}{shown}."


def _locate(model: type[Config], data: Any, loc: Sequence[str | int]) -> tuple[Where, type[Config] | None]:
    """Where in the recipe a problem is (pydantic's path without its union tags), and the model that owns the key."""
    where: list[str | int] = []
    owner: type[Config] | None = model
    options: list[type[Config]] = [model]
    for step in loc:
        # without a type where one is the default, pydantic names that
        known = data.get("type", step) if isinstance(data, Mapping) and step not in data else None
        tagged = known == step and ("type" in data or any(_tag(option) == step for option in options))
        if tagged:
            options = [option for option in options if _tag(option) == step] or options
            continue
        where.append(step)
        owner = options[0] if options else None
        if isinstance(step, str):
            options = _configs(owner.model_fields[step].annotation) if owner and step in owner.model_fields else []
        inside = (isinstance(data, Mapping) and step in data) or (isinstance(data, list) and isinstance(step, int))
        data = data[step] if inside else None
    return tuple(where), owner


def _tag(model: type[Config]) -> Any:
    field = model.model_fields.get("type")
    return field.default if field else None


def _configs(annotation: Any) -> list[type[Config]]:
    """The Config classes that an annotation mentions, however wrapped."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Config) else []
    return [found for argument in typing.get_args(annotation) for found in _configs(argument)]
