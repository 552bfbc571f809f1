"""Stable Diffusion XL and its children: two text encoders, and a U-Net that is told the picture's size and crop."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

CLIP, OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
"""How the weights of the two text encoders begin in single files."""
VAE = {**unet.VAE, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
REFINER = "conditioner.embedders.0.model."
CONTINUOUS = ("edm_mean", "edm_vpred.sigma_max")
"""Weights that mark models of another noise process (EDM, arXiv:2206.00364): Playground v2.5, CosXL."""
NUMBERS = 6
"""Told beside the text: height and width of the original, top and left of the crop, height and width to draw."""


@final
@dataclass(frozen=True, slots=True)
class StableDiffusionXL:
    """See ``family.Family``. Source: Podell et al. 2023, arXiv:2307.01952, and the published checkpoints.

    Every picture that is drawn is told to be whole and of its own size, so that none looks cropped or enlarged; one
    that was there before, where its frame is known, to be scaled and cut as it was, in the numbers of the paper and of
    diffusers' training script.
    """

    empty_is_zero: bool = True
    """Whether the empty text is told as zeros, as SDXL was trained with, or as what the text encoders make of it."""
    name: str = "sdxl"
    told: str = "Stable Diffusion XL"
    pipeline: str = "StableDiffusionXLPipeline"
    denoiser: str = "unet"
    layers: Layers = unet.LAYERS
    full_vae: bool = True
    guided: bool = True

    @property
    def components(self) -> Mapping[str, Component]:
        return {
            **unet.NETWORKS,
            "text_encoder": Component("transformers", "CLIPTextModel"),
            "text_encoder_2": Component("transformers", "CLIPTextModelWithProjection"),
        }

    @property
    def vae_config(self) -> Mapping[str, Any]:
        return VAE

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        return {"tokenizer": Tokenizer("text_encoder"), "tokenizer_2": Tokenizer("text_encoder_2")}

    def stated(self, index: Mapping[str, Any]) -> "StableDiffusionXL":
        return replace(self, empty_is_zero=bool(index.get("force_zeros_for_empty_prompt", True)))

    def recognise(self, shapes: Shapes, path: Path) -> str | None:
        if unet.FIRST not in shapes or unet.SIZES not in shapes:
            return None
        if any(name.startswith(REFINER) for name in shapes):
            raise UserError(f"{path}: this is SDXL's refiner, which goes on from pictures; name the base model.")
        texts = {name.partition(".")[0] for name in shapes} & {"cond_stage_model", "conditioner"}
        if texts == {"cond_stage_model"}:
            raise UserError(
                f"{path}: its U-Net must be told more than the text, as SD 2.1 unCLIP's is told a picture; raftdiff "
                "tunes text-to-image models."
            )
        if mark := next((name for name in CONTINUOUS if name in shapes), None):
            raise UserError(
                f"{path}: by its key {mark} it follows EDM's noise process, as Playground v2.5 and CosXL do; raftdiff "
                "tunes SDXL with the usual one."
            )
        unet.refuse_inpainting(shapes, path)
        for start in (CLIP, OPEN_CLIP):
            if not any(name.startswith(start) for name in shapes):
                raise UserError(
                    f"{path}: it holds SDXL's U-Net, but not both text encoders ({start}*); a whole checkpoint is "
                    "needed."
                )
        return "sdxl"

    def configs(self, kind: str, prediction_type: str | None, folder: Path, path: Path) -> None:
        del kind, path
        write_configs(folder, _configs(prediction_type or "epsilon"))
        write_tokenizer(folder / "tokenizer", pad="<|endoftext|>")
        write_tokenizer(folder / "tokenizer_2", pad="!")

    def converted(self, weights: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> dict[str, Any]:
        return {
            **unet.networks(weights, configs, dtype),
            **{
                name: unet.text_encoder(weights, configs, (name, self.components[name]), start=start, dtype=dtype)
                for name, start in (("text_encoder", CLIP), ("text_encoder_2", OPEN_CLIP))
            },
        }

    def single_file(self, modules: Modules) -> dict[str, Tensor]:
        first, second = modules["text_encoder"].state_dict(), modules["text_encoder_2"].state_dict()
        return {
            **unet.single_file(modules),
            **ldm.clip_weights(first, f"{CLIP}text_model."),
            **ldm.open_clip_weights(second, OPEN_CLIP),
        }

    def check(self, modules: Modules, name: str) -> None:
        first, second, config = modules["text_encoder"].config, modules["text_encoder_2"].config, modules["unet"].config
        told = config.get("addition_embed_type")
        if told != "text_time":
            raise UserError(
                f"{name}: its U-Net is told '{told}' beside the text, where SDXL's is told sizes (text_time): this is "
                "no SDXL."
            )
        if modules["vae"].config.get("latents_mean") is not None:
            raise UserError(
                f"{name}: its latents are shifted by channel (latents_mean in vae/config.json), as Playground v2.5's "
                "are; SDXL's are not."
            )
        unet.check(modules, name, first.hidden_size + second.hidden_size, allowed=("addition_embed_type",))
        takes, pooled = config.projection_class_embeddings_input_dim, second.projection_dim
        if takes != pooled + NUMBERS * config.addition_time_embed_dim:
            numbers = (takes - pooled) / config.addition_time_embed_dim
            raise UserError(
                f"{name}: its U-Net is told {numbers:g} numbers beside a caption of {pooled}, where SDXL's is told "
                f"{NUMBERS}: this is a refiner, or these parts are not of one model."
            )

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
        read = []
        for name, (encoder, _) in self.tokenizers.items():
            tokens = tokenised(modules, name, encoder, captions, limit_of(modules, name, encoder))
            read.append(modules[encoder](tokens.input_ids, output_hidden_states=True))
        found = Texts(torch.cat([one.hidden_states[-2] for one in read], dim=-1), read[1].text_embeds)
        if not self.empty_is_zero:
            return found
        empty = torch.tensor([not caption for caption in captions], device=found.device)
        return found.zeros().where(empty, found)

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
        del guidance
        numbers = torch.tensor([*pixels, 0, 0, *pixels], dtype=texts.tokens.dtype, device=xt.device)
        numbers = numbers.expand(len(xt), NUMBERS)
        if texts.frame is not None:  # in float32, for not every size is a number in bfloat16
            numbers = torch.cat([texts.frame, numbers[:, 4:].float()], dim=1)
        beside = {"text_embeds": texts.pooled, "time_ids": numbers}
        found: Tensor = network(
            xt, timesteps, encoder_hidden_states=texts.tokens, added_cond_kwargs=beside, return_dict=False
        )[0]
        return found

    def reusing(self, network: Any, every: int, skips: int) -> DeepCache:
        return DeepCache(network, every, skips)

    def multiple(self, modules: Modules) -> int:
        return unet.multiple(modules["unet"])

    def kohya(self, component: str, layer: str, modules: Modules) -> str:
        """The U-Net's layers go by the names of the original code here, unlike those of SD 1.x and 2.x."""
        if component == "unet":
            return f"lora_unet_{ldm.unet_layer(layer, modules['unet']).replace('.', '_')}"
        return f"{'lora_te1' if component == 'text_encoder' else 'lora_te2'}_{layer.replace('.', '_')}"

    def described(self, modules: Modules, prediction_type: str) -> Mapping[str, str]:
        del modules, prediction_type
        return {
            "ss_v2": "False",
            "ss_base_model_version": "sdxl_base_v1-0",
            "modelspec.architecture": "stable-diffusion-xl-v1-base",
        }

    def pipeline_arguments(self) -> Mapping[str, Any]:
        return {"force_zeros_for_empty_prompt": self.empty_is_zero, "add_watermarker": False}


def _configs(prediction_type: str) -> dict[str, dict[str, Any]]:
    """Of the published model: its configs are part of its format."""
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionXLPipeline",
            "_diffusers_version": "0.36.0",
            "force_zeros_for_empty_prompt": True,
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "attention_head_dim": [5, 10, 20],
            "block_out_channels": [320, 640, 1280],
            "cross_attention_dim": 2048,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "projection_class_embeddings_input_dim": 2816,
            "sample_size": 128,
            "transformer_layers_per_block": [1, 2, 10],
            "use_linear_projection": True,
        },
        "vae/config.json": VAE,
        "text_encoder/config.json": {
            **unet.TEXT,
            "architectures": ["CLIPTextModel"],
            "hidden_act": "quick_gelu",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "num_hidden_layers": 12,
            "projection_dim": 768,
        },
        "text_encoder_2/config.json": {
            **unet.TEXT,
            "architectures": ["CLIPTextModelWithProjection"],
            "hidden_act": "gelu",
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_attention_heads": 20,
            "num_hidden_layers": 32,
            "projection_dim": 1280,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "EulerDiscreteScheduler",
            **unet.SCHEDULE,
            "prediction_type": prediction_type,
            "interpolation_type": "linear",
            "timestep_spacing": "leading",
            "steps_offset": 1,
        },
    }
