"""Which field a path in a recipe means, and what it takes: found in the models, which are told apart by ``type``."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Union

from pydantic import BaseModel

from raftdiff.recipes.source import Where

Model = type[BaseModel]


class Meant(NamedTuple):
    """What pydantic's path of a problem means."""

    where: Where
    """In the recipe: the path without the names of a union's members."""
    owner: Model | None
    """The model that has the last key."""
    kinds: list[Any]
    """What may stand there, as annotations without unions; nothing where no field is meant."""
    union: Where | None
    """Where a value may be of several kinds that no ``type`` tells apart, if the path leads through one."""


def locate(model: Model, loc: Sequence[str | int]) -> Meant:
    """Where a problem is, and what was meant there.

    Right behind a union pydantic's path names the member that it tried: by its type, its class or its annotation.
    """
    where: list[str | int] = []
    owner: Model | None = model
    union: Where | None = None
    found: list[Any] = [model]
    named = True
    for step in loc:
        if isinstance(step, str) and not named and sum(kind is not types.NoneType for kind in found) > 1:
            named = True
            members = [kind for kind in found if is_model(kind) and step in (tag(kind), kind.__name__)]
            if members:
                found = members
            elif union is None:
                union = tuple(where)
            continue
        named = False
        where.append(step)
        owner = next((kind for kind in found if is_model(kind)), None)
        found = [kind for one in found for kind in _stepped(one, step, None)]
    return Meant(tuple(where), owner, found, union)


def kinds(model: Model, data: Any, where: Where) -> list[Any]:
    """What the value at a path may be, as annotations without unions; nothing where no field is meant."""
    found: list[Any] = [model]
    for step in where:
        given = data.get("type") if isinstance(data, Mapping) else None
        found = [kind for one in found for kind in _stepped(one, step, given)]
        data = _inside(data, step)
    return found


def is_text(kind: Any) -> bool:
    """Whether it is a text, or one of several texts."""
    return kind is str or (
        typing.get_origin(kind) is Literal and all(isinstance(one, str) for one in typing.get_args(kind))
    )


def _stepped(kind: Any, step: str | int, given: Any) -> list[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_model(kind):
        if given is not None and tag(kind) not in (None, given):
            return []
        return alternatives(kind.model_fields[str(step)].annotation) if step in kind.model_fields else []
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        return alternatives(arguments[1])
    if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(step, int) and arguments:
        return alternatives(arguments[min(step, len(arguments) - 1)] if arguments[-1] is not ... else arguments[0])
    return []


def alternatives(annotation: Any) -> list[Any]:
    """The kinds that an annotation allows."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return alternatives(arguments[0])
    if origin in (Union, types.UnionType):
        return [kind for argument in arguments for kind in alternatives(argument)]
    return [annotation]


def _inside(data: Any, step: str | int) -> Any:
    held = (isinstance(data, Mapping) and step in data) or (
        isinstance(data, list) and isinstance(step, int) and step < len(data)
    )
    return data[step] if held else None


def tag(model: Model) -> Any:
    """What the ``type`` of a model is; None where it has none."""
    field = model.model_fields.get("type")
    return field.default if field else None


def is_model(kind: Any) -> bool:
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel)
