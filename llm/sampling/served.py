"""A sampler that asks a chat server: a teacher that runs elsewhere."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Literal, final

import torch
from pydantic import Field

from raftdiff.chat.dialogue import messages
from raftdiff.chat.presence import demand_chat
from raftdiff.chat.server import Chat, ChatServer, Reply
from raftdiff.chat.threads import concurrently
from raftdiff.recipes.config import Config, Said
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample, Source

AHEAD = 4
"""Answers asked for at once, in units of the requests in flight: what a killed run asks for again at most."""


class ServerSamplerConfig(Config):
    """A model behind an OpenAI-compatible chat server answers."""

    type: Literal["server"] = "server"
    base_url: str
    """With the version, for example http://localhost:8000/v1."""
    model: str
    """The name under which the server knows the model."""
    api_key_env: str | None = None
    """The name of the environment variable that holds the key; never the key itself."""
    temperature: float = Field(default=1.0, ge=0)
    max_tokens: int = Field(default=256, ge=1)
    """Longest answer, in the server's tokens."""
    stop: list[Said] = Field(default_factory=list)
    """Texts that end an answer."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further keys of each request, such as top_p."""
    concurrency: int = Field(default=4, ge=1, le=256)
    """Requests in flight at once."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds without a byte before a try counts as failed; a whole reply may take ten times as many."""
    retries: int = Field(default=4, ge=0)
    """Tries after the first."""

    def build(self) -> "ServerSampler":
        """
        Raises:
            UserError: the address or the key's variable cannot be used.
        """
        server = ChatServer(
            self.base_url,
            self.model,
            api_key_env=self.api_key_env,
            timeout=self.timeout,
            retries=self.retries,
            extra=self.extra,
        )
        return ServerSampler(
            server,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            stop=self.stop,
            concurrency=self.concurrency,
        )


@final
class ServerSampler:
    """Asks for each candidate by itself: the system message, earlier turns, and what the sampler reads of the prompt.

    The seed of each candidate goes along, but a server need not honour it, and may answer otherwise when a run is
    resumed. An empty answer (held back by a content filter, say) is not yielded; one that reached ``max_tokens`` before
    it ended carries ``cut``.
    """

    source: Source = "teacher"
    provides: tuple[str, ...] = ()

    def __init__(
        self,
        server: Chat,
        *,
        temperature: float = 1.0,
        max_tokens: int = 256,
        stop: Sequence[str] = (),
        concurrency: int = 4,
    ) -> None:
        self._server, self._concurrency = server, concurrency
        self._temperature, self._max_tokens, self._stop = temperature, max_tokens, tuple(stop)

    def check_server(self) -> None:
        """
        Raises:
            UserError: the server is not there, or has no such model.
        """
        demand_chat(self._server)

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        """In order, while others are under way.

        Raises:
            UserError: the server gives no answer.
        """

        def ask(job: tuple[Prompt, int]) -> Reply:
            prompt, index = job
            (reply,) = self._server.replies(
                messages(prompt, prompt.sampling),
                temperature=self._temperature,
                max_tokens=self._max_tokens,
                n=1,
                seed=fold(seed, prompt.id, index),
                stop=self._stop,
            )
            return Reply(reply.text.strip(), reply.cut)

        jobs = [(p, k) for p in prompts for k in range(per_prompt) if (p.id, k) not in done]
        size = AHEAD * self._concurrency
        for start in range(0, len(jobs), size):
            batch = jobs[start : start + size]
            for (prompt, index), (text, cut) in zip(batch, concurrently(ask, batch, self._concurrency), strict=True):
                if text:
                    aux = {"cut": torch.tensor(True)} if cut else {}
                    yield Sample(round, prompt, index, fold(seed, prompt.id, index), self.source, text, aux)

    def network_evaluations(self) -> int:
        """None of ours: what the server computes is not counted."""
        return 0
