"""What a round learns from, moved to the device once where it fits: a step then waits for no transfer."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.models.text import PromptEncoder

MOST_BYTES = 2**27
"""What pictures and texts of a round may take on the device: 128 MiB are 500 latents of 1024 pixels, or 500 captions of
Stable Diffusion 1.x in half precision. What takes more is moved batch by batch."""


def onto(tensor: Tensor, device: torch.device) -> Tensor:
    """On ``device``, without waiting for what a GPU is at: from memory that does not move meanwhile."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@final
class Resident:
    """Room on ``device`` for what a round learns from, of ``most`` bytes; who asks first is served first."""

    def __init__(self, device: torch.device, most: int = MOST_BYTES) -> None:
        self.device, self._left = device, most
        self._texts: dict[str, Texts] = {}

    def tensors(self, held: Sequence[Tensor]) -> list[Tensor]:
        """All of them on the device; where they do not fit, as they were."""
        size = sum(one.nbytes for one in held)
        if size > self._left:
            return list(held)
        self._left -= size
        return [one.to(self.device) for one in held]

    def take(self, prompts: PromptEncoder, texts: Sequence[str]) -> None:
        """Keep what ``prompts`` says of these texts on the device, if all of it fits."""
        wanted = list(dict.fromkeys(texts))
        prompts.remember(wanted)  # text encoders that wait in main memory are fetched once
        found: dict[str, Texts] = {}
        left = self._left
        for text in wanted:
            found[text] = prompts([text])
            left -= found[text].nbytes
            if left < 0:
                return
        self._texts, self._left = found, left

    def texts(self, prompts: PromptEncoder, texts: Sequence[str]) -> Texts:
        """As ``prompts`` says them, without a transfer where they are here."""
        if all(text in self._texts for text in texts):
            return Texts.cat([self._texts[text] for text in texts])
        return prompts(texts)
