"""Published models by their hub ids, without their numbers: their sizes are known in code, so that counting needs no
network and, for those that ask for one, no login.

Sizes are those of the configs at huggingface.co; those of networks that are not named here are the defaults of their
classes. What a tokenizer is asked for is how many tokens it makes of a text, which the families fill up.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from raftdiff.diffusion.families import flux, sd3, zimage
from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.flux import Flux
from raftdiff.diffusion.families.flux2 import Flux2Klein
from raftdiff.diffusion.families.sana import Sana
from raftdiff.diffusion.families.sd3 import StableDiffusion3
from raftdiff.diffusion.families.shared import unet
from raftdiff.diffusion.families.shared.vocabulary import byte_symbols, clip_tokenizer
from raftdiff.diffusion.families.tiny.qwen3 import MARKS, TEMPLATE
from raftdiff.diffusion.families.zimage import ZImage

Made = tuple[Family, dict[str, Any]]


def published(name: str) -> Made | None:
    """The family and the parts of the model with this hub id, on the meta device; None for one that is not known."""
    made = KNOWN.get(name)
    if made is None:
        return None
    with torch.device("meta"):
        return made()


def _sd35_medium() -> Made:
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        num_layers=24,
        num_attention_heads=24,
        caption_projection_dim=1536,
        pos_embed_max_size=384,
        qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    )
    return StableDiffusion3(), {
        "transformer": transformer,
        "vae": diffusers.AutoencoderKL(**_sizes(sd3.VAE)),
        "text_encoder": _clip("CLIPTextModelWithProjection", 768, 12),
        "text_encoder_2": _clip("CLIPTextModelWithProjection", 1280, 32),
        "text_encoder_3": _t5(),
        "tokenizer": clip_tokenizer("<|endoftext|>"),
        "tokenizer_2": clip_tokenizer("!"),
        "tokenizer_3": _t5_tokenizer(),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0),
    }


def _flux_dev() -> Made:
    import diffusers

    return Flux(), {
        "transformer": diffusers.FluxTransformer2DModel(guidance_embeds=True),
        "vae": diffusers.AutoencoderKL(**_sizes(flux.VAE)),
        "text_encoder": _clip("CLIPTextModel", 768, 12),
        "text_encoder_2": _t5(),
        "tokenizer": clip_tokenizer("<|endoftext|>"),
        "tokenizer_2": _t5_tokenizer(),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True),
    }


def _klein_4b(*, distilled: bool) -> Made:
    import diffusers

    transformer = diffusers.Flux2Transformer2DModel(
        num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=3 * 2560, guidance_embeds=False
    )
    return Flux2Klein(distilled=distilled), {
        "transformer": transformer,
        "vae": diffusers.AutoencoderKLFlux2(),
        "text_encoder": _qwen3_4b("Qwen3ForCausalLM"),
        "tokenizer": _qwen3_tokenizer(),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=3.0, use_dynamic_shifting=True),
    }


def _zimage() -> Made:
    import diffusers

    return ZImage(), {
        "transformer": diffusers.ZImageTransformer2DModel(axes_lens=[1536, 512, 512]),
        "vae": diffusers.AutoencoderKL(**_sizes(zimage.VAE)),
        "text_encoder": _qwen3_4b("Qwen3Model"),
        "tokenizer": _qwen3_tokenizer(),
        "scheduler": _scheduler("FlowMatchEulerDiscreteScheduler", shift=6.0),
    }


def _sana() -> Made:
    """1.6B at 1024 px; see diffusers' ``scripts/convert_sana_to_diffusers.py``."""
    import diffusers
    import transformers

    blocks = ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3
    vae = diffusers.AutoencoderDC(
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        upsample_block_type="interpolate",
        downsample_block_type="Conv",
        scaling_factor=0.41407,
    )
    config = transformers.Gemma2Config()  # of 2B
    return Sana(), {
        "transformer": diffusers.SanaTransformer2DModel(),
        "vae": vae,
        "text_encoder": transformers.Gemma2Model(config),
        "tokenizer": _gemma_tokenizer(config.vocab_size),
        "scheduler": _scheduler(
            "DPMSolverMultistepScheduler", use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
        ),
    }


KNOWN: Mapping[str, Callable[[], Made]] = {
    "stabilityai/stable-diffusion-3.5-medium": _sd35_medium,
    "black-forest-labs/FLUX.1-dev": _flux_dev,
    "black-forest-labs/FLUX.2-klein-base-4B": lambda: _klein_4b(distilled=False),
    "black-forest-labs/FLUX.2-klein-4B": lambda: _klein_4b(distilled=True),
    "Tongyi-MAI/Z-Image": _zimage,
    "Tongyi-MAI/Z-Image-Turbo": _zimage,
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": _sana,
}


def _scheduler(kind: str, **settings: Any) -> Any:
    """With numbers, as every scheduler."""
    import diffusers

    with torch.device("cpu"):
        return getattr(diffusers, kind)(**settings)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _clip(kind: str, width: int, layers: int) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        **_sizes(unet.TEXT),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
    )
    return getattr(transformers, kind)(config)


def _t5() -> Any:
    """T5 v1.1 XXL, its half that reads."""
    import transformers

    config = transformers.T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(config)


def _qwen3_4b(kind: str) -> Any:
    import transformers

    config = transformers.Qwen3Config(
        vocab_size=151936,
        hidden_size=2560,
        intermediate_size=9728,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    return getattr(transformers, kind)(config)


def _t5_tokenizer() -> Any:
    import transformers

    pieces = ["<pad>", "</s>", "<unk>", "▁", *(f"<{place}>" for place in range(32100 - 4))]
    vocabulary = [(piece, -1.0) for piece in pieces]
    return transformers.T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _qwen3_tokenizer() -> Any:
    """Of bytes, its other words empty."""
    import transformers

    pieces = [*byte_symbols(), *(f"<{place}>" for place in range(151643 - 256))]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    made = transformers.Qwen2TokenizerFast(vocab=vocabulary, merges=[], chat_template=TEMPLATE)
    made.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    return made


def _gemma_tokenizer(rows: int) -> Any:
    import transformers

    marks = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*marks, *(f"<{place}>" for place in range(rows - len(marks)))]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    return transformers.GemmaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True, padding_side="left")
