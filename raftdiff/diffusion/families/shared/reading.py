"""Captions to tokens."""

import re
from collections.abc import Sequence
from itertools import count, takewhile
from typing import Any

from raftdiff.diffusion.families.family import Modules
from raftdiff.training.tokenizers import longest


def tokenised(modules: Modules, tokenizer: str, encoder: str, captions: Sequence[str], limit: int | None) -> Any:
    """What a tokenizer makes of captions, each filled or cut to ``limit``, on the text encoder's device."""
    read = modules[tokenizer](
        [spelled(modules[tokenizer], caption) for caption in captions],
        padding="max_length",
        padding_side="right",
        max_length=limit,
        truncation=True,
        return_tensors="pt",
    )
    return read.to(next(modules[encoder].parameters()).device)


def spelled(tokenizer: Any, caption: str) -> str:
    """A caption with all the tokens of each word that was added as several vectors: ``<cat>`` as ``<cat> <cat>_1``.

    As diffusers' ``maybe_convert_prompt`` does, but for capitals and words within words, as the tokenizer finds them.
    """
    added = tokenizer.added_tokens_encoder
    several = {word for word in added if f"{word}_1" in added}
    if not several:
        return caption
    whole = {
        word.lower(): " ".join([word, *takewhile(added.__contains__, (f"{word}_{number}" for number in count(1)))])
        for word in several
    }
    longest_first = sorted(added, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(word) for word in longest_first), re.IGNORECASE)
    return pattern.sub(lambda found: whole.get(found[0].lower(), found[0]), caption)


def limit_of(modules: Modules, tokenizer: str, encoder: str) -> int | None:
    """Tokens that both allow; None for no known limit."""
    return longest(modules[tokenizer], modules[encoder].config)


def tokens_in(tokenizer: Any, caption: str) -> int:
    """How many tokens a caption is, begin and end included."""
    return len(tokenizer(spelled(tokenizer, caption), verbose=False).input_ids)


def user_turn(tokenizer: Any, caption: str, *, thinking: bool) -> str:
    """A caption as a user's turn in a language model's own frame, behind which an answer would begin.

    Args:
        thinking: whether with thoughts, as Qwen3's frame can say.
    """
    told: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=thinking
    )
    return told
