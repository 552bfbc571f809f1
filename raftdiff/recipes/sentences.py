"""What is wrong with a value of a recipe, in a sentence for whoever wrote it: no word of it is pydantic's."""

import datetime
import difflib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic_core.core_schema import ErrorType

from raftdiff.errors import gone, nearest
from raftdiff.recipes.fields import Meant, Model, alternatives, is_model, is_text, locate, tag
from raftdiff.recipes.source import Place, Where

KNOWN = frozenset(get_args(ErrorType))
"""Kinds of problems that are pydantic's; others were raised with words of ours."""
OWN_WORDS = ("value_error", "assertion_error")
"""Of pydantic's kinds, those whose words are a validator's."""
MOST_KEYS, MOST_LETTERS = 10, 80
NAMES: Mapping[Any, tuple[str, str]] = {
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    types.NoneType: ("null", "null"),
    Any: ("anything", "anything"),
}
"""One and several of a kind."""
NAME, STAGE = r"^[A-Za-z0-9_-]+$", r"^[A-Za-z][A-Za-z0-9_-]*$"
LETTERS = "letters a to z and A to Z, digits, '_' and '-' alone"
PATTERNS = {
    NAME: f"consist of {LETTERS}",
    STAGE: f"begin with a letter and consist of {LETTERS}",
    r"\S": "say something",
}
"""What each pattern of a text asks for, in words."""
BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than", "multiple_of": "a multiple of"}


def chosen(model: Model, problems: Sequence[Any]) -> Iterator[Any]:
    """The problems to tell: of a value that could be of several kinds and is of none, pydantic has one for each kind.

    Kept are those that lie deepest, as the items of what is a list at least; without one, that of a bound that is
    broken, which a value of the right kind breaks, or else the first.
    """
    best: dict[Where | int, tuple[tuple[int, bool], list[Any]]] = {}
    for number, problem in enumerate(problems):
        meant = locate(model, problem["loc"])
        key: Where | int = number if meant.union is None else meant.union
        rank = (len(meant.where), not BOUNDS.keys().isdisjoint(problem.get("ctx", {})))
        if key not in best or rank > best[key][0]:
            best[key] = (rank, [problem])
        elif rank == best[key][0] and meant.where != meant.union:
            best[key][1].append(problem)
    for _, kept in best.values():
        yield from kept


def sentence(model: Model, problem: Any, name: str, places: Mapping[Where, Place]) -> str:
    """A problem with its place; ``name`` is the file's, or says where else the value comes from."""
    meant = locate(model, problem["loc"])
    where = meant.where
    found = next((places[where[:end]] for end in range(len(where), 0, -1) if where[:end] in places), None)
    line = f":{found.line}" if found and found.line else ""
    written = places[where].written if where in places else ""
    return f"{name}{line}: {dotted(where)}: {_said_of(problem, meant, written)}"


def _said_of(problem: Any, meant: Meant, written: str) -> str:
    """What is wrong, without its place; ``written`` is how the value stands in YAML, where that is known."""
    kind, given, about = problem["type"], problem.get("input"), problem.get("ctx", {})
    key = meant.where[-1] if meant.where else ""
    texts = all(is_text(one) or one is types.NoneType for one in meant.kinds)
    if kind == "extra_forbidden":
        said = _unknown(str(key), meant.owner.model_fields if meant.owner else {})
    elif kind == "missing":
        said = f"this {'item' if isinstance(key, int) else 'key'} is required.{_about(meant)}"
    elif kind == "union_tag_invalid":
        said = _no_type(meant.where, about)
    elif kind == "union_tag_not_found":
        said = "the key 'type' is required here; it says which kind is meant."
    elif kind in OWN_WORDS or kind not in KNOWN:
        said = f"{problem['msg'].removeprefix('Value error, ').rstrip('.')}{_given(given)}."
    elif (broken := _bound(kind, about)) is not None:
        said = f"{broken}{_given(given)}."
    elif kind == "string_type" and (texts or meant.union is None):
        said = _no_text(given, written)
    else:
        said = f"this should be {expected(meant.kinds)}, and {read(given)} is read here.{_hint(meant.kinds, given)}"
    return said + (_default(meant) if given is None else "")


def _about(meant: Meant) -> str:
    """What the description of a field says of it, with a space before it; nothing where it has none."""
    field = meant.owner.model_fields.get(str(meant.where[-1])) if meant.owner and meant.where else None
    return f" {' '.join(field.description.split())}" if field is not None and field.description else ""


def _unknown(key: str, known: Collection[str]) -> str:
    said = nearest(key, known)
    own = f"A parameter of the function's own is written options.{key}. "
    return f"unknown key. {own if 'options' in known and not said.startswith('Did') else ''}{said}"


def expected(kinds: Sequence[Any]) -> str:
    """What a value may be, in words.

    >>> expected([Literal["all", "none"], tuple[str, ...], types.NoneType])
    "'all', 'none', a list of texts or null"
    """
    typed = [str(tag(kind)) for kind in kinds if is_model(kind) and tag(kind) is not None]
    said = [f"a mapping with 'type' ({', '.join(typed)}) and its keys"] if typed else []
    said += dict.fromkeys(word for kind in kinds if not (is_model(kind) and tag(kind)) for word in _said(kind))
    return " or ".join(filter(None, [", ".join(said[:-1]), said[-1]])) if said else "another value"


def _said(kind: Any) -> list[str]:
    """A kind in words; each of the values where it is one of several."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal or kind is bool:
        return [repr(value) for value in arguments] or ["true", "false"]
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return ["a mapping" + (f" of names to {_several(arguments[1])}" if arguments[1] is not Any else "")]
    if isinstance(origin, type) and issubclass(origin, Sequence):
        count = f"{len(arguments)} " if origin is tuple and ... not in arguments else ""
        return [f"a list of {count}{_several(arguments[0])}"]
    if is_model(kind):
        keys = [*kind.model_fields][:MOST_KEYS]
        return [f"a mapping with keys such as {', '.join(keys)}"]
    return [NAMES[kind][0] if kind in NAMES else f"a {getattr(kind, '__name__', kind)}"]


def _several(annotation: Any) -> str:
    """Of items of a list or a mapping."""
    kinds = alternatives(annotation)
    if all(is_model(kind) for kind in kinds):
        return "mappings with 'type'" if any(tag(kind) is not None for kind in kinds) else "mappings"
    words = [NAMES[kind][1] if kind in NAMES else " or ".join(_said(kind)) for kind in kinds]
    return " or ".join(word.replace("a mapping", "mappings") for word in words)


def read(given: Any) -> str:
    """A value as it was read, in words.

    >>> read(True), read("cat"), read([1])
    ('true', "'cat'", 'a list')
    """
    if given is None or isinstance(given, bool):
        return "nothing (null)" if given is None else str(given).lower()
    if isinstance(given, str):
        return repr(given if len(given) <= MOST_LETTERS else f"{given[:MOST_LETTERS]}...")
    if isinstance(given, int | float):
        return f"the number {given}"
    if isinstance(given, datetime.date):
        return "a date"
    return "a mapping" if isinstance(given, Mapping) else "a list"


def quoted(text: str) -> str:
    """A text as YAML takes it for one.

    >>> quoted("it's")
    "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


def dotted(where: Where) -> str:
    return ".".join(map(str, where)) or "the recipe"


def _hint(kinds: Sequence[Any], given: Any) -> str:
    """What is likely meant by a text that stands in place of something else; with a space before it, or nothing."""
    if not isinstance(given, str):
        return ""
    tags = [str(tag(kind)) for kind in kinds if is_model(kind)]
    if gone(given):
        return f" {gone(given)}"
    if given in tags:
        return f" Write {{type: {given}}}."
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind) if isinstance(word, str)]
    close = difflib.get_close_matches(given, words, n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close and len(words) > 1 else ""


def _default(meant: Meant) -> str:
    """What holds where a key that is null is left out, with a space before it; or nothing."""
    field = meant.owner.model_fields.get(str(meant.where[-1])) if meant.owner and meant.where else None
    plain = field is not None and isinstance(field.default, str | int | float)
    return f" Left out, it is {read(field.default)}." if field is not None and plain else ""


def _no_type(where: Where, about: Mapping[str, Any]) -> str:
    known = [word.strip().strip("'") for word in about["expected_tags"].split(",")]
    noun = str(where[-2] if len(where) > 1 and isinstance(where[-1], int) else where[-1]).removesuffix("s")
    article = "an" if noun[0] in "aeiou" else "a"
    return f"'{about['tag']}' is not {article} {noun}. {nearest(about['tag'], known)}"


def _bound(kind: str, about: Mapping[str, Any]) -> str | None:
    """A bound that is broken; None where it is another matter."""
    for key, words in BOUNDS.items():
        if key in about:
            bound = about[key]
            return f"this should be {words} {f'{bound:g}' if isinstance(bound, float) else bound}"
    if kind == "finite_number":
        return "this should be a finite number"
    if kind == "string_pattern_mismatch":
        return f"this should {PATTERNS.get(about['pattern'], 'be written as in the pattern ' + about['pattern'])}"
    what = "letter" if kind.startswith("string") else "item"
    for key, words in (("min_length", "at least"), ("max_length", "at most")):
        if about.get(key) is not None:
            return f"this should have {words} {about[key]} {what}{'s' if about[key] != 1 else ''}"
    return None


def _given(given: Any) -> str:
    return f" (given: {repr(given)[:MOST_LETTERS]})" if isinstance(given, str | int | float | bool) else ""


def _no_text(given: Any, written: str) -> str:
    """What a value is that should be a text, and how to write it as one."""
    if given is None:
        return "this should be a text, and nothing is read here; the empty text is written ''."
    if not written:
        return f"this should be a text, and {read(given)} is read here; put it in quotes."
    return f"this should be a text, and YAML reads {written} as {read(given)}; put it in quotes: {quoted(written)}."
