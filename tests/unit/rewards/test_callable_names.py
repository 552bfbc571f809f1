"""A function gets what its parameters are called."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.rewards.callable import CallableReward
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import answer_samples, reward_samples
from raftdiff.types import Sample

META = {"include": [{"class": "fox", "count": 3}], "tag": "counting"}


def pictures() -> list[Sample[Any]]:
    """Three, each with a latent of its place."""
    return [
        replace(one, prompt=replace(one.prompt, meta=META), aux={"latent": torch.full((4, 2, 2), float(place))})
        for place, one in enumerate(reward_samples(count=3))
    ]


def called(call: Callable[..., Any], samples: list[Sample[Any]], **options: Any) -> Any:
    """What the function was called with, by what it says of itself."""
    held: list[Any] = []

    def keep(told: Any) -> list[float]:
        held.append(told)
        return [0.0] * len(samples)

    CallableReward(lambda_of(call, keep), function="mine:score", options=options).score(samples)
    return held[0]


def lambda_of(call: Callable[..., Any], keep: Callable[[Any], list[float]]) -> Callable[..., Any]:
    from functools import wraps

    @wraps(call)  # with its signature
    def score(*args: Any, **words: Any) -> list[float]:
        return keep(call(*args, **words))

    return score


CAPTIONS = ["a red circle", "a green square", "a blue line"]


def test_each_name_gets_its_own() -> None:
    given = pictures()
    found = called(lambda metadata, latents, prompts, samples, images: locals(), given)
    assert [image.tobytes() for image in found["images"]] == [one.media.tobytes() for one in given]
    assert found["prompts"] == CAPTIONS
    assert found["metadata"] == [META] * 3
    assert [float(latent.mean()) for latent in found["latents"]] == [0, 1, 2]
    assert [(one.key, one.seed) for one in found["samples"]] == [(one.key, one.seed) for one in given]


@pytest.mark.parametrize(
    "call",
    [
        lambda images, prompts: (images, prompts),
        lambda pictures, captions: (pictures, captions),
        lambda images, captions: (images, captions),
        lambda media, prompts: (media, prompts),
        lambda prompts, completions: (completions, prompts),  # as TRL has them
        lambda prompts, images: (images, prompts),
        lambda x, y, /: (x, y),
        lambda *both: both,
        lambda images, *others: (images, *others),
        lambda images, prompts, size=3, **more: (images, prompts) if (size, more) == (3, {}) else None,
        lambda *, images, prompts: (images, prompts),
    ],
)
def test_the_media_and_the_captions_are_found_under_any_name(call: Callable[..., Any]) -> None:
    images, prompts = called(call, pictures())
    assert [image.size for image in images] == [(64, 64)] * 3
    assert prompts == CAPTIONS


def test_one_alone_will_do_and_what_has_a_default_keeps_it() -> None:
    assert called(lambda prompts: prompts, pictures()) == CAPTIONS
    assert len(called(lambda pictures: pictures, pictures())) == 3
    assert called(lambda images, channel=1: channel, pictures()) == 1
    assert called(lambda images, channel=1: channel, pictures(), channel=2) == 2
    assert called(lambda texts, metadata=None: (texts[0][:1], len(metadata)), answer_samples(count=2)) == ("A", 2)


def test_an_option_comes_before_what_is_known_by_its_name() -> None:
    assert called(lambda images, prompts: prompts, pictures(), prompts="mine") == "mine"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda images, metadta: 0,
            "asks for 'metadta', which is neither among its options nor known. Did you mean 'me",
        ),
        (lambda images, latent: 0, "asks for 'latent', .* Did you mean 'latents'"),
        (lambda images, prompts, reference: 0, "asks for 'reference', .* Known: images, latents, metadata, prompts, "),
        (lambda images, metadata, boxes: 0, "asks for 'boxes'"),
        (lambda images, *, weight: 0, "asks for 'weight'"),
        (lambda size=1: 0, "cannot be called as .*: it takes neither"),
    ],
)
def test_a_name_that_says_nothing_is_a_sentence(call: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"The reward function 'mine:score' .*{sentence}"):
        CallableReward(call, function="mine:score")


def test_what_the_samples_do_not_have_is_a_sentence() -> None:
    with pytest.raises(UserError, match="'mine:f' asks for 'texts', and what it is to score are pictures"):
        CallableReward(lambda texts, prompts: [0] * 3, function="mine:f").score(pictures())
    with pytest.raises(UserError, match="'mine:f' asks for 'images', and what it is to score are texts"):
        CallableReward(lambda images: [0] * 3, function="mine:f").score(answer_samples(count=3))
    with pytest.raises(UserError, match="asks for 'latents', and example-0-000 has none"):
        CallableReward(lambda latents: [0] * 3, function="mine:f").score(reward_samples(count=3))


def test_all_of_it_is_a_copy() -> None:
    def vandal(images: Any, metadata: Any, latents: Any, samples: Any) -> list[float]:
        for image, meta, latent, sample in zip(images, metadata, latents, samples, strict=True):
            image.paste((0, 0, 0), (0, 0, *image.size))
            meta["include"][0]["count"] = 9
            latent.zero_()
            sample.aux["latent"].fill_(7)
            sample.media.paste((9, 9, 9), (0, 0, *image.size))
            sample.prompt.meta.clear()
        return [float(place) for place, _ in enumerate(images)]

    given = pictures()
    report = check_reward(CallableReward(lambda images: [0.0] * len(images), function="mine:f"), given)
    CallableReward(vandal, function="mine:vandal").score(given)
    assert [float(one.aux["latent"].mean()) for one in given] == [0, 1, 2]
    assert all(one.prompt.meta["include"][0]["count"] == 3 for one in given)
    assert all(np.asarray(one.media).std() > 0 for one in given)
    assert report.passed


def brightest(images: list[Image.Image], prompts: list[str]) -> list[float]:
    """1 for the brightest candidate of a prompt. Higher is better."""
    assert len(set(prompts)) == 1
    means = [float(np.asarray(image).mean()) for image in images]
    return [float(mean == max(means)) for mean in means]


def test_a_function_of_whole_prompts_is_called_once_for_each() -> None:
    reward = CallableReward(brightest, function="mine:brightest", whole_prompts=True)
    report = check_reward(reward, reward_samples(count=8), direction=reward.description)
    assert all(check.passed for check in report.checks), str(report)
    assert sorted(score for _, score in report.scores) == [0] * 6 + [1] * 2
