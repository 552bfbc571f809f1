"""CLIP's text encoders and their tokenizers, small."""

from typing import Any

from raftdiff.diffusion.families.shared.vocabulary import byte_symbols

TOKENS = 16
"""The tiny tokenizer's limit; 77 in the real ones."""


def text_encoder(kind: str, width: int, *, open_clip: bool) -> Any:
    """One of ``kind``, a class of transformers."""
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        vocab_size=514,
        hidden_act="gelu" if open_clip else "quick_gelu",
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=0 if open_clip else 513,
        **({"projection_dim": 24} if kind == "CLIPTextModelWithProjection" else {}),
    )
    return getattr(transformers, kind)(config)


def tokenizer(*, open_clip: bool) -> Any:
    """Of bytes alone."""
    from transformers import CLIPTokenizer

    words = [symbol + end for end in ("", "</w>") for symbol in byte_symbols()]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[], pad_token="!" if open_clip else "<|endoftext|>", model_max_length=TOKENS
    )
