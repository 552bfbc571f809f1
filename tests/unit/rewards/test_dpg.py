"""DPG-Bench's score: a graph of questions, answered by a stand-in that says what it is told to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.rewards.dpg import Asked, DpgReward, share
from raftdiff.rewards.questions import Question
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Prompt, Sample

CAT, BLACK, DOG = Asked(1, "a cat?", ()), Asked(2, "a black cat?", (1,)), Asked(3, "a dog?", ())


@pytest.mark.parametrize(
    ("said", "counted"),
    [([1, 1, 1], 3), ([1, 0, 1], 2), ([0, 1, 1], 1), ([0, 0, 0], 0)],  # a black cat is none where there is no cat
)
def test_what_has_no_parent_counts_for_nothing(said: list[int], counted: int) -> None:
    assert share([CAT, BLACK, DOG], [bool(it) for it in said]) == counted / 3


def test_a_question_whose_parent_fell_falls_with_it() -> None:
    chain = [CAT, BLACK, Asked(4, "a black cat on a mat?", (2,))]
    assert share(chain, [False, True, True]) == 0
    assert share(chain, [True, False, True]) == 1 / 3


class Brightness:
    """Says yes to every question about a bright picture; of others it is as sure as they are bright."""

    def probabilities(self, questions: Sequence[Question]) -> torch.Tensor:
        assert all(one.answer == "Yes" and one.text.endswith("? Please answer yes or no.") for one in questions)
        return torch.tensor([float(np.asarray(one.picture).mean() / 255) for one in questions])


def sample(grey: int, meta: dict[str, Any]) -> Sample[Image.Image]:
    prompt = Prompt(f"p-{grey}", "a cat", "a cat", "a cat", meta=meta)
    picture = Image.new("RGB", (8, 8), (grey, grey, grey))
    picture.putpixel((0, 0), (0, 0, 0))
    return Sample(0, prompt, 0, 0, "policy", picture)


QUESTIONS = [{"id": 1, "question": "a cat?", "parents": []}, {"id": 2, "question": "black?", "parents": [1]}]


def test_a_yes_is_more_than_one_half_and_the_rules_of_rewards_are_kept() -> None:
    reward = DpgReward(Brightness())
    samples = [sample(grey, {"questions": QUESTIONS}) for grey in (40, 120, 140, 250)]
    assert reward.score(samples).tolist() == [0, 0, 1, 1]
    report = check_reward(reward, samples, direction=type(reward).__doc__)
    assert report.passed, str(report)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"questions": []},
        {"questions": "[{"},
        {"questions": [{"question": "a cat?"}]},
        {"questions": [{"id": 2, "question": "black?", "parents": [1]}]},
        {"questions": [QUESTIONS[0], QUESTIONS[0]]},
    ],
)
def test_a_prompt_without_a_graph_is_refused(meta: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="dpg: the prompt 'p-1' has no graph of questions that can be read"):
        DpgReward(Brightness()).check_prompts([sample(1, meta).prompt])
