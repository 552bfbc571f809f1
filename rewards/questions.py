"""Questions about pictures, and how their answers are spelt: what rewards that ask a vision-language model share."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.types import Prompt

THINKING = "<think"
"""So begins what some models say before they answer."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Question(NamedTuple):
    """A question about one picture, and the answer to it whose probability is wanted."""

    picture: Image.Image
    text: str
    answer: str


@runtime_checkable
class Vlm(Protocol):
    """A vision-language model, in this process or behind a server."""

    def probabilities(self, questions: Sequence[Question]) -> Float32[Tensor, " questions"]:
        """How probable it is that the model's answer to each begins with the wanted one, 0 to 1."""
        ...


@runtime_checkable
class Answers(Protocol):
    """The same, asked to say something."""

    def answers(self, pictures: Sequence[Image.Image], text: str, *, max_tokens: int) -> list[str]:
        """What it says of each picture, asked the same of all, at most so many tokens: the likeliest at each step."""
        ...


def spellings(answer: str) -> tuple[str, ...]:
    """An answer as a model may begin with it: small and with a capital, a number also in digits, each with a space
    before it or none, as a chat template may end with one or leave it to the model. These are GenEval 2's.

    >>> spellings("Yes")
    ('yes', ' yes', 'Yes', ' Yes')
    >>> spellings("two")
    ('two', ' two', 'Two', ' Two', '2', ' 2')
    """
    bare = answer.strip()
    words = [bare.lower(), bare.capitalize()]
    if bare.lower() in NUMBERS:
        words.append(str(1 + NUMBERS.index(bare.lower())))
    elif bare in map(str, range(1, 1 + len(NUMBERS))):
        words += [NUMBERS[int(bare) - 1], NUMBERS[int(bare) - 1].capitalize()]
    return tuple(f"{space}{word}" for word in dict.fromkeys(words) for space in ("", " "))


def column(prompt: Prompt, name: str) -> Any:
    """What a prompt's column holds; of a table, whose cells are texts, what the text says in JSON. None without one,
    and "broken" of a text that says nothing."""
    told: Any = prompt.meta.get(name)
    if not isinstance(told, str):
        return told
    try:
        return json.loads(told)
    except (ValueError, RecursionError):
        return "broken"


def turn(text: str, picture: Image.Image | None) -> dict[str, Any]:
    """What a user says with a picture before it, for a chat template; of None only its place is marked."""
    image = {"type": "image"} if picture is None else {"type": "image", "image": picture}
    return {"role": "user", "content": [image, {"type": "text", "text": text}]}


def demand_plain(who: str, tokenizer: Any, text: str) -> None:
    """
    Raises:
        UserError: a text, such as a caption, holds a token that steers the model or stands for a picture.
    """
    steering = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if held := sorted(token for token in steering if token in text):
        raise UserError(f"{who} is to read '{held[0]}', which steers the model. Take it out of the prompt: {text:.200}")


def batches(kinds: Sequence[Any], size: int) -> Iterator[list[int]]:
    """Places of what is of one kind, at most ``size`` at a time: alike enough to be read together without filling up.

    >>> list(batches(["b", "a", "b", "b"], 2))
    [[1], [0, 2], [3]]
    """
    order = sorted(range(len(kinds)), key=kinds.__getitem__)
    for _, group in groupby(order, key=kinds.__getitem__):
        places = list(group)
        yield from (places[start : start + size] for start in range(0, len(places), size))
