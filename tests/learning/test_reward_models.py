"""Reward models learn the text world's truth from pairs, doubt the labels that are wrong, and a flip mends some."""

from typing import NamedTuple

import numpy as np
import pytest
from jaxtyping import Bool, Float

from raftdiff.embedded import resolve
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.preferences import preferences
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.reward_models.strength import FlipConfig, by_decile, plain, roc, strength
from raftdiff.llm.reward_models.tuner import RewardTuner, RewardTunerConfig, differences
from raftdiff.llm.reward_models.value_model import load_value_model
from raftdiff.measures.calibration import accuracy
from raftdiff.types import Prompt, silent

NOISE = 0.2


class Found(NamedTuple):
    wrong: Bool[np.ndarray, " pairs"]
    """Which training labels are."""
    trained: Float[np.ndarray, "pairs models"]
    """r_c - r_r of the training pairs, under each model."""
    clean: Float[np.ndarray, "pairs models"]
    """Of pairs on prompts that nobody trained on, all of them labelled rightly."""


def pairs(prompts: list[str], count: int, noise: float = 0.0) -> list[Comparison]:
    """The grammar's reviews stand in for a model's own, which would have to be drawn."""
    generator = np.random.default_rng(1)
    own = {prompt: [world.sample(prompt, generator) for _ in range(4)] for prompt in prompts}
    return [
        Comparison(row["id"], Prompt(row["id"], *[row["prompt"]] * 3), row["chosen"], row["rejected"], meta=row)
        for row in preferences(own, count, noise=noise)
    ]


@pytest.fixture(scope="module")
def found() -> Found:
    """Two models that differ in nothing but the order of their pairs, as an ensemble does."""
    training, test = pairs(world.training_prompts()[:80], 240, NOISE), pairs(world.held_out_prompts(), 160)
    config = RewardTunerConfig(adapter="full", learning_rate=2e-3, warmup_steps=4, epochs=2, batch_size=16)
    said = []
    for order in (0, 1):
        model = load_value_model(LMConfig(base="review-lm", device="cpu"), resolve)
        tuner = RewardTuner(config, model, total_rounds=1, seed=0)
        tuner.fit(training, plain(len(training)), seed=order, report=silent)
        said.append([differences(model, some, batch_size=64) for some in (training, test)])
    wrong = np.array([pair.meta["truth"] == 0 for pair in training])
    return Found(wrong, *(np.stack(columns, axis=1) for columns in zip(*said, strict=True)))


def test_clean_pairs_are_told_apart_though_a_fifth_of_the_labels_was_wrong(found: Found) -> None:
    for d in found.clean.T:
        assert accuracy(d).ci95[0] > 0.55


def test_wrong_labels_have_a_low_strength(found: Found) -> None:
    mu = strength(found.trained).mu
    assert roc(-mu, found.wrong).auc > 0.7
    shares = [tenth.mean for tenth in by_decile(mu, found.wrong.astype(float))]
    assert shares[0] > 2 * NOISE
    assert max(shares[-3:]) < NOISE


def test_the_lowest_tenth_is_better_turned_round(found: Found) -> None:
    flipped = FlipConfig(share=0.1).annotate(strength(found.trained).mu, len(found.wrong)).flipped
    before, after = found.wrong.sum(), (found.wrong ^ flipped).sum()
    assert flipped.sum() == round(0.1 * len(found.wrong))
    assert after < before
