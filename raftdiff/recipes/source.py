"""YAML that people write: its values, and for each where it stands and how it was written."""

import copy
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import yaml

from raftdiff.errors import UserError

Where = tuple[str | int, ...]
MOST_REPEATED = 100_000
"""Values that anchors may repeat; a bomb of them would fill the memory."""
DEEPEST = 100
"""Levels; a recipe has about ten, and Python's own limit is another on each machine."""
SHORT = 100
"""Letters of what is shown as it was written."""
QUOTE = "a text with signs such as : # [ ] { } * & ! % @ in it stands in quotes"


class Place(NamedTuple):
    """Where a value stands, and how it was written."""

    line: int
    """From 1; of a value with a key, the key's."""
    written: str
    """As it stands there; empty where it is long."""
    lost: str = ""
    """What stood right after ` #` behind an unquoted text, which YAML takes for a comment."""


def parse(text: str, name: str) -> tuple[Any, dict[Where, Place]]:
    """What YAML says, and the place of each key and item.

    Raises:
        UserError: it is no YAML, gives a key twice, refers to itself, or repeats itself without measure; with ``name``
            and line.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        places = dict(_places(root, name, text, (), Counted()))
        return values(text), places
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{name}{line}: this is not valid YAML: {reason}; {QUOTE}.") from None
    except RecursionError:
        raise UserError(f"{name}: this YAML is nested too deeply, or refers to itself by an anchor.") from None
    except ValueError as error:  # a number of thousands of digits, a date that is none
        raise UserError(f"{name}: this is not valid YAML: {error}; {QUOTE}.") from None


def values(text: str) -> Any:
    """What YAML says alone. A recipe with a thousand prompts takes a second, and a command reads it in many places:
    one text is read once.

    Raises:
        yaml.YAMLError, ValueError, RecursionError: as ``yaml.safe_load``.
    """
    return copy.deepcopy(_values(text))


@lru_cache(maxsize=128)
def _values(text: str) -> Any:
    return yaml.safe_load(text)


class Counted:
    """Nodes that were met, and how often one was met again."""

    def __init__(self) -> None:
        self._met: set[int] = set()
        self._again = 0

    def too_often(self, node: yaml.Node) -> bool:
        self._again += id(node) in self._met
        self._met.add(id(node))
        return self._again > MOST_REPEATED


def _places(
    node: yaml.Node | None, name: str, text: str, where: Where, counted: Counted
) -> Iterator[tuple[Where, Place]]:
    if node is None:
        return
    if len(where) > DEEPEST:
        raise RecursionError
    if counted.too_often(node):
        raise UserError(f"{name}: the anchors of this YAML repeat more than {MOST_REPEATED:,} values.")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key.value, str):
                continue  # a key that is a list is refused by whoever reads the values
            if key.value in seen:
                raise UserError(f"{name}:{line}: '{key.value}' is given twice; keep one of the two.")
            seen.add(key.value)
            yield (*where, key.value), _place(value, line, text)
            yield from _places(value, name, text, (*where, key.value), counted)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield (*where, index), _place(value, value.start_mark.line + 1, text)
            yield from _places(value, name, text, (*where, index), counted)


def _place(node: yaml.Node, line: int, text: str) -> Place:
    start, end = node.start_mark.index, node.end_mark.index
    written = text[start:end].strip()
    lost = ""
    if isinstance(node, yaml.ScalarNode) and node.style is None:
        rest = text[end : (text.find("\n", end) + 1 or len(text) + 1) - 1]
        comment = re.match(r"\s+#(\S.*)", rest)
        lost = comment[1].strip() if comment else ""
    return Place(line, "" if "\n" in written or len(written) > SHORT else written, lost)
