"""Captions to embeddings, each encoded once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.models.kept import Kept
from raftdiff.training.devices import Idle

CAPACITY = 4 * 2**30
"""Bytes of embeddings kept, in main memory: in half precision 36,000 texts of SD 1.x, or 540 of FLUX.2 klein."""


@final
class PromptEncoder:
    """A family's text encoders behind a cache.

    Every text is encoded in a batch of its own, so that its embedding, to the last bit, does not depend on which other
    texts were asked for: a resumed run encodes fewer texts and must draw the same pictures. Texts longer than what
    tokenizer and text encoder both allow (77 tokens for Stable Diffusion) are cut there, as every pipeline does.
    """

    def __init__(
        self,
        family: Family,
        modules: Mapping[str, Any],
        idle: Idle,
        device: torch.device,
        *,
        kept: Kept | None = None,
        fill: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            idle: which text encoders wait in main memory.
            device: where embeddings are wanted, wherever they are.
            kept: embeddings on disk, of earlier runs too.
            fill: reads the text encoders' weights, where they were left on disk until somebody asks.
        """
        self.kept, self._fill = kept, fill
        self._family, self._modules, self._idle, self._device = family, modules, idle, device
        self._there = torch.device("cpu") if device.type == "cuda" else device
        self._cache: dict[str, Texts] = {}
        self._bytes = 0

    @property
    def token_limit(self) -> int | None:
        """Tokens of a text that are read, begin and end included."""
        return self._family.token_limit(self._modules)

    def __call__(self, texts: Sequence[str]) -> Texts:
        """Embeddings without gradient, in the text encoders' dtype."""
        self._learn(texts, None)
        return Texts.cat([self._cache[text] for text in texts]).to(device=self._device)

    def remember(self, texts: Sequence[str]) -> None:
        """Encode those that are not known yet, as many as are kept: text encoders that wait in main memory are then
        fetched once."""
        self._learn(texts, CAPACITY)

    def _learn(self, texts: Sequence[str], most: int | None) -> None:
        """Encode what is not known yet, until so many bytes are held; too many others are forgotten first."""
        wanted = dict.fromkeys(texts)
        missing = [text for text in wanted if text not in self._cache]
        if not missing:
            return
        if self._bytes > CAPACITY:
            self._cache = {text: self._cache[text] for text in wanted if text in self._cache}
            self._bytes = sum(held.nbytes for held in self._cache.values())
        kept, unread = self.kept, missing
        if kept is not None:
            unread = []
            for text in missing:
                if most is not None and self._bytes > most:
                    return
                if (said := kept.read(text)) is None:
                    unread.append(text)
                else:
                    self._hold(text, said)
        if unread:
            self._read(unread, most)

    def _read(self, texts: Sequence[str], most: int | None) -> None:
        """Ask the text encoders."""
        self.load()
        encoders = [self._modules[encoder] for encoder, _ in self._family.tokenizers.values()]
        with self._idle.fetched(*encoders), torch.no_grad():
            for text in texts:
                if most is not None and self._bytes > most:
                    break
                said = self.encode([text])
                self._hold(text, said)
                if self.kept is not None:
                    self.kept.write(text, said)
        if self.kept is not None:
            self.kept.trim()

    def _hold(self, text: str, said: Texts) -> None:
        self._cache[text] = said.to(device=self._there)
        self._bytes += said.nbytes

    def load(self) -> None:
        """Read the text encoders' weights, where they were left on disk until somebody asks; for whoever saves them."""
        self._fill()

    def own(self) -> None:
        """Keep nothing on disk from now on; for whoever changes the text encoders."""
        self.load()
        self.kept = None

    def encode(self, texts: Sequence[str]) -> Texts:
        """Embeddings as the text encoders give them now: not cached, and with gradient where one is being recorded."""
        return self._family.encode(self._modules, texts).to(device=self._device)

    def reads_whole(self, text: str) -> bool:
        """Whether all of a text is read."""
        limit = self.token_limit
        return limit is None or self._family.tokens(self._modules, text) <= limit

    def clear(self) -> None:
        """Forget everything; to be called when a text encoder has changed."""
        self._cache, self._bytes = {}, 0
