"""Train scene-clip, the reward of scenes: a small CLIP in open_clip's format.

    python -m raftdiff.embedded.scenes.training.clip --minutes 60 --seed 3

Every batch is made of a scene and its neighbours: one more of a thing, the relation turned, styles exchanged, another
object. They are the negatives that make the reward look at all that a caption says. Another architecture and other
scenes than the judge's.
"""

import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from raftdiff.embedded.emoji.art import art_sheet
from raftdiff.embedded.scenes.clip import SIZE, WEIGHTS, WIDTH, build_clip
from raftdiff.embedded.scenes.data import Batch, Painter, Pictures
from raftdiff.embedded.scenes.networks import VAE, Newest, write
from raftdiff.embedded.scenes.rows import LOOKS, Rows, to_rows
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise_captions
from raftdiff.embedded.scenes.training.judge import rebuild
from raftdiff.embedded.scenes.training.neighbours import GROUP, group
from raftdiff.embedded.scenes.world import GROUNDS, MOST, OBJECTS, random_scene
from raftdiff.embedded.timing import Clock, Course, options
from raftdiff.embedded.training import Average, prepare

PEAK_RATE = 1e-3
NAMING_WEIGHT = 0.5
MUSH = 0.6
"""Share of the objects made unrecognisable in the pictures that no caption fits."""
REBUILT, SPOILT = 0.5, 0.1
LATENT_NOISE = 0.4
MOST_SCALE = 4.6052
"""Logarithm of 100, as in the paper."""


@final
class Naming(nn.Module):
    """Linear heads on the pictures' embeddings that hasten the image tower, thrown away afterwards.

    They name how many there are of each object, in which looks, the ground, and for two related things where the second
    stands.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.Linear(WIDTH, len(OBJECTS) * (MOST + len(LOOKS)) + len(GROUNDS) + 2 * len(OBJECTS))

    def loss(self, images: Float[Tensor, "batch width"], shown: Batch) -> Tensor:
        """Binary cross-entropy of counts ("at least k") and looks, cross-entropy of grounds, L1 of places."""
        objects = len(OBJECTS)
        sizes = [objects * MOST, objects * len(LOOKS), len(GROUNDS), 2 * objects]
        counts, looks, grounds, places = torch.split(self.heads(images), sizes, dim=1)
        there = (shown.objects >= 0)[..., None]
        which = functional.one_hot(shown.objects.clamp(min=0), objects) * there
        number = which.sum(dim=1)
        least = torch.arange(1, MOST + 1, device=number.device)
        at_least = (number[:, :, None] >= least).float().flatten(1)
        looked = which[..., None] * functional.one_hot(shown.looks, len(LOOKS))[:, :, None]
        in_look = (looked.sum(dim=1) > 0).float().flatten(1)
        found = functional.binary_cross_entropy_with_logits(counts, at_least) * MOST
        found = found + functional.binary_cross_entropy_with_logits(looks, in_look) * 2
        found = found + functional.cross_entropy(grounds, shown.grounds) / 10
        middle = (which[..., None] * shown.layout.centre[:, :, None]).sum(dim=1) / number.clamp(min=1)[
            ..., None
        ] / 40 - 1
        error = (places.view(-1, objects, 2) - middle).abs() * (number > 0)[..., None]
        total: Tensor = found + error.sum() / (number > 0).sum().clamp(min=1) / 2
        return total


@dataclass(frozen=True, slots=True)
class Groups:
    """Scenes with their neighbours, `GROUP` each, side by side."""

    rows: Rows
    tokens: Int64[Tensor, "rows tokens"]

    def draw(self, count: int) -> tuple[Rows, Int64[Tensor, "count tokens"]]:
        """``count`` rows, whole groups."""
        first = torch.randint(len(self.rows) // GROUP, (count // GROUP, 1), device=self.rows.device) * GROUP
        chosen = (first + torch.arange(GROUP, device=first.device)).flatten()
        return self.rows[chosen], self.tokens[chosen]


def groups(tokenizer: Any, count: int, *, seed: int, device: str) -> Groups:
    """``count`` groups of scenes, hold-outs among them: a reward may know more than the model."""
    rng = random.Random(seed)
    scenes = [scene for _ in range(count) for scene in group(rng, random_scene(rng))]
    tokens = tokenise_captions(tokenizer, [scene.caption for scene in scenes])
    return Groups(to_rows(scenes).to(device), tokens.to(device))


def contrast(
    images: Float[Tensor, "pictures width"],
    texts: Float[Tensor, "batch width"],
    scale: Tensor,
    fits: Bool[Tensor, " pictures"],
) -> Tensor:
    """Symmetric cross-entropy (CLIP, arXiv:2103.00020). The first ``batch`` pictures fit the texts in their order.

    Those after them fit none and are further negatives of the texts, where ``fits`` is false; where it is true they
    count for nothing.
    """
    count = len(texts)
    target = torch.arange(count, device=texts.device)
    logits = scale * texts @ images.T
    spare = torch.cat([torch.zeros(count, dtype=torch.bool, device=texts.device), fits[count:]])
    of_texts = functional.cross_entropy(logits.masked_fill(spare, float("-inf")), target)
    return (of_texts + functional.cross_entropy(logits[:, :count].T, target)) / 2


def lesson(painter: Painter, vae: Any, rows: Rows) -> tuple[Batch, Pictures, Bool[Tensor, " pictures"]]:
    """Pictures of the rows, then of each group's first row with mush in it; and which of all show their row."""
    shown, spoilt = painter.paint(rows), painter.paint(rows[::GROUP], mush=MUSH)
    whole = ((spoilt.objects >= 0) == (spoilt.layout.part >= 0)).all(dim=1)
    pictures = torch.cat([shown.pictures, spoilt.pictures])
    chance = torch.rand(len(pictures), device=painter.device)
    rebuilt, bad = (chance < REBUILT).nonzero()[:, 0], (chance > 1 - SPOILT).nonzero()[:, 0]
    if vae is not None and len(rebuilt):
        pictures[rebuilt] = rebuild(vae, pictures[rebuilt], LATENT_NOISE)
    if len(bad):
        pictures[bad] = painter.spoil(pictures[bad], ("noisy", "washed out", "blurred"))
    return shown, pictures, torch.cat([torch.ones(len(rows), dtype=torch.bool, device=whole.device), whole])


def to_tower(pictures: Pictures) -> Tensor:
    """At the size that the tower reads, channels last."""
    sized = functional.interpolate(pictures, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return sized.contiguous(memory_format=torch.channels_last)


def train(cache: Path, out: Path, clock: Clock, *, batch: int, peak: float, seed: int, device: str) -> None:
    """Train until the clock says stop; ``out`` has the average's weights, now and then and at the end."""
    prepare(seed)
    tokenizer = build_tokenizer()
    drawn = groups(tokenizer, 60_000 if device == "cuda" else 3000, seed=seed, device=device)
    painter = Painter(art_sheet(cache), seed=seed, device=device, held_out=True)
    model, naming = build_clip(len(tokenizer)).to(device, memory_format=torch.channels_last), Naming().to(device)
    weights = [*model.parameters(), *naming.parameters()]
    how: dict[str, Any] = {"peak": peak, "weight_decay": 0.05, "averaged": 0.998, "warmup": 200}
    course = Course({"clip": model}, weights, clock, **how, device=device)
    newest, vae = Newest(out / VAE, device), None
    clock.restart()
    for step in course.steps():
        if step % 50 == 0:
            vae = newest.look()
        rows, tokens = drawn.draw(batch)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            shown, pictures, fits = lesson(painter, vae, rows)
            images = model.encode_image(to_tower(pictures), normalize=True).float()
            texts = model.encode_text(tokens, normalize=True).float()
        scale = model.logit_scale.exp()
        found = contrast(images, texts, scale, fits) + NAMING_WEIGHT * naming.loss(16 * images[: len(rows)], shown)
        course.learn(found)
        with torch.no_grad():
            model.logit_scale.clamp_(max=MOST_SCALE)
        course.average.update()
        if course.tells:
            first = among_neighbours(images[: len(rows)], texts)
            course.tell("clip", found, f", first among {GROUP} {first:.3f}, scale {scale.item():.1f}")
        if course.saves(30):
            write(out / WEIGHTS, _weights(course.average), finished="no")
    write(out / WEIGHTS, _weights(course.average), finished="yes")


def among_neighbours(images: Float[Tensor, "batch width"], texts: Float[Tensor, "batch width"]) -> float:
    """How often a picture's own caption is nearest to it, among its group's."""
    width = images.shape[-1]
    near = images.view(-1, GROUP, width) @ texts.view(-1, GROUP, width).transpose(1, 2)
    return float((near.argmax(dim=-1) == torch.arange(GROUP, device=near.device)).float().mean())


def _weights(average: Average) -> dict[str, Tensor]:
    return {name.removeprefix("clip."): tensor for name, tensor in average.weights.items()}


def main() -> None:
    logging.disable(logging.WARNING)
    given = options(__doc__, minutes=60, batch=128, rate=PEAK_RATE).parse_args()
    clock = Clock(given)
    train(given.cache, given.out, clock, batch=given.batch, peak=given.rate, seed=given.seed, device=given.device)


if __name__ == "__main__":
    main()
