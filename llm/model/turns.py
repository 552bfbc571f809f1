"""Where a text begins, where a turn and a text end, and which tokens are a template's own: known here and nowhere else.

A prompt is begun once and is not ended. An answer is spelled as it would be behind its prompt, and ends in the token
that the chat template writes behind an answer; without one, in the tokenizer's end token. What people write is text:
``<|im_end|>`` in a question or an answer is never the token.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from raftdiff.chat.dialogue import messages
from raftdiff.chat.marks import REFUSALS, Frame, added, chat_frame, guarded, without_end
from raftdiff.errors import UserError
from raftdiff.types import Prompt

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:"
)
"""The prompt of Stanford Alpaca, for an instruction without an input."""
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
"""And for one with an input."""

_HIDES = "\ufdd0"
"""No character, by Unicode: it and one of those behind it stand for a special token's text while a template is filled.
Where a text holds it all the same, it is hidden itself."""
_HIDDEN = 0x100000
"""The first of the characters behind it. By themselves they are text."""
_NEUTRAL = "\n"
"""A text behind it is spelled without a mark that a word begins, and no token spans the border."""


@final
@dataclass(frozen=True)
class Turns:
    """Prompts and answers as a tokenizer's ids, as a template writes them."""

    name: str
    """Of the model, for sentences."""
    tokenizer: Any
    template: str
    """chat, plain, or a text with "{prompt}" in it."""
    text_ends: tuple[int, ...]
    """What tokenizer and model hold to be the end of a text."""
    encoder: bool = False
    """Whether the network reads from both sides: then a prompt is closed too, as [CLS] prompt [SEP]."""

    @cached_property
    def frame(self) -> Frame:
        """What the template writes about an answer."""
        if self.template == "chat":
            return chat_frame(self._rendered, added(self.tokenizer))
        return Frame(tail=self.template.rpartition("{prompt}")[2] if "{prompt}" in self.template else "")

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The ids that end an answer; the first is the one that answers are taught with."""
        turn = () if self.frame.end is None else (self.frame.end,)
        return tuple(dict.fromkeys((*turn, *self.text_ends)))

    def prompt(self, prompt: Prompt, text: str) -> list[int]:
        """What an answer follows: ``text`` with the prompt's system text and its earlier turns.

        Raises:
            UserError: the chat template takes no such turns.
        """
        if self.template == "chat":
            return self._spelled(self._chat(prompt, text))
        ids, (begin, close) = self._spelled(self._filled(prompt, text)), self._around
        begun = begin and ids[: len(begin)] == begin  # the template brings its own
        return [*([] if begun else begin), *ids, *(close if self.encoder else [])]

    def answer(self, text: str, *, ended: bool = True) -> list[int]:
        """An answer that somebody else wrote, and its end unless it was cut short. One that brings the end's text, as
        some data do, has no second."""
        said, closed = without_end(text, self._end_texts)
        frame, closed = self.frame, closed or ended
        said = said.strip() if frame.trims else said
        if said:
            said = f"{frame.lead}{self._hide(said)}{frame.trail if closed else ''}"
        return [*self._spelled(said, frame.tail, _NEUTRAL), *([self.ends[0]] if closed else [])]

    def written(self, prompt: Prompt, text: str) -> str:
        """The prompt as the text that is tokenized, for people to read.

        Raises:
            UserError: the chat template takes no such turns.
        """
        whole = self._chat(prompt, text) if self.template == "chat" else self._filled(prompt, text)
        return self._hidden.sub(lambda found: self._shown(found[0]), whole)

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """The ids less the token that ends a turn: to some tokenizers it is not a special one."""
        return [one for one in ids if one != self.frame.end]

    def _chat(self, prompt: Prompt, text: str) -> str:
        try:
            return self._rendered(self._turns(prompt, text), add_generation_prompt=True)
        except REFUSALS as error:  # such as that of a model that knows no system text
            raise UserError(
                f"The prompt '{prompt.id}': the chat template of '{self.name}' refuses it ({error}); change its system "
                "text or its history, or set model.template."
            ) from None

    def _filled(self, prompt: Prompt, text: str) -> str:
        turns = self._turns(prompt, text)
        told = script(turns)
        given = self._hide(str(prompt.meta.get("input") or ""))
        if self.template == "plain":
            return f"{told}\n\nAssistant:\n" if said_by_several(turns) else told
        if self.template == ALPACA and given.strip() and told.endswith(f"\n\n{given}"):
            asked = told.removesuffix(f"\n\n{given}")
            return ALPACA_WITH_INPUT.format(instruction=asked, input=given)
        return self.template.replace("{prompt}", told)

    def _turns(self, prompt: Prompt, text: str) -> list[dict[str, str]]:
        begin = str(getattr(self.tokenizer, "bos_token", None) or "")
        while begin and text.startswith(begin):
            text = text.removeprefix(begin).lstrip(" ")
        return [{**turn, "content": self._hide(self._said(turn))} for turn in messages(prompt, text)]

    def _said(self, turn: Mapping[str, str]) -> str:
        """An earlier answer is ended by the template alone."""
        said = turn["content"]
        return without_end(said, self._end_texts)[0] if turn["role"] == "assistant" else said

    def _rendered(self, turns: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = False) -> str:
        return str(
            self.tokenizer.apply_chat_template(list(turns), add_generation_prompt=add_generation_prompt, tokenize=False)
        )

    def _spelled(self, text: str, *heads: str) -> list[int]:
        """The ids of a text in which ``_hide`` has hidden what is no token, as they are behind the first of the
        ``heads`` that is set apart from it; without one, at the beginning."""
        ids: list[int] = []
        for place, part in enumerate(self._hidden.split(text)):
            ids += self._behind(part, *(heads if place == 0 else (_NEUTRAL,)))
        return ids

    def _behind(self, text: str, *heads: str) -> list[int]:
        """What was hidden is spelled in two pieces, its first character and the rest: so no tokenizer, whatever its
        vocabulary holds, takes it for the token."""
        if self._hidden.fullmatch(text):
            name = self._shown(text)
            return [*self._behind(name[:1], *heads), *self._behind(name[1:], _NEUTRAL)]
        if not text or not self._marks_words:
            return self._ids(text)
        for head in filter(None, heads):
            begun, ids = self._ids(head), self._ids(head + text)
            if ids[: len(begun)] == begun:
                return ids[len(begun) :]
        return self._ids(text)

    def _ids(self, text: str, *, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"]) if text else []

    def _hide(self, text: str) -> str:
        """The text with two characters in place of each special token's text that it holds, or would hold as the
        tokenizer reads it: full-width or capital letters may be the same to it."""
        if self._normalizer is not None:
            read = self._normalizer.normalize_str(text)
            text = read if len(self._special.findall(read)) > len(self._special.findall(text)) else text
        return self._special.sub(lambda found: f"{_HIDES}{chr(_HIDDEN + self._guarded.index(found[0]))}", text)

    def _shown(self, hidden: str) -> str:
        return self._guarded[ord(hidden[1]) - _HIDDEN]

    @cached_property
    def _normalizer(self) -> Any:
        """What a tokenizer makes of a text before it looks for words; None where it takes texts as they are."""
        return getattr(getattr(self.tokenizer, "backend_tokenizer", None), "normalizer", None)

    @cached_property
    def _end_texts(self) -> list[str]:
        return [name for name, number in added(self.tokenizer).items() if number in self.ends]

    @cached_property
    def _guarded(self) -> list[str]:
        """What is no token in a text that people write, and what hides it."""
        return [*guarded(self.tokenizer, self.ends), _HIDES]

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._guarded)))

    @cached_property
    def _hidden(self) -> re.Pattern[str]:
        return re.compile(f"({_HIDES}[{chr(_HIDDEN)}-{chr(_HIDDEN + len(self._guarded) - 1)}])")

    @cached_property
    def _marks_words(self) -> bool:
        """Whether a text by itself is spelled as the begin of a word, as Metaspace tokenizers do: Llama 2, Mistral."""
        return self._ids(f"{_NEUTRAL}a")[len(self._ids(_NEUTRAL)) :] != self._ids("a")

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind every text by itself."""
        bare, whole = self._ids("a"), self._ids("a", special=True)
        for place in range(len(whole) - len(bare) + 1):
            if bare and whole[place : place + len(bare)] == bare:
                return whole[:place], whole[place + len(bare) :]
        begins = 1 if whole and whole[0] == self.tokenizer.bos_token_id else 0
        return whole[:begins], whole[begins:]


def said_by_several(turns: Sequence[Mapping[str, str]]) -> bool:
    """Whether there is a dialogue, and not one text with or without a system text."""
    return any(turn["role"] == "assistant" for turn in turns) or len(turns) > 2


def script(turns: Sequence[Mapping[str, str]]) -> str:
    """Turns as one text for a model without a chat template: each under the name of who speaks, on lines of their own,
    so that an answer is spelled alike in the history and where it is learnt. A system text stands before them.

    >>> script([{"role": "user", "content": "why?"}])
    'why?'
    >>> script([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}])
    'User:\\nhi\\n\\nAssistant:\\nyes?'
    """
    named = said_by_several(turns)
    return "\n\n".join(
        f"{turn['role'].capitalize()}:\n{turn['content']}" if named and turn["role"] != "system" else turn["content"]
        for turn in turns
    )
