"""What a tokenizer has besides words: the tokens that were added to it, the ends of texts, and what a chat template
writes about an answer. Language models and reward models read people's texts by these same rules."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from jinja2 import TemplateError

_ASKED, _ANSWERED = "raftdiff-asks", "raftdiff-answers"
"""What a chat template is tried on."""


REFUSALS = (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a chat template raises over turns that it does not take."""


class Frame(NamedTuple):
    """What a template writes about an answer."""

    tail: str = ""
    """The end of every prompt."""
    lead: str = ""
    """White space between prompt and answer."""
    trail: str = ""
    """White space between the answer and its end."""
    end: int | None = None
    """The token behind the answer, which ends the turn; None where the template writes none."""
    trims: bool = False
    """Whether it takes the white space about an answer away."""


def added(tokenizer: Any) -> dict[str, int]:
    """Tokens that were added to the vocabulary, by their text; white space is no mark of anything."""
    found = tokenizer.added_tokens_decoder.items()
    return {str(token): number for number, token in found if str(token).strip()}


def guarded(tokenizer: Any, ends: Collection[int | None]) -> list[str]:
    """What is no token in a text that people write, longest first. Added tokens that are not special, such as
    ``<think>``, are words of the model's language; one of the ``ends`` is none."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    names = special | {name for name, number in added(tokenizer).items() if number in ends}
    return sorted((name for name in names if len(name) > 1 and name.strip()), key=lambda it: (-len(it), it))


def without_end(text: str, ends: Collection[str]) -> tuple[str, bool]:
    """The text less the ends that it brings, and whether it brings one: what is to end it puts its own.

    >>> without_end("kind </s></s>", ["</s>"])
    ('kind', True)
    """
    ended = False
    while found := next((end for end in ends if text.rstrip().endswith(end)), None):
        text, ended = text.rstrip().removesuffix(found).rstrip(), True
    return text, ended


def chat_frame(rendered: Callable[..., str], added: Mapping[str, int]) -> Frame:
    """What a chat template writes about an answer, found by filling it; nothing where it refuses a plain exchange."""
    asked = {"role": "user", "content": _ASKED}
    padded = f"\t\n{_ANSWERED}\n\t"
    try:
        before = rendered([asked], add_generation_prompt=True)
        whole, spaced = (rendered([asked, {"role": "assistant", "content": said}]) for said in (_ANSWERED, padded))
    except REFUSALS:
        return Frame()
    tail = before.rpartition(_ASKED)[2]
    between, found, after = whole.rpartition(_ASKED)[2].partition(_ANSWERED)
    if not found:
        return Frame(tail)
    lead = between.removeprefix(tail) if between.startswith(tail) else ""
    trims = padded not in spaced
    marks = [(place, -len(name), number) for name, number in added.items() if (place := after.find(name)) >= 0]
    place, _, end = min(marks, default=(0, 0, None))
    if after[:place].strip():  # words stand between: the token is not this answer's end
        place, end = 0, None
    return Frame(tail, lead if lead.isspace() else "", after[:place], end, trims)
