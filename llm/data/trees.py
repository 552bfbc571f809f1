"""OpenAssistant's conversation trees (Köpf et al. 2023, arXiv:2304.07327), message by message or whole, as rows."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raftdiff.llm.data.cells import Turn
from raftdiff.recipes.rows import Row

ROLES = {"prompter": "user", "assistant": "assistant"}


def asked(rows: Sequence[Row]) -> tuple[list[Row], Counter[str]]:
    """A row of the format ``ranked`` for every turn of a prompter that was answered, with the turns before it; and how
    many messages were left out, by reason.

    Answers stand best first by their ``rank``; of several, those without one are unrated.
    """
    messages = [Row(row.where, message) for row in rows for message in _flat(row.columns)]
    reasons: Counter[str] = Counter()
    kept: dict[str, Row] = {}
    for message in messages:
        if reason := _unusable(message.columns):
            reasons[reason] += 1
        else:
            kept[str(message.columns["message_id"])] = message
    children: dict[str, list[Mapping[str, Any]]] = {}
    for message in kept.values():
        children.setdefault(str(message.columns.get("parent_id")), []).append(message.columns)
    found = []
    for name, message in kept.items():
        answers = [child for child in children.get(name, []) if child["role"] == "assistant"]
        if message.columns["role"] != "prompter" or not answers:
            continue
        if (history := _before(message.columns, kept)) is None:
            reasons["a message before them is missing"] += 1
            continue
        found.append(Row(message.where, _row(message.columns, history, answers)))
    return found, reasons


def _flat(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The message itself, or every message of a whole tree."""
    tree = message.get("prompt")
    if not isinstance(tree, Mapping):
        yield message
        return
    waiting = [tree]
    while waiting:
        one = waiting.pop(0)
        yield one
        replies = one.get("replies") or []
        waiting += [{**reply, "parent_id": one.get("message_id")} for reply in replies if isinstance(reply, Mapping)]


def _unusable(message: Mapping[str, Any]) -> str:
    if message.get("deleted"):
        return "they were deleted"
    if message.get("role") not in ROLES or not message.get("message_id"):
        return "they lack a message_id, or a role out of prompter, assistant"
    if not isinstance(message.get("text"), str) or not message["text"].strip():
        return "they are empty"
    return ""


def _before(message: Mapping[str, Any], kept: Mapping[str, Row]) -> list[Turn] | None:
    """The turns from the tree's root to the message, which is not among them; None where one is missing."""
    turns: list[Turn] = []
    seen: set[str] = set()
    parent = message.get("parent_id")
    while parent:
        if parent not in kept or parent in seen:
            return None
        seen.add(parent)
        one = kept[parent].columns
        turns.insert(0, {"role": ROLES[one["role"]], "content": one["text"]})
        parent = one.get("parent_id")
    return turns


def _row(message: Mapping[str, Any], history: list[Turn], answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    order = sorted(answers, key=lambda answer: (answer.get("rank") is None, answer.get("rank") or 0))
    ranked = sum(answer.get("rank") is not None for answer in order)
    scores = [len(order) - 1 - place if place < ranked else None for place in range(len(order))]
    row = {"id": message["message_id"], "prompt": message["text"], "answers": [answer["text"] for answer in order]}
    more = {"history": history} if history else {}
    return {**row, **more, "scores": scores if len(order) > 1 else [0], "lang": message.get("lang")}
