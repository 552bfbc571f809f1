"""The prompt's matter, by the words that a text shares with it: English, without a network."""

import re
from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.recipes.config import RewardConfig
from raftdiff.types import Sample

COMMON = (
    "a about after again all alone always am an and another any anybody anyone anything are around as ask asked at "
    "away back be because bed been before begin being better but by call can cannot could day days did do does doing "
    "done down else end ever every everybody everyone everything feel feeling feels few for found friend from front "
    "full gave get gets give go going good got great had happy hard has have having he hear help her here him himself "
    "his how i if in into is it its just keep know last left let like little long look lot made make makes many "
    "matter may me mean might mine more most much must my myself need never new next nice no nobody not nothing now "
    "of off on once one only or other our out over own please put really sad said say says see seem seems she should "
    "since so some somebody someone something sorry still such sure take talk tell than that the their them then "
    "there these they thing things think this those three through time to today together tonight too try two up us "
    "use very want was way we week well went were what when where which while who why will wish with without would "
    "year years yes yet you your yourself "
)
"""Words that name no matter: a reply that shares one of these with the prompt need not speak about it."""
COMMON_WORDS = frozenset(COMMON.split())
WORDS = re.compile(r"[a-z]+(?:['’][a-z]+)?")
SUFFIX = re.compile(r"(?<=...)(ing|ed|es|s|ly|er|est)$")


class SharedWordsConfig(RewardConfig):
    type: Literal["shared_words"] = "shared_words"
    name: str = "shared_words"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    limit: int = Field(default=2, ge=1)
    """More shared words than these gain nothing, so that an echo of the prompt does not pay."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "SharedWordsReward":
        del device, resolve  # no model here
        return SharedWordsReward(limit=self.limit, name=self.name)


@final
class SharedWordsReward:
    """How many different words that name the prompt's matter the answer takes up, 0 to ``limit``; higher is better.

    Words are compared without their endings (``stem``), common words do not count, each word counts once. English: of
    other languages it does not know which words are common, and of other scripts it reads nothing. It is made to
    compare answers to one prompt, beside rewards of sense and of repetition: by itself it is content with a list of the
    prompt's words. No licence, no weights.
    """

    def __init__(self, *, limit: int = 2, name: str = "shared_words") -> None:
        self.name = name
        self._limit = limit

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        shared = [stems(sample.prompt.caption) & stems(sample.media) for sample in samples]
        return torch.tensor([min(self._limit, len(one)) for one in shared], dtype=torch.float32)


def stems(text: str) -> frozenset[str]:
    """The words that name the matter, without their endings.

    >>> sorted(stems("It's the keeper who lit the lights, and I was the first to light them."))
    ['first', 'keep', 'light', 'lit']
    """
    return frozenset(stem(word) for word in naming(text))


def naming(text: str) -> list[str]:
    """The words that name the matter, as they stand, in order.

    >>> naming("My dog wasn't there, and I cried in the car.")
    ['dog', 'cried', 'car']
    """
    return [word for word in words(text) if word not in COMMON_WORDS and "'" not in word and "’" not in word]


def stem(word: str) -> str:
    """The word without its ending.

    >>> [stem(word) for word in ("scenes", "acting", "warmly", "red", "bus")]
    ['scen', 'act', 'warm', 'red', 'bus']
    """
    return SUFFIX.sub("", word)


def words(text: str) -> list[str]:
    """In small letters, in order."""
    return WORDS.findall(text.lower())
