"""Questions to a language model behind a chat server, such as a judge: a template filled, a reply to each."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from pydantic import Field, model_validator

from raftdiff.chat.dialogue import fill
from raftdiff.chat.kept import KeptReplies
from raftdiff.chat.server import Chat, ChatServer, demand_variable
from raftdiff.chat.threads import concurrently
from raftdiff.recipes.config import Config


class AskingConfig(Config):
    """Who is asked, and how."""

    base_url: str
    """Address of the OpenAI-compatible server, for example http://localhost:8000/v1."""
    model: str
    """The judge's name on the server."""
    api_key_env: str | None = None
    """The environment variable that holds the key, for example OPENAI_API_KEY; never the key itself."""
    system: str = ""
    """The judge's system message; none by default."""
    max_tokens: int | None = Field(default=512, ge=1)
    """Length of the judge's reply; null leaves it to the server."""
    seed: int | None = 0
    """Passed on; servers need not honour it."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds without a byte before a try counts as failed; a whole reply may take ten times as many."""
    retries: int = Field(default=4, ge=0)
    """Further tries, after pauses that double."""
    workers: int = Field(default=8, ge=1)
    """Requests at a time."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further keys of the request, for example top_p."""

    @model_validator(mode="after")  # not of the field: its mistakes are told with the value, which may be a key
    def _key_by_name(self) -> "AskingConfig":
        demand_variable(self.api_key_env)
        return self

    def asking(self, template: str) -> "Asking":
        """
        Raises:
            UserError: the address or the key's variable cannot be used.
        """
        chat = ChatServer(
            self.base_url, self.model, self.api_key_env, timeout=self.timeout, retries=self.retries, extra=self.extra
        )
        return Asking(chat, template, self.system, self.max_tokens, self.seed, self.workers)


@final
@dataclass(frozen=True, slots=True)
class Asking:
    """Asks at temperature 0, each question in a conversation of its own.

    A server may yet answer the same question in two ways. What stands in a slot can try to talk the judge round.
    """

    chat: Chat
    template: str
    """With ``{slots}``, filled all at once: braces inside a slot's text stay."""
    system: str = ""
    max_tokens: int | None = 512
    seed: int | None = 0
    workers: int = 8
    """Requests at a time."""
    kept: KeptReplies | None = None
    """Where replies are kept as they come; what was asked before, in the same words of the same model, is not asked
    again."""

    def replies(self, questions: Sequence[Mapping[str, str]]) -> list[str]:
        """What is replied to each, given the texts in its slots.

        Raises:
            UserError: the server gives no answer, or refuses.
        """
        return list(concurrently(self._reply, questions, self.workers))

    def _reply(self, slots: Mapping[str, str]) -> str:
        turns = [{"role": "system", "content": self.system}] if self.system else []
        turns.append({"role": "user", "content": fill(self.template, slots)})
        mark = self._mark(turns)
        if self.kept and (said := self.kept.get(mark)) is not None:
            return said
        reply = self.chat.replies(turns, temperature=0.0, max_tokens=self.max_tokens, seed=self.seed)[0].text
        if self.kept:
            self.kept.add(mark, reply)
        return reply

    def _mark(self, turns: Sequence[Mapping[str, str]]) -> str:
        chat = self.chat
        who = [chat.base_url, chat.model, dict(chat.extra)] if isinstance(chat, ChatServer) else type(chat).__name__
        asked = json.dumps([who, turns, self.max_tokens, self.seed], sort_keys=True, default=str)
        return hashlib.sha256(asked.encode()).hexdigest()[:32]


def require_slots(template: str, slots: Sequence[str]) -> None:
    """
    Raises:
        ValueError: the template has no place for one of the ``slots``.
    """
    if missing := [f"{{{slot}}}" for slot in slots if f"{{{slot}}}" not in template]:
        raise ValueError(f"the template lacks {' and '.join(missing)}")
