"""Preference pairs of the text world: the truth is the grammar's, and exactly as many labels are wrong as asked."""

import itertools
import json
import sys

import numpy as np
import pytest

from raftdiff.embedded.reviews import preferences as review_preferences
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.preferences import GAP, WORDS, broken, own_answers, preferences

PROMPTS = world.training_prompts()[:12]


@pytest.fixture(scope="module")
def own() -> dict[str, list[str]]:
    """The grammar's reviews stand in for a model's."""
    generator = np.random.default_rng(0)
    return {prompt: [world.sample(prompt, generator) for _ in range(6)] for prompt in PROMPTS}


def test_truth_says_whether_the_chosen_answer_is_the_better_one(own: dict[str, list[str]]) -> None:
    for pair in preferences(own, 100, noise=0.3):
        apart = world.reward(pair["prompt"], pair["chosen"]) - world.reward(pair["prompt"], pair["rejected"])
        assert abs(apart) == pytest.approx(pair["gap"], abs=1e-6)
        assert pair["gap"] >= GAP
        assert (apart > 0) == bool(pair["truth"])


@pytest.mark.parametrize(("noise", "wrong"), [(0.0, 0), (0.1, 5), (0.25, 12), (0.4, 20), (1.0, 50)])
def test_exactly_the_share_asked_for_is_wrong(own: dict[str, list[str]], noise: float, wrong: int) -> None:
    assert sum(1 - pair["truth"] for pair in preferences(own, 50, noise=noise)) == wrong


def test_more_noise_turns_more_of_the_same_pairs_round(own: dict[str, list[str]]) -> None:
    levels = [preferences(own, 60, seed=3, noise=noise) for noise in (0.0, 0.1, 0.4)]
    for less, more in itertools.pairwise(levels):
        for one, other in zip(less, more, strict=True):
            assert {one["chosen"], one["rejected"]} == {other["chosen"], other["rejected"]}
            assert other["truth"] <= one["truth"]


def test_wrong_labels_are_drawn_evenly_over_close_and_clear_pairs(own: dict[str, list[str]]) -> None:
    pairs = preferences(own, 400, noise=0.3)
    gaps, truth = np.array([pair["gap"] for pair in pairs]), np.array([pair["truth"] for pair in pairs])
    half = gaps > np.median(gaps)
    assert abs(truth[half].mean() - truth[~half].mean()) < 4 * np.sqrt(0.3 * 0.7 * 2 / 200)


def test_answers_are_a_models_the_grammars_and_broken(own: dict[str, list[str]]) -> None:
    pairs = preferences(own, 200)
    texts = [(pair["prompt"], pair[side]) for pair in pairs for side in ("chosen", "rejected")]
    known = {(prompt, text) for prompt in own for text in own[prompt]}
    assert 0.35 < np.mean([text in known for text in texts]) < 0.65
    assert 0.03 < np.mean([not world.fluent(*text) for text in texts]) < 0.2
    assert {len(text.split()) <= WORDS for _, text in texts} == {True}


def test_breaking_swaps_or_leaves_out_one_word() -> None:
    text = world.sample(PROMPTS[0], np.random.default_rng(1))
    lengths = set()
    for seed in range(20):
        found = broken(text, np.random.default_rng(seed))
        lengths.add(len(found.split()) - len(text.split()))
        changed = [one != other for one, other in zip(text.split(), found.split(), strict=False)]
        assert sorted(found.split()) == sorted(text.split()) or len(found.split()) == len(text.split()) - 1
        assert any(changed)
    assert lengths == {0, -1}


def test_the_same_seed_gives_the_same_pairs(own: dict[str, list[str]]) -> None:
    assert preferences(own, 20, seed=5, noise=0.2) == preferences(own, 20, seed=5, noise=0.2)
    assert preferences(own, 20, seed=5) != preferences(own, 20, seed=6)


def test_the_models_own_answers_are_seeded() -> None:
    one = own_answers(PROMPTS[:2], 3, seed=1)
    assert {prompt: len(texts) for prompt, texts in one.items()} == dict.fromkeys(PROMPTS[:2], 3)
    assert one == own_answers(PROMPTS[:2], 3, seed=1)
    assert one != own_answers(PROMPTS[:2], 3, seed=2)


def test_what_cannot_be_is_told(own: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="noise is 1.5; it is a share"):
        preferences(own, 10, noise=1.5)
    with pytest.raises(ValueError, match="No answer has between 1 and 2 words"):
        preferences(own, 10, words=2)


def test_the_command_prints_rows_of_the_pairs_format(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own: dict[str, list[str]]
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(review_preferences, "own_answers", lambda prompts, each, seed: asked.append(prompts) or own)
    words = ["preferences", "--count", "10", "--noise", "0.2", "--held-out"]
    monkeypatch.setattr(sys, "argv", words)
    review_preferences.main()
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert asked == [world.held_out_prompts()]
    assert [set(row) for row in rows] == [{"id", "prompt", "chosen", "rejected", "truth", "gap"}] * 10
    assert sum(row["truth"] for row in rows) == 8
