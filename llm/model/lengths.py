"""Texts that are longer than a model reads: found when data are read, in the model's own tokens, and left out, cut or
refused."""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, final

from raftdiff.chat.dialogue import untorn
from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LM
from raftdiff.types import Prompt

TooLong = Literal["stop", "skip", "cut"]


class Limits(NamedTuple):
    """What a recipe says of long rows."""

    where: str
    """The key of the data in the recipe, such as prompts."""
    prompt: int | None = None
    """Prompts of more tokens are not wanted, though the model could read them."""
    answer: int | None = None
    """And answers of the data."""
    long: TooLong = "stop"
    """What to do about a row that the model cannot read: an error, leave it out, or cut it. What is not wanted is left
    out, or cut."""


class Fitting(NamedTuple):
    """A row that the model reads."""

    prompt: Prompt
    """Its oldest turns may be gone."""
    answers: tuple[str, ...]
    """Their ends may be."""
    cut: tuple[bool, ...]
    """Which of the answers lack their ends."""


@final
class _LongRow(Exception):  # noqa: N818  (a finding about a row, which the recipe may choose to pass over)
    def __init__(self, found: str, why: str, readable: bool) -> None:
        super().__init__(found)
        self.found, self.why, self.readable = found, why, readable


@final
class Lengths:
    """Rows as one model reads them, with template, system message and history. Reasons are counted."""

    def __init__(
        self, lm: LM, limits: Limits, *, positions: int | None, room: int = 0, asked: str = "decoding"
    ) -> None:
        """
        Args:
            positions: tokens that prompt and answer may have together; None for no limit.
            room: tokens that an answer to be drawn may have.
            asked: the key of the decoding that asks for these.

        Raises:
            UserError: that is more than the model can read, without a prompt.
        """
        if positions is not None and room >= positions:
            raise UserError(
                f"{asked}.max_new_tokens: '{lm.name}' is made for {positions} tokens, the prompt's included, and "
                f"{room} new ones are asked for; ask for fewer."
            )
        self._lm = replace(lm, max_prompt_tokens=sys.maxsize)
        self._limits, self._positions, self._longest = limits, positions, lm.max_prompt_tokens
        self._room, self._asked = room, asked
        self._reasons, self._shortened, self._first = Counter[str](), Counter[str](), ""

    def fit(self, prompt: Prompt, answers: Sequence[str] = ()) -> Fitting | None:
        """The row, cut if that is asked for; None where it is left out.

        Raises:
            UserError: the model cannot read it, and the recipe does not say what to do about it.
        """
        try:
            return self._fitting(prompt, answers)
        except _LongRow as row:
            limits = self._limits
            if limits.long == "stop" and not row.readable:
                raise UserError(
                    f"{limits.where}: of '{prompt.id}' {row.found}, and {row.why} cannot be read. Leave it out, "
                    f"shorten it, or set {limits.where}.too_long: skip, which leaves such rows out, or cut."
                ) from None
            self._first = self._first or prompt.id
            self._reasons[row.why] += 1
            return None

    def _fitting(self, prompt: Prompt, answers: Sequence[str]) -> Fitting:
        cuts, asked = self._limits.long == "cut", prompt
        while self._prompt_too_long(tokens := self._tokens(asked)) and cuts and asked.meta.get("history"):
            asked = _without_oldest(asked)
        if why := self._prompt_too_long(tokens):
            raise _LongRow(f"the prompt is {tokens} tokens long", *why)
        kept = [self._answer(text, tokens) for text in answers]
        if len(set(kept)) < len(set(answers)):
            raise _LongRow("the answers are too long", "answers that are alike once they are cut", True)
        cut = tuple(one != text for one, text in zip(kept, answers, strict=True))
        self._shortened["the prompt without its oldest turns"] += asked is not prompt
        self._shortened["an answer without its end"] += any(cut)
        return Fitting(asked, tuple(kept), cut)

    def _answer(self, text: str, prompt: int) -> str:
        """The answer to a prompt of so many tokens, or its beginning."""
        ids = self._lm.answer_ids(text)
        broken = [limit for limit in self._answer_limits(prompt) if len(ids) > limit[0]]
        if not broken:
            return text
        room = min(longest for longest, _ in broken) - 1  # the end, which is not learnt, counts
        short = self._beginning(ids, room) if self._limits.long == "cut" else ""
        if not short:
            raise _LongRow(f"the prompt is {prompt} and an answer {len(ids)} tokens long", *broken[0][1])
        return short

    def _beginning(self, ids: Sequence[int], room: int) -> str:
        """The longest beginning that is whole letters, and that is read again in no more than ``room`` tokens; an empty
        text where there is none. Its last word may be spelled in more tokens once its rest is gone."""
        for kept in range(min(room, len(ids)), 0, -1):
            text = self._lm.text(ids[:kept])
            short = text.strip()
            if short and text == untorn(text) and len(self._lm.answer_ids(short, ended=False)) <= room:
                return short
        return ""

    def tell(self, total: int) -> None:
        """Say how many of ``total`` rows were left out and why, and how many were cut.

        Raises:
            UserError: all were left out.
        """
        where = self._limits.where
        if self._reasons:
            listed = "; ".join(f"{count} with {why}" for why, count in self._reasons.most_common())
            sentence = f"{where}: {self._reasons.total()} of {total} rows were left out: {listed}."
            if self._reasons.total() == total:
                raise UserError(f"{sentence} Nothing is left.")
            warnings.warn(f"{sentence} The first: '{self._first}'.", stacklevel=3)
        for what, count in (+self._shortened).items():
            warnings.warn(
                f"{where}: in {count} of {total} rows the model reads {what}, since they are too long.", stacklevel=3
            )

    def _tokens(self, prompt: Prompt) -> int:
        texts = dict.fromkeys((prompt.sampling, prompt.learning))
        return max(len(self._lm.prompt_ids(prompt, text)) for text in texts)

    def _prompt_too_long(self, tokens: int) -> tuple[str, bool] | None:
        """Why a prompt of so many tokens is too long, and whether the model could read it all the same."""
        wanted, name = self._limits.prompt, self._lm.name
        if wanted is not None and tokens > wanted:
            return f"a prompt of more than {self._limits.where}.max_prompt_tokens ({wanted})", True
        if tokens > self._longest:
            return f"a prompt of more than model.max_prompt_tokens ({self._longest})", False
        if self._positions is not None and tokens + max(1, self._room) > self._positions:
            drawn = f", {self._room} of them for {self._asked}.max_new_tokens" if self._room else ""
            return f"a prompt of more than '{name}' can read ({self._positions} tokens{drawn})", False
        return None

    def _answer_limits(self, prompt: int) -> Iterator[tuple[int, tuple[str, bool]]]:
        """The longest answers to a prompt of so many tokens, ends counted, each with what a longer one is, and whether
        the model could read that all the same."""
        where, wanted = self._limits.where, self._limits.answer
        if wanted is not None:
            yield wanted, (f"an answer of more than {where}.max_answer_tokens ({wanted})", True)
        if self._positions is not None:
            what = f"prompt and answer together of more than '{self._lm.name}' can read ({self._positions} tokens)"
            yield self._positions - prompt, (what, False)


def _without_oldest(prompt: Prompt) -> Prompt:
    """The prompt without its oldest exchange; what is left begins with a user's turn."""
    left = list(prompt.meta["history"])[1:]
    while left and left[0]["role"] != "user":
        del left[0]
    return replace(prompt, meta={**prompt.meta, "history": left})


def check_asked(
    reward: str,
    lm: LM,
    prompts: Sequence[Prompt],
    *,
    positions: int | None,
    remedy: str = "leave the prompt out (max_prompt_tokens of its data), or shorten it",
) -> None:
    """
    Raises:
        UserError: one of the prompts is longer than the model of a reward can read; ``remedy`` says what to do.
    """
    for prompt in prompts:
        try:
            tokens = len(lm.prompt_ids(prompt, prompt.caption))
        except UserError as error:
            raise UserError(f"The reward '{reward}': {error}") from None
        if positions is not None and tokens >= positions:
            raise UserError(
                f"The reward '{reward}': the prompt '{prompt.id}' is {tokens} tokens long, and its model can read "
                f"{positions}, an answer included; {remedy}."
            )


def warn_of_long(reward: str, count: int, total: int, hint: str) -> None:
    """Say how many answers a reward discarded because its model could not read them whole; ``hint``: what to do."""
    if count:
        warnings.warn(
            f"The reward '{reward}' discards {count} of {total} answers (NaN): with their prompts they are longer than "
            f"its model can read; {hint}.",
            stacklevel=3,
        )


def readable(
    lm: LM,
    prompts: Sequence[Prompt],
    limits: Limits,
    *,
    room: int = 0,
    asked: str = "decoding",
    learnt: bool = False,
) -> list[Prompt]:
    """The prompts that a model reads, cut where the recipe asks for it; what is left out is said.

    ``room``: tokens of the answers that are to be drawn, for which the decoding under the key ``asked`` asks.
    ``learnt``: whether the answers that the data give are learnt from; of those that are cut, ``meta["answers"]`` says
    so.

    Raises:
        UserError: a prompt is too long, and the recipe does not say what to do about it; or nothing is left.
    """
    lengths, found = Lengths(lm, limits, positions=lm.positions, room=room, asked=asked), []
    for prompt in prompts:
        given = prompt.meta.get("answers", ()) if learnt else ()
        if row := lengths.fit(prompt, [answer["text"] for answer in given]):
            found.append(_with_answers(row, given) if any(row.cut) else row.prompt)
    lengths.tell(len(prompts))
    return found


def _with_answers(row: Fitting, given: Sequence[Mapping[str, Any]]) -> Prompt:
    answers = [
        {**answer, "text": text, "cut": True} if cut else answer
        for answer, text, cut in zip(given, row.answers, row.cut, strict=True)
    ]
    return replace(row.prompt, meta={**row.prompt.meta, "answers": answers})
