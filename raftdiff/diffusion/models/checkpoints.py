"""What kind of model lies at a path, found out before anything heavy is loaded, so that a wrong one gets a sentence."""

import errno
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftdiff.errors import UserError

TUNABLE = "raftdiff tunes Stable Diffusion 1.x and 2.x models, and others in their format (StableDiffusionPipeline)"
COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "unet": ("diffusion_pytorch_model", "UNet2DConditionModel"),
    "vae": ("diffusion_pytorch_model", "AutoencoderKL"),
    "text_encoder": ("model", "CLIPTextModel"),
}
WEIGHTS = (".safetensors", ".safetensors.index.json", "-*.safetensors")
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder known to hold the parts of a ``StableDiffusionPipeline``."""

    path: Path
    scheduler: str
    """The scheduler's class name."""

    def variant(self, component: str) -> str | None:
        """``fp16`` where a component's weights exist in that variant only."""
        stem = COMPONENTS[component][0]
        folder = self.path / component
        plain = any((folder / f"{stem}.safetensors{end}").exists() for end in ("", ".index.json"))
        return "fp16" if not plain and (folder / f"{stem}.fp16.safetensors").exists() else None


def folder_layout(path: Path, *, weights: bool = True) -> Layout:
    """The layout of a diffusers folder.

    Args:
        weights: whether the weights must be there too, or the configs are enough.

    Raises:
        UserError: missing, empty, another kind of model, or incomplete.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder.")
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(_not_a_pipeline(path))
    described = _read_json(index)
    pipeline = str(described.get("_class_name"))
    if pipeline != "StableDiffusionPipeline":
        raise UserError(f"{path}: this is a {pipeline}; {TUNABLE}.")
    for component, (stem, expected) in COMPONENTS.items():
        found = described.get(component) or [None, None]
        if found[1] != expected:
            raise UserError(f"{path}: its {component} is a {found[1]}, not a {expected}; {TUNABLE}.")
        if not (path / component / "config.json").is_file():
            raise UserError(f"{path}: {component}/config.json is missing; the folder is incomplete.")
        if weights and not any((path / component).glob(f"{stem}*.safetensors*")):
            raise UserError(_no_weights(path, component))
    for name in ("tokenizer", "scheduler"):
        if not (path / name).is_dir():
            raise UserError(f"{path}: {name}/ is missing; the folder is incomplete.")
    return Layout(path, scheduler=str((described.get("scheduler") or [None, "DDIMScheduler"])[1]))


def hub_folder(name: str) -> Path:
    """The local snapshot of a hub model, fetched where it is not there yet: configs and safetensors, nothing else.

    Raises:
        UserError: ``name`` is no hub id, or the model cannot be fetched.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", name) or name.startswith((".", "/", "~")):
        raise UserError(
            f"model.base: '{name}' is neither a folder nor a file here, nor a hub id (owner/name), nor a shipped model."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    configs = ["model_index.json", "tokenizer/*", "scheduler/*", "*/config.json"]
    weights = [f"{part}/{stem}{end}" for part, (stem, _) in COMPONENTS.items() for end in WEIGHTS]
    halves = {part: f"{part}/{stem}.fp16.safetensors" for part, (stem, _) in COMPONENTS.items()}
    try:
        folder = Path(snapshot_download(name, allow_patterns=configs + weights))
        lacking = [half for part, half in halves.items() if not any((folder / part).glob("*.safetensors"))]
        if lacking:  # published in half precision only; asked for second, lest both are fetched where both are there
            snapshot_download(name, allow_patterns=lacking)
        return folder
    except RepositoryNotFoundError:
        raise UserError(
            f"model.base: there is no folder '{name}' here, and the hub has no model of that name, or it needs a login "
            "(hf auth login)."
        ) from None
    except HFValidationError as error:
        raise UserError(f"model.base: there is no folder '{name}' here, and it is no hub id: {error}.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"model.base: there is no folder '{name}' here, and the hub cannot be reached to look for it there "
            f"({type(error).__name__}). Name a local folder, or try again with a network."
        ) from None


def recognise_file(path: Path) -> str:
    """``sd1`` or ``sd2``: what the single-file checkpoint holds.

    Raises:
        UserError: no readable .safetensors or .ckpt, or another kind of model.
    """
    if path.suffix == ".safetensors":
        shapes = _safetensors_shapes(path)
    elif path.suffix == ".ckpt":
        shapes = _ckpt_shapes(path)
    else:
        raise UserError(f"{path}: a single-file model ends in .safetensors or .ckpt.")
    key = "model.diffusion_model.input_blocks.0.0.weight"
    if key not in shapes:
        raise UserError(f"{path}: {_other_kind(shapes)}; {TUNABLE}.")
    if any(name.startswith("conditioner.embedders.") for name in shapes):
        raise UserError(f"{path}: this is an SDXL checkpoint; {TUNABLE}.")
    if shapes[key][1] == 9:
        raise UserError(f"{path}: this is an inpainting checkpoint; raftdiff tunes text-to-image models.")
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return "sd2"
    if any(name.startswith("cond_stage_model.transformer.") for name in shapes):
        return "sd1"
    raise UserError(f"{path}: it holds a U-Net but no text encoder; a whole checkpoint is needed.")


def _other_kind(names: Iterable[str]) -> str:
    text = "\n".join(names)
    if "lora" in text:
        return "this is a LoRA, which changes a model and is not one: name the model it belongs to"
    if "double_blocks." in text:
        return "this is a FLUX checkpoint"
    if "joint_blocks." in text:
        return "this is an SD 3 checkpoint"
    if "lm_head" in text or "self_attn.q_proj" in text:
        return "this is a language model"
    if text.startswith(("down_blocks", "conv_in", "up_blocks", "mid_block")):
        return "this is a U-Net alone, in diffusers' form: name the whole folder that it came from"
    return "this file does not hold a Stable Diffusion checkpoint"


def _not_a_pipeline(path: Path) -> str:
    if not any(path.iterdir()):
        return f"{path}: this folder is empty."
    if any((path / name).exists() for name in LORA_FILES):
        return f"{path}: this folder holds a LoRA, which changes a model and is not one: name the model it belongs to."
    config = path / "config.json"
    if config.is_file():
        described = _read_json(config)
        kind = (
            described.get("_class_name") or ", ".join(described.get("architectures") or []) or "another kind of model"
        )
        return f"{path}: this folder holds a {kind}; {TUNABLE}."
    files = sorted(found.name for found in path.iterdir() if found.suffix in (".safetensors", ".ckpt"))
    if files:
        return f"{path}: this folder is not a diffusers model, but it holds {files[0]}: name that file itself."
    return f"{path}: this folder is not a diffusers model: it has no model_index.json."


def _no_weights(path: Path, component: str) -> str:
    if any((path / component).glob("*.bin")):
        return (
            f"{path}: {component}/ holds only pickled .bin weights, which raftdiff does not open. Convert them to "
            "safetensors, for example with diffusers: pipeline.save_pretrained(FOLDER, safe_serialization=True)."
        )
    return f"{path}: {component}/ holds no weights (.safetensors); the folder is incomplete."


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this file cannot be read as JSON: {error}.") from None
    return found if isinstance(found, dict) else {}


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: this is not a readable safetensors file ({error}).") from None


def _ckpt_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    import pickle

    import torch

    try:
        found = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(
            f"{path}: this .ckpt cannot be read as plain weights ({str(error).splitlines()[0]}). It may hold Python "
            "code, which raftdiff never runs; use the model's .safetensors."
        ) from None
    while isinstance(found, dict) and "state_dict" in found:
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise UserError(f"{path}: this .ckpt holds a {type(found).__name__}, not a model's weights.")
    return {name: tuple(value.shape) for name, value in found.items() if isinstance(value, torch.Tensor)}
