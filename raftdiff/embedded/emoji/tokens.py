"""The small CLIP tokenizer of emoji-sd: a byte-pair vocabulary learnt from the words of this world."""

import re
from typing import Any

from raftdiff.embedded.emoji.world import HIGH_QUALITY, LOW_QUALITY, all_concepts
from raftdiff.embedded.tokens import word_tokenizer

LENGTH = 24
"""Tokens in a prompt, start and end among them; the longest caption with a remark on quality fits."""


def build_tokenizer() -> Any:
    """A ``transformers.CLIPTokenizer``, the same every time. A caption's word is one token; others are spelt out."""
    return word_tokenizer(caption_words(), LENGTH)


def caption_words() -> list[str]:
    """Every word of every caption once, sorted."""
    texts = [concept.caption for concept in all_concepts()] + [HIGH_QUALITY, LOW_QUALITY]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text)})
