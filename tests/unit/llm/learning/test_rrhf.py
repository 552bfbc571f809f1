"""RRHF: the worked numbers of paper and released code, and what the loss may not depend on."""

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.learning.rrhf import _cells, rank_loss, rrhf

NAN = float("nan")
SCORES = torch.tensor([1.0, 0.2, 0.8])
GROUP = torch.tensor([0, 0, 0])


def example(targets=5, prompt=2):
    """Three answers of 2, 3 and 1 tokens after ``prompt`` - 1 targets that belong to the prompt."""
    lp, mask = torch.full((3, targets), -7.0), torch.zeros(3, targets, dtype=torch.bool)
    for row, values in enumerate([[-0.5, -1.1], [-0.4, -0.6, -0.5], [-0.9]]):
        lp[row, prompt - 1 : prompt - 1 + len(values)] = torch.tensor(values)
        mask[row, prompt - 1 : prompt - 1 + len(values)] = True
    return lp, mask


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected), rtol=0, atol=2e-6)


def test_worked_numbers():
    loss = rrhf(*example(), GROUP, SCORES)
    close(loss.rank, 0.70)
    close(loss.ft, 1.6)
    close(loss.total, 2.30)
    close(rrhf(*example(), GROUP, SCORES, ft="mean").ft, 0.8)
    close(rrhf(*example(), GROUP, SCORES, rank_weight=10.0).total, 8.6)


def test_the_gradient_counts_violated_pairs():
    p = torch.tensor([[-0.8, -0.5, -0.9]], requires_grad=True)
    loss = rank_loss(p, SCORES[None])
    loss.backward()
    close(loss.detach(), 0.70)
    assert p.grad.tolist() == [[-1.0, 2.0, -1.0]]


def test_compat_official_divides_by_the_padded_length():
    """That of a batch of one prompt, which the released code has: 3 tokens of it and 3 of the longest answer."""
    loss = rrhf(*example(prompt=3), GROUP, SCORES, compat_official=True)
    close(loss.rank, 0.133333)
    close(loss.ft, 0.266667)
    close(loss.total, 0.4)


@pytest.mark.parametrize("official", [False, True])
def test_padding_the_batch_further_changes_nothing(official):
    short, long = (rrhf(*example(targets=n), GROUP, SCORES, compat_official=official) for n in (5, 11))
    torch.testing.assert_close(short, long)


def test_compat_official_pads_a_prompt_to_its_own_answers():
    """Another prompt's longer answers, in the same pass or not, are no part of its loss."""
    (lp, mask), (other, longer) = example(targets=12), example(targets=12, prompt=9)
    group = torch.tensor([1, 1, 1, 0, 0, 0])
    lps, masks = torch.cat([other, lp]), torch.cat([longer, mask])
    both = rrhf(lps, masks, group, SCORES.repeat(2), compat_official=True)
    alone = [rrhf(*one, GROUP, SCORES, compat_official=True).total for one in ((lp, mask), (other, longer))]
    close(both.total, float(sum(alone)) / 2)
    assert alone[0] > 2 * alone[1], "5 tokens against 12"


def test_one_answer_is_sft_and_ties_teach_nothing():
    lp, mask = example()
    one = rrhf(lp[:1], mask[:1], GROUP[:1], SCORES[:1])
    assert one.rank == 0
    close(one.total, 1.6)
    assert rrhf(lp, mask, GROUP, torch.ones(3)).rank == 0
    close(rrhf(lp, mask, GROUP, torch.ones(3)).ft, 1.6)  # the first of equals


def test_only_the_order_of_the_scores_matters():
    torch.manual_seed(0)
    p, scores = torch.randn(4, 6), torch.randn(4, 6)
    torch.testing.assert_close(rank_loss(p, scores), rank_loss(p, torch.exp(3 * scores) - 5))
    assert rank_loss(scores, scores) == 0  # already in order
    assert rank_loss(-scores, scores) > 0


def test_the_order_of_the_answers_does_not_matter():
    torch.manual_seed(0)
    lp, mask = -torch.rand(7, 6), torch.rand(7, 6) < 0.6
    mask[:, 0] = True
    group, scores = torch.tensor([5, 9, 5, 9, 5, 2, 9]), torch.randn(7)
    shuffled = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    torch.testing.assert_close(
        rrhf(lp, mask, group, scores), rrhf(lp[shuffled], mask[shuffled], group[shuffled], scores[shuffled])
    )


def test_several_prompts_give_their_mean_and_micro_batches_add_up():
    lp, mask = example()
    both = rrhf(torch.cat([lp, lp - 1]), torch.cat([mask, mask]), torch.tensor([0, 0, 0, 1, 1, 1]), SCORES.repeat(2))
    first, second = (rrhf(lp - shift, mask, GROUP, SCORES) for shift in (0, 1))
    close(both.rank, 0.70)  # a shift of all p of a prompt changes no difference
    torch.testing.assert_close(both.total, (first.total + second.total) / 2)
    parts = [rrhf(lp - shift, mask, GROUP, SCORES, queries=2).total for shift in (0, 1)]
    torch.testing.assert_close(sum(parts), both.total)


def test_discarded_answers_and_padded_cells_take_part_in_nothing():
    p = torch.tensor([[-0.8, -0.5, -0.9, NAN, 3.0]], requires_grad=True)
    scores = torch.tensor([[1.0, 0.2, 0.8, NAN, -torch.inf]])
    loss = rank_loss(p, scores)
    loss.backward()
    close(loss.detach(), 0.70)
    assert p.grad.tolist() == [[-1.0, 2.0, -1.0, 0.0, 0.0]]
    lp, mask = example()
    assert rrhf(lp, mask, GROUP, torch.tensor([NAN, 0.2, 0.8])).ft.item() == pytest.approx(0.9)  # never the discarded


def test_a_prompt_with_every_answer_discarded_disappears():
    lp, mask = example()
    scores = torch.cat([SCORES, torch.full((3,), NAN)])
    both = rrhf(torch.cat([lp, lp]), torch.cat([mask, mask]), torch.tensor([0, 0, 0, 1, 1, 1]), scores)
    close(both.total, 2.30)
    with pytest.raises(UserError, match="no answer of this batch has a score"):
        rrhf(lp, mask, GROUP, torch.full((3,), NAN))
    with pytest.raises(UserError, match="no answer of this batch has a score"):
        rrhf(lp[:0], mask[:0], GROUP[:0], SCORES[:0])


def test_ragged_groups():
    lp, mask = example()
    loss = rrhf(lp, mask, torch.tensor([3, 3, 8]), SCORES)  # prompt 3 has two answers, prompt 8 one
    close(loss.rank, 0.3 / 2)
    close(loss.ft, (1.6 + 0.9) / 2)


def test_the_table_is_no_wider_than_the_largest_group():
    row, column = _cells(torch.tensor([5, 9, 5, 9, 5, 2, 9]))
    assert row.tolist() == [1, 2, 1, 2, 1, 0, 2]
    assert column.tolist() == [0, 0, 1, 1, 2, 0, 2]


def test_prompt_tokens_have_no_gradient():
    lp, mask = example()
    lp.requires_grad_()
    rrhf(lp, mask, GROUP, SCORES).total.backward()
    assert not lp.grad[~mask].any()
    assert lp.grad[mask].any()
