"""A function of one's own on text."""

from typing import Any

import pytest

from raftdiff.errors import UserError
from raftdiff.rewards.callable import CallableReward
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples
from raftdiff.types import Prompt, Sample

ANSWERS = [
    Sample(0, Prompt(f"p{n}", f"prompt {n}", "", ""), 0, n, "policy", text)
    for n, text in enumerate(["Yes, please.", "No.", "Please, please!", ""])
]


def politeness(texts: list[str], prompts: list[str], word: str = "please") -> list[int]:
    assert all(isinstance(text, str) for text in texts)
    assert len(texts) == len(prompts)
    return [text.lower().count(word) for text in texts]


def test_a_function_gets_the_answers_and_the_prompts() -> None:
    reward = CallableReward(politeness, function="mine:politeness")
    assert reward.score(ANSWERS).tolist() == [1, 0, 2, 0]
    assert CallableReward(politeness, function="mine:politeness", options={"word": "no"}).score(ANSWERS)[1] == 1
    report = check_reward(reward, ANSWERS, direction="higher is politer")
    assert all(check.passed for check in report.checks), str(report)


def test_errors_speak_of_texts() -> None:
    def one(texts: list[str], prompts: list[str]) -> Any:
        return [float("inf")] * len(texts) if texts[0] else 1.0

    with pytest.raises(UserError, match="infinity for 3 of 3 texts, inf for number 0. .* NaN discards a text"):
        CallableReward(one, function="mine:one").score(ANSWERS[:3])
    with pytest.raises(UserError, match="returned a float. It should return 1 number, one for each text"):
        CallableReward(one, function="mine:one").score(ANSWERS[3:])
    with pytest.raises(UserError, match=r"cannot be called as \(images or texts, prompts, tone='kind'\)"):
        CallableReward(one, function="mine:one", options={"tone": "kind"})


def test_lists_are_the_functions_own_and_pictures_are_still_copies() -> None:
    def clears(media: list[Any], prompts: list[str]) -> list[int]:
        count = len(media)
        for picture in media:
            if not isinstance(picture, str):
                picture.paste((0, 0, 0), (0, 0, *picture.size))
        media.clear()
        prompts.clear()
        return list(range(count))

    reward = CallableReward(clears, function="mine:clears")
    assert reward.score(ANSWERS).tolist() == [0, 1, 2, 3]
    pictures = reward_samples(count=3)
    before = [sample.media.tobytes() for sample in pictures]
    assert reward.score(pictures).tolist() == [0, 1, 2]
    assert [sample.media.tobytes() for sample in pictures] == before
