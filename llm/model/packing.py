"""Several texts in one sequence, none of which sees another: less padding to compute, the same log-probabilities."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from raftdiff.errors import UserError
from raftdiff.llm.model.head import log_probabilities_at, read
from raftdiff.llm.model.network import Network
from raftdiff.llm.model.rows import Batch, laid_out


class Packed(NamedTuple):
    """Rows laid one after another into bins."""

    ids: Int[Tensor, "bins tokens"]
    positions: Int[Tensor, "bins tokens"]
    """Counted anew for each text."""
    seen: Bool[Tensor, "bins 1 tokens tokens"]
    """Which earlier tokens each token sees: those of its own text. Filling sees itself."""
    bins: Int[Tensor, " rows"]
    starts: Int[Tensor, " rows"]


def packed_lp(network: Network, batch: Batch) -> Float[Tensor, "rows targets"]:
    """What ``network.lp`` gives.

    Raises:
        UserError: the model's attention takes no mask of its own making.
    """
    lm = network.lm
    if lm.model.config._attn_implementation != "sdpa":
        raise UserError("finetuner.objective.packing: it needs PyTorch's own attention (sdpa); leave packing out.")
    packed = pack(batch)
    begins = packed.bins * packed.ids.shape[1] + packed.starts
    row, place = batch.mask.nonzero(as_tuple=True)
    with network.computing():
        found = read(
            lm.model,
            input_ids=packed.ids.to(lm.device),
            position_ids=packed.positions.to(lm.device),
            attention_mask=packed.seen.to(lm.device),
        )
        lp = log_probabilities_at(found, begins[row] + place, batch.targets)
    return laid_out([lp], network.mask(batch))


def pack(batch: Batch) -> Packed:
    """The rows in as few bins of the longest row's length as first-fit finds, longest rows first."""
    lengths = batch.attention.sum(dim=1).tolist()
    bins, starts = _first_fit(lengths, max(lengths))
    width = max(start + length for start, length in zip(starts, lengths, strict=True))
    shape = (max(bins) + 1, width)
    ids, positions = torch.zeros(shape, dtype=batch.ids.dtype), torch.zeros(shape, dtype=torch.int64)
    owner = torch.full(shape, -1)
    for row, (at, start, length) in enumerate(zip(bins, starts, lengths, strict=True)):
        ids[at, start : start + length] = batch.ids[row, :length]
        positions[at, start : start + length] = torch.arange(length)
        owner[at, start : start + length] = row
    same = (owner[:, :, None] == owner[:, None, :]) & (owner[:, :, None] >= 0)
    seen = same.tril() | torch.eye(width, dtype=torch.bool)
    return Packed(ids, positions, seen[:, None], torch.tensor(bins), torch.tensor(starts))


def _first_fit(lengths: Sequence[int], capacity: int) -> tuple[list[int], list[int]]:
    """For each row its bin and where it starts in it.

    >>> _first_fit([2, 5, 3, 1], 5)
    ([1, 0, 1, 2], [3, 0, 0, 0])
    """
    filled: list[int] = []
    bins, starts = [0] * len(lengths), [0] * len(lengths)
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        fit = next((place for place, used in enumerate(filled) if used + lengths[row] <= capacity), len(filled))
        if fit == len(filled):
            filled.append(0)
        bins[row], starts[row] = fit, filled[fit]
        filled[fit] += lengths[row]
    return bins, starts
