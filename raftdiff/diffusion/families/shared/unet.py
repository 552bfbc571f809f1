"""What the families with Stable Diffusion's U-Net share: its layers, its sizes, and how it is read from one file."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff.diffusion import process as processes
from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver
from raftdiff.diffusion.families.shared import ldm
from raftdiff.diffusion.families.shared.autoencoders import KL
from raftdiff.errors import UserError

NETWORKS = {
    "unet": Component("diffusers", "UNet2DConditionModel"),
    "vae": Component("diffusers", "AutoencoderKL"),
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLIP_LAYERS = dict.fromkeys(("text_encoder", "text_encoder_2"), ("q_proj", "k_proj", "v_proj", "out_proj"))
"""Of CLIP's text encoders, those that get a LoRA."""
LAYERS = Layers(
    attention=ATTENTION,
    everything=(
        *ATTENTION,
        "proj_in",
        "proj_out",
        "ff.net.0.proj",
        "ff.net.2",
        "conv1",
        "conv2",
        "conv_shortcut",
        "time_emb_proj",
        "downsamplers.0.conv",
        "upsamplers.0.conv",
    ),
    text=CLIP_LAYERS,
)
ALONE = ("time_cond_proj_dim", "addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
"""What a U-Net's config names where it must be told more than the text: a guidance, sizes, a class, a picture."""
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
"""The weight by which a U-Net is known in a single file."""
SIZES = "model.diffusion_model.label_emb.0.0.weight"
"""The weight by which a U-Net is known there that is told sizes."""
PICTURE_AND_MASK = 9
"""Channels that an inpainting model sees."""
UNREAD = ("first_stage_model.loss.", "first_stage_model.model_ema.")
"""What trainings of the VAE leave in single files: a critic, a moving average."""
BESIDE = ("cond_stage_model.", "conditioner.", "model_ema.", "embedding_manager.", "denoiser.", "vae.")
"""What else stands there under names with a dot; those without one are buffers of schedules, and marks."""
TEXT = {
    "model_type": "clip_text_model",
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 1,
}
"""What all of CLIP's text encoders have in common."""
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
}
SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}
"""Of every model of these families."""


def multiple(unet: Any) -> int:
    """The U-Net halves its input between blocks; what does not divide would be stretched back, which no model was
    trained on."""
    return int(2 ** (len(unet.config.block_out_channels) - 1))


def process(scheduler: Any, name: str) -> processes.Process:
    """DDPM's, by the schedule that the scheduler holds.

    Raises:
        UserError: it holds none, or the network predicts something else than epsilon and v.
    """
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"{name}: a {type(scheduler).__name__} has no noise schedule of Stable Diffusion's kind (alphas_cumprod); "
            "use the one that the model was trained with, such as a DDIMScheduler."
        )
    if (predicts := scheduler.config.get("prediction_type", "epsilon")) not in ("epsilon", "v_prediction"):
        raise UserError(f"{name}: this model predicts '{predicts}'; raftdiff knows epsilon and v_prediction.")
    return processes.diffusion(scheduler)


SOLVERS = {
    "dpm++": "DPMSolverMultistepScheduler",
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddpm": "DDPMScheduler",
    "unipc": "UniPCMultistepScheduler",
    "lcm": "LCMScheduler",
    "tcd": "TCDScheduler",
}
PATHS = ("ddim", "dpm++", "euler", "euler_a", "lcm", "tcd")
"""Those whose states are pictures under noise of a known level."""


def solvers(scheduler: Any) -> Mapping[str, Solver]:
    """Latents are not confined to [-1, 1]: a solver must not clip them, unless the model itself says so."""
    settings = {"clip_sample": scheduler.config.get("clip_sample", False)}
    return {name: Solver(kind, settings) for name, kind in SOLVERS.items()}


CONSISTENT = {
    "LCMScheduler": FewSteps("its LCMScheduler", 8, 2.0, "lcm"),
    "TCDScheduler": FewSteps("its TCDScheduler", 8, 8.0, "tcd"),
}
"""Schedulers that nothing else has: of latent consistency models (arXiv:2310.04378), whose model cards advise 2 to 8
steps and a guidance of at most 2, and of trajectory consistency (arXiv:2402.19159), Hyper-SD's among them, some of
which bear a guidance of 5 to 8."""
TRAILING = {"EulerAncestralDiscreteScheduler": 4, "EulerDiscreteScheduler": 8}
"""With trailing spacing, and epsilon on a schedule that does not end in pure noise, those of adversarially distilled
models, each with the most steps that there are forms for: SDXL Turbo (arXiv:2311.17042), SDXL-Lightning
(arXiv:2402.13929). Models of the usual kind come with leading spacing."""


def few_steps(scheduler: Any) -> FewSteps | None:
    """By the model's own scheduler alone: weights and networks are of one form with those of the usual models."""
    kind, config = type(scheduler).__name__, scheduler.config
    plain = config.get("prediction_type", "epsilon") == "epsilon" and not config.get("rescale_betas_zero_snr")
    if kind in TRAILING and plain and config.get("timestep_spacing") == "trailing":
        return FewSteps(f"the trailing spacing of its {kind}, as distilled models have it", TRAILING[kind], 1.0)
    return CONSISTENT.get(kind)


def size(modules: Modules) -> tuple[int, int] | None:
    """Height and width, in pixels, by the U-Net's ``sample_size``."""
    side = modules["unet"].config.sample_size
    if side is None:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    factor = KL().factor(modules["vae"])
    return int(height) * factor, int(width) * factor


def refuse_inpainting(shapes: Shapes, path: Path) -> None:
    """
    Raises:
        UserError: a single file's U-Net sees a picture and a mask beside the noise.
    """
    if shapes[FIRST][1] == PICTURE_AND_MASK:
        raise UserError(f"{path}: this is an inpainting checkpoint; raftdiff tunes text-to-image models.")


def check(modules: Modules, name: str, width: int, allowed: Iterable[str] = ()) -> None:
    """
    Args:
        width: of what the text encoders say of a token.
        allowed: which of ``ALONE`` the family knows how to tell.

    Raises:
        UserError: the U-Net does not go with the VAE or the text encoders, or must be told more.
    """
    unet, vae = modules["unet"], modules["vae"]
    for key in ALONE:
        if key not in allowed and (asked := unet.config.get(key)) is not None:
            distilled = " This is a latent consistency model (LCM)." if key == "time_cond_proj_dim" else ""
            raise UserError(
                f"{name}: its U-Net must be told more than the text ({key}: {asked}), which models of its family are "
                f"not told.{distilled} raftdiff tunes ordinary text-to-image models."
            )
    if unet.config.in_channels != vae.config.latent_channels:
        kind = "an inpainting model" if unet.config.in_channels == PICTURE_AND_MASK else "another kind of model"
        raise UserError(
            f"{name}: its U-Net takes {unet.config.in_channels} channels where the VAE makes "
            f"{vae.config.latent_channels}: this is {kind}; raftdiff tunes text-to-image models."
        )
    if unet.config.cross_attention_dim != width:
        raise UserError(
            f"{name}: its U-Net expects text embeddings of width {unet.config.cross_attention_dim}, the text encoder "
            f"makes {width}: these parts are not of one model."
        )


def converted(weights: Mapping[str, Tensor], configs: Path, part: str, dtype: torch.dtype) -> Any:
    """The U-Net or the VAE of a single file, whose weights have the original names, or diffusers' already."""
    import diffusers
    from diffusers.loaders import single_file_utils as original

    kind = getattr(diffusers, NETWORKS[part].kind)
    config = kind.load_config(str(configs), subfolder=part, local_files_only=True)
    with torch.device("meta"):
        model = kind.from_config(config)
    known, named = set(model.state_dict()), weights
    if not known <= set(weights):
        convert = {"unet": original.convert_ldm_unet_checkpoint, "vae": original.convert_ldm_vae_checkpoint}[part]
        named = convert(dict(weights), config=config)
    model.load_state_dict(named, strict=False, assign=True)
    whole = not any(tensor.is_meta for tensor in model.state_dict().values())
    return model.to(dtype) if whole else model


def networks(weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
    """The U-Net of a single file, and the VAE where there is one."""
    parts = ("unet", "vae") if any(name.startswith("first_stage_model.") for name in weights) else ("unet",)
    return {part: converted(weights, configs, part, dtype) for part in parts}


def text_encoder(
    weights: Mapping[str, Tensor], configs: Path, named: tuple[str, Component], *, start: str, dtype: torch.dtype
) -> Any:
    """A CLIP text encoder of a single file, whose weights begin with ``start``."""
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    # Some programs write CLIP's names without the level that transformers dropped: the converter knows them with it.
    short = tuple(f"{start}{part}." for part in ("embeddings", "encoder", "final_layer_norm"))
    whole = {
        name.replace(start, f"{start}text_model.") if name.startswith(short) else name: weight
        for name, weight in weights.items()
    }
    folder, component = named
    return create_diffusers_clip_model_from_ldm(
        getattr(transformers, component.kind),
        whole,
        folder,
        config=str(configs),
        torch_dtype=dtype,
        local_files_only=True,
    )


def unread(names: Collection[str], modules: Modules) -> list[str]:
    """Which weights of a single file have no place in the U-Net and the VAE that were made of it, or belong to no part
    that is known; of text encoders more layers may be published than are read."""
    network, own = f"{FIRST.partition('input')[0]}", single_file(modules)
    plain = set(modules["unet"].state_dict()) <= set(names)  # in diffusers' names, which say what is read
    found = []
    for name in names:
        if name.startswith((network, "first_stage_model.")):
            strange = name not in own and not name.startswith(UNREAD)
        else:
            strange = "." in name and not name.startswith(BESIDE)
        if strange and not plain:
            found.append(name)
    return sorted(found)


def single_file(modules: Modules) -> dict[str, Tensor]:
    """U-Net and VAE under the original names."""
    network, vae = modules["unet"], modules["vae"]
    return {
        **ldm.unet_weights(network.state_dict(), network.config.layers_per_block),
        **ldm.vae_weights(vae.state_dict(), len(vae.config.block_out_channels)),
    }
