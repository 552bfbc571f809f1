"""Captions to embeddings, each encoded once."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.texts import Texts
from raftdiff.training.devices import Idle

CAPACITY = 4096
"""Embeddings kept; at SD 1.x's size, in float16, half a gigabyte, at SDXL's three times that."""


@final
class PromptEncoder:
    """A family's text encoders behind a cache.

    Every text is encoded in a batch of its own, so that its embedding, to the last bit, does not depend on which other
    texts were asked for: a resumed run encodes fewer texts and must draw the same pictures. Texts longer than what
    tokenizer and text encoder both allow (77 tokens for Stable Diffusion) are cut there, as every pipeline does.
    """

    def __init__(self, family: Family, modules: Mapping[str, Any], idle: Idle, device: torch.device) -> None:
        """``idle``: which text encoders wait in main memory; ``device``: where embeddings are wanted, wherever they
        are."""
        self._family, self._modules, self._idle, self._device = family, modules, idle, device
        self._cache: dict[str, Texts] = {}

    @property
    def token_limit(self) -> int | None:
        """Tokens of a text that are read, begin and end included."""
        return self._family.token_limit(self._modules)

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Embeddings without gradient, in the text encoders' dtype."""
        self.remember(texts)
        return Texts.cat([self._cache[text] for text in texts])

    def remember(self, texts: Sequence[str]) -> None:
        """Encode those that are not known yet: text encoders that wait in main memory are then fetched once."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if len(self._cache) + len(missing) > CAPACITY:
            self._cache.clear()
            missing = list(dict.fromkeys(texts))[-CAPACITY:]
        if not missing:
            return
        encoders = [self._modules[encoder] for encoder, _ in self._family.tokenizers.values()]
        with self._idle.fetched(*encoders), torch.no_grad():
            for text in missing:
                self._cache[text] = self.encode([text])

    def encode(self, texts: Sequence[str]) -> Texts:
        """Embeddings as the text encoders give them now: not cached, and with gradient where one is being recorded."""
        return self._family.encode(self._modules, texts).to(device=self._device)

    def reads_whole(self, text: str) -> bool:
        """Whether all of a text is read."""
        limit = self.token_limit
        return limit is None or self._family.tokens(self._modules, text) <= limit

    def clear(self) -> None:
        """Forget everything; to be called when a text encoder has changed."""
        self._cache.clear()
