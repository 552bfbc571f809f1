import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageDraw

from raftdiff.errors import UserError
from raftdiff.rewards.callable import CallableConfig, CallableReward, load_function
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples

SAMPLES = reward_samples(count=4)


def redness(images: list[Any], prompts: list[str], channel: int = 0) -> list[float]:
    assert len(images) == len(prompts)
    return [float(np.asarray(image)[..., channel].mean()) / 255 for image in images]


def returning(value: Any) -> CallableReward:
    return CallableReward(lambda images, prompts: value, function="mine:score")


def test_what_it_returns_is_float32_that_wants_no_gradient() -> None:
    value = torch.tensor([1, 2.5, float("nan"), -3], dtype=torch.float64, requires_grad=True)
    scores = returning(value).score(SAMPLES)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    torch.testing.assert_close(scores, torch.tensor([1, 2.5, float("nan"), -3]), equal_nan=True)


def test_right_or_wrong_counts_as_one_or_nought() -> None:
    assert returning([True, False, True, True]).score(SAMPLES).tolist() == [1, 0, 1, 1]


def test_a_wrong_return_gets_a_sentence_that_names_the_function() -> None:
    with pytest.raises(UserError, match="function 'mine:score' returned a float. It should return 4 numbers"):
        returning(0.5).score(SAMPLES)
    with pytest.raises(UserError, match="'mine:score' returned infinity for 1 of 4 pictures, -inf for number 2"):
        returning([0, 1, -float("inf"), 2]).score(SAMPLES)
    assert returning([0, 1, 1e300, 2]).score(SAMPLES)[2] == float("inf")  # which the ranker refuses


async def later(images: list[Any], prompts: list[str]) -> list[float]:
    return [0.0 for _ in images]


class Maker:
    """Makes a reward."""

    async def __call__(self, images: list[Any], prompts: list[str]) -> list[float]:
        return [0.0 for _ in images]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (later, "is async; write it with 'def' alone"),
        (Maker(), "is async; write it with 'def' alone"),
        (Maker, "is a class, which makes objects and no scores"),
        (lambda: later, "If it makes a reward, name what it makes"),
    ],
)
def test_what_is_no_reward_function_is_refused_before_anything_is_drawn(call: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=f"The reward function 'mine:score' .*{sentence}"):
        CallableReward(call, function="mine:score")


def test_what_the_function_raises_survives_with_a_note() -> None:
    def broken(images: list[Any], prompts: list[str]) -> list[float]:
        raise ZeroDivisionError("my own mistake")

    with pytest.raises(ZeroDivisionError, match="my own mistake") as caught:
        CallableReward(broken, function="mine:broken").score(SAMPLES)
    assert caught.value.__notes__ == ["This was raised by the reward function 'mine:broken'."]


def test_drawing_on_the_pictures_harms_nobody() -> None:
    def vandal(images: list[Any], prompts: list[str]) -> list[float]:
        for image in images:
            ImageDraw.Draw(image).rectangle((0, 0, 64, 64), fill="black")
        return redness(images, prompts)

    report = check_reward(CallableReward(vandal, function="mine:vandal"), SAMPLES)
    assert report.passed, str(report)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes my_rewards.py into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        (tmp_path / "my_rewards.py").write_text(text)
        sys.modules.pop("my_rewards", None)

    return write


def test_a_module_in_the_current_folder_is_found(module: Callable[[str], None]) -> None:
    module("def constant(images, prompts, value=1.0):\n    return [value for _ in images]\n")
    path = list(sys.path)
    reward = CallableConfig(function="my_rewards:constant", options={"value": 3}, name="three").build(device="cpu")
    assert sys.path == path, "the folder is on the path only while the module is imported"
    assert reward.name == "three"
    assert reward.score(SAMPLES).tolist() == [3, 3, 3, 3]


def test_installed_modules_come_before_the_current_folder(
    module: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module("")
    Path("statistics.py").write_text("raise RuntimeError('the stray file was imported')")
    monkeypatch.delitem(sys.modules, "statistics", raising=False)
    assert load_function("statistics:mean")([1, 3]) == 2


def test_a_wrong_function_gets_a_sentence(module: Callable[[str], None]) -> None:
    module("answer = 42\n")
    with pytest.raises(UserError, match="the reward 'callable': the module 'my_rewards' has no 'redness'"):
        CallableConfig(function="my_rewards:redness").build()
    with pytest.raises(UserError, match="'my_rewards:answer' is a int, which cannot be called"):
        CallableConfig(function="my_rewards:answer").build()
    with pytest.raises(UserError, match=r"cannot import 'my_reward' .* in this folder\?"):
        CallableConfig(function="my_reward:redness").build()
    with pytest.raises(UserError, match="'redness' should be written module:name"):
        CallableConfig(function="redness").build()


def test_options_that_the_function_lacks_get_a_sentence(module: Callable[[str], None]) -> None:
    module("def redness(images, prompts, channel=0):\n    return [0.0 for _ in images]\n")
    with pytest.raises(UserError, match=r"signature \(images, prompts, channel=0\) .*unexpected keyword .*'chanel'"):
        CallableConfig(function="my_rewards:redness", options={"chanel": 1}).build()
