"""Qwen3 and its tokenizer, small."""

from typing import Any

from raftdiff.diffusion.families.shared.vocabulary import byte_symbols

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""What Qwen3's makes of a user's turn."""


def qwen3(width: int, layers: int) -> Any:
    """Says ``width`` numbers of a token."""
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=256 + len(MARKS),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    return transformers.Qwen3ForCausalLM(config)


def qwen3_tokenizer() -> Any:
    """Of bytes alone."""
    import transformers

    vocabulary = {symbol: place for place, symbol in enumerate(byte_symbols())}
    made = transformers.Qwen2TokenizerFast(vocab=vocabulary, merges=[], chat_template=TEMPLATE)
    made.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    return made
