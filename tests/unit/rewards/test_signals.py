"""Signals of pixels as rewards."""

from typing import Any

import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.measures.signals import signals
from raftdiff.recipes import registry
from raftdiff.recipes.config import check
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples

NAMES = ("sharpness", "exposure", "saturation", "edge_density", "colour_entropy")


def built(name: str, **options: Any) -> Any:
    config: Any = check(registry.load("rewards", name), options)
    return config.build(device="cpu", resolve=str)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_its_signal_and_with_a_target_the_distance_to_it(name: str) -> None:
    samples = reward_samples(count=4)
    wanted = torch.tensor([signals(sample.media)[name] for sample in samples])
    torch.testing.assert_close(built(name).score(samples), wanted)
    torch.testing.assert_close(built(name, target=0.3).score(samples), -(wanted - 0.3).abs())


@pytest.mark.parametrize("name", NAMES)
def test_it_keeps_the_contract_and_tells_examples_apart(name: str) -> None:
    report = check_reward(built(name), reward_samples(count=6))
    assert all(check.passed for check in report.checks), str(report)


def test_pictures_of_any_mode_are_scored() -> None:
    from dataclasses import replace

    (sample,) = reward_samples([Image.new("RGBA", (4, 4), (255, 0, 0, 0))])
    assert built("saturation").score([sample]).tolist() == [0], "nothing but paper"
    assert built("saturation").score([replace(sample, media=Image.new("P", (4, 4), 0))]).tolist() == [0]


def test_the_threshold_of_an_edge_is_a_share() -> None:
    samples = reward_samples(count=6)
    some, none = (built("edge_density", threshold=value).score(samples) for value in (0.1, 1.0))
    assert float(some.sum()) > float(none.sum())
    with pytest.raises(UserError, match="threshold"):
        built("edge_density", threshold=2)


@pytest.mark.parametrize(
    ("name", "target", "told"),
    [
        ("sharpness", -1, "0 to 1020"),
        ("exposure", 0, "0.04 to 1"),
        ("saturation", 5, "0 to 1"),
        ("edge_density", 1.01, "0 to 1"),
        ("colour_entropy", 9.5, "0 to 9"),
    ],
)
def test_a_target_that_no_picture_can_reach_is_a_sentence(name: str, target: float, told: str) -> None:
    with pytest.raises(UserError, match=f"target: this signal is {told} for any picture; name a value within"):
        built(name, target=target)
