"""Scenes are painted as their captions say, spoilt without a change of kind, and made into lessons for the judge."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raftdiff.embedded.scenes.art import SHEET, art_sheet
from raftdiff.embedded.scenes.data import FLAWS, Painter
from raftdiff.embedded.scenes.judge import Network, ground_by_pixel, loss
from raftdiff.embedded.scenes.layout import MIDDLE, SIZE
from raftdiff.embedded.scenes.measure import to_images
from raftdiff.embedded.scenes.rows import to_rows
from raftdiff.embedded.scenes.training import judge as judging
from raftdiff.embedded.scenes.world import OBJECTS, draw


def test_rendered_art_is_read_from_its_file_alone(tmp_path: Path, sheet: np.ndarray) -> None:
    np.savez_compressed(tmp_path / SHEET, sheet=sheet)
    assert (art_sheet(tmp_path) == sheet).all()


def test_the_seed_alone_decides_what_is_painted_and_spoilt(art: np.ndarray) -> None:
    rows = to_rows(draw(12, seed=0))
    one, other, third = (Painter(art, seed=seed) for seed in (1, 1, 2))
    first, second = one.paint(rows, mush=0.3), other.paint(rows, mush=0.3)
    assert first.pictures.shape == (12, 3, SIZE, SIZE)
    assert first.pictures.dtype == torch.float32
    assert -1 <= first.pictures.min() < first.pictures.max() <= 1
    assert torch.equal(first.pictures, second.pictures)
    assert torch.equal(first.objects, second.objects)
    assert torch.equal(one.spoil(first.pictures), other.spoil(second.pictures))
    assert not torch.equal(third.paint(rows).pictures, first.pictures)


def test_places_hold_what_the_caption_says(art: np.ndarray) -> None:
    scenes = draw(80, seed=1, held_out=None)
    batch = Painter(art, seed=0, held_out=True).paint(to_rows(scenes))
    images = to_images(batch.pictures)
    for row, scene in enumerate(scenes):
        there = [OBJECTS[index] for index in batch.objects[row].tolist() if index >= 0]
        assert there == [part.object for part in scene.parts for _ in range(part.count)]
        (x, y), (right, down) = batch.layout.centre[row, :2].tolist()
        holds = {"left of": x < right, "right of": x > right, "above": y < down, "below": y > down, "": True}
        assert holds[scene.relation], scene.caption
        sizes = batch.layout.size[row].tolist()
        asked = [part.size for part in scene.parts for _ in range(part.count)]
        for size, word in zip(sizes, asked, strict=False):
            assert not word or (size < MIDDLE) == (word == "small")
        if scene.ground:
            assert ground_by_pixel(images[row]) == scene.ground


@pytest.mark.parametrize("way", sorted(set(FLAWS)))
def test_a_flaw_leaves_shape_range_and_precision(art: np.ndarray, way: str) -> None:
    painter = Painter(art, seed=0)
    pictures = painter.paint(to_rows(draw(4, seed=2))).pictures
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spoilt = painter.spoil(pictures, (way,))
    assert (spoilt.shape, spoilt.dtype) == (pictures.shape, torch.float32)
    assert spoilt.abs().max() <= 1
    assert not torch.equal(spoilt, pictures)
    if way == "photocopied":
        assert (spoilt == spoilt[:, :1]).all()


def test_lessons_of_the_judge_are_painted_whatever_computes_around(art: np.ndarray) -> None:
    torch.manual_seed(0)
    painter = Painter(art, seed=0, held_out=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        batch, pictures, coloured = judging.lesson(painter, None, to_rows(draw(40, seed=3)))
    assert pictures.dtype == torch.float32
    grey = (pictures == pictures[:, :1]).flatten(1).all(dim=1)
    assert 0 < int(grey.sum()) < 40
    assert (coloured[grey] == 0).all()
    found = loss(Network(), batch, pictures, coloured)
    assert torch.isfinite(found)
    assert found.requires_grad
