"""The parts of scene-sd, untrained, and their files: as Stable Diffusion's, small enough for two processor cores."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.embedded.scenes.tokens import LENGTH, build_tokenizer
from raftdiff.errors import UserError

FACTOR = 4
"""Pixels to a latent, along a side."""
LATENT = SIZE // FACTOR
CONTEXT = 192
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
VAE, UNET, TEXT = "scene-sd.vae.safetensors", "scene-sd.unet.safetensors", "scene-sd.text_encoder.safetensors"
"""Files of trained weights."""


def build_vae() -> Any:
    """Four channels of latents at a quarter of the side; no attention."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def build_unet() -> Any:
    """Attention at a half and at a quarter of the latents' side."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 160),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=CONTEXT,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def build_text_encoder(tokenizer: Any) -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(text_config(tokenizer, width=CONTEXT, inner=512, layers=4, heads=6))


def text_config(tokenizer: Any, *, width: int, inner: int, layers: int, heads: int) -> Any:
    """A ``transformers.CLIPTextConfig`` for captions of this world."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write(path: Path, weights: Mapping[str, Tensor], **metadata: str) -> None:
    """Weights as float16, whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    stored = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
        for name, tensor in weights.items()
    }
    save_file(stored, aside, metadata=metadata or None)
    aside.replace(path)


def read(path: Path, module: nn.Module) -> dict[str, str]:
    """Fill ``module`` (float32) from a file that `write` made; returns the file's metadata.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: train that part first, or copy its file there.")
    weights = {name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()}
    # transformers called the text encoder's weights otherwise before 5.20 or so: with this in front
    front = "text_model."
    plain = {name.removeprefix(front): tensor for name, tensor in weights.items()}
    module.load_state_dict({name: plain[name.removeprefix(front)] for name in module.state_dict()})
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def load_vae(path: Path, device: str = "cpu") -> Any:
    """The trained autoencoder, with the scale of its latents."""
    vae = build_vae()
    vae.register_to_config(scaling_factor=float(read(path, vae)["scaling_factor"]))
    return vae.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


@final
class Newest:
    """The autoencoder that a file holds, once its training is over; read again when the file is renewed."""

    def __init__(self, path: Path, device: str) -> None:
        self._path, self._device = path, device
        self._written, self._vae = 0.0, None

    def look(self) -> Any:
        """The autoencoder, or None as long as there is none."""
        if finished(self._path) and (written := self._path.stat().st_mtime) > self._written:
            self._written, self._vae = written, load_vae(self._path, self._device)
        return self._vae


def finished(path: Path) -> bool:
    """Whether the file is there, and its training is over."""
    if not path.is_file():
        return False
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get("finished") == "yes"


def take_apart(folder: Path, results: Path) -> None:
    """The weights of a pipeline's folder as the files that the training scripts go on from; `assemble` turned back."""
    scale = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    parts = (("vae", "diffusion_pytorch_model", VAE), ("unet", "diffusion_pytorch_model", UNET))
    for part, name, file in (*parts, ("text_encoder", "model", TEXT)):
        weights = load_file(folder / part / f"{name}.safetensors")
        write(results / file, weights, finished="yes", **({"scaling_factor": str(scale)} if file == VAE else {}))


def assemble(results: Path, folder: Path) -> Path:
    """The files of ``results`` as a folder that ``StableDiffusionPipeline`` and raftdiff load, in float16."""
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    tokenizer = build_tokenizer()
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    read(results / UNET, unet)
    read(results / TEXT, text_encoder)
    pipeline = StableDiffusionPipeline(
        vae=load_vae(results / VAE).to(memory_format=torch.contiguous_format).half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", use_karras_sigmas=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    shutil.rmtree(folder, ignore_errors=True)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
