"""A vision-language model behind an OpenAI-compatible server: how probable an answer begins so, and what it says."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float32
from PIL import Image

from raftdiff.chat.kept import Remembered
from raftdiff.chat.server import replies_in
from raftdiff.chat.threads import concurrently
from raftdiff.errors import UserError, printable
from raftdiff.measures.pictures import on_paper
from raftdiff.rewards.questions import THINKING, Question, spellings
from raftdiff.rewards.remote import png

TOP = 20
"""Tokens whose probabilities are asked for: the most that OpenAI and vLLM tell."""
REMEMBERED = 2**15
"""Replies in memory, about a kilobyte each."""
Tops = list[tuple[str, float]]
"""The likeliest first tokens, with their log-probabilities."""


@final
class ServedVlm:
    """What a model behind ``chat/completions`` says, at temperature 0.

    A picture goes over the line as PNG in a data URL, to the pixel. For probabilities it is asked for one token with
    ``logprobs``: of the answer's spellings those among the 20 likeliest first tokens count; the others count 0. Each
    question about a picture is asked once and remembered, within a round on disk too.

    Args:
        ask: what the server answers to a request's body.
        where: its address, for sentences.
        model: its name for the model.
        extra: further keys of the request.
        check: what raises where the server is not there.

    Raises:
        UserError: nobody answers, or without what is read from the reply.
    """

    def __init__(
        self,
        ask: Callable[[Mapping[str, Any]], Any],
        *,
        where: str,
        model: str,
        extra: Mapping[str, Any] | None = None,
        workers: int = 8,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._ask, self._where, self._workers = ask, where, workers
        self._model, self._extra = model, extra or {}
        self._known = Remembered(REMEMBERED)
        self.check_server = check

    def keep_replies(self, file: Path) -> None:
        """Keep replies in ``file`` from now on, and ask for none that is there."""
        self._known.keep(file)

    def forget(self) -> None:
        """Ask again for what was asked before."""
        self._known = Remembered(REMEMBERED)

    def probabilities(self, questions: Sequence[Question]) -> Float32[torch.Tensor, " questions"]:
        """See ``questions.Vlm``."""
        told = concurrently(self._tops, questions, self._workers)
        found = [probability(tops, question.answer) for tops, question in zip(told, questions, strict=True)]
        return torch.tensor(found, dtype=torch.float32)

    def answers(self, pictures: Sequence[Image.Image], text: str, *, max_tokens: int) -> list[str]:
        """See ``questions.Answers``."""
        return list(concurrently(lambda picture: self._answer(picture, text, max_tokens), pictures, self._workers))

    def _answer(self, picture: Image.Image, text: str, max_tokens: int) -> str:
        body = self._body(picture, text, max_tokens=max_tokens)
        mark = self._mark(body)
        if (kept := self._known.get(mark)) is not None:
            return kept
        said = replies_in(self._ask(body), self._where)[0].text.strip()
        if said.startswith(THINKING):
            raise UserError(thinks(self._where, THINKING))
        self._known.add(mark, said)
        return said

    def _tops(self, question: Question) -> Tops:
        told = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP}
        body = self._body(question.picture, question.text, **told)
        mark = self._mark(body)
        with contextlib.suppress(ValueError, TypeError, RecursionError):  # somebody's edit is asked for again
            return [(str(token), float(logarithm)) for token, logarithm in json.loads(self._known.get(mark) or "")]
        tops = likeliest(self._ask(body), self._where)
        self._known.add(mark, json.dumps(tops))
        return tops

    def _body(self, picture: Image.Image, text: str, **told: Any) -> dict[str, Any]:
        url = f"data:image/png;base64,{png(on_paper(picture))}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        settings = {"model": self._model, "temperature": 0.0, **told, **self._extra}
        return {**settings, "messages": [{"role": "user", "content": content}]}

    def _mark(self, body: Mapping[str, Any]) -> str:
        return hashlib.sha256(json.dumps([self._where, body], sort_keys=True).encode()).hexdigest()[:32]


def likeliest(reply: Any, where: str) -> Tops:
    """The first token's candidates in a reply of ``chat/completions``.

    Raises:
        UserError: there are none, or the answer begins with a thought.
    """
    try:
        first = reply["choices"][0]["logprobs"]["content"][0]
        tops = [(one["token"], one["logprob"]) for one in first["top_logprobs"]]
        said = first["token"]
    except (TypeError, KeyError, IndexError):
        tops, said = [], ""
    if not tops or not all(isinstance(token, str) and _is_logarithm(value) for token, value in tops):
        raise UserError(
            f"The server at {where} sent a reply without choices[0].logprobs.content[0].top_logprobs, from which the "
            "answer's probability is read. vLLM, SGLang, llama.cpp and OpenAI tell them; is the model a chat model "
            "with vision?"
        )
    if str(said).strip().startswith(THINKING):
        raise UserError(thinks(where, str(said).strip()))
    return tops


def thinks(where: str, first: str) -> str:
    """A sentence on a model whose answer begins with a thought."""
    return (
        f"The model behind {where} begins its answer with '{printable(first)}'. Take one that does not think, or tell "
        "its template: extra: {chat_template_kwargs: {enable_thinking: false}}."
    )


def probability(tops: Tops, answer: str) -> float:
    """The sum over the answer's spellings among the likeliest tokens.

    >>> round(probability([("Yes", -0.6931), ("No", -1.3863), (" yes", -2.0794)], "yes"), 3)
    0.625
    """
    wanted = spellings(answer)
    return min(1.0, math.fsum(math.exp(logarithm) for token, logarithm in tops if token in wanted))


def _is_logarithm(value: Any) -> bool:
    """Of a probability; a server may round one of 1 up."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= 1e-3
