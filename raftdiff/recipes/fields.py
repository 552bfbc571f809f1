"""Which field a path in a recipe means, and what it takes: found in the models, which are told apart by ``type``."""

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel

from raftdiff.recipes.source import Where

Model = type[BaseModel]


def locate(model: Model, data: Any, loc: Sequence[str | int]) -> tuple[Where, Model | None]:
    """Where in the recipe a problem is (pydantic's path without its union tags), and the model that owns the key."""
    where: list[str | int] = []
    owner: Model | None = model
    options: list[Model] = [model]
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
            options = _models(owner.model_fields[step].annotation) if owner and step in owner.model_fields else []
        data = _inside(data, step)
    return tuple(where), owner


def kinds(model: Model, data: Any, where: Where) -> list[Any]:
    """What the value at a path may be, as annotations without unions; nothing where no field is meant."""
    found: list[Any] = [model]
    for step in where:
        tag = data.get("type") if isinstance(data, Mapping) else None
        found = [kind for one in found for kind in _stepped(one, step, tag)]
        data = _inside(data, step)
    return found


def is_text(kind: Any) -> bool:
    """Whether it is a text, or one of several texts."""
    return kind is str or (
        typing.get_origin(kind) is Literal and all(isinstance(one, str) for one in typing.get_args(kind))
    )


def _stepped(kind: Any, step: str | int, tag: Any) -> list[Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel):
        if tag is not None and _tag(kind) not in (None, tag):
            return []
        return _alternatives(kind.model_fields[str(step)].annotation) if step in kind.model_fields else []
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        return _alternatives(arguments[1])
    if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(step, int) and arguments:
        return _alternatives(arguments[min(step, len(arguments) - 1)] if arguments[-1] is not ... else arguments[0])
    return []


def _alternatives(annotation: Any) -> list[Any]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _alternatives(arguments[0])
    if origin in (Union, types.UnionType):
        return [kind for argument in arguments for kind in _alternatives(argument)]
    return [annotation]


def _inside(data: Any, step: str | int) -> Any:
    held = (isinstance(data, Mapping) and step in data) or (
        isinstance(data, list) and isinstance(step, int) and step < len(data)
    )
    return data[step] if held else None


def _tag(model: Model) -> Any:
    field = model.model_fields.get("type")
    return field.default if field else None


def _models(annotation: Any) -> list[Model]:
    """The models that an annotation mentions, however wrapped."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in typing.get_args(annotation) for found in _models(argument)]
