"""What a recipe holds on the card while it encodes texts, draws, decodes, scores, and learns."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, final

import torch
from torch import Tensor, nn

from raftdiff import embedded
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.learning.rules import Draft, PathRule, Refl
from raftdiff.diffusion.learning.trainable import attach
from raftdiff.diffusion.memory.counting import Autocast, peak
from raftdiff.diffusion.memory.outline import META, outline, outlined_text
from raftdiff.diffusion.memory.rewards import reward_bytes
from raftdiff.diffusion.models.blocks import blocks_of, demand_blocks
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.recipe import Recipe, drawing_of, looking_of
from raftdiff.diffusion.sampler import sizes_of
from raftdiff.training import quantised
from raftdiff.training.devices import DTYPES
from raftdiff.training.trainable import Adapter, Trainable, lora_layers

CUDA = 600_000_000
"""Bytes set aside for CUDA itself: its context and its libraries."""
WASTE = 1.1
"""Factor on what is computed, for what an allocator and kernels take beside."""


@final
@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a round at its fullest, in bytes."""

    name: str
    """As in sentences: while decoding."""
    held: Mapping[str, int]
    """Weights and their like, by what they are of."""
    computed: int
    """Results on the way."""

    @property
    def total(self) -> int:
        return CUDA + sum(self.held.values()) + int(WASTE * self.computed)


@final
@dataclass(frozen=True)
class Footprint:
    stages: tuple[Stage, ...]
    uncounted: tuple[str, ...]
    """Rewards of unknown size."""

    @property
    def worst(self) -> Stage:
        return max(self.stages, key=lambda stage: stage.total)


def footprint(recipe: Recipe) -> Footprint:
    """Of several sizes by the largest, the evaluation's included, which nothing is learnt of.

    Raises:
        UserError: the model's configs cannot be read, or say no size, or a picture of the recipe's does not fit it.
    """
    sizes = _sizes(_plain(recipe))
    parts, tuner, drawing = sizes.parts, recipe.finetuner, drawing_of(recipe)
    pixels = max(sizes_of(drawing, parts), key=math.prod)
    known = {it.name: reward_bytes(it, embedded.resolve) for it in (*recipe.ranker.rewards, *recipe.evaluation.rewards)}
    rewards = sum(size or 0 for size in known.values())
    trained = sizes.trained(tuner)
    texts = sum(_bytes(module) for module in parts.text_encoders.values())
    texts *= recipe.model.text_device != "cpu"
    vae, idle = _bytes(parts.vae), bool(recipe.model.offload)
    drawn = _denoiser(recipe, parts)
    # of a network that is trained whole the live weights stand in it then
    learnt = 0 if tuner.adapter == "full" else _denoiser(recipe, parts, tuner.precision)
    in_turn = recipe.ranker.in_turn
    trains = "trained weights and their optimizer"
    always = {"rewards": 0 if in_turn else rewards, trains: trained.resting}
    asked = max((size or 0 for size in known.values()), default=0) if in_turn else rewards
    others = {"text encoders": 0 if idle else texts, "VAE": 0 if idle else vae}
    looking = looking_of(recipe)
    ways = ((drawing, pixels), (looking, sizes_of(looking, parts)[0]))
    rows_learnt, guided = tuner.items_at_once * tuner.pictures_an_item, drawing.guidance != 1
    seeing = {"VAE": vae} if isinstance(tuner.learning.build(), Draft | Refl) else {}
    return Footprint(
        (
            Stage("encoding texts", {"denoiser": drawn, **always, **others, "text encoders": texts}, 0),
            Stage(
                "drawing",
                {"denoiser": drawn, **others, **always},
                max(sizes.drawing(way.at_once * (2 if way.guidance != 1 else 1), size) for way, size in ways),
            ),
            Stage(
                "decoding",
                {"denoiser": drawn, **others, "VAE": vae, **always},
                max(sizes.decoding(way.decoded_at_once, size, tiled=recipe.model.vae_tiling) for way, size in ways),
            ),
            Stage("scoring", {"denoiser": drawn, **others, **always, "rewards": asked}, 0),
            Stage(
                "learning",
                {
                    "denoiser": learnt,
                    **others,
                    **seeing,
                    **always,
                    trains: trained.awake,
                    "gradients and copies": trained.learning,
                },
                sizes.learning(rows_learnt, pixels, tuner, guided=guided),
            ),
        ),
        tuple(name for name, size in known.items() if size is None),
    )


@final
@dataclass(frozen=True, slots=True)
class Trained:
    """Bytes that come with what is trained."""

    resting: int
    """Live weights in float32, moments, moving average, and what the network holds of them while it draws."""
    awake: int
    """The same while it learns, when the live weights stand in the network."""
    learning: int
    """Gradients, and the weights of before the round where a rule compares with them."""


@final
@dataclass
class _Sizes:
    """Of one model, each counted once: by rows all is linear."""

    config: ModelConfig
    parts: Parts
    text: Texts
    _known: dict[Any, int] = field(default_factory=dict)

    def trained(self, tuner: DiffusionFineTunerConfig) -> Trained:
        parts = self.parts
        full = tuner.adapter == "full"
        own = self._tuned(tuner)
        numbers, each = own.count(), parts.dtype.itemsize
        moments = 2 if tuner.optimizer == "adamw_8bit" else 8
        awake = numbers * (4 + moments + (4 if tuner.ema is not None else 0))
        awake += numbers * each if full else 0  # the base
        resting = awake + (0 if full else numbers * each)
        if not full and parts.dtype == torch.float32:  # a LoRA is merged, and the layers' own weights kept beside
            layers = lora_layers(own.modules.values())
            resting += sum(it.get_base_layer().weight.numel() * 4 for it in layers)
        old = 4 if tuner.learning.build().reference == "old" else 0
        return Trained(resting, awake, numbers * (4 + old))

    def drawing(self, rows: int, pixels: tuple[int, int]) -> int:
        """Of a step without gradient."""
        parts = self.parts

        def one(count: int) -> None:
            with torch.no_grad():
                self._ask(parts.denoiser, self._noise(count, pixels))

        return self._linear(("drawing", pixels), rows, lambda count: peak(lambda: one(count), [parts.denoiser]))

    def decoding(self, rows: int, pixels: tuple[int, int], *, tiled: bool) -> int:
        parts = self.parts

        def one(count: int) -> None:
            with torch.no_grad():
                parts.decode(self._noise(count, pixels))

        if tiled:
            parts.family.autoencoder.tile(parts.vae)
        try:
            return self._linear(("decoding", pixels, tiled), rows, lambda count: peak(lambda: one(count), [parts.vae]))
        finally:
            parts.vae.disable_tiling()

    def learning(self, rows: int, pixels: tuple[int, int], tuner: DiffusionFineTunerConfig, *, guided: bool) -> int:
        """Of a step with gradient; where rules follow the rewards', of all that a path is walked, and of the decoder.
        Text encoders that are trained compute little beside it, and are left out.

        Args:
            guided: whether pictures are drawn with guidance, as what learns on their paths then asks too.
        """
        own, vae, rule = self._tuned(tuner), self.parts.vae, tuner.learning.build()
        network: Any = own.modules[self.parts.family.denoiser]
        prefix = f"{self.parts.family.denoiser}."
        seen = isinstance(rule, Draft | Refl)
        halves = 2 if guided and isinstance(rule, PathRule) else 1
        precision = DTYPES[tuner.precision] if tuner.precision else self.parts.dtype
        whole = precision == torch.float32

        def walked(count: int, steps: int) -> None:
            xt = self._noise(count, pixels)
            with nullcontext() if whole else Autocast(precision):
                for _ in range(steps):
                    xt = self._ask(network, torch.cat([xt] * halves), precision)[:count]
            said = self.parts.decode(xt) if seen else xt
            (said.float() ** 2).mean().backward()  # type: ignore[no-untyped-call]
            network.zero_grad(set_to_none=True)

        def counted(count: int, steps: int) -> int:
            """Gradients left out, which are counted among what is trained."""
            network.train()
            own.wake(torch.float32 if whole else self.parts.dtype)
            for one in (network, vae):
                one.disable_gradient_checkpointing()
            if tuner.gradient_checkpointing:
                network.enable_gradient_checkpointing(None if whole else Autocast(precision).checkpointed)
            if tuner.gradient_checkpointing and seen:
                vae.enable_gradient_checkpointing()
            found = peak(lambda: walked(count, steps), [network, vae])
            own.rest(None)
            return max(0, found - 4 * sum(own.live[name].numel() for name in own.live if name.startswith(prefix)))

        def of(steps: int) -> int:
            how = (seen, halves, steps, tuner.gradient_checkpointing, precision)
            key = ("learning", pixels, tuner.adapter, tuner.rank, tuner.target_modules, how)
            return self._linear(key, rows, lambda count: counted(count, steps))

        found = of(1)
        if isinstance(rule, Draft) and rule.steps > 1:
            found += (rule.steps - 1) * (of(2) - found)
        return found

    def _linear(self, key: Any, rows: int, of: Callable[[int], int]) -> int:
        """Of so many rows, by one and by two."""
        for count in (1, 2)[:rows]:
            if (key, count) not in self._known:
                self._known[key, count] = of(count)
        one = self._known[key, 1]
        two = self._known[key, 2] if rows > 1 else one
        found: int = one + (rows - 1) * (two - one)
        return found

    def _noise(self, rows: int, pixels: tuple[int, int]) -> Tensor:
        return torch.empty(rows, *self.parts.latent_shape(*pixels), device=META)

    def _ask(self, network: nn.Module, xt: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        parts, rows = self.parts, len(xt)
        timesteps, told = torch.full((rows,), 1.0, device=META), dtype or parts.dtype
        return parts.ask(network, xt.to(told), timesteps, Texts.cat([self.text] * rows).to(dtype=told))

    def _tuned(self, tuner: DiffusionFineTunerConfig) -> Trainable:
        """What is trained, at rest."""
        how = (tuner.adapter, tuner.rank, tuner.target_modules, tuner.train_text_encoder)
        return _tuned(self.config.model_dump_json(), *how)


@cache
def _sizes(written: str) -> _Sizes:
    """``written``: a ModelConfig as JSON, which can be looked up where the config cannot."""
    config = ModelConfig.model_validate_json(written)
    parts = outline(config, embedded.resolve)
    return _Sizes(config, parts, outlined_text(parts))


@cache
def _tuned(written: str, adapter: Adapter, rank: int, targets: str | tuple[str, ...], texts: bool) -> Trainable:
    parts = outline(ModelConfig.model_validate_json(written), embedded.resolve)
    return attach(
        parts,
        adapter=adapter,
        rank=rank,
        alpha=rank,
        targets=targets,
        text_encoders=texts,
        channels_last=False,
        merge_half=False,
        seed=0,
    )


def over_the_bus(recipe: Recipe) -> int:
    """Bytes that ``model.offload: blocks`` moves for a batch; 0 where the denoiser has no such blocks."""
    parts = _sizes(_plain(recipe)).parts
    if parts.family.denoiser == "unet":
        return 0
    return sum(_bytes(block) for block in blocks_of(parts.denoiser))


def _plain(recipe: Recipe) -> str:
    changes = {"quantise": None, "offload": False, "vae_tiling": False}
    return recipe.model.model_copy(update=changes).model_dump_json()


def _denoiser(recipe: Recipe, parts: Parts, precision: str | None = None) -> int:
    """The denoiser's frozen weights; in float32 while learning where that is the precision. Of blocks that wait the
    largest is there."""
    if recipe.model.offload == "blocks":
        sizes = [_bytes(block) for block in demand_blocks(parts.denoiser, parts.family.told)]
        return _bytes(parts.denoiser) - sum(sizes) + max(sizes)
    each = 4 if precision == "float32" else parts.dtype.itemsize
    network, bits = parts.denoiser, recipe.model.quantise
    rounded = sum(it.weight.numel() for it in quantised.layers(network).values()) if bits else 0
    whole = sum(parameter.numel() for parameter in network.parameters()) - rounded
    return int(whole * each + (rounded * quantised.BYTES[bits] if bits else 0))


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
