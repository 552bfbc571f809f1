"""Files that hold a transformer, and perhaps text encoders and a VAE beside it, under the prefixes of ComfyUI."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from raftdiff.diffusion.families.family import Component, Modules
from raftdiff.diffusion.families.originals.names import Names
from raftdiff.diffusion.families.shared import ldm

Weights = Mapping[str, Tensor]
NETWORK = "model.diffusion_model."
"""How the transformer's weights begin, in a file that holds more than it."""
VAES = ("first_stage_model.", "vae.")
TEXTS = "text_encoders."
QUANT = {"encoder.quant_conv.": "quant_conv.", "decoder.post_quant_conv.": "post_quant_conv."}
"""What FLUX.2's authors have in encoder and decoder, and diffusers beside them."""
NORM = "bn."
"""How the weights of FLUX.2's VAE begin that are no network's."""
LAYER = re.compile(r"\.\d+\.")
"""What is of a text encoder's layer: one too many, or a scale beside a weight, makes other embeddings of the same text.
What stands outside of them, such as ``logit_scale`` or a tokenizer's table, is not asked for embeddings."""
UNUSED = ("inv_freq", "position_ids", "attn.masked_bias")
"""How buffers of layers end that transformers once wrote, and makes by itself."""


@final
@dataclass(frozen=True, slots=True)
class Bundle:
    """The form of a family's single files. Source: github.com/Comfy-Org/ComfyUI, ``comfy/supported_models.py``."""

    names: Names
    encoders: Mapping[str, tuple[str, ...]]
    """What ComfyUI calls the text encoders, by the names of their folders; the first is written."""
    vae: str | None
    """How the VAE's weights begin in a file that is written; each of ``VAES`` is read. None where files hold a
    transformer alone, whose names then stand without ``NETWORK``."""

    def held(self, names: Collection[str]) -> frozenset[str]:
        """Which networks a file with weights of such names holds; its transformer is taken to be there."""
        starts = {encoder: _starts(called) for encoder, called in self.encoders.items()}
        starts |= {} if self.vae is None else {"vae": VAES}
        there = {part for part, start in starts.items() if any(name.startswith(start) for name in names)}
        return frozenset({"transformer", *there})

    def networks(
        self, components: Mapping[str, Component], weights: Weights, configs: Path, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Those that a file holds, by the sizes that ``configs`` says. What a network lacks stays on the meta device.

        Raises:
            ValueError: weights are of another model, or of a text encoder some are missing.
        """
        found = {}
        for part in self.held(weights) & components.keys():
            component, folder = components[part], configs / part
            if part == "transformer":
                found[part] = _filled(component, folder, self._transformer(weights), self.names.diffusers, dtype)
            elif part == "vae":
                found[part] = _filled(component, folder, _behind(weights, VAES), _vae, dtype)
            else:
                called = self.encoders[part]
                named = _behind(weights, _starts(called))
                found[part] = _text_encoder(part, component, folder, named, dtype, plain="clip_l" in called)
        return found

    def weights(self, components: Mapping[str, Component], modules: Modules) -> dict[str, Tensor]:
        """A model's, as such a file holds them."""
        network, vae = self.names.original(modules["transformer"].state_dict()), modules["vae"]
        if self.vae is None:
            return network
        found = {f"{NETWORK}{name}": it for name, it in network.items()}
        for encoder in self.encoders.keys() & components.keys():
            start = _starts(self.encoders[encoder])[0]
            named = _published(components[encoder].kind, modules[encoder].state_dict())
            found |= {f"{start}{name}": weight for name, weight in named.items()}
        return {**found, **ldm.vae_weights(vae.state_dict(), len(vae.config.block_out_channels), self.vae)}

    def _transformer(self, weights: Weights) -> dict[str, Tensor]:
        if found := _behind(weights, (NETWORK,)):
            return found
        return {name: weight for name, weight in weights.items() if not name.startswith((*VAES, TEXTS))}


def _starts(called: Collection[str]) -> tuple[str, ...]:
    return tuple(f"{TEXTS}{name}.transformer." for name in called)


def _behind(weights: Weights, starts: tuple[str, ...]) -> dict[str, Tensor]:
    return {name.removeprefix(start): it for start in starts for name, it in weights.items() if name.startswith(start)}


def _filled(component: Component, folder: Path, weights: Weights, convert: Any, dtype: torch.dtype) -> Any:
    """A network of diffusers with weights of which ``convert`` makes those of its own names."""
    import diffusers

    kind = getattr(diffusers, component.kind)
    config = kind.load_config(folder, local_files_only=True)
    with torch.device("meta"):
        model = kind.from_config(config)
    model.load_state_dict(convert(weights, model.state_dict()), strict=False, assign=True)
    whole = not any(tensor.is_meta for tensor in model.state_dict().values())
    return model.to(dtype) if whole else model


def _vae(weights: Weights, own: Weights) -> Weights:
    """Those in the names of the original code under diffusers'; of those that have these nothing changes."""
    if own.keys() <= weights.keys():
        return weights
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    named = dict(weights)
    for old, new in QUANT.items():
        named |= {name.replace(old, new): weight for name, weight in weights.items() if name.startswith(old)}
    blocks = {name.split(".")[2] for name in own if name.startswith("encoder.down_blocks.")}
    sides: Any = {"down_block_types": blocks, "up_block_types": blocks}  # how many there are is all that is asked
    found: dict[str, Tensor] = convert_ldm_vae_checkpoint(named, config=sides)
    return {**found, **{name: weight for name, weight in named.items() if name.startswith(NORM)}}


def _text_encoder(
    part: str, component: Component, folder: Path, weights: Weights, dtype: torch.dtype, *, plain: bool
) -> Any:
    """``plain``: where it says no projection, it has none.

    Raises:
        ValueError: it is not whole, or of another size.
    """
    import transformers

    kind = getattr(transformers, component.kind)
    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    named = dict(weights)
    if plain and component.kind == "CLIPTextModelWithProjection":  # Stable Diffusion 3's; ComfyUI projects none of it
        named.setdefault("text_projection.weight", torch.eye(config.projection_dim, config.hidden_size))
    asked: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # which is told here in its own words
    model, told = kind.from_pretrained(None, config=config, state_dict=named, dtype=dtype, **asked)
    if missing := told["missing_keys"]:
        raise ValueError(f"of its {part} it lacks '{min(missing)}'")
    if other := told["mismatched_keys"]:
        raise ValueError(f"of its {part} '{min(other)[0]}' is of another size")
    if strange := [name for name in told["unexpected_keys"] if LAYER.search(name) and not name.endswith(UNUSED)]:
        raise ValueError(f"of its {part} it holds '{min(strange)}', which has no place in that model")
    return model


def _published(kind: str, state: Weights) -> dict[str, Tensor]:
    """A text encoder's weights under the names that ComfyUI knows, and of a table that is in two places the first."""
    seen, found = set(), {}
    for name, weight in state.items():
        if weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        bare = name.startswith("text_projection.")
        level = {"CLIPTextModel": "text_model.", "CLIPTextModelWithProjection": "text_model.", "Qwen3Model": "model."}
        start = "" if bare else level.get(kind, "")
        found[f"{start}{name.removeprefix(start)}"] = weight
    return found
