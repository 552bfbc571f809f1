"""LoRAs as files have them: which file of a folder, and what it says, before it is known what it changes."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import Tensor

from raftdiff.diffusion.models.checkpoints import hub_files, read_json
from raftdiff.errors import UserError, command
from raftdiff.training.weights import reading

DIFFUSERS, PEFT, PEFT_CONFIG = "pytorch_lora_weights.safetensors", "adapter_model.safetensors", "adapter_config.json"
"""What the files of a folder are called: diffusers' and PEFT's."""
PAIR = re.compile(
    r"(?P<layer>.+?)(?:\.lora_linear_layer\.|\.lora_|\.lora\.|_lora\.)(?P<half>down|up|A|B)(?:\.default)?\.weight"
)
"""Of kohya's files (``.lora_down.weight``), PEFT's and diffusers' (``.lora_A.weight``), and diffusers' earlier ones."""
DOWN = ("down", "A")
ALPHA = ".alpha"
ATTENTION = re.compile(r"(?<=\.)processor\.(to_[qkv]|to_out)$")
"""As diffusers wrote layers of attention before it read them by PEFT."""
CLIP_ATTENTION = re.compile(r"(?<=self_attn\.)to_(q|k|v|out)$")
OTHERS: Mapping[str, re.Pattern[str]] = {
    "a LoHa": re.compile(r"\.hada_"),
    "a LoKr": re.compile(r"\.lokr_"),
    "an OFT": re.compile(r"\.b?oft_"),
    "a DoRA": re.compile(r"\.(dora_scale|lora_magnitude_vector)"),
    "a LoCon in Tucker's form": re.compile(r"\.lora_mid\."),
    "an IA3": re.compile(r"\.(on_input$|ia3_)"),
    "a GLoRA": re.compile(r"\.[ab][12]\.weight$"),
    "a change without low rank": re.compile(r"\.(diff|diff_b|set_weight|[wb]_norm)$"),
}
"""By what names of weights the other forms of LyCORIS and PEFT are known."""


@final
@dataclass(frozen=True, slots=True)
class Update:
    """The change of one layer, by its name in the file: ``scale * up @ down``."""

    down: Tensor
    up: Tensor
    scale: float


@final
@dataclass(frozen=True, slots=True)
class LoRAFile:
    """What stands in a file, or in the files of PEFT's folders."""

    weights: Mapping[str, Tensor]
    settings: Mapping[str, Mapping[str, Any]]
    """PEFT's settings, by the component that they are for; '' for whatever the file changes."""
    told: Mapping[str, str] = field(default_factory=dict)
    """The file's metadata."""

    @property
    def base(self) -> str:
        """A sentence on which base the file says that it is for; empty where it does not."""
        named = (self.told.get(key) for key in ("ss_base_model_version", "modelspec.architecture"))
        return next((f" The file says that it is for {name}." for name in named if name), "")


def read_lora(name: str, what: str, components: Collection[str]) -> LoRAFile:
    """The LoRA that is a .safetensors file, a folder of diffusers' or PEFT's, or has a hub id.

    Args:
        what: begins sentences: the key of the recipe and ``name``.
        components: that PEFT may have made a folder of each.

    Raises:
        UserError: there is none, it is of a form that is not read, or it holds numbers that are none.
    """
    path = Path(name).expanduser()
    if not path.exists():
        path = hub_files(name, (DIFFUSERS, PEFT, PEFT_CONFIG), what.partition(":")[0])
    if (path / PEFT_CONFIG).is_file():
        folders = {path.name: path} if path.name in components else {}
    else:
        folders = {part: path / part for part in components if (path / part / PEFT_CONFIG).is_file()}
    if folders:
        found = {part: _peft(folder, f"{what}: {part}") for part, folder in folders.items()}
        weights = {f"{part}.{_bare(key)}": it for part, one in found.items() for key, it in one.weights.items()}
        read = LoRAFile(weights, {part: one.settings[""] for part, one in found.items()})
    elif (path / PEFT_CONFIG).is_file():
        read = _peft(path, what)
    else:
        read = _file(_chosen(path, what), what)
    _check(read, what)
    return read


def updates(weights: Mapping[str, Tensor], settings: Mapping[str, Mapping[str, Any]], what: str) -> dict[str, Update]:
    """The changes by the names that the file gives to layers.

    A layer's alpha stands beside it in kohya's files, in the settings of PEFT's and of some of diffusers'; without one
    it is the rank, and the scale 1.

    Raises:
        UserError: a half is missing, or a weight is part of no LoRA.
    """
    halves: dict[str, dict[bool, Tensor]] = {}
    with reading(f"{what}: an alpha of it is no number"):
        alphas = {_layer(key): float(it) for key, it in weights.items() if key.endswith(ALPHA)}
    for key, weight in weights.items():
        if match := PAIR.fullmatch(key):
            halves.setdefault(_layer(key), {})[match["half"] in DOWN] = weight
        elif not key.endswith(ALPHA):
            raise UserError(f"{what}: it holds '{key}', which is no part of a LoRA that raftdiff could read.")
    for layer, pair in halves.items():
        if len(pair) < 2:
            raise UserError(f"{what}: of '{layer}' it holds one half alone; the file is not whole.")
    if lonely := alphas.keys() - halves.keys():
        raise UserError(f"{what}: it holds an alpha of '{min(lonely)}' and no LoRA of it; the file is not whole.")
    with reading(f"{what}: its settings are none of a LoRA"):
        return {
            layer: Update(pair[True], pair[False], _scale(layer, len(pair[True]), alphas.get(layer), settings))
            for layer, pair in halves.items()
        }


def of_layers(weights: Mapping[str, Tensor], layers: Collection[str]) -> dict[str, Tensor]:
    """Those of the weights that make the changes of some layers, which are called as ``updates`` calls them."""
    return {key: it for key, it in weights.items() if _layer(key) in layers}


def _layer(key: str) -> str:
    match = PAIR.fullmatch(key)
    return _plain(match["layer"] if match else key.removesuffix(ALPHA))


def _scale(layer: str, rank: int, alpha: float | None, settings: Mapping[str, Mapping[str, Any]]) -> float:
    """As PEFT has it."""
    from peft.utils.other import get_pattern_key

    part = next((name for name in settings if name and layer.startswith(f"{name}.")), "")
    told = settings.get(part, {})
    if alpha is None:
        patterns, bare = told.get("alpha_pattern") or {}, layer.removeprefix(f"{part}.")
        alpha = patterns.get(get_pattern_key(patterns, bare), told.get("lora_alpha", rank))
    return float(alpha) / (rank**0.5 if told.get("use_rslora") else rank)


def _plain(layer: str) -> str:
    """A layer's name without what earlier forms put into it."""
    bare = _bare(layer)
    bare = ATTENTION.sub(lambda found: "to_out.0" if found[1] == "to_out" else found[1], bare)
    return CLIP_ATTENTION.sub(r"\1_proj", bare)


def _bare(name: str) -> str:
    return name.removeprefix("base_model.model.")


def _chosen(path: Path, what: str) -> Path:
    """
    Raises:
        UserError: a folder without one LoRA that could be meant.
    """
    if path.is_file():
        return path
    held = sorted(file.name for file in path.glob("*.safetensors"))
    if DIFFUSERS in held or len(held) == 1:
        return path / (DIFFUSERS if DIFFUSERS in held else held[0])
    if held:
        raise UserError(f"{what} holds {len(held)} files ({', '.join(held[:3])}...); name the one that is meant.")
    if (path / "recipe.yaml").is_file() and (path / "rounds").is_dir():
        written = path / "export" / "diffusers"
        write = command("export", path, "--format", "diffusers")
        raise UserError(f"{what} is a run. Write its LoRA with: {write}; name {written}.")
    pickled = next((file.name for end in ("bin", "pt", "ckpt") for file in path.glob(f"*.{end}")), None)
    raise UserError(f"{what}: {_no_pickles(pickled)}" if pickled else f"{what} holds no LoRA (.safetensors).")


def _no_pickles(name: str) -> str:
    return f"{name} may hold Python code, which raftdiff never runs; a LoRA is read from .safetensors alone."


def _file(path: Path, what: str) -> LoRAFile:
    """With diffusers' settings, which are PEFT's and stand in its metadata, by component."""
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise UserError(f"{what}: {_no_pickles(path.name)}")
    with reading(f"{what} is not a readable safetensors file"), safe_open(path, framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told = file.metadata() or {}
        settings: dict[str, dict[str, Any]] = {}
        for key, value in json.loads(told.get("lora_adapter_metadata", "{}")).items():
            part, _, setting = key.partition(".")
            settings.setdefault(part, {})[setting] = value
    return LoRAFile(weights, settings, told)


def _peft(folder: Path, what: str) -> LoRAFile:
    told = read_json(folder / PEFT_CONFIG)
    if (kind := told.get("peft_type")) != "LORA":
        raise UserError(f"{what} holds an adapter of the kind {kind}; raftdiff starts from LoRAs.")
    if not (folder / PEFT).is_file():
        others = [file.name for file in folder.glob("adapter_model.*")]
        raise UserError(f"{what}: {_no_pickles(others[0])}" if others else f"{what} holds no {PEFT}.")
    return LoRAFile(_file(folder / PEFT, what).weights, {"": told})


def _check(read: LoRAFile, what: str) -> None:
    """
    Raises:
        UserError: another form than a LoRA's, or numbers that are none.
    """
    for key, weight in read.weights.items():
        if other := next((kind for kind, sign in OTHERS.items() if sign.search(key)), None):
            raise UserError(
                f"{what}: by '{key}' it is {other}, a form that raftdiff does not read; it reads LoRA and LoCon."
            )
        if not bool(weight.float().isfinite().all()):
            raise UserError(
                f"{what}: numbers of '{key}' are NaN or infinite. The file is damaged, or its training diverged."
            )
    if any(one.get("use_dora") for one in read.settings.values()):
        raise UserError(f"{what} is a DoRA, a form that raftdiff does not read; it reads LoRA and LoCon.")
    if not any(PAIR.fullmatch(key) for key in read.weights):
        held = f", but '{next(iter(read.weights))}'" if read.weights else ""
        raise UserError(f"{what} holds no LoRA{held}.")
