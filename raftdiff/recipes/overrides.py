"""``key.path=value``: changes to a recipe from the command line."""

import copy
from collections.abc import Sequence
from typing import Any, get_origin

from raftdiff.errors import UserError
from raftdiff.recipes.fields import Model, is_text, kinds
from raftdiff.recipes.source import QUOTE, Place, Where, parse


def overridden(
    model: Model, data: dict[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[Where, Place], list[str]]:
    """``data`` with every override that can be applied; how the values that these brought were written; a sentence for
    each of the others, so that whatever is wrong with the rest can be told beside it."""
    changed, places, told = copy.deepcopy(data), dict[Where, Place](), []
    for one in overrides:
        try:
            places |= override(model, changed, one)
        except UserError as error:
            told.append(str(error))
    return changed, places, told


def override(model: Model, data: dict[str, Any], text: str) -> dict[Where, Place]:
    """Apply one override to ``data``, and say how the values that it brought were written.

    Items of a list are named by their index. Where the field takes a text, the value is that text as it stands, unless
    it is in quotes as in YAML; elsewhere it is read as YAML.

    Raises:
        UserError: it has another form, its value is no YAML, or nothing in ``data`` is called so; ``data`` is then
            as it was.
    """
    dotted, equals, value = text.partition("=")
    if not equals or not dotted:
        raise UserError(f"'{text}': an override is written key.path=value, for example loop.rounds=5.")
    *parents, last = dotted.split(".")
    node: Any = data
    begun: tuple[dict[str, Any], str, Any] | None = None  # what is missing of the path is put there at the end
    where: list[str | int] = []
    for key in parents:
        if isinstance(node, dict) and node.get(key) is None:
            inner: Any = [] if _holds_list(kinds(model, data, (*where, key))) else {}
            if begun is None:
                begun = (node, key, inner)
            else:
                node[key] = inner
            where.append(key)
            node = inner
            continue
        where.append(_index(node, key, text))
        node = node[where[-1]]
    where.append(_index(node, last, text))
    path = tuple(where)
    read, places = _value(kinds(model, data, path), value, text)
    node[path[-1]] = read
    if begun is not None:
        holder, key, inner = begun
        holder[key] = inner
    return {path: Place(0, value), **{(*path, *inner): one._replace(line=0) for inner, one in places.items()}}


def _value(kinds: Sequence[Any], value: str, override: str) -> tuple[Any, dict[Where, Place]]:
    texts = any(is_text(kind) for kind in kinds)
    quoted = value[:1] in ("'", '"')
    structured = value[:1] in ("[", "{") and not all(is_text(kind) or kind is type(None) for kind in kinds)
    if texts and not quoted and not structured:
        nothing = type(None) in kinds and value in ("", "~", "null")
        return (None if nothing else value), {}
    try:
        return parse(value, "")
    except UserError:
        if texts:
            return value, {}  # such as  "cat" on a mat
        raise UserError(f"'{override}': the value after '=' is not valid YAML; {QUOTE}.") from None


def _holds_list(kinds: Sequence[Any]) -> bool:
    return any(isinstance(origin := get_origin(kind), type) and issubclass(origin, Sequence) for kind in kinds)


def _index(node: Any, key: str, override: str) -> str | int:
    if isinstance(node, dict):
        return key
    if isinstance(node, list) and key.isdigit() and int(key) < len(node):
        return int(key)
    held = "a value"
    if isinstance(node, list):
        last = len(node) - 1
        several = f"a list of {len(node)}, whose items are named 0 to {last}" if last > 0 else "a list of one, item 0"
        held = several if node else "no item of this list; give the whole list"
    raise UserError(f"'{override}': nothing is called '{key}' there: the recipe holds {held}.")
