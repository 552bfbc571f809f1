"""Which reward ``raftdiff rewards serve`` means."""

from pathlib import Path
from typing import Any

import pytest

from raftdiff.cli.main import parser
from raftdiff.cli.pages import reward_of, serve_reward
from raftdiff.errors import UserError
from raftdiff.rewards.callable import CallableReward
from raftdiff.rewards.given import GivenReward


def meant(*words: str) -> tuple[Any, bool]:
    return reward_of(parser().parse_args(["rewards", "serve", *words]))


def test_a_reward_by_name_with_its_options() -> None:
    config, texts = meant("saturation", "target=0.3")
    assert (config.type, config.target, texts) == ("saturation", 0.3, False)
    assert meant("sentiment")[1], "there is none of this name for pictures"
    assert not meant("duplicates")[1]
    assert meant("duplicates", "--text")[1]


def test_a_function_is_called_by_its_own_name() -> None:
    config, texts = meant("my_rewards:redness", "options={channel: 2}")
    assert (config.type, config.name, config.function, texts) == ("callable", "redness", "my_rewards:redness", False)
    assert config.options == {"channel": 2}
    assert meant("my_rewards:politeness", "--text")[1]


def test_a_reward_of_a_recipe() -> None:
    config, texts = meant("demo", "--only", "clip")
    assert (config.type, texts) == ("clip", False)
    with pytest.raises(UserError, match="demo has no reward 'clap'; name one with --only: .*clip"):
        meant("demo", "--only", "clap")
    with pytest.raises(UserError, match="demo has several rewards; name one with --only: "):
        meant("demo", "ranker.rewards=[{type: jpeg}, {type: saturation, weight: 0}]")
    assert meant("demo", "ranker.rewards=[{type: jpeg}]")[0].type == "jpeg"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["saturatoin"], "'saturatoin' is neither a reward nor a recipe. Did you mean 'saturation'?"),
        (["nope"], "Known: aesthetic, callable, classifier, clip, "),
        (["kl"], "The reward 'kl' is made of the model that is tuned, and cannot stand alone"),
        (["aesthetic", "head=none.pth", "model=scene-clip"], "There is no aesthetic head 'none.pth'"),
        (["saturation", "taget=1"], "Did you mean 'target'"),
    ],
)
def test_what_cannot_be_served_is_a_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        meant(*words)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("reward", "media", "sentence"),
    [
        (CallableReward(lambda images: [], function="my:f"), "text", "'my:f' asks for 'images', and what .* are texts"),
        (CallableReward(lambda texts: [], function="my:f"), "picture", "'my:f' asks for 'texts', .* are pictures"),
        (
            CallableReward(lambda latents: [], function="my:f"),
            "picture",
            "'my:f' asks for 'latents', which are not sent",
        ),
        (
            GivenReward(),
            "picture",
            "The reward 'given' is what a folder or table says of its own pictures, and that is",
        ),
    ],
)
def test_what_cannot_score_what_is_sent_is_a_sentence(reward: Any, media: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        reward.demand_sent(media)


def test_what_can_score_what_is_sent_may_be_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    GivenReward().demand_sent("text")  # the answers' scores stand in the prompt's metadata
    CallableReward(lambda one, two: [], function="my:f").demand_sent("text")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image_only.py").write_text("def wide(images):\n    return [image.width for image in images]\n")
    with pytest.raises(UserError, match="'image_only:wide' asks for 'images', and what it is to score are texts"):
        serve_reward(parser().parse_args(["rewards", "serve", "image_only:wide", "--text", "--device", "cpu"]))
