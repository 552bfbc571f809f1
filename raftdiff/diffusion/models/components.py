"""The parts of a Stable Diffusion model, read from a folder, a single file or elsewhere, each checked as it is read."""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.families.family import Checkpoint, Component, Family, Published
from raftdiff.diffusion.families.originals.bundle import VAES
from raftdiff.diffusion.families.shared import unet
from raftdiff.diffusion.families.shared.vocabulary import write_configs
from raftdiff.diffusion.models.checkpoints import (
    Layout,
    folder_layout,
    hub_rest,
    hub_vae,
    one_file,
    read_json,
    variant,
)
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.errors import UserError
from raftdiff.training.weights import (
    PICKLED,
    demand_all,
    demand_finite,
    loaded,
    reading,
    unwrapped,
    without_data,
)

LOCAL: Mapping[str, Any] = {"local_files_only": True}
EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.int8, torch.uint8)


def read_folder(layout: Layout, dtype: torch.dtype, vae: str | None, without: Sequence[str] = ()) -> dict[str, Any]:
    """Each component by its own loader: no safety checker, no feature extractor, no remote code, safetensors only.

    Args:
        vae: names another VAE than the folder's own.
        without: those that are only ``outlined`` for now; ``read_part`` reads them.
    """
    wanted = [name for name in layout.family.components if vae is None or name != "vae"]
    parts = {name: outlined(layout, name) if name in without else read_part(layout, name, dtype) for name in wanted}
    if vae is not None:
        parts["vae"] = read_vae(vae, layout, dtype)
    return {**parts, **without_weights(layout)}


def read_part(layout: Layout, name: str, dtype: torch.dtype) -> Any:
    """One of a folder's networks."""
    with quietly():
        return _component(f"{layout.path}: {name}/", layout.path / name, layout.family.components[name], dtype)


def outlined(layout: Layout, name: str) -> Any:
    """One of a folder's networks by its config alone, on the meta device."""
    component, folder = layout.family.components[name], layout.path / name
    kind = getattr(import_module(component.library), component.kind)
    with torch.device("meta"):
        if component.library == "transformers":
            return kind(kind.config_class.from_pretrained(folder, **LOCAL))
        return kind.from_config(kind.load_config(folder, **LOCAL))


def read_single_file(
    path: Path,
    found: Checkpoint,
    dtype: torch.dtype,
    *,
    vae: str | None,
    configs: str | None,
    prediction_type: str | None,
) -> tuple[Family, dict[str, Any]]:
    """The parts of a checkpoint in the original names, and its family with what a config folder says of it.

    Args:
        found: what it is.
        vae: another VAE than the file's own, which may then lack.
        configs: the diffusers folder, or hub id, that says how large its parts are, and has those that the file lacks;
            those of the published models by default, where the family knows them.
        prediction_type: what its network predicts, where the file does not say it.
    """
    weights = {
        name: weight.to(dtype) if weight.dtype in EIGHT_BITS else weight
        for name, weight in _tensors(path).items()
        if vae is None or not name.startswith(VAES)
    }
    _demand_no_integers(path, weights)
    with tempfile.TemporaryDirectory() as scratch, quietly():
        lacking = found if vae is None else replace(found, held=found.held | {"vae"})
        layout = file_layout(path, lacking, configs, prediction_type, Path(scratch))
        misfit = f"{path}: these weights do not fit the model configs in {configs or found.kind}"
        with reading(misfit, "Name the diffusers folder that holds the right ones as model.config."):
            parts = one_file(layout.family, path).converted(weights, layout.path, dtype)
        for name, part in parts.items():
            _demand(f"{path}: {name}", part, weights)
        if vae is not None:
            parts["vae"] = read_vae(vae, layout, dtype)
        for name in layout.family.components.keys() - parts.keys():
            where = layout.path / name
            parts[name] = _component(f"{layout.path}: {name}/", where, layout.family.components[name], dtype)
        if isinstance(found.family, Published):
            _tell_unread(path, unet.unread(weights, parts))
        return layout.family, {**parts, **without_weights(layout)}


def _demand_no_integers(path: Path, weights: Mapping[str, torch.Tensor]) -> None:
    """
    Raises:
        UserError: weights are rounded to whole numbers; positions, which are some, are no weights.
    """
    rounded = (name for name, it in weights.items() if it.dtype in INTEGERS and it.dim() > 1)
    if name := next(rounded, None):
        kind = str(weights[name].dtype).removeprefix("torch.")
        raise UserError(
            f"{path}: its weights are rounded to whole numbers ('{name}' is {kind}), which raftdiff does not read. "
            "Fetch the file in bf16 or fp16; one in plain fp8 would do."
        )


def _tell_unread(path: Path, names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"{path}: '{names[0]}'{more} have no place in this model and are not read: it draws as if they were not "
            "there. Was the file made for another kind of model, or merged with something?",
            stacklevel=2,
        )


def file_layout(
    path: Path,
    found: Checkpoint,
    configs: str | None,
    prediction_type: str | None,
    scratch: Path,
    *,
    weights: bool = True,
) -> Layout:
    """Of the folder that says how large the parts of a single file are, and has those that it lacks.

    Args:
        configs: what ``model.config`` names; by default the published ones, written into ``scratch``.
        weights: whether those of a hub model are fetched that the file lacks.

    Raises:
        UserError: there is none, or it is of another family.
    """
    if configs is None:
        if not isinstance(found.family, Published):
            lacking = [name for name in found.family.components if name not in found.held]
            raise UserError(
                f"{path}: of {found.family.told} it holds {' and '.join(sorted(found.held))}. The rest "
                f"({', '.join([*lacking, *found.family.tokenizers, 'scheduler'])}) is taken from a model that "
                f"model.config names: a folder in diffusers' format or a hub id, such as {found.kind}."
            )
        found.family.configs(found.kind, prediction_type, scratch, path)
        return folder_layout(scratch, weights=False)
    folder = Path(configs).expanduser()
    if folder.is_file():
        raise UserError(
            f"model.config: {configs} is a file; name the folder of a model in diffusers' format, or a hub id."
        )
    if not folder.is_dir():
        folder = hub_rest(configs, found.held if weights else found.family.components)
    layout = folder_layout(folder, weights=False)
    if layout.family.name != found.family.name:
        raise UserError(
            f"model.config: {configs} holds the configs of {layout.family.told}, and {path} is {found.family.told}."
        )
    return layout


def read_vae(name: str, layout: Layout, dtype: torch.dtype) -> Any:
    """The VAE that ``model.vae`` names: its folder, that of a whole model, a hub id, or, of an AutoencoderKL, one file.

    Args:
        layout: of the model that it is to serve, whose VAE says how large one in a single file is.

    Raises:
        UserError: nothing of the kind is there.
    """

    path, what = Path(name).expanduser(), f"model.vae: {name}"
    if path.is_file():
        if (expected := layout.family.components["vae"].kind) != "AutoencoderKL":
            raise UserError(f"{what}: an {expected} is read from its folder, not from one file; name the folder.")
        weights = _tensors(path)
        if not any("decoder." in key for key in weights):
            raise UserError(f"{what} holds no VAE: no weight of it belongs to a decoder.")
        with tempfile.TemporaryDirectory() as scratch, quietly():
            sizes = layout.path
            if not (sizes / "vae/config.json").is_file():
                sizes = Path(scratch)
                write_configs(sizes, {"vae/config.json": layout.family.vae_config})
            with reading(f"{what} does not fit the VAE config in {sizes}"):
                vae = unet.converted(weights, sizes, "vae", dtype)
        _demand(what, vae, weights)
        return vae
    folder = path if path.is_dir() else hub_vae(name)
    inside = folder / "vae" if not (folder / "config.json").is_file() else folder
    if not (inside / "config.json").is_file():
        raise UserError(f"{what} is not the folder of an AutoencoderKL: it has no config.json.")
    kind = read_json(inside / "config.json").get("_class_name")
    wanted = layout.family.components["vae"]
    if kind != wanted.kind:
        article = "an" if wanted.kind[0] in "AEIOU" else "a"
        raise UserError(
            f"{what} holds a {kind or 'model that does not say its class'}; raftdiff takes {article} {wanted.kind}."
        )
    with quietly():
        return _component(what, inside, wanted, dtype)


def _component(what: str, folder: Path, component: Component, dtype: torch.dtype) -> Any:
    """``what`` begins sentences; of a folder within a model's it ends in a slash."""
    return loaded(
        what.removesuffix("/"),
        getattr(import_module(component.library), component.kind),
        folder,
        use_safetensors=True,
        variant=variant(folder, component.stem, what),
        dtype=dtype,
        **LOCAL,
    )


def without_weights(layout: Layout) -> dict[str, Any]:
    """Tokenizers and scheduler."""
    import transformers

    with quietly():
        tokenizers = {}
        for name, (_, kind) in layout.family.tokenizers.items():
            with reading(f"{layout.path}: its {name} cannot be read"):
                tokenizers[name] = getattr(transformers, kind).from_pretrained(layout.path / name, **LOCAL)
        return {**tokenizers, "scheduler": _scheduler(layout)}


def _scheduler(layout: Layout) -> Any:
    """The model's own, of one of diffusers' classes.

    diffusers clips what is drawn to [-1, 1] where a DDIM or DDPM config says nothing of it. That is meant for pixels;
    latents are not confined so, and are clipped only where the file itself asks for it.
    """
    import diffusers

    file = layout.path / "scheduler" / "scheduler_config.json"
    told = read_json(file)
    kinds: list[Any] = []
    for name in dict.fromkeys(filter(None, (told.get("_class_name"), layout.scheduler))):
        kind = getattr(diffusers, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise UserError(f"{file.parent}: '{name}' is no scheduler of diffusers; a usual one is DDIMScheduler.")
        kinds.append(kind)
    for kind in kinds:  # a config of another family's would be read as one of this, without its numbers
        silent = "clip_sample" not in told and "clip_sample" in kind.__init__.__annotations__
        with reading(f"{file.parent}: this scheduler cannot be read"):
            scheduler = kind.from_pretrained(file.parent, **LOCAL, **({"clip_sample": False} if silent else {}))
        layout.family.process(scheduler, str(file.parent))  # raises where it is none of this family's
    return scheduler


def _demand(what: str, part: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    demand_all(what, without_data(part), weights)
    demand_finite(what, part)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file, whatever a training wrapped them in. No pickled code is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with reading(f"{path}: this is not a readable safetensors file"):
            return load_file(path)
    if path.suffix not in (*PICKLED, ".pt"):
        raise UserError(f"{path}: weights in a single file end in .safetensors, .ckpt, .pth or .pt.")
    with reading(f"{path}: this file cannot be read as plain weights; use the model's .safetensors"):
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    return unwrapped(path, found)


def set_attention(denoiser: Any, attention: str, family: Family) -> None:
    """A transformer comes with PyTorch's own attention.

    Raises:
        UserError: xformers is asked for where it does not go with the network.
    """
    if family.denoiser != "unet":
        if attention == "xformers":
            raise UserError(f"model.attention: xformers is for U-Nets; {family.told} draws with sdpa.")
        return
    if attention == "sdpa":
        from diffusers.models.attention_processor import AttnProcessor2_0

        denoiser.set_attn_processor(AttnProcessor2_0())
    elif attention == "xformers":
        denoiser.enable_xformers_memory_efficient_attention()
