"""The way out: tuned weights in the formats that other programs read."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.errors import UserError, nearest
from raftdiff.records.disk import together, written
from raftdiff.training.trainable import merged

FORMATS = ("diffusers", "kohya", "merged")
LoRA = dict[str, tuple[Tensor, Tensor, float]]
"""Layer name -> (down, up, scale): the layer's weight changes by scale * up @ down."""


def export(tuner: DiffusionFineTuner, format: str, out: Path) -> Path:
    """Write the policy (the moving average where one is kept) to the folder ``out``; returns what to load.

    ``diffusers``: a LoRA folder, for ``pipeline.load_lora_weights(out)``. ``kohya``: one .safetensors for A1111,
    ComfyUI and others, which is ``out`` itself if it ends so. ``merged``: a whole diffusers pipeline in the model's
    dtype.

    Raises:
        UserError: another format, a LoRA asked of a full fine-tune, a folder with a file's name, or ``out`` cannot be
            written.
        OSError: the disk is full.
    """
    if format not in FORMATS:
        raise UserError(f"'{format}' is not an export format. {nearest(format, FORMATS)}")
    if format != "kohya" and out.suffix == ".safetensors":
        raise UserError(
            f"{out}: {format} is a folder, and this names a file. One file for A1111 and ComfyUI is --format kohya; "
            "for the folder, leave .safetensors out."
        )
    if format != "merged" and tuner.config.adapter == "full":
        raise UserError(
            f"A full fine-tune has no LoRA to export as {format}: every weight changed. Export it as merged."
        )
    single = format == "kohya" and out.suffix == ".safetensors"
    place = out.parent if single else out
    writer = {"diffusers": _write_diffusers, "kohya": _write_kohya, "merged": _write_merged}[format]
    with written("the export", out), quietly(), together(place) as aside:
        made = writer(tuner, aside / out.name if single else aside)
    return place / made.relative_to(aside)


def lora(module: Any) -> LoRA:
    """The low-rank changes of a network, by the name of the layer that each belongs to."""
    from peft.tuners.lora import LoraLayer

    return {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight, float(layer.scaling["default"]))
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _write_diffusers(tuner: DiffusionFineTuner, out: Path) -> Path:
    """alpha is folded into the up matrix: a loader without metadata takes alpha = rank, and is then right."""
    from diffusers import StableDiffusionPipeline

    layers: dict[str, dict[str, Tensor] | None] = {"unet": None, "text_encoder": None}
    for prefix, module in tuner.trainable.modules.items():
        layers[prefix] = {}
        for name, (down, up, scale) in lora(module).items():
            path = _text_name(name) if prefix == "text_encoder" else name
            layers[prefix] |= {  # type: ignore[operator]
                f"{path}.lora_A.weight": _plain(down),
                f"{path}.lora_B.weight": _plain(up.float() * scale),
            }
    StableDiffusionPipeline.save_lora_weights(
        out,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        safe_serialization=True,
    )
    return out


def _write_kohya(tuner: DiffusionFineTuner, out: Path) -> Path:
    from safetensors.torch import save_file

    weights: dict[str, Tensor] = {}
    for prefix, module in tuner.trainable.modules.items():
        for name, (down, up, scale) in lora(module).items():
            path = f"lora_te_{_text_name(name)}" if prefix == "text_encoder" else f"lora_unet_{name}"
            path = path.replace(".", "_")
            rank = down.shape[0]
            weights |= {
                f"{path}.lora_down.weight": _plain(down),
                f"{path}.lora_up.weight": _plain(up),
                f"{path}.alpha": torch.tensor(scale * rank),
            }
    target = out if out.suffix == ".safetensors" else out / "raftdiff_lora.safetensors"
    save_file(weights, target, metadata=_metadata(tuner, target.stem))
    return target


def _metadata(tuner: DiffusionFineTuner, name: str) -> dict[str, str]:
    """What trainers write into a LoRA, for programs that ask before they show it: A1111 lists a file with some metadata
    and no ``ss_v2`` under SD 1.x alone. Keys as in sd-scripts and in Stability's model specification."""
    config, parts = tuner.config, tuner.parts
    second, v = bool(parts.unet.config.use_linear_projection), parts.prediction_type == "v_prediction"
    architecture = "stable-diffusion-v1"
    if second:
        architecture = "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"
    return {
        "format": "pt",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(float(config.rank if config.alpha is None else config.alpha)),
        "ss_v2": str(second),
        "ss_base_model_version": ("sd_v2" if second else "sd_v1") + ("_v" if v else ""),
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.prediction_type": "v" if v else "epsilon",
        **({"modelspec.resolution": f"{parts.size[1]}x{parts.size[0]}"} if parts.size else {}),  # width, then height
    }


def _write_merged(tuner: DiffusionFineTuner, out: Path) -> Path:
    from diffusers import StableDiffusionPipeline

    parts = tuner.parts
    StableDiffusionPipeline(
        unet=merged(parts.unet),
        text_encoder=merged(parts.text_encoder),
        vae=parts.vae,
        tokenizer=parts.tokenizer,
        scheduler=parts.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(out, safe_serialization=True)
    _name_as_published(out / "text_encoder" / "model.safetensors")
    parts.tokenizer.backend_tokenizer.model.save(str(out / "tokenizer"))  # vocab.json, merges.txt
    return out


def _name_as_published(path: Path) -> None:
    """A text encoder's weights under the names of the published models, which every reader knows: diffusers and ComfyUI
    as they were before transformers 5.6 draw from a random text encoder otherwise, or from none."""
    from safetensors.torch import load_file, save_file

    weights = {_text_name(name): weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _text_name(name: str) -> str:
    """The published name of a text encoder's layer: transformers 5.6 dropped a level that LoRA files still have."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().contiguous().clone()
