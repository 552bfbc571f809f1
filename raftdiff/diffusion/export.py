"""The way out: tuned weights in the formats that other programs read."""

import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
from raftdiff.diffusion.models.adapters.embeddings import without_words
from raftdiff.diffusion.models.adapters.loras import published
from raftdiff.diffusion.models.checkpoints import one_file
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.errors import UserError, nearest
from raftdiff.records.disk import together, written
from raftdiff.training.quantised import is_quantised
from raftdiff.training.trainable import merged

FORMATS = ("diffusers", "kohya", "merged", "checkpoint")
FILES = ("kohya", "checkpoint")
"""Formats of one file."""
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
"""``modelspec.prediction_type``, which trainers do not write of a flow."""
LoRA = dict[str, tuple[Tensor, Tensor, float]]
"""Layer name -> (down, up, scale): the layer's weight changes by scale * up @ down."""


def export(tuner: DiffusionFineTuner, format: str, out: Path, about: Mapping[str, str] = MappingProxyType({})) -> Path:
    """Write the policy (the moving average where one is kept) to the folder ``out``; returns what to load.

    ``diffusers``: a LoRA folder, for ``pipeline.load_lora_weights(out)``. ``kohya``: a LoRA in one .safetensors for
    A1111, ComfyUI and others; ``merged``: a whole diffusers pipeline, in the precision that the model is held in;
    ``checkpoint``: the same in one .safetensors, which A1111 and ComfyUI open. One file is ``out`` itself if it
    ends so.

    Args:
        about: more to be written into the metadata of one file.

    Raises:
        UserError: another format, a LoRA asked of a full fine-tune, a folder with a file's name, or ``out`` cannot be
            written.
        OSError: the disk is full.
    """
    if format not in FORMATS:
        raise UserError(f"'{format}' is not an export format. {nearest(format, FORMATS)}")
    if format not in FILES and out.suffix == ".safetensors":
        raise UserError(
            f"{out}: {format} is a folder, and this names a file. One file for A1111 and ComfyUI is --format kohya, or "
            "with the whole model --format checkpoint; for the folder, leave .safetensors out."
        )
    if format in ("diffusers", "kohya") and tuner.config.adapter == "full":
        raise UserError(
            f"A full fine-tune has no LoRA to export as {format}: every weight changed. Export it as merged, or as "
            "checkpoint."
        )
    if format in ("merged", "checkpoint") and is_quantised(tuner.parts.denoiser):
        raise UserError(
            f"{format}: the weights that this model would be merged into are rounded; load it without model.quantise."
        )
    single = format in FILES and out.suffix == ".safetensors"
    place = out.parent if single else out
    with written("the export", out), quietly(), together(place) as aside:
        target = aside / out.name if single else aside
        match format:
            case "diffusers":
                made = _write_diffusers(tuner, target)
            case "merged":
                made = _write_merged(tuner, target)
            case "kohya":
                made = _write_kohya(tuner, _file(target, "raftdiff_lora"), about)
            case _:
                made = _write_checkpoint(tuner, _file(target, "raftdiff_model"), about)
    return place / made.relative_to(aside)


def lora(module: Any) -> LoRA:
    """The low-rank changes of a network, by the name of the layer that each belongs to."""
    from peft.tuners.lora import LoraLayer

    return {
        name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight, float(layer.scaling["default"]))
        for name, layer in module.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _file(target: Path, name: str) -> Path:
    return target if target.suffix == ".safetensors" else target / f"{name}.safetensors"


def _write_diffusers(tuner: DiffusionFineTuner, out: Path) -> Path:
    """alpha is folded into the up matrix: a loader without metadata takes alpha = rank, and is then right."""
    layers: dict[str, dict[str, Tensor]] = {}
    for component, module in tuner.trainable.modules.items():
        named = layers[f"{component}_lora_layers"] = {}
        for name, (down, up, scale) in lora(module).items():
            path = published(component, name)
            named[f"{path}.lora_A.weight"] = _plain(down)
            named[f"{path}.lora_B.weight"] = _plain(up.float() * scale)
    _pipeline(tuner.parts).save_lora_weights(out, **layers, safe_serialization=True)
    return out


def _write_kohya(tuner: DiffusionFineTuner, target: Path, about: Mapping[str, str]) -> Path:
    from safetensors.torch import save_file

    family, modules = tuner.parts.family, tuner.parts.modules
    weights: dict[str, Tensor] = {}
    for component, module in tuner.trainable.modules.items():
        for name, (down, up, scale) in lora(module).items():
            path = family.kohya(component, published(component, name), modules)
            weights |= {
                f"{path}.lora_down.weight": _plain(down),
                f"{path}.lora_up.weight": _plain(up),
                f"{path}.alpha": torch.tensor(scale * down.shape[0]),
            }
    config = tuner.config
    described = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.rank),
        "ss_network_alpha": str(float(config.rank if config.alpha is None else config.alpha)),
        **_metadata(tuner.parts, target.stem, "/lora"),
    }
    save_file(weights, target, metadata=described | dict(about))
    return target


def _write_checkpoint(tuner: DiffusionFineTuner, target: Path, about: Mapping[str, str]) -> Path:
    from safetensors.torch import save_file

    parts = tuner.parts
    family, modules = one_file(parts.family), _merged(parts)
    for name in (family.denoiser, *parts.text_encoders):
        modules[name].cpu()  # the copies: weights that are joined in one must lie in one place
    weights = family.single_file(without_words(family, modules))
    if parts.process.predicts == "v_prediction":  # ComfyUI and others look for these names
        weights["v_pred"] = torch.empty(0)
        if parts.scheduler.config.get("rescale_betas_zero_snr", False):
            weights["ztsnr"] = torch.empty(0)
    plain = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(plain, target, metadata=_metadata(parts, target.stem, "") | dict(about))
    return target


def _metadata(parts: Parts, name: str, kind: str) -> dict[str, str]:
    """What trainers write into a file, for programs that ask before they show it. Keys as in sd-scripts and in
    Stability's model specification; ``kind`` ends the architecture."""
    described = dict(parts.family.described(parts.modules, parts.process.predicts))
    predicts = PREDICTIONS.get(parts.process.predicts)
    return {
        "format": "pt",
        **described,
        "ss_output_name": name,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": described["modelspec.architecture"] + kind,
        "modelspec.implementation": "diffusers" if kind else described.get("modelspec.implementation", "sgm"),
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        **({"modelspec.prediction_type": predicts} if predicts else {}),
        **({"modelspec.resolution": f"{parts.size[1]}x{parts.size[0]}"} if parts.size else {}),  # width, then height
    }


def _write_merged(tuner: DiffusionFineTuner, out: Path) -> Path:
    parts = tuner.parts
    modules, family = _merged(parts), parts.family
    pipeline = _pipeline(parts)(**modules, scheduler=parts.scheduler, **family.pipeline_arguments())
    pipeline.save_pretrained(out, safe_serialization=True)
    for component in parts.text_encoders:
        if family.components[component].kind.startswith("CLIP"):
            _name_as_published(out / component / "model.safetensors", component)
    for name, (_, kind) in family.tokenizers.items():
        if kind == "CLIPTokenizer":
            modules[name].backend_tokenizer.model.save(str(out / name))  # vocab.json, merges.txt
    return out


def _merged(parts: Parts) -> dict[str, Any]:
    """The modules, those that may be tuned without their LoRA, merged."""
    parts.prompts.load()
    tuned = (parts.family.denoiser, *parts.text_encoders)
    return {name: merged(module) if name in tuned else module for name, module in parts.modules.items()}


def _pipeline(parts: Parts) -> Any:
    import diffusers

    return getattr(diffusers, parts.family.pipeline)


def _name_as_published(path: Path, component: str) -> None:
    """A text encoder's weights under the names of the published models, which every reader knows: diffusers and ComfyUI
    as they were before transformers 5.6 draw from a random text encoder otherwise, or from none."""
    from safetensors.torch import load_file, save_file

    weights = {published(component, name): weight for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def _plain(weight: Tensor) -> Tensor:
    return weight.detach().float().cpu().contiguous().clone()
