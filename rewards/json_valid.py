"""JSON: does the answer parse, and does it hold the keys that were asked for?"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.texts import fenced
from raftdiff.types import Sample

Kind = Literal["any", "object", "array", "string", "number", "integer", "boolean", "null"]


class JsonConfig(RewardConfig):
    type: Literal["json"] = "json"
    name: str = "json"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    root: Kind = "any"
    """What the whole document must be; object where keys are required."""
    required: dict[str, Kind] = Field(default_factory=dict)
    """Key -> its kind, in JSON Schema's words; a key inside another is written outer.inner."""
    block: bool = True
    """The document may stand in a fenced block, with talk around it; with false the answer must be JSON alone."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "JsonReward":
        del device, resolve  # no model here
        return JsonReward(root=self.root, required=self.required, block=self.block, name=self.name)


@final
class JsonReward:
    """0 to 1, higher is better: 0 for what does not parse, else (1 + demands met) / (1 + demands).

    The demands are the root's kind, unless any, and each required key with its kind. So a parsing answer without any
    demand scores 1. JSON is read strictly (RFC 8259): no NaN, no comments, no key given twice. No licence, no weights.
    """

    def __init__(
        self, *, root: Kind = "any", required: Mapping[str, Kind] | None = None, block: bool = True, name: str = "json"
    ) -> None:
        self.name = name
        self._root, self._required, self._block = root, dict(required or {}), block

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([self._score(sample.media) for sample in samples], dtype=torch.float32)

    def _score(self, text: str) -> float:
        inside = fenced(text, ["json"]) if self._block else None
        try:
            document = strict(text if inside is None else inside)
        except (ValueError, RecursionError):
            return 0.0
        met = [_is(found, kind) for found, kind in self._demands(document)]
        return (1 + sum(met)) / (1 + len(met))

    def _demands(self, document: Any) -> list[tuple[list[Any], Kind]]:
        root: list[tuple[list[Any], Kind]] = [] if self._root == "any" else [([document], self._root)]
        return root + [(_at(document, path), kind) for path, kind in self._required.items()]


def strict(text: str) -> Any:
    """The document in the text.

    Raises:
        ValueError: it is not JSON, or holds a key twice. RecursionError: it is nested too deeply.
    """
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


def _at(document: Any, path: str) -> list[Any]:
    """What stands at the path, in a list of one; an empty list for nothing. A key with a dot in it is found too."""
    if not isinstance(document, Mapping):
        return []
    if path in document:
        return [document[path]]
    outer, dot, inner = path.partition(".")
    return _at(document.get(outer), inner) if dot else []


def _is(found: Sequence[Any], kind: Kind) -> bool:
    """Kinds as in JSON Schema: true is no number, and 1.0 is an integer."""
    if not found or kind == "any":
        return bool(found)
    value = found[0]
    if isinstance(value, bool) or value is None:
        return kind == ("null" if value is None else "boolean")
    if isinstance(value, int | float):
        return kind == "number" or (kind == "integer" and value == int(value))
    return kind == ("string" if isinstance(value, str) else "array" if isinstance(value, list) else "object")
