"""The parts of a Stable Diffusion model, read from a folder, a single file or elsewhere, each checked as it is read."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.models.checkpoints import (
    COMPONENTS,
    Layout,
    folder_layout,
    hub_vae,
    read_json,
    variant,
)
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.diffusion.models.single_file import write_configs
from raftdiff.errors import UserError
from raftdiff.training.weights import demand_all, demand_finite, loaded, reading, without_data

LOCAL: Mapping[str, Any] = {"local_files_only": True}
CLIP = "cond_stage_model.transformer."
SHORT = tuple(f"{CLIP}{part}." for part in ("embeddings", "encoder", "final_layer_norm"))


def read_folder(layout: Layout, dtype: torch.dtype, vae: str | None) -> dict[str, Any]:
    """Each component by its own loader: no safety checker, no feature extractor, no remote code, safetensors only.
    ``vae`` names another VAE than the folder's own."""
    import diffusers
    import transformers

    kinds = {"unet": diffusers.UNet2DConditionModel, "text_encoder": transformers.CLIPTextModel}
    if vae is None:
        kinds["vae"] = diffusers.AutoencoderKL
    with quietly():
        parts = {name: _component(layout.path, name, kind, dtype) for name, kind in kinds.items()}
    if vae is not None:
        parts["vae"] = read_vae(vae, layout.path, dtype)
    return {**parts, **_without_weights(layout)}


def read_single_file(
    path: Path, kind: str, dtype: torch.dtype, *, vae: str | None, configs: str | None, prediction_type: str | None
) -> dict[str, Any]:
    """The parts of a checkpoint in the original names.

    Args:
        kind: sd1 or sd2.
        vae: another VAE than the file's own, which may then lack.
        configs: the diffusers folder that says how large its parts are; those of SD 1.x or 2.x by default.
        prediction_type: what an SD 2.x network predicts.
    """
    import diffusers

    weights = _tensors(path)
    with tempfile.TemporaryDirectory() as scratch, quietly():
        if configs is not None:
            layout = folder_layout(Path(configs).expanduser(), weights=False)
        else:
            layout = folder_layout(write_configs(kind, Path(scratch), prediction_type, path), weights=False)
        misfit = f"{path}: these weights do not fit the model configs in {configs or kind}"
        with reading(misfit, "Name the diffusers folder that holds the right ones as model.config."):
            parts = {
                "unet": _converted(diffusers.UNet2DConditionModel, weights, layout.path, "unet", dtype),
                "text_encoder": _text_encoder(weights, layout.path, dtype),
            }
            if vae is None:
                parts["vae"] = _converted(diffusers.AutoencoderKL, weights, layout.path, "vae", dtype)
        for name, part in parts.items():
            _demand(f"{path}: {name}", part, weights)
        if vae is not None:
            parts["vae"] = read_vae(vae, layout.path, dtype)
        return {**parts, **_without_weights(layout)}


def read_vae(name: str, configs: Path, dtype: torch.dtype) -> Any:
    """The AutoencoderKL that ``model.vae`` names: its folder, that of a whole model, a single file, or a hub id.

    Args:
        configs: the folder of the model that it is to serve, whose VAE says how large one in a single file is.

    Raises:
        UserError: nothing of the kind is there.
    """
    import diffusers

    path, what = Path(name).expanduser(), f"model.vae: {name}"
    if path.is_file():
        weights = _tensors(path)
        if not any("decoder." in key for key in weights):
            raise UserError(f"{what} holds no VAE: no weight of it belongs to a decoder.")
        with tempfile.TemporaryDirectory() as scratch, quietly():
            sizes = (
                configs if (configs / "vae/config.json").is_file() else write_configs("sd1", Path(scratch), None, path)
            )
            with reading(f"{what} does not fit the VAE config in {sizes}"):
                vae = _converted(diffusers.AutoencoderKL, weights, sizes, "vae", dtype)
        _demand(what, vae, weights)
        return vae
    folder = path if path.is_dir() else hub_vae(name)
    inside = folder / "vae" if not (folder / "config.json").is_file() else folder
    if not (inside / "config.json").is_file():
        raise UserError(f"{what} is not the folder of an AutoencoderKL: it has no config.json.")
    kind = read_json(inside / "config.json").get("_class_name")
    if kind != "AutoencoderKL":
        raise UserError(
            f"{what} holds a {kind or 'model that does not say its class'}; raftdiff takes an AutoencoderKL."
        )
    with quietly():
        return _component(folder, "vae" if inside != folder else "", diffusers.AutoencoderKL, dtype, what=what)


def _component(folder: Path, name: str, kind: Any, dtype: torch.dtype, what: str | None = None) -> Any:
    stem = COMPONENTS[name or "vae"][0]
    return loaded(
        what or f"{folder}: {name}",
        kind,
        folder / name,
        use_safetensors=True,
        variant=variant(folder / name, stem, what or f"{folder}: {name}/"),
        dtype=dtype,
        **LOCAL,
    )


def _without_weights(layout: Layout) -> dict[str, Any]:
    import transformers

    with quietly():
        with reading(f"{layout.path}: its tokenizer cannot be read"):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(layout.path / "tokenizer", **LOCAL)
        return {"tokenizer": tokenizer, "scheduler": _scheduler(layout)}


def _scheduler(layout: Layout) -> Any:
    """The model's own, of one of diffusers' classes.

    diffusers clips what is drawn to [-1, 1] where a DDIM or DDPM config says nothing of it. That is meant for pixels;
    latents are not confined so, and are clipped only where the file itself asks for it.
    """
    import diffusers

    file = layout.path / "scheduler" / "scheduler_config.json"
    told = read_json(file)
    for name in filter(None, (told.get("_class_name"), layout.scheduler)):
        kind = getattr(diffusers, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise UserError(f"{file.parent}: '{name}' is no scheduler of diffusers; a usual one is DDIMScheduler.")
    kind = getattr(diffusers, layout.scheduler)
    silent = "clip_sample" not in told and "clip_sample" in kind.__init__.__annotations__
    with reading(f"{file.parent}: this scheduler cannot be read"):
        scheduler = kind.from_pretrained(file.parent, **LOCAL, **({"clip_sample": False} if silent else {}))
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UserError(
            f"{file.parent}: a {layout.scheduler} has no noise schedule of Stable Diffusion's kind (alphas_cumprod); "
            "use the one that the model was trained with, such as a DDIMScheduler."
        )
    return scheduler


def _converted(kind: Any, weights: Mapping[str, torch.Tensor], configs: Path, part: str, dtype: torch.dtype) -> Any:
    """A part whose weights have the original names, or diffusers' already."""
    from diffusers.loaders import single_file_utils as original

    config = kind.load_config(str(configs), subfolder=part, **LOCAL)
    with torch.device("meta"):
        model = kind.from_config(config)
    known, named = set(model.state_dict()), weights
    if not known <= set(weights):
        convert = {"unet": original.convert_ldm_unet_checkpoint, "vae": original.convert_ldm_vae_checkpoint}[part]
        named = convert(dict(weights), config=config)
    model.load_state_dict(named, strict=False, assign=True)
    return model.to(dtype) if not without_data(model) else model


def _text_encoder(weights: Mapping[str, torch.Tensor], configs: Path, dtype: torch.dtype) -> Any:
    import transformers
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    # Some programs write CLIP's names without the level that transformers dropped: the converter knows them with it.
    named = {
        key.replace(CLIP, f"{CLIP}text_model.") if key.startswith(SHORT) else key: weight
        for key, weight in weights.items()
    }
    return create_diffusers_clip_model_from_ldm(
        transformers.CLIPTextModel, named, "text_encoder", config=str(configs), torch_dtype=dtype, **LOCAL
    )


def _demand(what: str, part: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    demand_all(what, without_data(part), weights)
    demand_finite(what, part)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """The weights of a file, whatever a training wrapped them in. No pickled code is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with reading(f"{path}: this is not a readable safetensors file"):
            return load_file(path)
    if path.suffix not in (".ckpt", ".pt"):
        raise UserError(f"{path}: weights in a single file end in .safetensors, .ckpt or .pt.")
    with reading(f"{path}: this file cannot be read as plain weights; use the model's .safetensors"):
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    while isinstance(found, dict) and "state_dict" in found:
        found = found["state_dict"]
    if not isinstance(found, dict):
        raise UserError(f"{path}: it holds a {type(found).__name__}, not a model's weights.")
    return {name: weight for name, weight in found.items() if isinstance(weight, torch.Tensor)}
