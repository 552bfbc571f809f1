"""The small CLIP tokenizer of scene-sd: a byte-pair vocabulary learnt from the words of this world."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from raftdiff.embedded.scenes.world import (
    COLOURS,
    GROUNDS,
    HIGH_QUALITY,
    LOW_QUALITY,
    NUMBERS,
    OBJECTS,
    PLURALS,
    RELATIONS,
    SIZES,
    STYLES,
)
from raftdiff.embedded.tokens import WORD_END, word_tokenizer

LENGTH = 28
"""Tokens in a prompt, start and end among them; the longest caption with a remark on quality fits."""


def build_tokenizer() -> Any:
    """A ``transformers.CLIPTokenizer``, the same every time. A caption's word is one token; others are spelt out."""
    return word_tokenizer(words(), LENGTH)


def words() -> list[str]:
    """Every word of every caption once, sorted."""
    plurals = [PLURALS.get(name, name + "s") for name in OBJECTS]
    lists = (OBJECTS, plurals, STYLES, COLOURS, GROUNDS, SIZES, RELATIONS, NUMBERS)
    texts = [word for names in lists for word in names] + ["a an and on background", HIGH_QUALITY, LOW_QUALITY]
    return sorted({word for text in texts for word in re.findall(r"[a-z]+", text)})


def tokenise(tokenizer: Any, texts: Sequence[str]) -> Int64[Tensor, "texts tokens"]:
    """What the pipeline makes of these texts."""
    ids: Tensor = tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def tokenise_captions(tokenizer: Any, captions: Sequence[str]) -> Int64[Tensor, "captions tokens"]:
    """The same for captions of this world, by looking up whole words: fast enough for a million.

    Raises:
        RuntimeError: the tokenizer says otherwise of one of the first captions.
    """
    vocabulary = tokenizer.get_vocab()
    table = {word: vocabulary[word + WORD_END] for word in [*words(), ","]}
    rows = []
    for caption in captions:
        ids = [tokenizer.bos_token_id, *(table[word] for word in caption.replace(",", " ,").split())]
        rows.append([*ids, *[tokenizer.eos_token_id] * (LENGTH - len(ids))])
    found = torch.tensor(rows, dtype=torch.long)
    if not torch.equal(found[:64], tokenise(tokenizer, captions[:64])):
        raise RuntimeError("This version of transformers tokenises captions otherwise than word by word.")
    return found
