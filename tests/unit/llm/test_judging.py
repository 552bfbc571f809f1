import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from raftdiff.chat.asking import Asking
from raftdiff.errors import UserError
from raftdiff.llm.judging import (
    TEMPLATE,
    Pair,
    RewardCompare,
    ServerCompare,
    ServerCompareConfig,
    Verdict,
    answers_of,
    combine,
    verdict,
    win_lose_tie,
)
from raftdiff.recipes.config import Config, check
from raftdiff.records.run import Run
from raftdiff.testing.servers import Replying, chat_server
from raftdiff.types import Prompt, Sample

PROMPTS = [Prompt(f"p{n}", f"Question {n}?", "", "") for n in range(6)]


class Toy(Config):
    name: str = "toy"


class Scripted:
    """Gives verdicts from a table of (after first, after second)."""

    def __init__(self, table: Sequence[tuple[Verdict | None, Verdict | None]]) -> None:
        self.table = table
        self.asked: list[Pair] = []

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict | None]:
        self.asked = list(pairs)
        return [first for first, _ in self.table] + [second for _, second in self.table]


class Vowels:
    """Counts the vowels; discards an empty answer."""

    name = "vowels"

    def __init__(self) -> None:
        self.scored: list[str] = []

    def score(self, samples: Sequence[Sample[str]]) -> torch.Tensor:
        self.scored += [sample.media for sample in samples]
        return torch.tensor([float(sum(map(s.media.count, "aeiou"))) if s.media else math.nan for s in samples])


@pytest.mark.parametrize(
    ("first", "second", "wanted"),
    [
        ("win", "win", "win"),
        ("win", "tie", "win"),
        ("win", "lose", "tie"),
        ("tie", "tie", "tie"),
        ("lose", "tie", "lose"),
        ("lose", "lose", "lose"),
    ],
)
def test_two_orders_make_one_verdict_as_in_the_paper(first: Verdict, second: Verdict, wanted: Verdict) -> None:
    assert combine(first, second) == combine(second, first) == wanted


def test_combining_mirrors() -> None:
    mirror: dict[str, Verdict] = {"win": "lose", "tie": "tie", "lose": "win"}
    for first, second in itertools.product(mirror, repeat=2):
        assert combine(mirror[first], mirror[second]) == mirror[combine(first, second)]  # type: ignore[arg-type]


def test_the_judge_sees_both_orders() -> None:
    judge = Scripted([("tie", "tie")] * 2)
    win_lose_tie(judge, PROMPTS[:2], ["old 0", "old 1"], ["new 0", "new 1"])
    assert [(pair.prompt.id, pair.a, pair.b) for pair in judge.asked] == [
        ("p0", "new 0", "old 0"),
        ("p1", "new 1", "old 1"),
        ("p0", "old 0", "new 0"),
        ("p1", "old 1", "new 1"),
    ]


def test_a_tally_is_seen_from_after() -> None:
    """The second verdict is on the answer before, which stands first there: it is turned round."""
    table: list[tuple[Verdict | None, Verdict | None]] = [
        ("win", "lose"),
        ("win", "tie"),
        ("win", "win"),
        ("lose", "win"),
        (None, "win"),
        ("tie", "tie"),
    ]
    tally = win_lose_tie(Scripted(table), PROMPTS, ["old"] * 6, ["new"] * 6)
    assert tally.verdicts == ("win", "win", "tie", "lose", None, "tie")
    assert (tally.wins, tally.ties, tally.losses, tally.undecided) == (2, 2, 1, 1)
    assert tally.win_rate.mean == pytest.approx(0.6)
    assert tally.win_rate.n == 5
    low, high = tally.win_rate.ci95
    assert 0 <= low < 0.6 < high <= 1
    assert tally.consistent == pytest.approx(3 / 5)


def test_a_judge_that_always_takes_the_first_place_finds_ties() -> None:
    tally = win_lose_tie(Scripted([("win", "win")] * 6), PROMPTS, ["old"] * 6, ["new"] * 6)
    assert (tally.ties, tally.consistent, tally.win_rate.mean) == (6, 0.0, 0.5)


def test_swapping_before_and_after_turns_everything_round() -> None:
    before, after = ["aa", "b", "eee", "", "io", "x"], ["a", "a", "e", "o", "ii", "yz"]
    one = win_lose_tie(RewardCompare(Vowels()), PROMPTS, before, after)
    other = win_lose_tie(RewardCompare(Vowels()), PROMPTS, after, before)
    assert one.verdicts == ("lose", "win", "lose", None, "tie", "tie")
    assert (one.wins, one.ties, one.losses, one.undecided) == (other.losses, other.ties, other.wins, other.undecided)
    assert one.win_rate.mean == pytest.approx(1 - other.win_rate.mean)
    assert one.consistent == 1.0


def test_nothing_decided_has_no_rate() -> None:
    tally = win_lose_tie(Scripted([(None, None)]), PROMPTS[:1], ["old"], ["new"])
    assert tally.undecided == 1
    assert math.isnan(tally.win_rate.mean)
    assert math.isnan(tally.consistent)
    assert win_lose_tie(Scripted([]), [], [], []).verdicts == ()


def test_unequal_numbers_get_a_sentence() -> None:
    with pytest.raises(UserError, match="2 prompts, 1 answers before and 2 after: give as many of each"):
        win_lose_tie(Scripted([]), PROMPTS[:2], ["a"], ["a", "b"])
    with pytest.raises(UserError, match="The judge gave 0 verdicts on 2 pairs; it should give one for each"):
        win_lose_tie(Scripted([]), PROMPTS[:1], ["a"], ["b"])


def test_a_margin_makes_ties_and_each_answer_is_scored_once() -> None:
    reward = Vowels()
    pairs = [Pair(PROMPTS[0], "aaa", "a"), Pair(PROMPTS[0], "a", "aaa"), Pair(PROMPTS[1], "aaa", "a")]
    assert RewardCompare(reward, margin=1.5).compare(pairs) == ["win", "lose", "win"]
    assert sorted(reward.scored) == ["a", "a", "aaa", "aaa"], "once for each prompt"
    assert RewardCompare(reward, margin=2.0).compare(pairs) == ["tie", "tie", "tie"]
    with pytest.raises(UserError, match="The margin of a tie is -1.0; it should be 0 or more"):
        RewardCompare(reward, margin=-1.0)


def test_the_server_is_asked_with_both_answers_in_place() -> None:
    chat = Replying("B")
    history = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]
    prompt = Prompt("p", "And {a}?", "", "", meta={"history": history})
    judge = ServerCompare(Asking(chat, "{prompt}|{a}|{b}|{c}", system="Be fair.", max_tokens=7, seed=3))
    assert judge.compare([Pair(prompt, "{b}", "two"), Pair(prompt, "same", "same")]) == ["lose", "tie"]
    assert [list(turns) for turns in chat.asked] == [
        [
            {"role": "system", "content": "Be fair."},
            {"role": "user", "content": "User: Hi.\nAssistant: Hello.\nUser: And {a}?|{b}|two|{c}"},
        ]
    ], "equal answers are not asked about"
    assert chat.settings == [{"temperature": 0.0, "max_tokens": 7, "seed": 3}]


def evaluated(folder: Path, *rows: dict[str, Any]) -> Run:
    """A run with an evaluation of two answers to each of these prompts."""
    run = Run.create(folder, Toy(), seed=0)
    (folder / "eval").mkdir()
    lines = [
        {"prompt": "why?", **row, "prompt_id": f"p{place}", "index": index, "before": f"old {place}", "after": "new"}
        for place, row in enumerate(rows)
        for index in range(2)
    ]
    (folder / "eval/answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


HISTORY = [{"role": "user", "content": "It rains."}, {"role": "assistant", "content": "It does."}]
ENDING_ALIKE: tuple[dict[str, Any], ...] = (
    {"history": HISTORY},
    {"history": [{**HISTORY[0], "content": "It snows."}, HISTORY[1]]},
    {"history": HISTORY, "system": "Answer in one word."},
    {},
)


def test_dialogues_that_end_alike_are_told_apart_and_shown_whole(tmp_path: Path) -> None:
    found = answers_of(evaluated(tmp_path / "run", *ENDING_ALIKE), "eval")
    assert found.before == [f"old {place}" for place in range(4)], "one pair a prompt"
    assert len({prompt.id for prompt in found.prompts}) == 4
    chat = Replying("B")
    tally = win_lose_tie(ServerCompare(Asking(chat, "{prompt}|{a}{b}", workers=1)), *found)
    asked = {turns[-1]["content"].split("|")[0] for turns in chat.asked}
    assert asked == {
        "User: It rains.\nAssistant: It does.\nUser: why?",
        "User: It snows.\nAssistant: It does.\nUser: why?",
        "System: Answer in one word.\nUser: It rains.\nAssistant: It does.\nUser: why?",
        "why?",
    }
    assert len(tally.verdicts) == 4


def test_answers_that_cannot_be_judged_get_a_sentence(tmp_path: Path) -> None:
    run = evaluated(tmp_path / "run", {})
    with pytest.raises(UserError, match="eval/other: no evaluation is here; run: raftdiff eval"):
        answers_of(run, "eval/other")
    (run.path / "eval/answers.jsonl").write_text('{"prompt": "why?", "prompt_id": "p", "index": 0, "before": "a"}\n')
    with pytest.raises(UserError, match="answers.jsonl: this file is damaged.*'after'"):
        answers_of(run, "eval")


def test_a_judgement_that_failed_asks_only_for_the_rest(tmp_path: Path) -> None:
    found = answers_of(evaluated(tmp_path / "run", *ENDING_ALIKE), "eval")
    asked: list[str] = []
    fails = [True]

    def reply(request: Mapping[str, Any]) -> str:
        question = request["messages"][-1]["content"]
        if fails[0] and len(asked) == 5:
            raise ConnectionAbortedError
        asked.append(question)
        return "tie"

    elsewhere, replies = tmp_path / "elsewhere", tmp_path / "run/eval/replies.jsonl"
    elsewhere.write_text("kept")
    replies.symlink_to(elsewhere)
    with chat_server(reply) as address:
        config = check(ServerCompareConfig, {"base_url": address, "model": "m", "retries": 0, "workers": 1})
        with pytest.raises(UserError, match="gave no answer"):
            win_lose_tie(config.build(replies), *found)
        assert len(asked) == 5
        fails[0] = False
        assert win_lose_tie(config.build(replies), *found).ties == 4
        assert len(asked) == len(set(asked)) == 8, "each is asked once, in both orders"
        assert win_lose_tie(config.build(replies), *found).ties == 4
        assert len(asked) == 8
    assert elsewhere.read_text() == "kept", "a link is not written through"


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("A", "win"),
        ("b.", "lose"),
        ("**Tie**", "tie"),
        ("[[B]]", "lose"),
        ("I first thought [[A]], but [[B]]", "lose"),
        ("[[C]]", "tie"),
        ("Both are kind.\n\nVerdict: A", "win"),
        ("Answer B is better", "lose"),
        ("The better answer is: **Answer A**.", "win"),
        ("Final verdict: it is a tie", "tie"),
        ("A\n\nBecause A better explains why.", "win"),
        ("<think>A\nB\n</think>\nA", "win"),
        ("<think>\nA", "win"),
        ("A better answer would be longer.", None),
        ("The answer is a", None),
        ("A or B", None),
        ("Neither.", None),
        ("", None),
    ],
)
def test_a_reply_is_read_with_care(reply: str, wanted: Verdict | None) -> None:
    assert verdict(reply) == wanted
    assert ServerCompare(Asking(Replying(reply), TEMPLATE)).compare([Pair(PROMPTS[0], "one", "two")]) == [wanted]


def test_a_recipe_says_who_judges() -> None:
    judge = check(ServerCompareConfig, {"base_url": "http://localhost:1/v1", "model": "judge"}).build()
    assert judge.compare([]) == []
    with pytest.raises(UserError, match="the template lacks {b}"):
        check(ServerCompareConfig, {"base_url": "http://h/v1", "model": "m", "template": "{prompt} {a}"})
    with pytest.raises(UserError, match="api_key_env takes the name of an environment variable"):
        check(ServerCompareConfig, {"base_url": "http://h/v1", "model": "m", "api_key_env": "sk-abc"})
    with pytest.raises(UserError, match="is not an http or https address"):
        check(ServerCompareConfig, {"base_url": "judge.example", "model": "m"}).build()
