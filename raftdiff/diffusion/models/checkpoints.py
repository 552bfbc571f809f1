"""What kind of model lies at a path, found out before anything heavy is loaded, so that a wrong one gets a sentence."""

import errno
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raftdiff.diffusion.families.family import Bundled, Checkpoint, Family, Published, SingleFile
from raftdiff.diffusion.families.known import FAMILIES, TUNABLE, of_index
from raftdiff.diffusion.families.shared.unet import NETWORKS
from raftdiff.errors import UserError, command
from raftdiff.recipes.needs import near, unreachable
from raftdiff.training.weights import PICKLED, WRAPPERS, pickled_shapes, wrapper

PLAIN = (".safetensors", ".safetensors.index.json", "-*.safetensors")
HALF = (".fp16.safetensors", ".safetensors.index.fp16.json", ".fp16-*.safetensors", "-*.fp16.safetensors")
"""How the files of whole and of half precision may end, sharded ones too, behind their stem."""
MARKS = {"v": "v_prediction", "v_prediction": "v_prediction", "epsilon": "epsilon", "eps": "epsilon"}
"""What ``modelspec.prediction_type`` says, in diffusers' words."""
LORA_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Layout:
    """A folder known to hold the parts of a family's pipeline."""

    path: Path
    family: Family
    scheduler: str
    """The scheduler's class name."""


def variant(folder: Path, stem: str, what: str) -> str | None:
    """``fp16`` where weights exist in that variant only, else None, for ``from_pretrained``; ``what`` begins errors.

    Raises:
        UserError: there are no weights of a kind that raftdiff reads.
    """
    if any((folder / f"{stem}{end}").is_file() for end in PLAIN[:2]):
        return None
    if any((folder / f"{stem}{end}").is_file() for end in HALF[:2]):
        return "fp16"
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise UserError(
            f"{what} holds {others[0]} and no {stem}.safetensors, which is what is read; if it is the right file, "
            "rename it so."
        )
    if any(folder.glob("*.bin")):
        raise UserError(
            f"{what} holds only pickled .bin weights, which raftdiff does not open. Convert them to safetensors, for "
            "example with diffusers: pipeline.save_pretrained(FOLDER, safe_serialization=True)."
        )
    raise UserError(f"{what} holds no weights (.safetensors); the folder is incomplete.")


def folder_layout(path: Path, *, weights: bool = True, vae: bool = True) -> Layout:
    """The layout of a diffusers folder.

    Args:
        weights: whether the weights must be there too, or the configs are enough.
        vae: whether the folder needs a VAE of its own.

    Raises:
        UserError: missing, empty, another kind of model, or incomplete.
    """
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder.")
    index = path / "model_index.json"
    if not index.is_file():
        raise UserError(_not_a_pipeline(path))
    described = read_json(index)
    family = of_index(described)
    if family is None:
        if "_class_name" not in described:
            raise UserError(f"{index}: it does not say whose pipeline it is (_class_name); {TUNABLE}.")
        raise UserError(f"{path}: this is a {described['_class_name']}; {TUNABLE}.")
    for component, expected in family.components.items():
        if component == "vae" and not vae:
            continue
        _demand_kind(path, described, component, expected.kind)
        if weights:
            variant(path / component, expected.stem, f"{path}: {component}/")
    for name in (*family.tokenizers, "scheduler"):
        if not (path / name).is_dir():
            raise UserError(f"{path}: {name}/ is missing; the folder is incomplete.")
    return Layout(path, family, scheduler=_class_name(described, "scheduler") or "DDIMScheduler")


def _demand_kind(path: Path, described: Mapping[str, Any], component: str, expected: str) -> None:
    """
    Raises:
        UserError: a component of a folder is of another class, by the index or by its own config.
    """
    found = _class_name(described, component)
    if found is None:
        raise UserError(
            f"{path}: model_index.json names no {component}, and a {described['_class_name']} has one: it is "
            "damaged, or of several models."
        )
    if found != expected:
        raise UserError(f"{path}: its {component} is a {found}, not a {expected}; {TUNABLE}.")
    if not (path / component / "config.json").is_file():
        raise UserError(f"{path}: {component}/config.json is missing; the folder is incomplete.")
    own = read_json(path / component / "config.json").get("_class_name", expected)
    if own != expected:
        raise UserError(
            f"{path}: of its {component} model_index.json says {expected}, and {component}/config.json {own}; "
            "one of them is another model's."
        )


def _class_name(described: Mapping[str, Any], component: str) -> str | None:
    """The class that a model_index.json names for a component: ``"unet": ["diffusers", "UNet2DConditionModel"]``."""
    found = described.get(component)
    return str(found[1]) if isinstance(found, list) and len(found) == 2 and found[1] is not None else None


def hub_folder(name: str) -> Path:
    """The local snapshot of a hub model, fetched where it is not there yet: configs and safetensors, nothing else.

    Raises:
        UserError: ``name`` is no hub id, or the model cannot be fetched.
    """
    return _hub(name, "model.base", lambda part: True)


def hub_configs(name: str) -> Path:
    """The same without weights, some hundred kilobytes.

    Raises:
        UserError: as there.
    """
    return _hub(name, "model.base", lambda part: False)


def hub_rest(name: str, held: Collection[str]) -> Path:
    """The same with the weights of all networks but ``held``, for a single file that holds these.

    Raises:
        UserError: as there.
    """
    return _hub(name, "model.config", lambda part: part not in held)


def _hub(name: str, key: str, wanted: Callable[[str], bool]) -> Path:
    """With the weights of those networks that are wanted; ``key`` of the recipe begins errors."""
    index = _snapshot(name, ["model_index.json"], {}, key) / "model_index.json"
    family = of_index(read_json(index)) if index.is_file() else None
    if family is None:
        return index.parent  # what is wrong with it, ``folder_layout`` says
    configs = [*(f"{part}/*" for part in family.tokenizers), "model_index.json", "scheduler/*", "*/config.json"]
    stems = {f"{part}/": it.stem for part, it in family.components.items() if wanted(part)}
    return _snapshot(name, configs, stems, key)


def hub_vae(name: str) -> Path:
    """The same of a VAE in a repository of its own, or in that of a whole model.

    Raises:
        UserError: as there.
    """
    stem = NETWORKS["vae"].stem
    return _snapshot(name, ["config.json", "vae/config.json"], {"": stem, "vae/": stem}, "model.vae")


def hub_files(name: str, files: Iterable[str], key: str) -> Path:
    """The folder of those of ``files`` that a repository of the hub holds, fetched where they are not there yet;
    ``key`` of the recipe begins errors.

    Raises:
        UserError: as there, or it holds none of them.
    """
    folder = _snapshot(name, list(files), {}, key)
    if not any((folder / file).is_file() for file in files):
        raise UserError(
            f"{key}: the hub's '{name}' holds none of {', '.join(files)}. Fetch the file that is meant (hf download "
            f"{name} FILE) and name it."
        )
    return folder


def _snapshot(name: str, configs: list[str], stems: Mapping[str, str], key: str) -> Path:
    """``stems`` says what the weights are called, by the folder they lie in; ``key`` of the recipe begins errors."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", name) or name.startswith((".", "/", "~")):
        shipped = ", nor a shipped model" if key == "model.base" else ""
        told = f"{key}: '{name}' is neither a folder nor a file here, nor a hub id (owner/name){shipped}."
        raise UserError(f"{told} {near(name)}".strip())
    unreachable()  # where it is, the library looks into its cache at once
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    plain = [f"{where}{stem}{end}" for where, stem in stems.items() for end in PLAIN]
    try:
        folder = Path(snapshot_download(name, allow_patterns=configs + plain))
        lacking = [
            f"{where}{stem}{end}"
            for where, stem in stems.items()
            if not any((folder / f"{where}{stem}{end}").exists() for end in PLAIN[:2])
            for end in HALF
        ]
        if lacking:  # published in half precision only; asked for second, lest both are fetched where both are there
            snapshot_download(name, allow_patterns=lacking)
        return folder
    except RepositoryNotFoundError:
        raise UserError(
            f"{key}: there is no folder '{name}' here, and the hub has no model of that name, or it needs a login "
            "(hf auth login)."
        ) from None
    except HFValidationError as error:
        raise UserError(f"{key}: there is no folder '{name}' here, and it is no hub id: {error}.") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{key}: there is no folder '{name}' here, and the hub cannot be reached to look for it there "
            f"({unreachable() or type(error).__name__}). Name a local folder, or try again with a network."
        ) from None


def recognise_file(path: Path, *, vae: bool = True) -> Checkpoint:
    """What the single-file checkpoint holds, and what it says of itself.

    Args:
        vae: whether it needs a VAE of its own.

    Raises:
        UserError: no readable .safetensors, .ckpt or .pth, or another kind of model.
    """
    told: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        shapes, told = _safetensors_header(path)
    elif path.suffix in PICKLED:
        shapes = pickled_shapes(path)
    else:
        raise UserError(f"{path}: a single-file model ends in .safetensors, .ckpt or .pth.")
    family, kind = next(((it, kind) for it in FAMILIES if (kind := it.recognise(shapes, path))), (None, ""))
    if family is None:
        raise UserError(f"{path}: {_other_kind(shapes)}; {TUNABLE}.")
    known = one_file(family, path)
    if scaled := next((name for name in shapes if name.endswith(SCALED)), None):
        raise UserError(
            f"{path}: its weights are rounded, with scales beside them ('{scaled}'), which raftdiff does not read. "
            "Fetch the file in bf16 or fp16; one in plain fp8 would do."
        )
    if vae and isinstance(known, Published) and not any(name.startswith("first_stage_model.") for name in shapes):
        raise UserError(f"{path}: it holds no VAE; name one as model.vae: a folder, a file or a hub id.")
    # Trainings mark what a network predicts by an empty tensor of that name, or in the metadata.
    stated = "v_prediction" if "v_pred" in shapes else MARKS.get(told.get("modelspec.prediction_type", "").lower())
    held = known.held(shapes) if isinstance(known, Bundled) else frozenset(known.components)
    return Checkpoint(known, kind, held, stated, True if "ztsnr" in shapes else None)


def one_file(family: Family, path: Path | None = None) -> SingleFile:
    """The family as one whose models are read from one file (``path``), or written to one.

    Raises:
        UserError: raftdiff knows no such form of it.
    """
    if isinstance(family, SingleFile):
        return family
    told = family.told
    if path is None:
        raise UserError(f"{told} has no single-file form that raftdiff writes; use --format merged, a folder.")
    raise UserError(f"{path}: this is {told}; raftdiff reads it from a folder in diffusers' format, not from one file.")


SCALED = (
    *("scaled_fp8", ".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant"),
    *(".absmax", ".quant_map", ".qweight", ".wscales"),
)
"""How names of weights end that are the scales of rounded ones: ComfyUI's, bitsandbytes' and nunchaku's."""
SIGNS = {
    "lora": "this is a LoRA, which changes a model and is not one: name the model it belongs to",
    "model_ema.": "of its U-Net it holds only the moving average of a training: fetch the file that holds the model",
    "double_blocks.": "this is a FLUX checkpoint",
    "joint_blocks.": "this is an SD 3 checkpoint",
    "lm_head": "this is a language model",
    "self_attn.q_proj": "this is a language model",
}
"""What names of weights show what a file is, where it is no Stable Diffusion checkpoint."""


def _other_kind(names: Iterable[str]) -> str:
    if wrapped := wrapper(names):
        name, mark = wrapped
        return f"it holds '{name}': the '{mark}' is no part of a model's names, {WRAPPERS[mark]}"
    text = "\n".join(names)
    if not text:
        return "this file holds no weights"
    if text.startswith(("down_blocks", "conv_in", "up_blocks", "mid_block")):
        return "this is a U-Net alone, in diffusers' form: name the whole folder that it came from"
    known = next((sentence for sign, sentence in SIGNS.items() if sign in text), None)
    return known or "this file does not hold a Stable Diffusion checkpoint"


def _not_a_pipeline(path: Path) -> str:
    if not any(path.iterdir()):
        return f"{path}: this folder is empty."
    if any((path / name).exists() for name in LORA_FILES):
        return f"{path}: this folder holds a LoRA, which changes a model and is not one: name the model it belongs to."
    if (path / "recipe.yaml").is_file() and (path / "rounds").is_dir():
        written = path / "export" / "merged"
        write = command("export", path, "--format", "merged")
        return f"{path}: this is a run. Write its model with: {write}; name {written}."
    if cached := next((path / "snapshots").glob("*/model_index.json"), None):
        return f"{path}: this is the hub cache's folder of a model; name {cached.parent}, or its hub id."
    return _no_pipeline(path)


def _no_pipeline(path: Path) -> str:
    config = path / "config.json"
    if config.is_file():
        described = read_json(config)
        kind = (
            described.get("_class_name") or ", ".join(described.get("architectures") or []) or "another kind of model"
        )
        return f"{path}: this folder holds a {kind}; {TUNABLE}."
    files = sorted(found.name for found in path.iterdir() if found.suffix in (".safetensors", *PICKLED))
    if files:
        return f"{path}: this folder is not a diffusers model, but it holds {files[0]}: name that file itself."
    return f"{path}: this folder is not a diffusers model: it has no model_index.json."


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file is not there, or holds no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: this file cannot be read as JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: this file holds a {type(found).__name__} where a JSON object with keys is expected.")
    return found


def _safetensors_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Shapes by name, and the metadata."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: this is not a readable safetensors file ({str(error).rstrip('.')}). It is cut short or damaged: "
            "fetch it again."
        ) from None
