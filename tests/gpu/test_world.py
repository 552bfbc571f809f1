"""A GPU paints what a CPU paints, from random numbers of its own."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from raftdiff.embedded.scenes import data
from raftdiff.embedded.scenes.data import FLAWS, Painter
from raftdiff.embedded.scenes.layout import Layout, arrange
from raftdiff.embedded.scenes.rows import to_rows
from raftdiff.embedded.scenes.world import COLOURS, GROUNDS, OBJECTS, Part, Scene, draw

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
DEVICES = ("cpu", "cuda")


@pytest.fixture
def art(sheet):
    return np.ascontiguousarray(sheet[:, :, ::2, ::2])


def test_what_stands_in_the_same_places_looks_the_same(art, monkeypatch):
    grounds, colours = tuple(GROUNDS), tuple(COLOURS)
    rows = to_rows(
        [
            Scene((Part(name, 1 + row % 4, style="cartoon"),), ground=grounds[row % 5])
            if row % 2
            else Scene((Part(name, style="sketched", colour=colours[row % 4]),), ground=grounds[row % 5])
            for row, name in enumerate(OBJECTS)
        ]
    )
    layout = arrange(rows, torch.Generator().manual_seed(0))
    monkeypatch.setattr(data, "GROUND_NOISE", 0.0)
    monkeypatch.setattr(
        data,
        "arrange",
        lambda rows, _: Layout(**{one.name: getattr(layout, one.name).to(rows.device) for one in fields(Layout)}),
    )
    one, other = (Painter(art, seed=0, device=device).paint(rows).pictures.cpu() for device in DEVICES)
    torch.testing.assert_close(other, one, atol=2e-3, rtol=0)


def test_pictures_agree_in_mean_and_spread(art):
    rows = to_rows(draw(960, seed=0, held_out=None))
    found = []
    for device in DEVICES:
        painter = Painter(art, seed=0, device=device)
        painted = painter.paint(rows).pictures
        spoilt = [painter.spoil(painted, (way,)) for way in sorted(set(FLAWS))]
        found.append([kind.cpu() for kind in (painted, *spoilt)])
    for one, other in zip(*found, strict=True):
        # places and looks differ, means over 960 pictures hardly do
        torch.testing.assert_close(other.mean(dim=(0, 2, 3)), one.mean(dim=(0, 2, 3)), atol=0.03, rtol=0)
        torch.testing.assert_close(other.std(dim=(0, 2, 3)), one.std(dim=(0, 2, 3)), atol=0.02, rtol=0)
