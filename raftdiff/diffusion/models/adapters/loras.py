"""LoRAs that a model starts from, merged into its weights: what is tuned, compared with and exported is the base with
them."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from raftdiff.diffusion.families.family import Family, Joined, Modules
from raftdiff.diffusion.models.adapters.lora_files import LoRAFile, Update, of_layers, read_lora, updates
from raftdiff.diffusion.models.quiet import quietly
from raftdiff.errors import Need, UserError, counted
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import model_at

WHERE = "It can be a .safetensors file, the folder of a LoRA of diffusers' or PEFT's, or a hub id."


class LoRAConfig(Config):
    """A LoRA that the model starts from, and how much of it."""

    path: str
    """A .safetensors file (kohya's or diffusers'), a folder of diffusers' or PEFT's, or a hub id."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """How much of its change is added: 1 for all, below 0 for the opposite."""

    @field_validator("weight")
    @classmethod
    def _changes_something(cls, weight: float) -> float:
        if weight == 0:
            raise ValueError("with a weight of 0 it changes nothing; leave the LoRA out")
        return weight

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve  # no LoRA ships
        yield from model_at("path", self.path, where=WHERE)


class Layer(NamedTuple):
    """A layer of a component that a LoRA can change."""

    component: str
    name: str
    module: Any


def merge(family: Family, modules: Modules, loras: Sequence[LoRAConfig]) -> None:
    """Add the LoRAs to the weights of denoiser and text encoders, in place: W + sum of weight * scale * up @ down.

    The sum is taken in float32 and rounded once to what the weight is held in.

    Raises:
        UserError: a LoRA cannot be read, is of another family or base, or holds what meets no layer.
    """
    if not loras:
        return
    known = names(family, modules)
    changed: dict[int, tuple[nn.Parameter, list[tuple[float, Update]]]] = {}
    for place, config in enumerate(loras):
        what = f"model.loras.{place}: {config.path}"
        read = read_lora(config.path, what, family.components)
        found = resolved(family, modules, known, read, what)
        if not any(bool(update.up.any()) and bool(update.down.any()) for _, update in found):
            raise UserError(f"{what} changes nothing: one half of each layer is zeros, as before any training.")
        for layer, update in found:
            if not update.scale or not math.isfinite(update.scale):
                raise UserError(
                    f"{what}: the scale of '{layer.name}' (alpha / rank) is {update.scale:g}, which is none."
                )
            weight = layer.module.weight
            changed.setdefault(id(weight), (weight, []))[1].append((config.weight, update))
    with torch.no_grad():
        for weight, added in changed.values():
            total = sum(share * delta(update, weight.shape) for share, update in added)
            weight.copy_((weight.float() + total).to(weight.dtype))
            if not bool(weight.isfinite().all()):
                raise UserError("model.loras: with these weights the model's numbers become infinite; lower them.")


def names(family: Family, modules: Modules) -> dict[str, Layer]:
    """What layers are called in LoRA files: by kohya's scripts and programs like them, by diffusers with the
    component's name and, of the denoiser, without it, and by PEFT."""
    found: dict[str, Layer] = {}
    encoders = [encoder for encoder, _ in family.tokenizers.values()]
    starts = {family.denoiser: ["lora_unet", "lora_transformer", "lycoris"]}
    starts |= {encoder: [f"lora_te{place + 1}"] for place, encoder in enumerate(encoders)}
    starts[encoders[0]].append("lora_te")
    for component, flat in starts.items():
        bare = ("", "diffusion_model.") if component == family.denoiser else ()
        for name, module in modules[component].named_modules():
            if not isinstance(module, nn.Linear | nn.Conv2d):
                continue
            layer, called = Layer(component, name, module), published(component, name)
            for one in dict.fromkeys((name, called)):
                dotted = [f"{start}{one}" for start in (f"{component}.", *bare)]
                kohya = [f"{start}_{one.replace('.', '_')}" for start in flat]
                found |= dict.fromkeys((*dotted, *kohya), layer)
            if component == family.denoiser or component in family.layers.text:
                found.setdefault(family.kohya(component, called, modules), layer)
    return found


def resolved(
    family: Family, modules: Modules, known: Mapping[str, Layer], read: LoRAFile, what: str
) -> list[tuple[Layer, Update]]:
    """Each change with the layer that it is of.

    Names of another code are turned into diffusers' by what the family says of them, else by diffusers' own converters,
    as FLUX's are.

    Raises:
        UserError: not all of the file is of this model.
    """
    found = updates(read.weights, read.settings, what)
    if others := {layer: update for layer, update in found.items() if layer not in known}:
        turned = _taken_apart(family, modules, others) or _converted(family, modules, read, others.keys(), what)
        if turned.keys() <= known.keys() and len(turned) >= len(others):  # fewer would be some that it passed over
            found = {layer: update for layer, update in found.items() if layer in known} | turned
    strange = [layer for layer in found if layer not in known]
    if len(strange) == len(found):
        raise UserError(
            f"{what}: none of the layers that it changes, such as '{strange[0]}', is one of {family.told}: it is a "
            f"LoRA of another family.{read.base}"
        )
    if strange:
        raise UserError(
            f"{what}: {counted(len(strange), 'layer')} of the {len(found)} that it changes, such as '{strange[0]}', "
            f"this model does not have, so that the LoRA would be used in part only. It is of another base.{read.base}"
        )
    for layer, update in found.items():
        rows, columns = known[layer].module.weight.flatten(1).shape
        down, up = update.down.shape, update.up.shape
        if up[1:].numel() != down[0]:
            raise UserError(
                f"{what}: the halves of '{layer}' are of rank {up[1:].numel()} and {down[0]}; the file is damaged."
            )
        if up[0] != rows or down[1:].numel() != columns:
            raise UserError(
                f"{what}: its change of '{layer}' is of {up[0]} x {down[1:].numel()} numbers, and that layer has "
                f"{rows} x {columns}: it is a LoRA of another base.{read.base}"
            )
    return [(known[layer], update) for layer, update in found.items()]


def delta(update: Update, shape: torch.Size) -> Tensor:
    """The change of a weight of that shape, float32. A convolution's halves are one of its size and one of 1 x 1."""
    return (update.scale * update.up.float().flatten(1) @ update.down.float().flatten(1)).view(shape)


def published(component: str, name: str) -> str:
    """The published name of a component's layer: transformers 5.6 dropped a level of CLIP's that LoRA files still
    have."""
    known = not component.startswith("text_encoder") or name.startswith(("text_model.", "text_projection."))
    return name if known else f"text_model.{name}"


def _taken_apart(family: Family, modules: Modules, found: Mapping[str, Update]) -> dict[str, Update]:
    """The changes of layers that are several here; nothing where one of them is not known to the family."""
    known = family.joined(modules) if isinstance(family, Joined) else {}
    if not found.keys() <= known.keys():
        return {}
    apart = {}
    for name, update in found.items():
        pieces = update.up.tensor_split(sum(len(rows) for rows in known[name].values()))
        for layer, rows in known[name].items():
            apart[f"{family.denoiser}.{layer}"] = Update(
                update.down, torch.cat([pieces[row] for row in rows]), update.scale
            )
    return apart


def _converted(
    family: Family, modules: Modules, read: LoRAFile, layers: Collection[str], what: str
) -> dict[str, Update]:
    """By what diffusers' pipeline makes of such a file; nothing where it does not know it either."""
    import diffusers

    pipeline, config = getattr(diffusers, family.pipeline), modules[family.denoiser].config
    try:
        with quietly():
            given = of_layers(read.weights, layers)
            found = pipeline.lora_state_dict(given, unet_config=config, return_alphas=True)
        weights, alphas = found if isinstance(found, tuple) else (found, None)
        told = {name: torch.as_tensor(alpha) for name, alpha in (alphas or {}).items()}
        return updates({**weights, **told}, read.settings, what)
    except Exception:  # its converters raise nearly anything over names that they do not expect
        return {}
