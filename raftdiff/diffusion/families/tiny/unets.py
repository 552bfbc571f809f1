"""Stable Diffusion 1.x, 2.x and XL. Pictures are 16 px, latents 4x8x8."""

from typing import Any

from raftdiff.diffusion.families.tiny.clip import text_encoder, tokenizer


def sd15() -> dict[str, Any]:
    """Predicts epsilon."""
    import diffusers

    parts = _parts(large=False) | {"text_encoder": text_encoder("CLIPTextModel", 32, open_clip=False)}
    scheduler = diffusers.PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    return {**parts, "tokenizer": tokenizer(open_clip=False), "scheduler": scheduler}


def sd21() -> dict[str, Any]:
    """Predicts v, with linear projections and an OpenCLIP-like text encoder; like the published one its schedule keeps
    a trace of the picture at its end."""
    return _second({})


def sd21_zero_snr() -> dict[str, Any]:
    """The same, tuned to a zero-terminal-SNR schedule (arXiv:2305.08891)."""
    return _second({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"})


def sdxl() -> dict[str, Any]:
    """Two text encoders, and sizes are told; predicts epsilon."""
    import diffusers

    first, second = "text_encoder", "text_encoder_2"
    parts = _parts(large=True, xl=True) | {
        first: text_encoder("CLIPTextModel", 32, open_clip=False),
        second: text_encoder("CLIPTextModelWithProjection", 48, open_clip=True),
    }
    tokenizers = {"tokenizer": tokenizer(open_clip=False), "tokenizer_2": tokenizer(open_clip=True)}
    scheduler = diffusers.EulerDiscreteScheduler(**SCHEDULE, timestep_spacing="leading")
    return {**parts, **tokenizers, "scheduler": scheduler}


def sdxl_turbo() -> dict[str, Any]:
    """The same with the scheduler of SDXL Turbo."""
    import diffusers

    scheduler = diffusers.EulerAncestralDiscreteScheduler(**SCHEDULE, timestep_spacing="trailing")
    return {**sdxl(), "scheduler": scheduler}


SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _second(schedule: dict[str, Any]) -> dict[str, Any]:
    import diffusers

    parts = _parts(large=True) | {"text_encoder": text_encoder("CLIPTextModel", 32, open_clip=True)}
    scheduler = diffusers.DDIMScheduler(
        **SCHEDULE, **schedule, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False
    )
    return {**parts, "tokenizer": tokenizer(open_clip=True), "scheduler": scheduler}


def _parts(*, large: bool, xl: bool = False) -> dict[str, Any]:
    """U-Net and VAE."""
    import diffusers

    first, second = ("DownBlock2D", "CrossAttnDownBlock2D") if xl else ("CrossAttnDownBlock2D", "DownBlock2D")
    told = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 24 + 6 * 8,
        "transformer_layers_per_block": (1, 2),
    }
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
    return {"unet": unet, "vae": vae(4, **({"scaling_factor": 0.13025} if xl else {}))}


def vae(channels: int, **changes: Any) -> Any:
    """An AutoencoderKL that halves a picture's sides once."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        sample_size=16,
        **changes,
    )
