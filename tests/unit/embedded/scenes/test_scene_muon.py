"""Muon: its steps are orthogonal, as long as AdamW's, and go down."""

import pytest
import torch

from raftdiff.embedded.scenes.training.muon import Muon, muon, orthogonal


@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (3, 64, 64)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.mT @ orthogonal(matrix) @ right.mT
    told = values > 0.02 * values.amax()  # what is nearly nothing grows, but not to one in five steps
    diagonal = found.diagonal(dim1=-2, dim2=-1)
    assert (diagonal[told] > 0.5).all()
    assert (diagonal < 1.25).all()
    assert (found - torch.diag_embed(diagonal)).abs().max() < 1e-4


def test_a_step_is_as_long_as_adamws() -> None:
    """Root mean square 0.2 times the rate, for a gradient of full rank."""
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    optimizer = Muon([weight], 0.01, weight_decay=0.0)
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.002, rel=0.2)


def test_weights_decay_by_rate_times_decay() -> None:
    weight = torch.nn.Parameter(torch.ones(32, 32))
    optimizer = Muon([weight], 0.1, weight_decay=0.5)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((32, 32), 0.95))


def test_matrices_and_the_rest_learn_together_and_follow_one_rate() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(48, 32)
    wanted = torch.nn.Linear(48, 32)
    optimizer = muon(list(model.parameters()), 0.05, 0.0, "cpu")
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    losses = []
    for step in range(80):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 80)
        x = torch.randn(64, 48)
        loss = (model(x) - wanted(x)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]
