"""Texts of differing lengths, put together and taken apart."""

import torch

from raftdiff.diffusion.families.texts import Texts


def texts(rows, length, *, own=None, value=1.0):
    """``own``: how many tokens are a caption's own, in every row; None for texts without a mask."""
    mask = None if own is None else (torch.arange(length) < own).expand(rows, length)
    return Texts(torch.full((rows, length, 2), value), torch.full((rows, 3), value), mask)


def test_texts_of_differing_lengths_are_filled_up_to_the_longest():
    both = Texts.cat([texts(1, 2, own=1), texts(2, 4, own=4, value=2.0)])
    assert both.tokens[..., 0].tolist() == [[1, 1, 0, 0], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert both.mask.sum(dim=1).tolist() == [1, 4, 4]
    assert both.pooled[:, 0].tolist() == [1, 2, 2]
    some = both[torch.tensor([2, 0])]
    assert some.mask.sum(dim=1).tolist() == [4, 1]
    assert some.zeros().mask is some.mask
    assert not some.zeros().tokens.any()
    half = both.to(dtype=torch.float16)
    assert (half.tokens.dtype, half.mask.dtype) == (torch.float16, torch.bool)


def test_rows_are_chosen_with_their_lengths():
    chosen = torch.tensor([True, False])
    for found in (
        texts(2, 2, own=2).where(chosen, texts(2, 3, own=1, value=2.0)),
        texts(2, 3, own=1, value=2.0).where(~chosen, texts(2, 2, own=2)),
    ):
        assert found.tokens[..., 0].tolist() == [[1, 1, 0], [2, 2, 2]]
        assert found.mask.tolist() == [[True, True, False], [True, False, False]]
        assert found.pooled[:, 0].tolist() == [1, 2]


def test_of_a_text_without_a_mask_every_token_counts():
    both = Texts.cat([texts(1, 2), texts(1, 3, own=1)])
    assert both.mask.tolist() == [[True, True, False], [True, False, False]]
    assert Texts.cat([texts(1, 2), texts(1, 2)]).mask is None
    assert texts(1, 2).where(torch.tensor([True]), texts(1, 2)).mask is None
