"""A chat server as a teacher: what is asked, in which order it comes back, and what is not asked again."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import pytest

from raftdiff.chat.server import Chat, ChatServer, Reply
from raftdiff.errors import UserError
from raftdiff.llm.sampling.served import ServerSampler, ServerSamplerConfig
from raftdiff.seeds import fold
from raftdiff.testing.conformance import check_sampler
from raftdiff.types import Prompt, Sampler

HISTORY = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
WHY = Prompt("why", "Why?", "Kindly: why?", "Why?", meta={"system": "Be brief.", "history": HISTORY})
HOW = Prompt("how", "How?", "How?", "How?")


@final
@dataclass
class Stub:
    """Answers with the seed and what was asked; remembers every request."""

    asked: list[dict[str, Any]] = field(default_factory=list)
    most: int = 0
    _now: int = 0
    _lock: Any = field(default_factory=threading.Lock)

    def replies(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        temperature: float = 1.0,
        max_tokens: int | None = None,
        n: int = 1,
        seed: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[Reply]:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
            self.asked.append(
                {"messages": messages, "temperature": temperature, "max_tokens": max_tokens, "stop": stop, "n": n}
            )
        text = messages[-1]["content"]
        answer = "" if "silent" in text else f" {text} {seed}\n"
        with self._lock:
            self._now -= 1
        return [Reply(answer, "long" in text)]


def test_it_keeps_its_contract() -> None:
    assert isinstance(Stub(), Chat)
    assert isinstance(ChatServer("http://localhost:1/v1", "m"), Chat)
    sampler = ServerSampler(Stub(), concurrency=2)
    assert isinstance(sampler, Sampler)
    check_sampler(sampler, [WHY, HOW], per_prompt=5).demand()


def test_system_history_and_what_the_sampler_reads_are_asked() -> None:
    stub = Stub()
    sampler = ServerSampler(stub, temperature=0.7, max_tokens=9, stop=["\n"], concurrency=1)
    found = list(sampler.sample([WHY, HOW], per_prompt=1, seed=3, round=1, done=frozenset()))
    first = {"role": "system", "content": "Be brief."}
    assert stub.asked[0] == {
        "messages": [first, *HISTORY, {"role": "user", "content": "Kindly: why?"}],
        "temperature": 0.7,
        "max_tokens": 9,
        "stop": ("\n",),
        "n": 1,
    }
    assert stub.asked[1]["messages"] == [{"role": "user", "content": "How?"}]
    assert [sample.media for sample in found] == [
        f"Kindly: why? {fold(3, 'why', 0)}",
        f"How? {fold(3, 'how', 0)}",
    ]
    assert {sample.source for sample in found} == {"teacher"}
    assert sampler.network_evaluations() == 0


def test_what_is_done_is_not_asked_again() -> None:
    stub = Stub()
    done = frozenset({("why", 0), ("how", 1)})
    found = ServerSampler(stub).sample([WHY, HOW], per_prompt=2, seed=3, round=1, done=done)
    assert [(sample.prompt.id, sample.index) for sample in found] == [("why", 1), ("how", 0)]
    assert len(stub.asked) == 2


def test_an_empty_answer_is_not_yielded() -> None:
    silent = Prompt("s", "silent", "silent", "silent")
    found = ServerSampler(Stub()).sample([silent, HOW], per_prompt=2, seed=3, round=1, done=frozenset())
    assert [(sample.prompt.id, sample.index) for sample in found] == [("how", 0), ("how", 1)]


def test_an_answer_that_was_cut_off_says_so() -> None:
    long = Prompt("l", "a long one", "a long one", "a long one")
    found = list(ServerSampler(Stub()).sample([long, HOW], per_prompt=1, seed=3, round=1, done=frozenset()))
    assert [sample.cut for sample in found] == [True, False]


def test_it_asks_no_further_ahead_than_it_says() -> None:
    stub = Stub()
    found = ServerSampler(stub, concurrency=2).sample([HOW], per_prompt=50, seed=3, round=1, done=frozenset())
    assert next(found).index == 0
    assert len(stub.asked) == 8
    assert stub.most <= 2


def test_the_config_builds_a_client_and_refuses_what_is_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServerSamplerConfig(base_url="http://localhost:1/v1", model="m", extra={"top_p": 0.9})
    assert isinstance(config.build(), ServerSampler)
    with pytest.raises(UserError, match="is not an http or https address"):
        ServerSamplerConfig(base_url="file:///etc/passwd", model="m").build()
    monkeypatch.delenv("RAFTDIFF_TEST_KEY", raising=False)
    with pytest.raises(UserError, match="RAFTDIFF_TEST_KEY is not set"):
        ServerSamplerConfig(base_url="http://localhost:1/v1", model="m", api_key_env="RAFTDIFF_TEST_KEY").build()
