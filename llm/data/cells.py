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
SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}
"""Names of the roles in conversations of ShareGPT's form, {"from", "value"}, beside the usual ones."""
SPEAKER = re.compile(r"\r?\n\r?\n(Human|Assistant):")
UNRATED = ("", "n/a", "na", "nan", "none", "null")


class BrokenRow(Exception):  # noqa: N818  (a finding about data, which the reader may choose to pass over)
    """Why a row cannot be used, as the second half of a sentence."""


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
    """The system message, if the first turn is one, and the other turns."""
    held = listed(value)
    if not isinstance(held, list) or not held:
        raise BrokenRow(f"'{name}' holds no messages")
    turns: list[Turn] = []
    for number, turn in enumerate(held, 1):
        role, content = _role_and_content(turn)
        if role not in ROLES:
            raise BrokenRow(f"message {number} of '{name}' lacks a role out of {', '.join(ROLES)}")
        turns.append({"role": role, "content": text_of(content, f"message {number} of '{name}'", empty=True)})
    system = turns.pop(0)["content"] if turns[0]["role"] == "system" else ""
    if not turns or any(turn["role"] == "system" for turn in turns):
        raise BrokenRow(f"'{name}' should hold user and assistant turns, after one system message at most")
    return system, turns


def _role_and_content(turn: Any) -> tuple[Any, Any]:
    """Who speaks, and what: of ``{"role", "content"}``, or of ShareGPT's ``{"from", "value"}``."""
    if not isinstance(turn, Mapping):
        return None, None
    if "role" in turn or "from" not in turn:
        return turn.get("role"), turn.get("content")
    return SHAREGPT.get(turn["from"], turn["from"]), turn.get("value")


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
    """The turns of an HH-RLHF transcript, white space around them taken off; ``side`` names it in the reason."""
    before, *parts = SPEAKER.split(f"\n\n{text}")
    if before.strip() or not parts:
        raise BrokenRow(f"'{side}' should begin with \"\\n\\nHuman:\"")
    roles = {"Human": "user", "Assistant": "assistant"}
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": words.strip()} for speaker, words in pairs]
