"""Captions to embeddings, each encoded once."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.texts import Texts
from raftdiff.training.tokenizers import longest

CAPACITY = 4096
"""Embeddings kept; at SD 1.x's size, in float16, half a gigabyte, at SDXL's three times that."""


@final
class PromptEncoder:
    """A family's text encoders behind a cache.

    Every text is encoded in a batch of its own, so that its embedding, to the last bit, does not depend on which other
    texts were asked for: a resumed run encodes fewer texts and must draw the same pictures. Texts longer than what
    tokenizer and text encoder both allow (77 tokens for Stable Diffusion) are cut there, as every pipeline does.
    """

    def __init__(self, family: Family, modules: Mapping[str, Any]) -> None:
        self._family, self._modules = family, modules
        self._limits = {
            name: longest(modules[name], modules[encoder].config) for name, encoder in family.tokenizers.items()
        }
        self._first = next(iter(self._limits))
        self._cache: dict[str, Texts] = {}

    @property
    def tokenizer(self) -> Any:
        """The first one."""
        return self._modules[self._first]

    @property
    def token_limit(self) -> int | None:
        """Tokens of a text, begin and end included, of the first text encoder."""
        return self._limits[self._first]

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Embeddings without gradient, on the text encoders' device and in their dtype."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if len(self._cache) + len(missing) > CAPACITY:
            self._cache.clear()
            missing = list(dict.fromkeys(texts))
        for text in missing:
            with torch.no_grad():
                self._cache[text] = self.encode([text])
        return Texts.cat([self._cache[text] for text in texts])

    def encode(self, texts: Sequence[str]) -> Texts:
        """Embeddings as the text encoders give them now: not cached, and with gradient where one is being recorded."""
        tokens = {
            name: self._modules[name](
                list(texts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            ).to(next(self._modules[self._family.tokenizers[name]].parameters()).device)
            for name, limit in self._limits.items()
        }
        return self._family.encode(self._modules, tokens, texts)

    def reads_whole(self, text: str) -> bool:
        """Whether all of a text is read."""
        return self.token_limit is None or len(self.tokenizer(text, verbose=False).input_ids) <= self.token_limit

    def clear(self) -> None:
        """Forget everything; to be called when a text encoder has changed."""
        self._cache.clear()
