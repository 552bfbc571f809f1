"""Small random models in the exact formats of the families, for tests and for trying a recipe out in seconds."""

from pathlib import Path
from typing import Any, Literal

import torch

from raftdiff.diffusion.families.family import Family
from raftdiff.diffusion.families.sd import StableDiffusion
from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.models.quiet import quietly

Kind = Literal["sd15", "sd21", "sd21_zero_snr", "sdxl"]
TOKENS = 16
"""The tiny tokenizer's limit; 77 in the real ones."""


def write_folder(folder: Path, kind: Kind, seed: int = 0) -> Path:
    """A diffusers folder. Pictures are 16 px, latents 4x8x8.

    ``sd15`` predicts epsilon; ``sd21`` v, with linear projections and an OpenCLIP-like text encoder, and like the
    published one its schedule keeps a trace of the picture at its end; ``sd21_zero_snr`` is the same tuned to a
    zero-terminal-SNR schedule (arXiv:2305.08891). ``sdxl`` has two text encoders and is told sizes; it predicts
    epsilon.
    """
    import diffusers

    family = of(kind)
    pipeline = getattr(diffusers, family.pipeline)(**components(kind, seed), **family.pipeline_arguments())
    with quietly():
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def write_single_file(path: Path, kind: Kind, seed: int = 0) -> Path:
    """The same weights in one file under the original names: .safetensors or .ckpt by the path's ending."""
    from safetensors.torch import save_file

    weights = {name: weight.contiguous() for name, weight in of(kind).single_file(components(kind, seed)).items()}
    if path.suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    return path


def of(kind: Kind) -> Family:
    """The family that a kind belongs to."""
    return StableDiffusionXL() if kind == "sdxl" else StableDiffusion()


def components(kind: Kind, seed: int = 0) -> dict[str, Any]:
    """The parts of a tiny pipeline, random but for the seed."""
    import diffusers

    large, xl = kind != "sd15", kind == "sdxl"
    first, second = ("DownBlock2D", "CrossAttnDownBlock2D") if xl else ("CrossAttnDownBlock2D", "DownBlock2D")
    told = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "transformer_layers_per_block": (1, 2),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=(first, second),
            up_block_types=(second.replace("Down", "Up"), first.replace("Down", "Up")),
            layers_per_block=1,
            cross_attention_dim=32 + 48 if xl else 32,
            attention_head_dim=(2, 4) if large else 4,
            use_linear_projection=large,
            **(told if xl else {}),
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
            **({"scaling_factor": 0.13025} if xl else {}),
        )
        parts = {
            "unet": unet,
            "vae": vae,
            "text_encoder": _text_encoder("CLIPTextModel", 32, open_clip=large and not xl),
        }
        if xl:
            parts["text_encoder_2"] = _text_encoder("CLIPTextModelWithProjection", 48, open_clip=True)
    tokenizers = {"tokenizer": _tokenizer(large and not xl)} | ({"tokenizer_2": _tokenizer(True)} if xl else {})
    return {**{name: part.eval() for name, part in parts.items()}, **tokenizers, "scheduler": _scheduler(kind)}


def _text_encoder(kind: str, width: int, *, open_clip: bool) -> Any:
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


def _tokenizer(large: bool) -> Any:
    from transformers import CLIPTokenizer

    from raftdiff.diffusion.families.vocabulary import byte_symbols

    words = [symbol + end for end in ("", "</w>") for symbol in byte_symbols()]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[], pad_token="!" if large else "<|endoftext|>", model_max_length=TOKENS
    )


def _scheduler(kind: Kind) -> Any:
    import diffusers

    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if kind == "sdxl":
        return diffusers.EulerDiscreteScheduler(**common, timestep_spacing="leading")
    if kind == "sd15":
        return diffusers.PNDMScheduler(**common, skip_prk_steps=True)
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if kind == "sd21_zero_snr" else {}
    return diffusers.DDIMScheduler(
        **common, **zero, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
    )
