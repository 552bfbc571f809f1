"""Formats of text data: from a row's columns to what was asked and which answers came with it.

| format | columns |
|---|---|
| ``prompt`` | prompt |
| ``prompt_response`` | prompt, response (Alpaca: instruction, input, output) |
| ``messages`` | messages (ShareGPT: conversations): [{role, content}, ...]; the last assistant turn is the answer |
| ``pairs`` | prompt, chosen, rejected (texts or messages); score_chosen, score_rejected by choice |
| ``ranked`` | prompt, answers or responses; scores by choice, else best first (RRHF: query, responses, scores) |
| ``kto`` | prompt, response, label: true or false (1 or 0) is a score of 1 or 0 |
| ``hh_rlhf`` | chosen, rejected: whole transcripts with "Human:" and "Assistant:" |
| ``transcript`` | text: one such transcript, also with "### Human:" (Guanaco, LMFlow's text_only) |
| ``shp`` | history (a post), human_ref_A, human_ref_B, labels (1: A is preferred) |
| ``oasst`` | message_id, parent_id, text, role, rank: messages of OpenAssistant's trees, or whole trees |
| ``ultrafeedback`` | instruction, completions; or prompt, chosen, rejected, score_chosen, score_rejected |

The prompt may be called prompt, instruction, query or caption (or input, where there is none of these), the response
also output or completion. Where there is a chosen and a rejected answer, these words decide which is better.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from raftdiff.errors import UserError
from raftdiff.llm.data.cells import (
    HEADED,
    SPEAKER,
    Answer,
    BrokenRow,
    Record,
    asked,
    conversation,
    listed,
    messages_of,
    said,
    score_of,
    text_of,
    transcript,
)

Format = Literal[
    "prompt",
    "prompt_response",
    "messages",
    "pairs",
    "ranked",
    "kto",
    "hh_rlhf",
    "transcript",
    "shp",
    "oasst",
    "ultrafeedback",
]

PROMPTS = ("prompt", "instruction", "query", "caption")
RESPONSES = ("response", "output", "completion")
ANSWERS = ("answers", "responses")
CONVERSATIONS = ("messages", "conversations")
TREE = {"message_id", "parent_id", "text", "role"}
PREFERENCE = {"history", "human_ref_A", "human_ref_B"}
LABELS: Mapping[str, float] = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
CONTRADICTED = (
    "the rejected answer is rated as high as the chosen one or higher; chosen stays the better one, for every method, "
    "with the scores 1 and 0"
)
GOOD, BAD = "desirable", "undesirable"
"""Sources of answers that were labelled, as KTO has them."""
KNOWN = (
    "prompt (prompt), prompt_response (prompt + response; instruction + output), messages (messages or conversations), "
    "pairs (prompt + chosen + rejected), ranked (prompt + answers + scores), kto (prompt + completion + label), "
    "hh_rlhf (chosen + rejected transcripts), transcript (text with ### Human: and ### Assistant:), "
    "shp (history + human_ref_A + human_ref_B), oasst (message_id + parent_id + text + role), "
    "ultrafeedback (instruction + completions)"
)


def detect(table: Sequence[Mapping[str, Any]], key: str, heading: str = "") -> Format:
    """The format that has the columns of these rows; ``heading`` is said where none has. ``key`` is where the data
    stand in the recipe.

    Raises:
        UserError: no format fits, or several do.
    """
    have = {name for row in table for name in row}
    if have >= TREE or any(isinstance(row.get("prompt"), Mapping) for row in table):
        return "oasst"
    if have >= PREFERENCE:
        return "shp"
    chosen = next((messages_of(row["chosen"]) for row in table if row.get("chosen") is not None), None)
    found: list[Format] = []
    if "completions" in have or ({"score_chosen", "score_rejected"} <= have and isinstance(chosen, list)):
        found.append("ultrafeedback")
    elif {"chosen", "rejected"} <= have and (have & set(PROMPTS) or isinstance(chosen, list)):
        found.append("pairs")
    elif {"chosen", "rejected"} <= have and isinstance(chosen, str) and SPEAKER.search(f"\n\n{chosen}"):
        found.append("hh_rlhf")
    if have & set(ANSWERS):
        found.append("ranked")
    if have & set(CONVERSATIONS) and "ultrafeedback" not in found:  # which repeats the chosen conversation there
        found.append("messages")
    if have & set(RESPONSES):
        found.append("kto" if _labelled(table) else "prompt_response")
    if not found and have & {*PROMPTS, "input"} and not have & {"chosen", "rejected"}:
        found.append("prompt")
    if not found and any(_is_transcript(row.get("text")) for row in table):
        found.append("transcript")
    shown = f"the columns ({', '.join(sorted(have))})"
    told = key.startswith("--")  # an option names the file alone
    where = key if told else f"{key}.format"
    if len(found) > 1:
        hint = "Leave the columns of the others out of the file" if told else f"Set {where} to one of them"
        raise UserError(f"{where}: {shown} fit several: {', '.join(found)}. {hint}.")
    if not found:
        hint = "Rename the file's columns" if told else f"Rename columns under {key}.columns"
        raise UserError(f"{where}: {shown} fit no format. Known: {KNOWN}. {hint}.{heading}")
    return found[0]


def parse(format: Format, row: Mapping[str, Any]) -> tuple[Record, dict[str, Any]]:
    """What a row says in a format, and the columns that the format did not use (but for "answers", whose meaning is
    the format's).

    Raises:
        BrokenRow: a column is missing, empty or of another kind, or the answers do not belong together.
    """
    record, used = _PARSERS[format](row)
    if "system" in row:
        record = replace(record, system=text_of(row["system"] or "", "the system message", empty=True) or record.system)
    if row.get("history") and "history" not in used and not record.history:
        system, turns = conversation(row["history"], "history")
        record = replace(record, history=tuple(turns), system=record.system or system)
    if not record.prompt.strip():
        raise BrokenRow("the prompt is empty")
    rest = {name: value for name, value in row.items() if name not in {*used, "system", "history", "answers"}}
    return record, rest


Parsed = tuple[Record, set[str]]


def _prompt(row: Mapping[str, Any]) -> Parsed:
    """The prompt alone: a text, or messages that end with what the user said."""
    names = [name for name in PROMPTS if row.get(name) is not None]
    names = names or [name for name in ("input",) if row.get(name) is not None]
    if not names:
        raise BrokenRow(f"there is no prompt (columns: {', '.join(sorted(row))})")
    if len(names) > 1:
        raise BrokenRow(f"'{names[0]}' and '{names[1]}' could both be the prompt", renamed=True)
    (name,) = names
    if isinstance(talk := messages_of(row[name]), list):
        return asked(*conversation(talk, name)), {name}
    text, used = text_of(row[name], f"'{name}'"), {name}
    if name == "instruction" and "input" in row:
        given = text_of(row["input"] or "", "'input'", empty=True)
        # one that says something is kept beside too, for templates that set it apart
        text, used = (f"{text}\n\n{given}", {name}) if given.strip() else (text, {name, "input"})
    return Record(text), used


def _prompt_response(row: Mapping[str, Any]) -> Parsed:
    record, used = _prompt(row)
    name = next((name for name in RESPONSES if row.get(name) is not None), None)
    if name is None:
        raise BrokenRow("there is no response")
    talk = messages_of(row[name])
    text = said(conversation(talk, name)[1]) if isinstance(talk, list) else text_of(talk, f"'{name}'")
    return replace(record, answers=(Answer(text),)), used | {name}


def _kto(row: Mapping[str, Any]) -> Parsed:
    """An answer that was called good or bad (Ethayarajh et al. 2024, arXiv:2402.01306)."""
    record, used = _prompt_response(row)
    score = _label(row.get("label"))
    if score is None:
        raise BrokenRow(f"the label {row.get('label')!r} is neither true nor false")
    answer = replace(record.answers[0], score=score, source=GOOD if score else BAD)
    return replace(record, answers=(answer,)), used | {"label"}


def _label(value: Any) -> float | None:
    return LABELS.get(str(value).strip().lower())


def _labelled(table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every row that has a label has one that is true or false."""
    labels = [row["label"] for row in table if row.get("label") is not None]
    return bool(labels) and all(_label(label) is not None for label in labels)


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and bool(HEADED.match(text) or SPEAKER.match(f"\n\n{text.lstrip()}"))


def _messages(row: Mapping[str, Any]) -> Parsed:
    """The last assistant turn answers the user turn before it; a conversation that ends with the user has no answer."""
    name = next((name for name in CONVERSATIONS if row.get(name) is not None), CONVERSATIONS[0])
    system, turns = conversation(row.get(name), name)
    if turns[-1]["role"] == "user":
        return asked(system, turns), {name}
    return replace(asked(system, turns[:-1]), answers=(Answer(said(turns)),)), {name}


def _pairs(row: Mapping[str, Any]) -> Parsed:
    names = ("score_chosen", "score_rejected")
    (chosen, one), (rejected, other) = (_side(row, side) for side in ("chosen", "rejected"))
    scores = [score_of(row.get(name)) for name in names]
    answers, notes = _two([chosen, rejected], scores)
    if one and other and one != other:
        raise BrokenRow("the chosen and the rejected answer do not share one prompt")
    talk, used = one or other, {"chosen", "rejected", *names}
    if talk and not any(row.get(name) is not None for name in PROMPTS):
        return replace(talk, answers=answers, notes=notes), used
    record, own = _prompt(row)
    if talk and talk.prompt.strip() != record.prompt.strip():
        raise BrokenRow("the prompt is not the one that the chosen and the rejected conversation answer")
    if talk:
        record = replace(record, system=record.system or talk.system, history=record.history or talk.history)
    return replace(record, answers=answers, notes=notes), used | own


def _side(row: Mapping[str, Any], side: str) -> tuple[str, Record | None]:
    """An answer, and what it answers: None where it is a text, or an assistant's turn alone."""
    talk = messages_of(row.get(side))
    if not isinstance(talk, list):
        return text_of(talk, f"'{side}'"), None
    system, turns = conversation(talk, side)
    return said(turns), asked(system, turns[:-1]) if len(turns) > 1 else None


def _ranked(row: Mapping[str, Any]) -> Parsed:
    """Scores are n-1 (best) to 0 where the row brings none: the list is then best first."""
    record, used = _prompt(row)
    name = next((name for name in ANSWERS if row.get(name) is not None), None)
    items = listed(row[name]) if name else None
    if not isinstance(items, list) or not items:
        raise BrokenRow("there is no list of answers")
    held = [item if isinstance(item, Mapping) else {"text": item} for item in items]
    texts = [text_of(item.get("text"), f"answer {k}") for k, item in enumerate(held, 1)]
    scores = _column(row, ("scores",), len(held))
    if scores is None and any("score" in item for item in held):
        scores = [item.get("score") for item in held]
    if scores is None:
        scores = list(range(len(held) - 1, -1, -1))
    sources = _column(row, ("sources", "models"), len(held)) or [item.get("source") or "" for item in held]
    answers = zip(texts, scores, sources, strict=True)
    found = tuple(Answer(text, score_of(score), str(source)) for text, score, source in answers)
    return replace(record, answers=found), used | {str(name), "scores", "sources", "models"}


def _hh_rlhf(row: Mapping[str, Any]) -> Parsed:
    """Transcripts of Anthropic's HH-RLHF (Bai et al. 2022, arXiv:2204.05862): the last Assistant turns are the pair."""
    chosen, rejected = (transcript(text_of(row.get(side), f"'{side}'"), side) for side in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise BrokenRow("the chosen and the rejected transcript do not share one prompt")
    record = asked("", chosen[:-1])
    answers, _ = _two([said(chosen), said(rejected)])
    return replace(record, answers=answers), {"chosen", "rejected"}


def _transcript(row: Mapping[str, Any]) -> Parsed:
    """The last Assistant turn is the answer; a transcript that ends with an empty one, or with Human, has none."""
    turns = transcript(text_of(row.get("text"), "'text'"), "text")
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns = turns[:-1]
    if turns[-1]["role"] == "user":
        return asked("", turns), {"text"}
    return replace(asked("", turns[:-1]), answers=(Answer(said(turns)),)), {"text"}


def _shp(row: Mapping[str, Any]) -> Parsed:
    """Stanford's Human Preferences (Ethayarajh et al. 2022, arXiv:2110.08420): two comments on a post."""
    better = _label(row.get("labels"))
    if better is None:
        raise BrokenRow(f"'labels' is {row.get('labels')!r}; 1 says that A is preferred, 0 that B is")
    sides = ("A", "B") if better else ("B", "A")
    texts = [text_of(row.get(f"human_ref_{side}"), f"'human_ref_{side}'") for side in sides]
    answers, notes = _two(texts, [score_of(row.get(f"score_{side}")) for side in sides])
    record = Record(text_of(row.get("history"), "'history'"), answers=answers, notes=notes)
    return record, {*PREFERENCE, "labels", "score_A", "score_B"}


def _ultrafeedback(row: Mapping[str, Any]) -> Parsed:
    """UltraFeedback (Cui et al. 2023, arXiv:2310.01377), the original or the binarized one.

    Scores of the original are its fine-grained score, else the mean of its ratings, else the overall score: published
    overall scores of 10 were at times a 1 that had been misread.
    """
    if "completions" not in row:
        record, used = _pairs(row)
        return record, used | {"messages"}
    record, used = _prompt(row)
    items = listed(row["completions"])
    if not isinstance(items, list) or not items:
        raise BrokenRow("there are no completions")
    if not all(isinstance(item, Mapping) for item in items):
        raise BrokenRow("a completion is no object")
    answers = tuple(
        Answer(text_of(item.get("response"), f"completion {k}"), _feedback(item), str(item.get("model") or ""))
        for k, item in enumerate(items, 1)
    )
    return replace(record, answers=answers), used | {"completions", "models"}


_PARSERS: Mapping[Format, Callable[[Mapping[str, Any]], Parsed]] = {
    "prompt": _prompt,
    "prompt_response": _prompt_response,
    "messages": _messages,
    "pairs": _pairs,
    "ranked": _ranked,
    "kto": _kto,
    "hh_rlhf": _hh_rlhf,
    "transcript": _transcript,
    "shp": _shp,
    "oasst": _ranked,  # of what ``trees`` gathers
    "ultrafeedback": _ultrafeedback,
}


def _column(row: Mapping[str, Any], names: Sequence[str], count: int) -> list[Any] | None:
    """A column with one value an answer, if the row has it."""
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        return None
    values = listed(row[name])
    if not isinstance(values, list) or len(values) != count:
        held = len(values) if isinstance(values, list) else "no list"
        raise BrokenRow(f"'{name}' should hold {count} values, one an answer; it holds {held}")
    return values


def _feedback(completion: Mapping[str, Any]) -> float | None:
    if (score := score_of(completion.get("fine-grained_score"))) is not None:
        return score
    aspects = completion.get("annotations")
    rated = [aspect.get("Rating") for aspect in _aspects(aspects)] if isinstance(aspects, Mapping) else []
    ratings = [rating for rating in map(score_of, rated) if rating is not None]
    return sum(ratings) / len(ratings) if ratings else score_of(completion.get("overall_score"))


def _aspects(annotations: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One mapping an aspect, also where a list holds it."""
    held = [aspect[0] if isinstance(aspect, list) and aspect else aspect for aspect in annotations.values()]
    return [aspect for aspect in held if isinstance(aspect, Mapping)]


def _two(texts: Sequence[str], scores: Sequence[float | None] = ()) -> tuple[tuple[Answer, ...], tuple[str, ...]]:
    """The chosen answer and the rejected one, and what is to be said of them.

    Chosen is better, whatever the ``scores``: these are kept where they say so too, and are 1 and 0 elsewhere.
    """
    if texts[0].strip() == texts[1].strip():
        raise BrokenRow("the chosen and the rejected answer are the same")
    one, other = scores or (None, None)
    if one is not None and other is not None and one > other:
        return (Answer(texts[0], one, "chosen"), Answer(texts[1], other, "rejected")), ()
    notes = () if one is None or other is None else (CONTRADICTED,)
    return (Answer(texts[0], 1.0, "chosen"), Answer(texts[1], 0.0, "rejected")), notes
