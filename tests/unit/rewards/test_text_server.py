"""The judge behind a server: how it is asked, and how its replies are read."""

import math
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from raftdiff.chat.asking import Asking
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards.server_judge import TEMPLATE, ServerConfig, ServerReward, ratings
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.servers import Replying, chat_server
from raftdiff.types import KeepsReplies, Prompt, Sample

TWO = ["relevance", "safety"]


def answers(*texts: str, **meta: Any) -> list[Sample[str]]:
    prompt = Prompt("p", "How are you?", "", "", meta=meta)
    return [Sample(0, prompt, index, index, "policy", text) for index, text in enumerate(texts)]


@pytest.fixture
def judge() -> Iterator[str]:
    """A server that rates by the length of the answer, and refuses to rate an empty one."""

    def rated(asked: Mapping[str, Any]) -> str:
        answer = re.search(r"\[Answer\]\n(.*)\n\[End of the answer\]", asked["messages"][-1]["content"], re.DOTALL)
        rating = min(5, len(answer[1])) if answer else 0
        return f"**Relevance**: {rating}/5\nCorrectness: 3\nCoherence: 3\nSafety: 5" if rating else "I cannot."

    with chat_server(rated) as address:
        yield address


def test_it_keeps_the_contract_over_http(judge: str) -> None:
    reward = check(ServerConfig, {"base_url": judge, "model": "judge", "workers": 3}).build()
    samples = answers("abc", "", "a", "abcdefgh", "ab")
    torch.testing.assert_close(
        reward.score(samples), torch.tensor([14.0, math.nan, 12.0, 16.0, 13.0]), equal_nan=True, rtol=0, atol=0
    )
    report = check_reward(reward, samples)
    assert all(check.passed for check in report.checks), str(report)


def test_replies_of_which_none_rates_are_shown() -> None:
    reward = ServerReward(Asking(Replying("I like \x1b it."), "{prompt} {answer}"), criteria=TWO)
    with pytest.warns(
        match=r"none of 2 replies rates by all of relevance, safety, from 1 to 5\. The first: 'I like \\x1b"
    ):
        assert bool(reward.score(answers("a", "b")).isnan().all())


def test_the_judge_is_asked_at_temperature_nought_with_slots_filled_once() -> None:
    chat = Replying("relevance: 4 safety: 5")
    template = "{prompt}|{answer}|{criteria}|{lowest}-{highest}|{form}|{x}"
    asking = Asking(chat, template, system="Be strict.", max_tokens=50, seed=7)
    reward = ServerReward(asking, criteria=TWO, scale=(0, 9))
    assert reward.score(answers("{prompt} {criteria}")).tolist() == [9]
    assert list(chat.asked[0]) == [
        {"role": "system", "content": "Be strict."},
        {
            "role": "user",
            "content": "How are you?|{prompt} {criteria}|relevance, safety|0-9|"
            "relevance: <rating>\nsafety: <rating>|{x}",
        },
    ]
    assert chat.settings == [{"temperature": 0.0, "max_tokens": 50, "seed": 7}]


def test_the_turns_before_the_prompt_are_told() -> None:
    chat = Replying("")
    history = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    ServerReward(Asking(chat, TEMPLATE)).score(answers("Fine.", history=history))
    question = chat.asked[0][-1]["content"]
    assert "[Prompt]\nUser: Hi.\nAssistant: Hello.\nUser: How are you?\n[End of the prompt]" in question
    assert "relevance, correctness, coherence, safety" in question
    assert question.endswith("relevance: <rating>\ncorrectness: <rating>\ncoherence: <rating>\nsafety: <rating>")


NAN = math.nan


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("Relevance: 4\nSafety: 5", [4, 5]),
        ("**Relevance** (1-5): 4/5\n**Safety**: 3 / 5", [4, 3]),
        ('{"relevance": 4, "safety": 5}', [4, 5]),
        ('{"relevance": {"score": 4, "why": "x"}, "safety": {"rating": 5}}', [4, 5]),
        ("1. Relevance - 4\n2. Safety - 5", [4, 5]),
        ("| Relevance | 4 |\n| Safety | 5 |", [4, 5]),
        ("Relevance score: 4 out of 5. Safety rating is 5 out of 5.", [4, 5]),
        ("Relevance: 1 ... no.\nRelevance: 4.5\nSafety is 5", [4.5, 5]),
        ("<think>relevance: 1 safety: 1</think>Relevance: 4 Safety: 5", [4, 5]),
        ("4 5", [4, 5]),
        ("4/5,\n5/5", [4, 5]),
        ("3 4 5", [NAN, NAN]),
        ("4-5", [NAN, NAN]),
        ("Relevance: 3-4\nSafety: 2 or 3", [NAN, NAN]),
        ("Relevance: 8/10\nSafety: 4/10", [NAN, NAN]),
        ("Relevance: 6\nSafety: 0", [NAN, NAN]),
        ("Relevance: -1\nSafety: 4,5", [NAN, NAN]),
        ("Relevance: 45\nSafety: high", [NAN, NAN]),
        ("irrelevance: 2, safety2: 5", [NAN, NAN]),
        ("Relevance, safety:\n1. 2.", [NAN, NAN]),
        ("", [NAN, NAN]),
        ("Relevance: 4/" + "5" * 5000 + "\nSafety: " + "9" * 5000, [NAN, NAN]),
    ],
)
def test_replies_are_read_with_care(reply: str, wanted: list[float]) -> None:
    assert ratings(reply, TWO) == pytest.approx(wanted, nan_ok=True)
    score = float(ServerReward(Asking(Replying(reply), TEMPLATE), criteria=TWO).score(answers("Fine."))[0])
    assert score == pytest.approx(sum(wanted), nan_ok=True)


def test_criteria_may_hold_odd_characters_and_several_words() -> None:
    assert ratings("Tone & style (formal): 2\nC++: 3", ["tone & style (formal)", "C++"]) == [2, 3]


def test_recipes_that_cannot_be_asked_get_a_sentence() -> None:
    base = {"base_url": "http://localhost:1/v1", "model": "judge"}
    with pytest.raises(UserError, match="the template lacks {answer}"):
        check(ServerConfig, {**base, "template": "Rate {prompt}"})
    with pytest.raises(UserError, match="'lowest' should be below 'highest'"):
        check(ServerConfig, {**base, "lowest": 5})
    with pytest.raises(UserError, match="two criteria are the same"):
        check(ServerConfig, {**base, "criteria": ["safety", "Safety"]}).build()
    with pytest.raises(UserError, match="is not an http or https address"):
        check(ServerConfig, {**base, "base_url": "file:///etc/passwd"}).build()


def test_a_key_in_a_recipe_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError, match="api_key_env takes the name of an environment variable in capitals") as caught:
        check(ServerConfig, {"base_url": "http://localhost:1/v1", "model": "judge", "api_key_env": "gsk_abc123"})
    assert "abc123" not in str(caught.value)


def test_a_server_that_is_down_is_no_score() -> None:
    reward = ServerConfig(base_url="http://127.0.0.1:9/v1", model="judge", retries=0).build()
    with pytest.raises(UserError, match=r"gave no answer \(.*refused"):
        reward.score(answers("Fine."))


def test_what_the_judge_said_is_kept_and_not_asked_again(tmp_path: Path) -> None:
    asked: list[str] = []
    broken = threading.Event()
    broken.set()

    def reply(request: Mapping[str, Any]) -> str:
        question = request["messages"][-1]["content"]
        if broken.is_set() and "answer 12" in question:
            raise ConnectionAbortedError
        asked.append(question)
        return "relevance: 4 safety: 5"

    samples = answers(*(f"answer {n}" for n in range(16)))
    with chat_server(reply) as address:

        def score(options: Mapping[str, Any]) -> torch.Tensor:
            given = {"base_url": address, "model": "judge", "criteria": list(TWO), "retries": 0, "workers": 3}
            reward = check(ServerConfig, {**given, **options}).build()
            assert isinstance(reward, KeepsReplies)
            reward.keep_replies(tmp_path / "replies.jsonl")
            return reward.score(samples)

        with pytest.raises(UserError, match="gave no answer"):
            score({})
        assert len(asked) >= 12
        broken.clear()
        with (tmp_path / "replies.jsonl").open("a") as file:
            file.write('\n{"mark": "cut sho')
        assert score({}).tolist() == [9.0] * 16
        assert len(asked) == 16, "each is asked about once"
        assert score({}).tolist() == [9.0] * 16
        assert len(asked) == 16
        score({"model": "another"})
        assert len(asked) == 32, "what another judge said does not count"
