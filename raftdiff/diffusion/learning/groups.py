"""What a round learns from, sorted by size: a batch is of pictures of one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from raftdiff.diffusion.learning.lessons import Lesson
from raftdiff.errors import UserError
from raftdiff.training import processes, sharded
from raftdiff.types import Key, Prompt, Sample, Selection


@final
@dataclass(frozen=True, slots=True)
class Group:
    """Those items of a step whose pictures are of one size, the pictures of an item side by side."""

    lesson: Lesson[Any]
    shown: Sequence[Float[Tensor, "..."]]
    """What the lesson names as its ``aux``, of each row, on the device or on the CPU; all else is on the CPU."""
    prompts: Sequence[Prompt]
    weights: Float[Tensor, " rows"]
    frame: Float[Tensor, "rows 4"] | None
    """As of ``Texts``."""
    drawn: Any
    """Of each item, with ``rows(chosen)``."""


def grouped(
    lesson: Lesson[Any],
    samples: Sequence[Sample[Image]],
    shown: Sequence[Float[Tensor, "..."]],
    weights: Float[Tensor, " rows"],
    *,
    pictures: int,
    generator: torch.Generator,
) -> Group:
    """Samples of one size and what is ``shown`` of them, ``pictures`` for each item, with a draw for each item: the
    same however a step is cut into batches and processes."""
    drawn = lesson.draw(torch.Size((len(shown) // pictures, *shown[0].shape)), generator)
    return Group(lesson, shown, [sample.prompt for sample in samples], weights, frames(samples), drawn)


def passes(items: int, at_once: int) -> Iterator[tuple[list[int], bool]]:
    """Which of so many items of a step this process takes through the network, batch by batch, and whether they count.
    Several processes take every so-manieth each. Where they share a network they must make as many passes, and who has
    none left makes one that does not count."""
    rank, size = processes.sharing()
    mine = range(rank, items, size)
    most = range(0, items, size) if sharded.splits() else mine
    for start in range(0, len(most), at_once):
        own = list(mine[start : start + at_once])
        yield own or [0], bool(own)


def rows_of(items: Sequence[int], pictures: int) -> list[int]:
    """Where the pictures of some items stand, of which each has so many."""
    return [item * pictures + picture for item in items for picture in range(pictures)]


def held(samples: Sequence[Sample[Image]], name: str) -> list[Tensor]:
    """Of each sample's aux this tensor, float32 on the CPU.

    Raises:
        UserError: a sample lacks it.
    """
    for sample in samples:
        if name not in sample.aux:
            raise UserError(
                f"round {sample.round}: '{sample.prompt.id}', candidate {sample.index}, is recorded without its "
                f"{name}, which the fine-tuner learns from: another rule drew that round. Replay none of those "
                "(loop.replay_rounds: 0), or begin a new run."
            )
    return [sample.aux[name].float() for sample in samples]


def frames(samples: Sequence[Sample[Image]]) -> Float[Tensor, "rows 4"] | None:
    """How the pictures were scaled and cut, as of ``Texts``; those of which nothing is recorded are whole. None where
    that is all of them."""
    if not any("frame" in sample.aux for sample in samples):
        return None
    whole = [torch.tensor([sample.media.height, sample.media.width, 0.0, 0.0]) for sample in samples]
    return torch.stack([sample.aux.get("frame", own) for sample, own in zip(samples, whole, strict=True)])


def shapes(selection: Selection, samples: Mapping[Key, Sample[Image]]) -> list[torch.Size]:
    """Of each item's latents.

    Raises:
        UserError: an item's pictures are of several sizes, and so cannot be compared.
    """
    found = []
    for item in selection.items:
        first, *others = (samples[key] for key in item.keys)
        if other := next((it for it in others if it.aux["latent"].shape != first.aux["latent"].shape), None):
            sizes = " and ".join(f"{it.media.width}x{it.media.height}" for it in (first, other))
            raise UserError(
                f"round {first.round}: the pictures of '{first.prompt.id}' are of several sizes ({sizes}), and a rule "
                "of pairs compares those of one. Give the sampler one size."
            )
        found.append(first.aux["latent"].shape)
    return found
