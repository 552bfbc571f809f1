"""GenEval on drawn scenes, by a detector that knows what was drawn; and the detectors of transformers in miniature."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards import detection, tiny
from raftdiff.rewards.detection import around, instances, open_detector
from raftdiff.rewards.geneval import GenEvalConfig, GenEvalReward, cut
from raftdiff.rewards.geneval_rules import COLOURS, Detection
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Explains, Prompt, Reason, Sample

SHADES = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 128, 0)}


class Eye:
    """Finds what was drawn: a class has a shade of its own in the corner of its square, so many pixels."""

    by_words = False

    def __init__(self, drawn: dict[str, list[tuple[int, int, int, int]]], sure: float = 0.95) -> None:
        self.drawn, self.sure = drawn, sure

    def detect(self, picture: Image.Image, labels: Sequence[str]) -> list[Detection]:
        found = []
        for label in labels:
            for box in self.drawn.get(label, []):
                mask = np.zeros((picture.height, picture.width), dtype=bool)
                mask[box[1] : box[3], box[0] : box[2]] = True
                found.append(Detection(label, self.sure, box, mask))
        return found


class Palette:
    """A CLIP model that sees one thing: which colour a picture has most of, beside the grey."""

    def image_features(self, images: Sequence[Image.Image]) -> torch.Tensor:
        rows = []
        for image in images:
            pixels = np.asarray(image).reshape(-1, 3).astype(float)
            near = [(np.abs(pixels - SHADES[name]).sum(1) < 30).mean() if name in SHADES else 0.0 for name in COLOURS]
            rows.append(torch.tensor(near, dtype=torch.float32))
        return torch.stack(rows)

    def text_features(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.tensor([float(name in text) for name in COLOURS]) for text in texts])


def sample(meta: dict[str, Any], *squares: tuple[str, tuple[int, int, int, int]]) -> Sample[Image.Image]:
    picture = Image.new("RGB", (100, 100), "white")
    for colour, box in squares:
        ImageDraw.Draw(picture).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=SHADES[colour])
    return Sample(0, Prompt("scene", "a scene", "a scene", "a scene", meta=meta), 0, 0, "policy", picture)


UP, DOWN = (40, 5, 60, 25), (40, 75, 60, 95)


def test_a_drawn_scene_is_right_in_count_colour_and_place_or_is_not() -> None:
    meta = {
        "tag": "color_attr",
        "include": [
            {"class": "cat", "count": 1, "color": "blue"},
            {"class": "dog", "count": 1, "color": "red", "position": ["above", 0]},
        ],
    }
    reward = GenEvalReward(Eye({"dog": [UP], "cat": [DOWN]}), Palette())
    right, wrong = sample(meta, ("red", UP), ("blue", DOWN)), sample(meta, ("green", UP), ("blue", DOWN))
    assert reward.score([right, wrong]).tolist() == [1, 0]
    reasons = (Reason("another colour", "expected red dog>=1, found green"),)
    assert reward.explained([right, wrong]) == [(1.0, ()), (0.0, reasons)]
    assert isinstance(reward, Explains)
    turned = GenEvalReward(Eye({"dog": [DOWN], "cat": [UP]}), Palette())
    below = sample(meta, ("blue", UP), ("red", DOWN))
    (reason,) = turned.verdict(below.media, below.prompt).reasons
    assert reason == ("another place", "expected dog above target, found below")


def test_where_objects_are_counted_the_detector_must_be_surer() -> None:
    one = {"class": "cat", "count": 1}
    counting, single = ({"tag": tag, "include": [one]} for tag in ("counting", "single_object"))
    reward = GenEvalReward(Eye({"cat": [UP]}, sure=0.8), Palette())
    assert reward.score([sample(counting), sample(single)]).tolist() == [0, 1]


def test_of_a_colour_the_object_alone_is_seen() -> None:
    """Within its box, what is not of the object is grey."""
    picture = Image.new("RGB", (10, 10), "red")
    mask = np.zeros((10, 10), dtype=bool)
    mask[2:6, 2:4] = True
    seen = np.asarray(cut(picture, Detection("cat", 1.0, (2, 2, 6, 6), mask)))
    assert seen.shape == (4, 4, 3)
    assert (seen[:, :2] == (255, 0, 0)).all()
    assert (seen[:, 2:] == (153, 153, 153)).all()
    assert np.asarray(cut(picture, Detection("cat", 1.0, (2, 2, 6, 6)))).tolist() == [[[255, 0, 0]] * 4] * 4


def test_prompts_that_say_nothing_of_objects_are_refused() -> None:
    reward = GenEvalReward(Eye({}), Palette())
    with pytest.raises(UserError, match="geneval: the prompt 'scene': there is no 'include'"):
        reward.check_prompts([sample({}).prompt])


def test_a_mask_models_logits_become_objects() -> None:
    """By hand: three queries, two classes and none, masks of 4 x 4."""
    classes = torch.tensor([[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.45, 0.45, 0.1]]).log()
    masks = torch.full((3, 4, 4), -9.0)
    masks[0, 1:3, 1:4] = 2.0
    masks[1, 0, 0] = 0.5
    found = instances(classes, masks, {"cat": 0})
    assert [(one.label, one.box) for one in found] == [
        ("cat", (1, 1, 4, 3)),
        ("cat", (0, 0, 1, 1)),
    ]  # the third is empty
    sure = 0.9 * float(torch.sigmoid(torch.tensor(2.0)))
    assert found[0].score == pytest.approx(sure, abs=1e-6)
    assert found[0].mask is not None
    assert around(found[0].mask) == found[0].box


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detectors")
    tiny.write_mask2former(folder / "masks", ["person", "sofa", "mouse", "bench"])
    return folder


def test_the_published_detectors_layout_is_read_and_keeps_the_rules_of_rewards(
    folder: Path, tiny_clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "LOWEST", 0.0)  # a random model is sure of nothing
    config = check(GenEvalConfig, {"detector": str(folder / "masks"), "model": str(tiny_clip), "threshold": 0})
    reward = config.build()
    rng = np.random.default_rng(0)
    samples = []
    for n in range(4):
        picture = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
        row = [{"class": name, "count": 1 + n} for name in ("computer mouse", "couch")]
        row[0]["color"] = COLOURS[n]
        prompt = Prompt(f"p-{n}", "a scene", "a scene", "a scene", meta={"tag": "colors", "include": row})
        samples.append(Sample(0, prompt, 0, 0, "policy", picture))
    report = check_reward(reward, samples, direction=type(reward).__doc__)
    assert all(found.passed for found in report.checks if found.name != "varied"), str(report)
    seen = open_detector(str(folder / "masks")).detect(samples[0].media, ["couch", "computer mouse"])
    assert {one.label for one in seen} == {"couch", "computer mouse"}
    assert all(one.mask is not None and one.mask.shape == (40, 60) for one in seen)
    with pytest.raises(UserError, match="knows no class 'zebra', which a prompt asks for"):
        open_detector(str(folder / "masks")).detect(samples[0].media, ["zebra"])


def test_a_detector_that_is_asked_by_words_wants_a_threshold_for_counting(folder: Path, tiny_clip: Path) -> None:
    place = tiny.write_owlv2(folder / "words")
    data = {"detector": str(place), "model": str(tiny_clip)}
    with pytest.raises(UserError, match="geneval: .* is asked by words and is never as sure as 0.9"):
        check(GenEvalConfig, data).build()
    check(GenEvalConfig, {**data, "counting_threshold": 0.3}).build()
    seen = open_detector(str(place)).detect(Image.new("RGB", (50, 30), "red"), ["cat", "dog"])
    assert {one.label for one in seen} == {"cat", "dog"}
    assert all(len(one.box) == 4 and 0 < one.score <= 1 and one.mask is None for one in seen)


def test_what_is_no_detector_is_told(folder: Path, tiny_clip: Path) -> None:
    tiny.write_pickscore(folder / "clip")
    with pytest.raises(UserError, match="is a model of the type 'clip', and no detector that is known here"):
        open_detector(str(folder / "clip"))
    with pytest.raises(UserError, match=r"The detector './none': there is no folder"):
        open_detector("./none")
    needs = list(GenEvalConfig(detector="./none", model=str(tiny_clip)).needs(str))
    assert [need.key for need in needs] == ["detector"]
