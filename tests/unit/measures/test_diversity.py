"""How alike pictures are, and how different a round's are, before and after selection."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.measures.diversity import LETTERS, HeldOutDrift, HeldOutFigures, PictureSimilarity, pixels
from raftdiff.types import Prompt, Sample, Scores


def sample(prompt: str, index: int, size: int = 8) -> Sample[Image.Image]:
    picture = Image.fromarray(np.random.default_rng(index).integers(0, 255, (size, size, 3), dtype=np.uint8))
    return Sample(0, Prompt(prompt, prompt, prompt, prompt), index, 0, "policy", picture)


def angle(samples: Sequence[Sample[Any]]) -> torch.Tensor:
    """Features at the candidate's index times 60 degrees, and not of length one."""
    at = torch.tensor([sample.index * torch.pi / 3 for sample in samples])
    return 7 * torch.stack([at.cos(), at.sin()], dim=1)


def scores(*prompts: str, candidates: int = 3) -> Scores:
    return Scores(0, prompts, np.zeros((len(prompts), candidates)), {})


def test_pictures_are_compared_with_those_of_their_own_prompt_in_whatever_order_they_come() -> None:
    batches = [[sample("b", 2), sample("a", 1)], [sample("a", 0), sample("b", 0), sample("a", 2)]]
    found = PictureSimilarity(angle)(batches, scores("a", "b"))
    np.testing.assert_allclose(found[0], [[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]])
    np.testing.assert_allclose(found[1], [[1, np.nan, -0.5], [np.nan] * 3, [-0.5, np.nan, 1]])


def test_equal_pictures_are_as_alike_as_can_be_and_equally_far_from_every_other() -> None:
    twins = [sample("a", 0), sample("a", 1), sample("a", 2)]
    twins[2] = Sample(0, twins[2].prompt, 2, 5, "policy", twins[0].media)
    found = PictureSimilarity(pixels)([twins], scores("a"))[0]
    assert found[0, 2] == found[0, 0] == 1
    assert found[1, 0] == found[1, 2] < 0.5


def test_held_out_figures_are_means_of_each_prompts_pictures() -> None:
    def flat(prompt: str, index: int, grey: int) -> Sample[Image.Image]:
        asked = Prompt(prompt, prompt, prompt, prompt)
        return Sample(0, asked, index, index, "policy", Image.new("RGB", (32, 32), (grey, grey, grey)))

    found = HeldOutFigures(pixels)([flat("a", 0, 0), flat("a", 1, 255), flat("b", 0, 255), flat("b", 1, 255)])
    brightness = found["signals"]["brightness"]
    assert brightness["mean"] == pytest.approx(0.75)
    assert brightness["std"] == pytest.approx(np.sqrt(3) / 4)
    assert brightness["each"] == pytest.approx([0.5, 1.0])


def test_near_duplicates_are_those_that_an_earlier_picture_shows_already() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))).convert("RGB")
    asked = [Prompt(name, name, name, name) for name in "abcd"]
    media = [ramp, ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ramp, ramp.transpose(Image.Transpose.ROTATE_90)]
    held = [Sample(0, one, 0, 0, "policy", it) for one, it in zip(asked, media, strict=True)]
    assert HeldOutFigures(pixels)(held)["near_duplicates"] == 0.25


def drawn(prompts: int, per_prompt: int) -> list[Sample[Any]]:
    """Each picture is as grey as its place."""
    asked = [Prompt(str(place), "a", "a", "a") for place in range(prompts)]
    places = [(one, index) for one in asked for index in range(per_prompt)]
    grey = [Image.new("RGB", (4, 4), (at, at, at)) for at in range(len(places))]
    return [Sample(0, one, index, 0, "policy", it) for (one, index), it in zip(places, grey, strict=True)]


@pytest.mark.parametrize(("prompts", "per_prompt", "looked"), [(100, 2, 24), (10, 4, 20), (2, 4, 8)])
def test_text_is_looked_for_in_a_few_pictures_of_prompts_at_even_distances(
    prompts: int, per_prompt: int, looked: int
) -> None:
    seen: list[Sample[Any]] = []

    def unasked(samples: Sequence[Sample[Any]]) -> list[int]:
        seen.extend(samples)
        return [LETTERS - (sample.prompt.id == "0") for sample in samples]

    found = HeldOutFigures(pixels, unasked)(drawn(prompts, per_prompt))
    assert len(seen) == looked
    ids = list(dict.fromkeys(int(sample.prompt.id) for sample in seen))
    assert (ids[0], ids[-1]) == (0, prompts - 1)
    share = 1 - 1 / len(ids)
    assert found["text"]["each"] == [0.0] + [1.0] * (len(ids) - 1)
    assert (found["text"]["mean"], found["text"]["std"]) == pytest.approx((share, np.sqrt(share * (1 - share))))
    assert "not_looked_at" not in found


def test_where_nothing_can_read_that_is_on_record() -> None:
    found = HeldOutFigures(pixels, lambda samples: None)(drawn(2, 1))
    assert found["not_looked_at"] == ["text"]
    assert "text" not in found


def at_angles(*degrees: float) -> list[Sample[Any]]:
    """Two seeds of each prompt, whose features are directions in the plane."""
    asked = [Prompt(name, name, name, name) for name in "abcd"]
    return [Sample(0, asked[place // 2], place % 2, 0, "policy", angle) for place, angle in enumerate(degrees)]


def directions(samples: Sequence[Sample[Any]]) -> torch.Tensor:
    turned = torch.deg2rad(torch.tensor([sample.media for sample in samples]))
    return 3 * torch.stack([turned.cos(), turned.sin()], dim=1)


def test_drift_is_between_pictures_of_one_seed_and_its_yardstick_between_seeds() -> None:
    base, now = at_angles(0, 60, 30, 30), at_angles(90, 60, 30, 150)
    found = HeldOutDrift(directions)(base, now)
    assert found["each"] == pytest.approx([(1 + 0) / 2, (0 + 1.5) / 2], abs=1e-6)
    assert found["apart"] == pytest.approx([1 - 0.5, 0], abs=1e-6)
    assert found["mean"] == pytest.approx(2.5 / 4, abs=1e-6)


def test_of_one_picture_a_prompt_there_is_no_yardstick_for_drift() -> None:
    one = at_angles(0, 60)[:1]
    assert HeldOutDrift(directions)(one, one) == {"mean": 0, "each": [0], "apart": [None]}
