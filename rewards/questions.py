"""Questions about pictures, and how their answers are spelt: what rewards that ask a vision-language model share."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float32
from PIL import Image
from torch import Tensor

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
