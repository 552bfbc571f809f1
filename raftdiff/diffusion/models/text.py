"""Captions to embeddings, each encoded once."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float, Int

from raftdiff.training.tokenizers import longest

CAPACITY = 4096
"""Embeddings kept; at SD 1.x's size, in float16, half a gigabyte."""


@final
class PromptEncoder:
    """The text encoder behind a cache.

    Every text is encoded in a batch of its own, so that its embedding, to the last bit, does not depend on which other
    texts were asked for: a resumed run encodes fewer texts and must draw the same pictures. Texts longer than what
    tokenizer and text encoder both allow (77 tokens for SD) are cut there, as every Stable Diffusion pipeline does.
    """

    def __init__(self, tokenizer: Any, text_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder
        self.token_limit = longest(tokenizer, text_encoder.config)
        """Tokens of a text, begin and end included."""
        self._cache: dict[str, Float[torch.Tensor, "tokens width"]] = {}

    def __call__(self, texts: Sequence[str]) -> Float[torch.Tensor, "texts tokens width"]:
        """Embeddings without gradient, on the text encoder's device and in its dtype."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        if len(self._cache) + len(missing) > CAPACITY:
            self._cache.clear()
            missing = list(dict.fromkeys(texts))
        for text in missing:
            with torch.no_grad():
                self._cache[text] = self.encode([text])[0]
        return torch.stack([self._cache[text] for text in texts])

    def encode(self, texts: Sequence[str]) -> Float[torch.Tensor, "texts tokens width"]:
        """Embeddings as the text encoder gives them now: not cached, and with gradient where one is being recorded."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.token_limit,
            truncation=True,
            return_tensors="pt",
        )
        device = next(self.text_encoder.parameters()).device
        mask: Int[torch.Tensor, "texts tokens"] | None = None
        if getattr(self.text_encoder.config, "use_attention_mask", False):
            mask = tokens.attention_mask.to(device)
        embeddings: torch.Tensor = self.text_encoder(tokens.input_ids.to(device), attention_mask=mask)[0]
        return embeddings

    def reads_whole(self, text: str) -> bool:
        """Whether all of a text is read."""
        return self.token_limit is None or len(self.tokenizer(text, verbose=False).input_ids) <= self.token_limit

    def clear(self) -> None:
        """Forget everything; to be called when the text encoder has changed."""
        self._cache.clear()
