"""Candidates beside the others of their prompt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards.clip import ClipConfig
from raftdiff.rewards.duplicates import DuplicatesConfig, DuplicatesReward, DuplicateTextsConfig, by_features
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import answer_samples, reward_samples
from raftdiff.types import Prompt, Sample

NAN = float("nan")


def sample(media: Any, index: int, prompt: str = "a") -> Sample[Any]:
    return Sample(0, Prompt(prompt, prompt, prompt, prompt), index, index, "policy", media)


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def at(*degrees: float) -> DuplicatesReward:
    """A reward that sees candidate k at an angle."""

    def features(samples: Sequence[Sample[Any]]) -> torch.Tensor:
        turned = torch.tensor([degrees[sample.index] for sample in samples]).deg2rad()
        return 3 * torch.stack([turned.cos(), turned.sin()], dim=1)

    return DuplicatesReward(by_features(features))


def test_it_is_the_distance_to_the_nearest_other_of_the_prompt_alone() -> None:
    candidates = [sample("", index, prompt) for prompt in "ab" for index in range(3)]
    found = at(0, 60, 180).score([*candidates, sample("", 1, "c")])
    torch.testing.assert_close(found, torch.tensor([0.5, 0.5, 1.5] * 2 + [2]))


def test_equal_pictures_have_nothing_and_a_negative_has_all() -> None:
    reward = DuplicatesConfig().build()
    picture, other = noise(0), noise(1)
    negative = Image.eval(picture, lambda value: 255 - value)
    assert reward.score([sample(picture, 0), sample(picture.copy(), 1), sample(other, 2)])[:2].tolist() == [0, 0]
    torch.testing.assert_close(reward.score([sample(picture, 0), sample(negative, 1)]), torch.tensor([2.0, 2.0]))


def test_answers_are_compared_by_their_words() -> None:
    texts = ["a good film", "A good  film", "it was dull", "a good dog"]
    found = DuplicateTextsConfig().build().score([sample(text, index) for index, text in enumerate(texts)])
    torch.testing.assert_close(found, torch.tensor([0, 0, 1, 1 - 3 / 5]))  # a, good and "a good" of five each
    assert DuplicateTextsConfig().build().score([sample("", 0)]).tolist() == [2]


def test_of_those_that_are_near_the_lowest_index_stays_whatever_the_order() -> None:
    reward = DuplicateTextsConfig(discard=0.1).build()
    texts = ["yes", "no", "yes", "no", "maybe"]
    candidates = [sample(text, index) for index, text in enumerate(texts)]
    wanted = torch.tensor([1, 1, NAN, NAN, 1])
    torch.testing.assert_close(reward.score(candidates), wanted, equal_nan=True)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(5).tolist()
        found = reward.score([candidates[place] for place in order])
        torch.testing.assert_close(found, wanted[order], equal_nan=True)


def test_a_chain_of_near_ones_is_not_discarded_whole() -> None:
    """The third is near the second alone, which is gone by then."""
    chain = DuplicatesReward(at(0, 30, 60)._alike, discard=0.2)  # 1 - cos 30 is 0.13, 1 - cos 60 is 0.5
    found = chain.score([sample("", index) for index in range(3)])
    torch.testing.assert_close(found, torch.tensor([0.5, NAN, 0.5]), equal_nan=True)


def test_pictures_are_compared_on_the_features_of_a_clip_model(tiny_clip: Path) -> None:
    pictures = [sample(noise(index), index) for index in range(3)]
    features = ClipConfig(model=str(tiny_clip)).build().tower.image_features(pictures)
    apart = 1 - (features @ features.T).fill_diagonal_(-1)
    found = DuplicatesConfig(model=str(tiny_clip)).build().score(pictures)
    torch.testing.assert_close(found, apart.min(dim=1).values, atol=2e-6, rtol=0)


def test_a_model_that_is_not_there_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (need,) = DuplicatesConfig(model=str(tmp_path / "none")).needs(str)
    assert "There is no folder" in need.sentence
    assert not list(DuplicatesConfig().needs(str))


@pytest.mark.parametrize("discard", [None, 0.9])
def test_it_keeps_the_contract_in_both_media(discard: float | None) -> None:
    for reward, samples in (
        (DuplicatesConfig(discard=discard).build(), reward_samples(count=8)),
        (DuplicateTextsConfig(discard=discard).build(), answer_samples(count=8)),
    ):
        report = check_reward(reward, samples)
        assert all(check.passed for check in report.checks), str(report)


@pytest.mark.parametrize("discard", [0, 2.5])
def test_a_distance_that_is_none_gets_a_sentence(discard: float) -> None:
    with pytest.raises(UserError, match="discard"):
        check(DuplicatesConfig, {"discard": discard})
