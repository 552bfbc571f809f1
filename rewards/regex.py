"""A regular expression: whether, how often, or how much of the answer it matches."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Sample

Mode = Literal["any", "whole", "count", "fraction"]


class RegexConfig(RewardConfig):
    type: Literal["regex"] = "regex"
    name: str = "regex"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    pattern: str = Field(min_length=1)
    """As Python's re writes it; the package regex, which runs it, knows more."""
    mode: Mode = "any"
    """any: 1 if it matches somewhere. whole: 1 if it matches all of the answer. count: how often. fraction: how much of
    the answer, in characters, 0 to 1."""
    negate: bool = False
    """Reward the absence: 1 - x, or -x for count."""
    limit: int | None = Field(default=None, ge=1)
    """Matches above this number count for nothing; with count only."""
    ignore_case: bool = False
    """Capitals and small letters are the same."""
    multiline: bool = False
    """^ and $ match at every line."""
    dot_all: bool = False
    """. matches the end of a line too."""
    seconds: float = Field(default=1.0, gt=0)
    """Time for one answer; one that takes longer is discarded (NaN)."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "RegexReward":
        del device, resolve  # no model here
        flags = {"i": self.ignore_case, "m": self.multiline, "s": self.dot_all}
        return RegexReward(
            self.pattern,
            mode=self.mode,
            negate=self.negate,
            limit=self.limit,
            flags="".join(flag for flag, on in flags.items() if on),
            seconds=self.seconds,
            name=self.name,
        )


@final
class RegexReward:
    """``any`` and ``whole``: 0 or 1; ``fraction``: 0 to 1; ``count``: 0 upwards. Higher is better; see ``negate``.

    Some patterns, such as (a+)+$, take exponential time on some answers. Matching is given ``seconds`` for an answer,
    after which it is NaN; so near that time the score depends on the machine. Better write the pattern without nested
    repeats. No licence, no weights.

    Args:
        flags: any of "i" (ignore case), "m" (multiline), "s" (dot matches all).

    Raises:
        UserError: the pattern is none.
    """

    def __init__(
        self,
        pattern: str,
        *,
        mode: Mode = "any",
        negate: bool = False,
        limit: int | None = None,
        flags: str = "",
        seconds: float = 1.0,
        name: str = "regex",
    ) -> None:
        import regex  # type: ignore[import-untyped]

        self.name = name
        try:
            self._pattern: Any = regex.compile(pattern, sum(getattr(regex, flag.upper()) for flag in flags))
        except regex.error as error:
            raise UserError(f"The reward '{name}': '{pattern}' is not a regular expression: {error}.") from None
        self._mode, self._negate, self._limit, self._seconds = mode, negate, limit, seconds

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([self._score(sample.media) for sample in samples], dtype=torch.float32)

    def _score(self, text: str) -> float:
        try:
            found = self._measure(text)
        except TimeoutError:
            return math.nan
        if not self._negate:
            return found
        return -found if self._mode == "count" else 1 - found

    def _measure(self, text: str) -> float:
        if self._mode == "any":
            return float(self._pattern.search(text, timeout=self._seconds) is not None)
        if self._mode == "whole":
            return float(self._pattern.fullmatch(text, timeout=self._seconds) is not None)
        spans = [match.span() for match in self._pattern.finditer(text, timeout=self._seconds)]
        if self._mode == "count":
            return float(len(spans) if self._limit is None else min(len(spans), self._limit))
        matched: int = sum(end - start for start, end in spans)
        return matched / max(1, len(text))
