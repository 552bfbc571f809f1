"""The cells of text data, read with a reason for each that cannot be: texts, scores, conversations."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

Turn = dict[str, str]
"""``{"role": "system" | "user" | "assistant", "content": ...}``."""

ROLES = ("system", "user", "assistant")
KNOWN_AS = {"developer": "system", "human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""Other names of the roles: OpenAI's for system messages, and those of ShareGPT's form, {"from", "value"}."""
TOOLS = ("tool", "function", "function_call", "observation", "tool_call", "tool_response", "tool_result", "ipython")
"""Roles of turns that are a tool's, or call one."""
CALLS = ("tool_calls", "function_call")
SPEAKER = re.compile(r"\r?\n\r?\n(Human|Assistant):")
HEADED = re.compile(r"\s*###\s*(Human|Assistant):")
"""Who speaks, in transcripts of Guanaco's and LMFlow's form."""
UNRATED = ("", "n/a", "na", "nan", "none", "null")


class BrokenRow(Exception):  # noqa: N818  (a finding about data, which the reader may choose to pass over)
    """Why a row cannot be used, as the second half of a sentence."""

    def __init__(self, why: str, *, renamed: bool = False) -> None:
        """``renamed``: whether another name for one of its columns would mend it."""
        super().__init__(why)
        self.renamed = renamed


@final
@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that came with the data. Higher scores are better; None is unrated."""

    text: str
    score: float | None = None
    source: str = ""
    """Who wrote it, as the data say: a model's name, ``chosen``, ``rejected``, or nothing."""

    def plain(self) -> dict[str, Any]:
        return {"text": self.text, "score": self.score, "source": self.source}


@final
@dataclass(frozen=True, slots=True)
class Record:
    """A row that has been understood."""

    prompt: str
    """The last user turn, as written."""
    system: str = ""
    history: tuple[Turn, ...] = ()
    """What was said before, oldest first, without the system message."""
    answers: tuple[Answer, ...] = ()
    notes: tuple[str, ...] = ()
    """What was read otherwise than it stands there; readers count these and say so."""


def text_of(value: Any, what: str, *, empty: bool = False) -> str:
    """The text, unchanged; ``what`` names it in the reason."""
    if not isinstance(value, str):
        raise BrokenRow(f"{what} is missing" if value is None else f"{what} is no text but {type(value).__name__}")
    if not empty and not value.strip():
        raise BrokenRow(f"{what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BrokenRow(f"{what} holds half of a character (a lone surrogate)") from None
    return value


def listed(value: Any) -> Any:
    """A list, also where a CSV cell holds it as JSON; anything else as it is."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            held = json.loads(value)
        except ValueError:
            return value
        return held if isinstance(held, list) else value
    return value


def messages_of(value: Any) -> Any:
    """A list of messages, also where a CSV cell holds it as JSON; anything else as it is: "[1, 2]" is an answer."""
    held = listed(value)
    if isinstance(value, str) and isinstance(held, list):
        return held if held and all(isinstance(turn, Mapping) and "role" in turn for turn in held) else value
    return held


def score_of(value: Any) -> float | None:
    """A number, also as text; None for NaN, null and N/A: unrated."""
    if value is None or (isinstance(value, str) and value.strip().lower() in UNRATED):
        return None
    try:
        number = float(value)
    except OverflowError:
        raise BrokenRow("a score is infinite") from None
    except (TypeError, ValueError):
        raise BrokenRow(f"the score {value!r} is no number") from None
    if math.isinf(number):
        raise BrokenRow("a score is infinite")
    return None if math.isnan(number) else number


def conversation(value: Any, name: str) -> tuple[str, list[Turn]]:
    """The system message, if the first turns are one or several, and the other turns. Content in parts is joined.

    Raises:
        BrokenRow: a turn cannot be read: it is a tool's, holds pictures, lacks its text, or its role is unknown.
    """
    held = listed(value)
    if not isinstance(held, list) or not held:
        raise BrokenRow(f"'{name}' holds no messages")
    turns: list[Turn] = []
    for number, turn in enumerate(held, 1):
        role, content = _role_and_content(turn)
        if role in TOOLS or (isinstance(turn, Mapping) and any(turn.get(call) for call in CALLS)):
            raise BrokenRow(f"'{name}' holds tool calls or a tool's turns, which are not learnt from here")
        if role not in ROLES:
            raise BrokenRow(f"message {number} of '{name}' lacks a role out of {', '.join(ROLES)}")
        text = _joined(content, name) if isinstance(content, list) and content else content
        turns.append({"role": role, "content": text_of(text, f"message {number} of '{name}'", empty=True)})
    first = next((place for place, turn in enumerate(turns) if turn["role"] != "system"), len(turns))
    system = "\n\n".join(turn["content"] for turn in turns[:first])
    turns = turns[first:]
    if not turns or any(turn["role"] == "system" for turn in turns):
        raise BrokenRow(f"'{name}' should hold user and assistant turns, system messages before them alone")
    return system, turns


def _role_and_content(turn: Any) -> tuple[Any, Any]:
    """Who speaks, and what: of ``{"role", "content"}``, or of ShareGPT's ``{"from", "value"}``."""
    if not isinstance(turn, Mapping):
        return None, None
    sharegpt = "role" not in turn and "from" in turn
    role, content = (turn["from"], turn.get("value")) if sharegpt else (turn.get("role"), turn.get("content"))
    return (KNOWN_AS.get(role, role) if isinstance(role, str) else None), content


def _joined(parts: Sequence[Any], name: str) -> Any:
    """The text of content in parts, ``[{"type": "text", "text": ...}, ...]``; anything else as it is."""
    if not all(isinstance(part, Mapping) for part in parts):
        return parts
    other = next((part for part in parts if not isinstance(part.get("text"), str)), None)
    if other is not None:
        raise BrokenRow(f"'{name}' holds a part of the type {other.get('type')!r}, and only text is read")
    return "".join(part["text"] for part in parts)


def asked(system: str, turns: Sequence[Turn]) -> Record:
    """What these turns ask; the last of them is the prompt."""
    if not turns or turns[-1]["role"] != "user":
        raise BrokenRow("what is to be answered is not a user's turn")
    return Record(turns[-1]["content"], system, tuple(turns[:-1]))


def said(turns: Sequence[Turn]) -> str:
    """The assistant's last turn, which ends the conversation."""
    if turns[-1]["role"] != "assistant":
        raise BrokenRow("the conversation does not end with the assistant")
    return text_of(turns[-1]["content"], "the assistant's last turn")


def transcript(text: str, side: str) -> list[Turn]:
    """The turns of a transcript, white space around them taken off; ``side`` names it in the reason. Speakers are
    marked as in HH-RLHF, by an empty line and ``Human:``, or by ``### Human:``."""
    headed = HEADED.match(text) is not None
    before, *parts = HEADED.split(text) if headed else SPEAKER.split(f"\n\n{text}")
    if before.strip() or not parts:
        raise BrokenRow(f'\'{side}\' should begin with "\\n\\nHuman:" or "### Human:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": words.strip()} for speaker, words in pairs]
