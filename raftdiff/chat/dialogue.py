"""A text prompt as a conversation, and templates that are filled with other people's texts."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from raftdiff.types import Prompt


def messages(prompt: Prompt, text: str | None = None) -> list[dict[str, str]]:
    """System, history and the prompt's own turn as {"role", "content"}, oldest first, as chat templates read them.

    ``text`` stands in for the caption: what is sampled, or what is learnt.
    ``prompt.meta`` may hold "system" (text) and "history" (a list of such messages).
    """
    system = prompt.meta.get("system") or ""
    first = [{"role": "system", "content": str(system)}] if system else []
    history = [{"role": turn["role"], "content": turn["content"]} for turn in prompt.meta.get("history") or ()]
    return [*first, *history, {"role": "user", "content": prompt.caption if text is None else text}]


def context(prompt: Prompt) -> dict[str, Any]:
    """What comes before the prompt's own turn, as the columns of a data file: "system" and "history", where there are
    any.

    >>> context(Prompt("p", "and you?", "", "", meta={"system": "Be kind.", "history": [], "score": 1}))
    {'system': 'Be kind.'}
    """
    return {name: prompt.meta[name] for name in ("system", "history") if prompt.meta.get(name)}


def whole(prompt: Prompt) -> str:
    """What tells one prompt from another: its caption with all that stands before it. Dialogues may end alike."""
    return json.dumps([prompt.caption, context(prompt)], sort_keys=True)


def dialogue(prompt: Prompt) -> str:
    """The prompt as one text, for whoever judges an answer to it: its caption alone, or with the system message and the
    turns before it, each under the name of who speaks."""
    return _told(messages(prompt))


def spoken(prompt: Prompt) -> str:
    """The same without the system message, for networks that were trained on questions and answers alone."""
    return _told([turn for turn in messages(prompt) if turn["role"] != "system"])


def _told(turns: Sequence[Mapping[str, str]]) -> str:
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in turns)


def fill(template: str, slots: Mapping[str, str]) -> str:
    """Put the ``slots`` into ``{their names}``, all at once: braces inside a slot's text, or around others, stay.

    >>> fill("{answer} to {prompt} {x}", {"prompt": "{answer}", "answer": "yes"})
    'yes to {answer} {x}'
    """
    names = "|".join(map(re.escape, slots))
    return re.sub(rf"\{{({names})\}}", lambda found: slots[found[1]], template)


def cut(text: str, marks: Sequence[str]) -> str:
    """The text before the first of the ``marks``, all of it where none is in it.

    >>> cut("Hello. Human: and you?", ["Human:", "Assistant:"])
    'Hello. '
    """
    return text[: min((at for mark in marks if mark and (at := text.find(mark)) >= 0), default=len(text))]


def untorn(text: str) -> str:
    """A text that was cut between tokens, without the letter at its end that lacks some of its bytes: U+FFFD, which
    decoders write in its place, is no part of what was said.

    >>> untorn("yes \ufffd\ufffd")
    'yes '
    """
    return text.rstrip("\ufffd")
