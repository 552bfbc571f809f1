"""Small random models in the exact formats of Stable Diffusion, for tests and for trying a recipe out in seconds."""

from pathlib import Path
from typing import Any, Literal

import torch

from raftdiff.diffusion.models.quiet import quietly

Kind = Literal["sd15", "sd21", "sd21_zero_snr"]
TOKENS = 16
"""The tiny tokenizer's limit; 77 in the real ones."""


def write_folder(folder: Path, kind: Kind, seed: int = 0) -> Path:
    """A diffusers folder. Pictures are 16 px, latents 4x8x8.

    ``sd15`` predicts epsilon; ``sd21`` v, with linear projections and an OpenCLIP-like text encoder, and like the
    published one its schedule keeps a trace of the picture at its end; ``sd21_zero_snr`` is the same tuned to a
    zero-terminal-SNR schedule (arXiv:2305.08891).
    """
    import diffusers

    pipeline = diffusers.StableDiffusionPipeline(
        **components(kind, seed), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    with quietly():
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def write_single_file(path: Path, kind: Kind, seed: int = 0) -> Path:
    """The same weights in one file under the original names: .safetensors or .ckpt by the path's ending."""
    from safetensors.torch import save_file

    from raftdiff.diffusion.models.ldm import single_file

    made = components(kind, seed)
    weights = single_file(made["unet"], made["vae"], made["text_encoder"], open_clip=kind != "sd15")
    if path.suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    return path


def components(kind: Kind, seed: int = 0) -> dict[str, Any]:
    """The five parts of a tiny pipeline, random but for the seed."""
    import diffusers
    import transformers

    large = kind != "sd15"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=(2, 4) if large else 4,
            use_linear_projection=large,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(32, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            sample_size=16,
        )
        text_encoder = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=TOKENS,
                vocab_size=514,
                hidden_act="gelu" if large else "quick_gelu",
                bos_token_id=512,
                eos_token_id=513,
                pad_token_id=0 if large else 513,
            )
        )
    return {
        "unet": unet.eval(),
        "vae": vae.eval(),
        "text_encoder": text_encoder.eval(),
        "tokenizer": _tokenizer(large),
        "scheduler": _scheduler(kind),
    }


def _tokenizer(large: bool) -> Any:
    from transformers import CLIPTokenizer

    from raftdiff.diffusion.models.single_file import byte_symbols

    words = [symbol + end for end in ("", "</w>") for symbol in byte_symbols()]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[], pad_token="!" if large else "<|endoftext|>", model_max_length=TOKENS
    )


def _scheduler(kind: Kind) -> Any:
    import diffusers

    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if kind == "sd15":
        return diffusers.PNDMScheduler(**common, skip_prk_steps=True)
    zero = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if kind == "sd21_zero_snr" else {}
    return diffusers.DDIMScheduler(
        **common, **zero, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
    )
