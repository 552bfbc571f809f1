"""The first settings with which a recipe fits on a card, the cheapest in time first."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import final

from raftdiff.diffusion.learning.rules import Draft, Refl
from raftdiff.diffusion.memory.footprint import Footprint, Stage, over_the_bus
from raftdiff.diffusion.recipe import Recipe, drawing_of
from raftdiff.errors import UserError

MOST = 24
"""Changes that are tried."""
BUS = 16e9
"""Bytes a second from main memory to a GPU: taken to be, of PCIe 4.0's 32 in theory; 3.0 has half."""


@final
@dataclass(frozen=True, slots=True)
class Change:
    """A setting that needs less."""

    overrides: tuple[str, ...]
    """As on the command line."""
    costs: str
    """Of time or of anything else, in a few words."""


@final
@dataclass(frozen=True, slots=True)
class Fit:
    """How a recipe comes to fit, or how far it falls short."""

    first: Footprint
    """As the recipe stands."""
    changes: tuple[tuple[Change, Stage, int], ...]
    """Each with the stage that it is for, and that stage's total afterwards, in bytes."""
    last: Footprint

    @property
    def overrides(self) -> list[str]:
        """Of all changes; of two for one key the last."""
        found = {text.partition("=")[0]: text for change, _, _ in self.changes for text in change.overrides}
        return list(found.values())


def card_bytes(text: str) -> int:
    """``12GB`` or ``12`` in bytes: as cards are sold, 12 times 1024^3.

    Raises:
        UserError: it is no size.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), flags=re.IGNORECASE)
    if found is None or not float(found[1]):
        raise UserError(f"--card: '{text}' is no size of a card's memory; write it as 12GB.")
    return int(float(found[1]) * 2**30)


def fit(load: Callable[[list[str]], Recipe], measure: Callable[[Recipe], Footprint], card: int) -> Fit:
    """Change one setting after another, each for the stage that needs most, until all stages fit.

    Args:
        load: the recipe with these overrides.
        measure: what a recipe needs.
        card: bytes of the card.
    """
    recipe = load([])
    first = found = measure(recipe)
    done: list[tuple[Change, Stage, int]] = []
    refused: set[tuple[str, ...]] = set()
    for _ in range(MOST):
        worst = found.worst
        if worst.total <= card:
            break
        for change in _changes(recipe, worst.name):
            if change.overrides in refused:
                continue
            sofar = [text for made, _, _ in done for text in made.overrides]
            tried = load([*sofar, *change.overrides])
            then = measure(tried)
            stage = next(stage for stage in then.stages if stage.name == worst.name)
            if stage.total < worst.total:
                done.append((change, worst, stage.total))
                recipe, found = tried, then
                break
            refused.add(change.overrides)
        else:
            break
    return Fit(first, tuple(done), found)


def _changes(recipe: Recipe, stage: str) -> Iterator[Change]:
    """What lowers a stage, the cheapest first; what the recipe has already is not named."""
    model, tuner, drawing = recipe.model, recipe.finetuner, drawing_of(recipe)
    where = "sampler" if recipe.sampler.type == "diffusion" else "sampler.drawing"
    if model.dtype == "float32":
        yield Change(("model.dtype=bfloat16",), "nothing: a GPU is faster so")
    if tuner.precision == "float32" and stage == "learning":
        yield Change(("finetuner.precision=bfloat16",), "nothing: a GPU is faster so")
    at_once = drawing.decoded_at_once
    if stage == "decoding" and at_once > 1:
        yield Change((f"{where}.vae_batch_size=1",), "hardly anything")
    if not model.offload and not tuner.train_text_encoder:
        yield Change(("model.offload=true",), "seconds a round, for moving text encoders and VAE")
    if stage == "encoding texts" and model.text_device is None and not tuner.train_text_encoder:
        yield Change(("model.text_device=cpu",), "seconds a caption, once")
    if not recipe.ranker.in_turn and not isinstance(tuner.learning.build(), Draft | Refl):
        yield Change(("ranker.in_turn=true",), "seconds a round, for moving rewards")
    if stage == "decoding" and not model.vae_tiling:
        yield Change(("model.vae_tiling=true",), "seams that are hardly seen")
    if stage == "drawing" and drawing.at_once > 1:
        half = drawing.at_once // 2
        yield Change((f"{where}.batch_size={half}",), "drawing is slower where the GPU is not full")
    if stage == "learning":
        yield from _learning(recipe)
    if tuner.adapter == "lora" and model.quantise is None:
        yield Change(("model.quantise=int8",), "some speed, and predictions that differ by some thousandths")
    if tuner.adapter == "lora" and model.quantise != "nf4":
        yield Change(("model.quantise=nf4",), "some speed, and predictions that differ by some hundredths")
    if moved := _movable(recipe):
        settings = ["model.offload=blocks"]
        settings += ["model.quantise=null"] if model.quantise else []
        settings += [] if tuner.gradient_checkpointing else ["finetuner.gradient_checkpointing=true"]
        size, seconds = f"{moved / 2**30:.1f} GB over the bus", f"{moved / BUS:.1f} s at {BUS / 1e9:.0f} GB/s"
        yield Change(
            tuple(settings), f"{size} for each batch that is drawn a step, {seconds}; twice that where it is learnt"
        )


def _movable(recipe: Recipe) -> int:
    """Bytes of blocks that can still be made to wait."""
    model, tuner = recipe.model, recipe.finetuner
    without = model.compile or model.channels_last or tuner.train_text_encoder or tuner.adapter == "full"
    if without or model.offload == "blocks" or "float32" in (model.dtype, tuner.precision):
        return 0
    return over_the_bus(recipe)


def _learning(recipe: Recipe) -> Iterator[Change]:
    tuner = recipe.finetuner
    if not tuner.gradient_checkpointing:
        yield Change(("finetuner.gradient_checkpointing=true",), "learning takes a third longer")
    pictures = tuner.pictures_an_item
    if tuner.items_at_once > 1 and tuner.batch_size % (2 * pictures) == 0:
        less = f"finetuner.batch_size={tuner.batch_size // 2}"
        more = f"finetuner.gradient_accumulation={2 * tuner.gradient_accumulation}"
        yield Change((less, more), "learning is slower where the GPU is not full; the same is learnt")
    if tuner.optimizer == "adamw":
        yield Change(("finetuner.optimizer=adamw_8bit",), "hardly anything")
