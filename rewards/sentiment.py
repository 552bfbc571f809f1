"""Sentiment: VADER's compound score, from a list of words and a few rules, without a network."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import Need
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.texts import extra, extra_needs
from raftdiff.types import Sample

Direction = Literal["positive", "negative"]
Unit = Literal["text", "sentence"]


class SentimentConfig(RewardConfig):
    type: Literal["sentiment"] = "sentiment"
    name: str = "sentiment"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    direction: Direction = "positive"
    """positive rewards good feelings, negative bad ones."""
    unit: Unit = "text"
    """text scores the answer at once; sentence takes the mean over its sentences, which saturates less."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve
        return extra_needs("vaderSentiment")

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SentimentReward":
        del device, resolve  # no model here
        return SentimentReward(direction=self.direction, unit=self.unit, name=self.name)


@final
class SentimentReward:
    """VADER's compound score of the answer, -1 (negative) to 1 (positive); negated for ``negative``. Higher is better.

    English only; 0 for a text without a word that it knows, and NaN, which discards, for one that is mostly written in
    another script, of which it knows nothing. It was made for short texts: that of a long one nears -1 or
    1, since the words' valences x add up and the score is x / sqrt(x^2 + 15). ``unit: sentence`` is for those.
    Easily hacked by a row of kind words: keep a fluency reward or the KL term beside it.

    Source: Hutto & Gilbert 2014, "VADER", ICWSM; the package vaderSentiment with its lexicon, MIT licence.

    Raises:
        UserError: vaderSentiment is not installed.
    """

    def __init__(self, *, direction: Direction = "positive", unit: Unit = "text", name: str = "sentiment") -> None:
        self.name = name
        self._sign = -1 if direction == "negative" else 1
        self._parts = sentences if unit == "sentence" else _whole
        self._analyzer: Any = extra("vaderSentiment.vaderSentiment", "sentiment").SentimentIntensityAnalyzer()

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([self._sign * self._mean(sample.media) for sample in samples], dtype=torch.float32)

    def _mean(self, text: str) -> float:
        if _foreign(text):
            return float("nan")
        parts = self._parts(text)
        compound: float = sum(self._analyzer.polarity_scores(part)["compound"] for part in parts)
        return compound / max(1, len(parts))


def sentences(text: str) -> list[str]:
    """The text cut after . ! ? and at line ends; parts without a letter or digit go with nothing.

    >>> sentences("It is good. Is it? Yes!")
    ['It is good.', 'Is it?', 'Yes!']
    """
    parts = re.split(r"(?<=[.!?])[\"')\]]*\s+|\n+", text)
    return [part.strip() for part in parts if re.search(r"\w", part)]


def _foreign(text: str) -> bool:
    """Whether most letters are of another script than the Latin one."""
    letters = [letter for letter in text if letter.isalpha()]
    return 2 * sum(letter < "\u0250" for letter in letters) < len(letters)


def _whole(text: str) -> list[str]:
    return [text]
