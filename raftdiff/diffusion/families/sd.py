"""Stable Diffusion 1.x and 2.x: one text encoder, and a U-Net that is told nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from raftdiff.diffusion.families.family import Component, FewSteps, Layers, Modules, Shapes, Solver, Tokenizer
from raftdiff.diffusion.families.shared import ldm, unet
from raftdiff.diffusion.families.shared.autoencoders import KL
from raftdiff.diffusion.families.shared.deepcache import DeepCache
from raftdiff.diffusion.families.shared.reading import limit_of, tokenised, tokens_in
from raftdiff.diffusion.families.shared.vocabulary import write_configs, write_tokenizer
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.process import Process
from raftdiff.errors import UserError

CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
"""How the text encoder's weights begin in single files of SD 1.x and of SD 2.x."""
VAE = {**unet.VAE, "sample_size": 512, "scaling_factor": 0.18215}


@final
@dataclass(frozen=True, slots=True)
class StableDiffusion:
    """See ``family.Family``. Source: Rombach et al. 2022, arXiv:2112.10752, and the published checkpoints."""

    name: str = "sd"
    told: str = "Stable Diffusion 1.x and 2.x"
    pipeline: str = "StableDiffusionPipeline"
    denoiser: str = "unet"
    layers: Layers = unet.LAYERS
    full_vae: bool = False
    guided: bool = True

    @property
    def components(self) -> Mapping[str, Component]:
        return {**unet.NETWORKS, "text_encoder": Component("transformers", "CLIPTextModel")}

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return VAE

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        return {"tokenizer": Tokenizer("text_encoder")}

    def stated(self, index: Mapping[str, Any]) -> "StableDiffusion":
        del index  # it says nothing that changes what is drawn
        return self

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        if unet.FIRST not in shapes or unet.SIZES in shapes:
            return None
        unet.refuse_inpainting(shapes, path)
        kinds = {OPEN_CLIP: "sd2", CLIP: "sd1"}
        found = next((kinds[start] for start in kinds if any(name.startswith(start) for name in shapes)), None)
        if found is None:
            raise UserError(f"{path}: it holds a U-Net but no text encoder; a whole checkpoint is needed.")
        return found

    def configs(self, kind: str, prediction_type: str | None, folder: Path, path: Path) -> None:
        if kind == "sd2" and prediction_type is None:
            raise UserError(
                f"{path}: an SD 2.x file does not say what its network predicts. Set model.prediction_type: "
                "v_prediction (the 768 px models) or epsilon (the 512 px ones, called base)."
            )
        write_configs(folder, _configs(kind, prediction_type or "epsilon"))
        write_tokenizer(folder / "tokenizer", pad="!" if kind == "sd2" else "<|endoftext|>")

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        named = ("text_encoder", self.components["text_encoder"])
        return {
            **unet.networks(weights, configs, dtype),
            "text_encoder": unet.text_encoder(weights, configs, named, start=CLIP, dtype=dtype),
        }

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        text, second = modules["text_encoder"].state_dict(), bool(modules["unet"].config.use_linear_projection)
        named = ldm.open_clip_weights(text, OPEN_CLIP) if second else ldm.clip_weights(text, f"{CLIP}text_model.")
        return {**unet.single_file(modules), **named}

    def check(self, modules: Modules, name: str) -> None:
        unet.check(modules, name, modules["text_encoder"].config.hidden_size)

    def process(self, scheduler: Any, name: str) -> Process:
        return unet.process(scheduler, name)

    @property
    def autoencoder(self) -> KL:
        return KL()

    @property
    def paths(self) -> tuple[str, ...]:
        return unet.PATHS

    def solvers(self, scheduler: Any) -> Mapping[str, Solver]:
        return unet.solvers(scheduler)

    def few_steps(self, modules: Modules, scheduler: Any) -> FewSteps | None:
        del modules
        return unet.few_steps(scheduler)

    def set_steps(
        self, solver: Any, steps: int, modules: Modules, *, pixels: tuple[int, int], device: torch.device
    ) -> None:
        del modules, pixels
        solver.set_timesteps(steps, device=device)

    def token_limit(self, modules: Modules) -> int | None:
        return limit_of(modules, "tokenizer", "text_encoder")

    def tokens(self, modules: Modules, caption: str) -> int:
        return tokens_in(modules["tokenizer"], caption)

    def size(self, modules: Modules) -> tuple[int, int] | None:
        return unet.size(modules)

    def encode(self, modules: Modules, captions: Sequence[str]) -> Texts:
        encoder = modules["text_encoder"]
        read = tokenised(modules, "tokenizer", "text_encoder", captions, self.token_limit(modules))
        masked = read.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
        return Texts(encoder(read.input_ids, attention_mask=masked)[0])

    def embedded_guidance(self, modules: Modules) -> float | None:
        del modules
        return None

    def ask(
        self,
        network: Any,
        xt: Tensor,
        timesteps: Tensor,
        texts: Texts,
        *,
        pixels: tuple[int, int],
        guidance: float | None,
    ) -> Tensor:
        del pixels, guidance
        found: Tensor = network(xt, timesteps, encoder_hidden_states=texts.tokens, return_dict=False)[0]
        return found

    def reusing(self, network: Any, every: int, skips: int) -> DeepCache:
        return DeepCache(network, every, skips)

    def multiple(self, modules: Modules) -> int:
        return unet.multiple(modules["unet"])

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        del modules
        start = "lora_te" if component == "text_encoder" else "lora_unet"
        return f"{start}_{layer.replace('.', '_')}"

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        """A1111 lists a file with some metadata and no ``ss_v2`` under SD 1.x alone."""
        second, v = bool(modules["unet"].config.use_linear_projection), prediction_type == "v_prediction"
        architecture = "stable-diffusion-v1"
        if second:
            architecture = "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"
        return {
            "ss_v2": str(second),
            "ss_base_model_version": ("sd_v2" if second else "sd_v1") + ("_v" if v else ""),
            "modelspec.architecture": architecture,
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def _configs(kind: str, prediction_type: str) -> dict[str, dict[str, Any]]:
    """Of the published models: their configs are part of their format."""
    large = kind == "sd2"
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.36.0",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": [5, 10, 20, 20] if large else 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 1024 if large else 768,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "sample_size": 96 if large and prediction_type == "v_prediction" else 64,
            "use_linear_projection": large,
        },
        "vae/config.json": VAE,
        "text_encoder/config.json": {
            **unet.TEXT,
            "architectures": ["CLIPTextModel"],
            "hidden_act": "gelu" if large else "quick_gelu",
            "hidden_size": 1024 if large else 768,
            "intermediate_size": 4096 if large else 3072,
            "num_attention_heads": 16 if large else 12,
            # SD 2.x reads the last but one of OpenCLIP-H's 24 layers
            "num_hidden_layers": 23 if large else 12,
            "projection_dim": 512 if large else 768,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            **unet.SCHEDULE,
            "prediction_type": prediction_type,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
    }
