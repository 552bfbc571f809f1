"""What a network is told of captions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@final
@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Embeddings of captions, one caption a row."""

    tokens: Float[Tensor, "rows tokens width"]
    pooled: Float[Tensor, "rows pooled"] | None = None
    """Of the caption as a whole, for families that read it."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Int[Tensor, " some"] | slice) -> "Texts":
        return Texts(self.tokens[rows], None if self.pooled is None else self.pooled[rows])

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Texts":
        """On another device, in another dtype, or both."""
        pooled = None if self.pooled is None else self.pooled.to(device=device, dtype=dtype)
        return Texts(self.tokens.to(device=device, dtype=dtype), pooled)

    def where(self, chosen: Bool[Tensor, " rows"], other: "Texts") -> "Texts":
        """These in the chosen rows, ``other`` in the rest."""
        tokens = torch.where(chosen[:, None, None], self.tokens, other.tokens)
        if self.pooled is None or other.pooled is None:
            return Texts(tokens)
        return Texts(tokens, torch.where(chosen[:, None], self.pooled, other.pooled))

    def zeros(self) -> "Texts":
        """As many rows that say nothing."""
        return Texts(torch.zeros_like(self.tokens), None if self.pooled is None else torch.zeros_like(self.pooled))

    @staticmethod
    def cat(parts: Sequence["Texts"]) -> "Texts":
        """The rows of all, one behind the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Texts(torch.cat([part.tokens for part in parts]), torch.cat(pooled) if pooled else None)
