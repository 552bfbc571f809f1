"""A small random Sana."""

import string
from typing import Any

WIDTH = 16
"""Of the text encoder."""
CHANNELS = 4
"""Of the latents."""


def whole() -> dict[str, Any]:
    """The parts of the pipeline: pictures of 32 pixels, 4 a latent position."""
    import diffusers

    return {
        "tokenizer": tokenizer(),
        "text_encoder": text_encoder(),
        "transformer": transformer(),
        "vae": vae(),
        "scheduler": diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
    }


def tokenizer() -> Any:
    """Gemma's, of single letters; filled up in front, as the published one is saved."""
    from transformers import GemmaTokenizer

    letters = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *string.ascii_lowercase, *string.punctuation]
    vocabulary = {letter: place for place, letter in enumerate(letters)}
    return GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, padding_side="left")


def text_encoder() -> Any:
    """Two layers, of which the first looks at a window only, as Gemma 2's turn about."""
    from transformers import Gemma2Config, Gemma2Model

    config = Gemma2Config(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        sliding_window=8,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config)


def transformer() -> Any:
    import diffusers

    return diffusers.SanaTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )


def vae() -> Any:
    """Of three levels, one of them with attention, where the published one has six and three."""
    import diffusers

    return diffusers.AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(4, 8, 8),
        decoder_block_out_channels=(4, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
