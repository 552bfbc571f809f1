"""T5's encoder and its tokenizer, small."""

from typing import Any


def t5_encoder(width: int) -> Any:
    """Says ``width`` numbers of a token."""
    import transformers

    config = transformers.T5Config(
        vocab_size=260,
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5EncoderModel(config)


def t5_tokenizer(limit: int | None = None) -> Any:
    """A unigram model of letters, each of one weight, that reads ``limit`` tokens."""
    import transformers

    letters = ["<pad>", "</s>", "<unk>", "▁", *(chr(code) for code in range(33, 127))]
    filling = [f"▁{letter}" for letter in letters[4:]] + [f"<{place}>" for place in range(68)]
    return transformers.T5TokenizerFast(
        vocab=[(piece, 0.0 if place < 3 else -1.0) for place, piece in enumerate([*letters, *filling])],
        extra_ids=0,
        **({} if limit is None else {"model_max_length": limit}),
    )
