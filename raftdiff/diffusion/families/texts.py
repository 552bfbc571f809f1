"""What a network is told of captions, and of where their pictures come from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@final
@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Embeddings of captions, one caption a row."""

    tokens: Float[Tensor, "rows tokens width"]
    pooled: Float[Tensor, "rows pooled"] | None = None
    """Of the caption as a whole, for families that read it."""
    mask: Bool[Tensor, "rows tokens"] | None = None
    """Which tokens are a caption's own, for families whose texts differ in length; None where all are. Put together,
    texts are filled up behind, with zeros that are nobody's, to the longest."""
    frame: Float[Tensor, "rows 4"] | None = None
    """For families that read it: height and width that the picture had, and how much was cut off at its top and left
    after it was scaled, in pixels, float32; None where all are whole, and of the size that they are drawn in."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, " some"] | slice) -> "Texts":
        pooled, mask, frame = (None if it is None else it[rows] for it in (self.pooled, self.mask, self.frame))
        return Texts(self.tokens[rows], pooled, mask, frame)

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    @property
    def nbytes(self) -> int:
        return sum(it.nbytes for it in (self.tokens, self.pooled, self.mask) if it is not None)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Texts":
        """On another device, in another dtype, or both."""
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        mask, frame = (None if it is None else it.to(device=device) for it in (self.mask, self.frame))
        return Texts(self.tokens.to(device=device, dtype=dtype), pooled, mask, frame)

    def where(self, chosen: Bool[Tensor, " rows"], other: "Texts") -> "Texts":
        """These in the chosen rows, ``other`` in the rest, of the same pictures."""
        ours, theirs = _of_one_length([self, other])
        tokens = torch.where(chosen[:, None, None], ours.tokens, theirs.tokens)
        pooled = mask = None
        if ours.pooled is not None and theirs.pooled is not None:
            pooled = torch.where(chosen[:, None], ours.pooled, theirs.pooled)
        if ours.mask is not None and theirs.mask is not None:
            mask = torch.where(chosen[:, None], ours.mask, theirs.mask)
        return Texts(tokens, pooled, mask, self.frame)

    def zeros(self) -> "Texts":
        """As many rows, as long, that say nothing."""
        pooled = None if self.pooled is None else torch.zeros_like(self.pooled)
        return Texts(torch.zeros_like(self.tokens), pooled, self.mask, self.frame)

    @staticmethod
    def cat(parts: Sequence["Texts"]) -> "Texts":
        """The rows of all, one behind the other."""
        parts = _of_one_length(parts)
        pooled = [part.pooled for part in parts if part.pooled is not None]
        mask = [part.mask for part in parts if part.mask is not None]
        frame = [part.frame for part in parts if part.frame is not None]
        return Texts(
            torch.cat([part.tokens for part in parts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(mask) if mask else None,
            torch.cat(frame) if frame else None,
        )


def _of_one_length(parts: Sequence[Texts]) -> list[Texts]:
    """All with masks, and as many tokens as the longest has; as they are where none has a mask."""
    if all(part.mask is None for part in parts):
        return list(parts)
    longest = max(part.tokens.shape[1] for part in parts)
    found = []
    for part in parts:
        mask = part.tokens.new_ones(part.tokens.shape[:2], dtype=torch.bool) if part.mask is None else part.mask
        more = longest - part.tokens.shape[1]
        found.append(replace(part, tokens=pad(part.tokens, (0, 0, 0, more)), mask=pad(mask, (0, more))))
    return found
