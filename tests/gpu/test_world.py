"""A GPU paints what a CPU paints, from random numbers of its own."""

import pytest
import torch

from raftdiff.embedded.emoji.data import World, indices
from raftdiff.embedded.emoji.world import all_concepts

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_plain_views_are_the_same(sheet):
    rows = indices(all_concepts()[::7])
    one = World(sheet, seed=0).paint(*rows.unbind(1), upright=True)
    other = World(sheet, seed=0, device="cuda").paint(*rows.cuda().unbind(1), upright=True)
    torch.testing.assert_close(other.cpu(), one, atol=2e-3, rtol=0)


def test_the_others_agree_in_mean_and_spread(sheet):
    rows = indices(all_concepts()[::4])
    found = []
    for device in ("cpu", "cuda"):
        world = World(sheet, seed=0, device=device)
        painted = world.paint(*rows.to(device).unbind(1))
        found.append([kind.cpu() for kind in (painted, world.degrade(painted), world.discolour(painted))])
    for one, other in zip(*found, strict=True):
        # turned and shifted views differ, means over 960 pictures hardly do
        torch.testing.assert_close(other.mean(dim=(0, 2, 3)), one.mean(dim=(0, 2, 3)), atol=0.03, rtol=0)
        torch.testing.assert_close(other.std(dim=(0, 2, 3)), one.std(dim=(0, 2, 3)), atol=0.02, rtol=0)
