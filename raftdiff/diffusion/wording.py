"""What of a prompt nobody reads, or nobody reads as another program would: found before a run begins, and told."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from raftdiff.errors import counted
from raftdiff.types import Prompt, Reader

SHORT = 60
"""Letters of a prompt that are shown."""
NEXT = "\n  "
"""Between the lines of a note."""
OPTIONS = (
    "ar|aspect|c|chaos|cref|cw|d|fast|g|h|hd|iw|l|n|negative|niji|no|oref|ow|p|personalize|profile|q|quality|r|raw|"
    "relax|repeat|s|seed|sref|stop|style|stylize|sv|sw|t|tile|turbo|v|version|video|w|weird"
)
"""Of Midjourney's prompts and of the sample prompts of kohya's trainer."""
NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
DOUBT = "which may be "
"""Before what people also write for themselves."""
MARKS: Mapping[str, re.Pattern[str]] = {
    "a weight": re.compile(rf"\([^()]*(?:[^()\d\s]\s*:\s*{NUMBER}|:\s*[+-]?\d*\.\d+)\s*\)"),
    f"{DOUBT}a weight": re.compile(r"\(\([^()]+\)\)|\[\[[^\[\]]+\]\]|\{\{[^{}]+\}\}"),
    "an alternation": re.compile(rf"\[(?=[^\[\]]*[^\W\d])[^\[\]]*:\s*{NUMBER}\s*\]"),
    f"{DOUBT}an alternation": re.compile(r"\[[^\[\]|]*\|[^\[\]]*\]"),
    "a model to load": re.compile(r"<(?:lora|lyco|lycoris|hypernet|embedding|ti)\s*:[^<>]+>|\bembedding:[\w./-]+"),
    "an option": re.compile(rf"(?<![^\s,])--(?:{OPTIONS})(?!\S)(?:\s+(?!--)\S+)?"),
    f"{DOUBT}a choice": re.compile(r"\{[^{}|]*\|[^{}]*\}|(?<!\w)__[\w/*-]*\w__(?!\w)"),
}
"""What other programs give a meaning to, by what it is there; each is found in a time that grows with the text's length
alone."""
WORDS = re.compile(r"\b(?:BREAK|AND)\b")
"""Of a prompt that is not in capitals as a whole."""


class Reading(NamedTuple):
    """Somebody who reads a text of each prompt."""

    who: str
    reader: Reader
    text: Callable[[Prompt], str]


def unread(text: str, fits: Callable[[str], bool]) -> str:
    """The end of a text that is not read; ``fits`` says of a beginning whether all of it is.

    >>> unread("one two three four", lambda text: len(text.split()) <= 2)
    'three four'
    """
    if fits(text):
        return ""
    read, beyond = 0, len(text)  # a beginning that fits, and one that does not
    while beyond - read > 1:
        middle = (read + beyond) // 2
        read, beyond = (middle, beyond) if fits(text[:middle]) else (read, middle)
    return text[read:].strip()


def cut(prompts: Sequence[Prompt], readings: Iterable[Reading]) -> list[str]:
    """For each reader that a prompt is too long for a line: for how many, and what of one of them is not read.

    Where words around the caption are beyond the limit, all of them, that is a line of its own.
    """
    lines = []
    asked: dict[int, Callable[[str], bool]] = {}
    for who, reader, text in readings:
        fits = asked.setdefault(id(reader), cache(reader.reads_whole))
        if not (long := [prompt for prompt in prompts if not fits(text(prompt))]):
            continue
        whole = text(long[0])
        lines.append(
            f"{who} reads {reader.token_limit} tokens, and {len(long)} of {counted(len(prompts), 'prompt')} "
            f"{'is' if len(long) == 1 else 'are'} longer: of '{_short(whole)}' it does not read "
            f"'{_short(unread(whole, fits))}'"
        )
        if bare := [prompt for prompt in long if text(prompt) == prompt.sampling and _bare(prompt, fits)]:
            lines.append(
                f"{who} reads NONE OF THE MAGIC WORDS of {len(bare)} of these, only words of the caption, as of "
                f"'{_short(bare[0].caption)}'"
            )
    return lines


def _bare(prompt: Prompt, fits: Callable[[str], bool]) -> bool:
    """Whether what is read of a magic prompt is but the beginning of its caption."""
    if prompt.sampling == prompt.caption:
        return False
    read = prompt.sampling.rstrip().removesuffix(unread(prompt.sampling, fits)).rstrip()
    return prompt.caption.startswith(read)


def marks(text: str) -> dict[str, str]:
    """What of a text has a meaning in other programs, the first of each kind.

    >>> marks("a (cat:1.3) BREAK on a mat, at 12:30 --w 512")
    {'a weight': '(cat:1.3)', 'an option': '--w 512', 'which may be a separator': 'BREAK'}
    """
    found = {kind: match[0] for kind, pattern in MARKS.items() if (match := pattern.search(text))}
    if text != text.upper() and (match := WORDS.search(text)):
        found[f"{DOUBT}a separator"] = match[0]
    sure = {kind for kind in found if not kind.startswith(DOUBT)}
    return {kind: mark for kind, mark in found.items() if kind in sure or kind.removeprefix(DOUBT) not in sure}


def foreign(prompts: Sequence[Prompt]) -> list[str]:
    """For each kind of sign that has a meaning in other programs a line: one of them, and in how many prompts."""
    held: dict[str, list[str]] = {}
    for prompt in prompts:
        for kind, mark in marks(f"{prompt.caption} \n {prompt.sampling}").items():
            held.setdefault(f"{kind} elsewhere", []).append(mark)
        for kind, mark in marks(prompt.negative).items():
            held.setdefault(f"{kind} elsewhere, in the negative prompt", []).append(mark)
    return [
        f"'{_short(found[0])}', {kind}, in {len(found)} of {counted(len(prompts), 'prompt')}"
        for kind, found in held.items()
    ]


def limits(what: str, prompts: Sequence[Prompt], readings: Iterable[Reading]) -> list[str]:
    """A note on whose limits some prompts exceed; ``what`` says which prompts. Nothing where all of them is read."""
    lines = cut(prompts, readings)
    head = f"{what}: words beyond a reader's limit (in tokens, those of begin and end included) change nothing."
    return [NEXT.join([head, *lines])] if lines else []


def signs(what: str, prompts: Sequence[Prompt]) -> list[str]:
    """A note on what stands in some prompts for other programs. Nothing where there is nothing of theirs."""
    lines = foreign(prompts)
    head = f"{what}: what is or may be a sign in other programs is read here as the words that it is made of."
    return [NEXT.join([head, *lines])] if lines else []


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHORT else f"{line[:SHORT]}..."
