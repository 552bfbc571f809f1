"""NEFTune's noise and scheduled sampling: sizes, schedules, and what they leave alone."""

import math

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.embeddings import keep_gold, neftune, scheduled, teacher_forcing_probability


def mask_of(*lengths, tokens):
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


def test_the_size_of_the_noise():
    """alpha 5, L 4, d 8: at most .883883 an element, Frobenius norm alpha / sqrt 3 in the root mean square."""
    generator = torch.Generator().manual_seed(0)
    noise = neftune(torch.zeros(4000, 4, 8), mask_of(*[4] * 4000, tokens=4), 5.0, generator)
    assert noise.abs().max().item() == pytest.approx(0.883883, abs=1e-4)
    assert noise.abs().max() <= 0.8838835
    norms = noise.flatten(1).square().sum(1)
    assert norms.mean().sqrt().item() == pytest.approx(2.886751, abs=0.01)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.01)


def test_the_noise_of_a_row_does_not_depend_on_how_far_it_is_padded():
    """L is the real length; with the padded one the bound here would be a quarter."""
    generator = torch.Generator().manual_seed(0)
    padded = neftune(torch.zeros(500, 64, 8), mask_of(*[4] * 500, tokens=64), 5.0, generator)
    assert padded[:, :4].abs().max().item() == pytest.approx(0.883883, abs=1e-3)
    assert not padded[:, 4:].any()


def test_noise_is_reproducible_and_keeps_dtype_and_gradient():
    embeddings = torch.randn(2, 3, 4).bfloat16().requires_grad_()
    mask = mask_of(3, 2, tokens=3)
    one, same = (neftune(embeddings, mask, 5.0, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, same)
    assert one.dtype == torch.bfloat16
    assert not torch.equal(one, neftune(embeddings, mask, 5.0, torch.Generator().manual_seed(4)))
    one.sum().backward()
    assert torch.equal(embeddings.grad, torch.ones_like(embeddings))
    assert torch.equal(neftune(embeddings, mask, 0.0), embeddings)


def test_worked_numbers_of_the_schedules():
    linear = [teacher_forcing_probability("linear", i, k=1.0, c=0.3, epsilon=0.1) for i in range(5)]
    assert linear == pytest.approx([1, 0.7, 0.4, 0.1, 0.1])
    assert [teacher_forcing_probability("exponential", i, k=0.9) for i in range(3)] == pytest.approx([1, 0.9, 0.81])
    sigmoid = [teacher_forcing_probability("inverse_sigmoid", i, k=5.0) for i in (0, 5, 10, 20)]
    assert sigmoid == pytest.approx([0.833333, 0.647813, 0.403582, 0.083895], abs=2e-6)


def test_schedules_at_their_ends():
    assert teacher_forcing_probability("inverse_sigmoid", 10**7, k=1.0) == 0.0  # e^x would overflow
    assert teacher_forcing_probability("linear", 0, k=1.5, c=0.1) == 1.0
    with pytest.raises(UserError, match="needs k of 1 or more"):
        teacher_forcing_probability("inverse_sigmoid", 0, k=0.5)
    with pytest.raises(UserError, match="only for k from 0 to 1"):
        teacher_forcing_probability("exponential", 0, k=1.1)


def test_own_tokens_replace_gold_ones_only_where_not_kept():
    gold, own = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[7, 8, 9]])
    assert scheduled(gold, own, torch.tensor([[True, False, True]])).tolist() == [[1, 2, 8, 4]]
    assert scheduled(gold, own, torch.tensor([[False, False, False]])).tolist() == [[1, 7, 8, 9]]
    assert gold.tolist() == [[1, 2, 3, 4]]  # the targets are not changed in place


def test_prompt_and_padding_are_always_kept():
    mask = torch.zeros(200, 50, dtype=torch.bool)
    mask[:, 10:40] = True
    keep = keep_gold(mask, 0.3, torch.Generator().manual_seed(0))
    assert keep[~mask].all()
    assert keep[mask].float().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 6000))
    assert keep_gold(mask, 1.0).all()
    assert not keep_gold(mask, 0.0)[mask].any()
