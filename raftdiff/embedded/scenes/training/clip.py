"""Train scene-clip, the reward of scenes: a small CLIP in open_clip's format.

    python -m raftdiff.embedded.scenes.training.clip --minutes 60 --seed 3

Every batch is made of a scene and its neighbours: one more of a thing, the relation turned, styles exchanged, another
object. They are the negatives that make the reward look at all that a caption says. Where there is a model, a part of
the pictures is its own: scenes drawn over, and pairs of a right and a wrong picture of one caption, as a detector sees
them that is trained beside the reward, from other seeds than the judge. Another architecture and other scenes than the
judge's.
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

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.clip import SIZE, WEIGHTS, WIDTH, build_clip
from raftdiff.embedded.scenes.data import Batch, Painter, Pictures
from raftdiff.embedded.scenes.judge import WEIGHTS as READER
from raftdiff.embedded.scenes.judge import SceneJudge
from raftdiff.embedded.scenes.networks import VAE, Newest, read, write
from raftdiff.embedded.scenes.rows import LOOKS, Rows
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise_captions
from raftdiff.embedded.scenes.training.drawn import Drawer, Over, Pairs, there
from raftdiff.embedded.scenes.training.judge import rebuild
from raftdiff.embedded.scenes.training.neighbours import GROUP
from raftdiff.embedded.scenes.training.pools import Groups, groups
from raftdiff.embedded.scenes.training.timing import Clock, Course, options
from raftdiff.embedded.scenes.world import GROUNDS, MOST, OBJECTS, random_scene
from raftdiff.embedded.training import Average, prepare

PEAK_RATE = 1e-3
NAMING_WEIGHT = 0.5
MUSH = 0.6
"""Share of the objects made unrecognisable in the pictures that no caption fits."""
REBUILT, SPOILT = 0.5, 0.1
OVER, PAIRED = 0.5, 0.5
"""Share of the groups that the model has drawn over, of the others are the shares above; and of a lesson that is
pairs."""
RENEW_EVERY = 20
"""Steps between two renewals of a part of what the model drew."""
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


def sought(drawer: Drawer, reader: SceneJudge, tokenizer: Any, *, seed: int, device: str) -> Pairs:
    """Pairs of captions that are nobody's neighbours."""
    rng, large = random.Random(f"{seed} pairs"), device == "cuda"
    captions = [random_scene(rng).caption for _ in range(20_000 if large else 200)]
    tokens = tokenise_captions(tokenizer, captions).to(device)
    return Pairs(drawer, reader.judge, captions, tokens, size=16384 if large else 16, at_once=256 if large else 4)


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


def to_tower(pictures: Pictures) -> Tensor:
    """At the size that the tower reads, channels last."""
    sized = functional.interpolate(pictures, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    return sized.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, slots=True)
class Lesson:
    """Pictures of captions: of groups those drawn over and those painted, right ones of pairs; then those that do not
    show what they were made for: painted ones with mush in them, wrong ones of pairs."""

    pictures: Float[Tensor, "pictures 3 80 80"]
    tokens: Int64[Tensor, "batch tokens"]
    """Of the first ``batch`` pictures."""
    fits: Bool[Tensor, " pictures"]
    """Whether a picture shows what it was made for."""
    painted: slice
    """Those painted, of which ``shown`` says more."""
    shown: Batch
    pairs: int
    """How many there are."""


@final
class Lessons:
    """Draws lessons of ``batch`` captions."""

    def __init__(self, groups: Groups, painter: Painter, over: Over | None, batch: int) -> None:
        self.vae: Any = None
        """The autoencoder that rebuilds some of the pictures, once there is one."""
        self.pairs: Pairs | None = None
        """Where a detector finds some."""
        self._groups, self._painter, self._over, self._batch = groups, painter, over, batch

    def draw(self) -> Lesson:
        pairs = int(PAIRED * self._batch) if self.pairs is not None and len(self.pairs) else 0
        count = (self._batch - pairs) // GROUP
        drawn = int(OVER * count) if self._over else 0
        rows = self._groups.choose(count - drawn)
        shown, right, mush, fits = self._paint(self._groups.rows[rows])
        wrong = [mush]
        if self._over:
            again, pictures = self._over.draw(drawn)
            rows, right = torch.cat([again, rows]), torch.cat([pictures, right])
        tokens = self._groups.tokens[rows]
        if self.pairs is not None and pairs:
            said, better, worse = self.pairs.draw(pairs)
            tokens, right, wrong = torch.cat([tokens, said]), torch.cat([right, better]), [mush, worse]
        yes, no = (torch.full((size,), kind, device=fits.device) for size, kind in ((len(right), True), (pairs, False)))
        painted = slice(GROUP * drawn, GROUP * count)
        return Lesson(torch.cat([right, *wrong]), tokens, torch.cat([yes, fits, no]), painted, shown, pairs)

    def renew(self) -> None:
        """Have some of what the model drew drawn anew."""
        for pool in (self._over, self.pairs):
            if pool is not None:
                pool.renew()

    def _paint(self, rows: Rows) -> tuple[Batch, Pictures, Float[Tensor, "mush 3 80 80"], Bool[Tensor, " mush"]]:
        """Pictures of the rows, those of each group's first row with mush in it, and which of the latter show their row
        all the same."""
        shown, spoilt = self._painter.paint(rows), self._painter.paint(rows[::GROUP], mush=MUSH)
        whole = ((spoilt.objects >= 0) == (spoilt.layout.part >= 0)).all(dim=1)
        pictures = torch.cat([shown.pictures, spoilt.pictures])
        chance = torch.rand(len(pictures), device=pictures.device)
        rebuilt, bad = (chance < REBUILT).nonzero()[:, 0], (chance > 1 - SPOILT).nonzero()[:, 0]
        if self.vae is not None and len(rebuilt):
            pictures[rebuilt] = rebuild(self.vae, pictures[rebuilt], LATENT_NOISE)
        if len(bad):
            pictures[bad] = self._painter.spoil(pictures[bad], ("noisy", "washed out", "blurred"))
        return shown, pictures[: len(rows)], pictures[len(rows) :], whole


def train(
    cache: Path,
    out: Path,
    clock: Clock,
    *,
    batch: int,
    peak: float,
    seed: int,
    device: str,
    resume: bool = False,
    reader: Path | None = None,
) -> None:
    """Train until the clock says stop; ``out`` has the average's weights, now and then and at the end.

    ``reader`` is where the detector lies, or will lie, that finds pairs; without it there are none.
    """
    prepare(seed)
    large, tokenizer = device == "cuda", build_tokenizer()
    model, naming = build_clip(len(tokenizer)), Naming().to(device)
    if resume:
        read(out / WEIGHTS, model)
    model.to(device, memory_format=torch.channels_last)
    drawer = Drawer(out, tokenizer, device) if there(out) else None
    drawn = groups(tokenizer, 60_000 if large else 3000, seed=seed, device=device)
    painter = Painter(art_sheet(cache), seed=seed, device=device, held_out=True)
    sizes = {"size": 4096 if large else 16, "at_once": 64 if large else 4}
    over = Over(drawer, painter, drawn, **sizes) if drawer else None
    lessons = Lessons(drawn, painter, over, batch)
    if drawer and reader:
        clock.wait_for(reader / READER)
        lessons.pairs = sought(drawer, SceneJudge(reader, device), tokenizer, seed=seed, device=device)
    weights = [*model.parameters(), *naming.parameters()]
    how: dict[str, Any] = {"peak": peak, "weight_decay": 0.05, "averaged": 0.998, "warmup": 200}
    course, newest = Course({"clip": model}, weights, clock, **how, device=device), Newest(out / VAE, device)
    clock.restart()
    for step in course.steps():
        if step % 50 == 0:
            lessons.vae = newest.look()
        if step % RENEW_EVERY == RENEW_EVERY - 1:
            lessons.renew()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=large):
            lesson = lessons.draw()
            images = model.encode_image(to_tower(lesson.pictures), normalize=True).float()
            texts = model.encode_text(lesson.tokens, normalize=True).float()
        scale, painted = model.logit_scale.exp(), lesson.painted
        found = contrast(images, texts, scale, lesson.fits)
        course.learn(found + NAMING_WEIGHT * naming.loss(16 * images[painted], lesson.shown))
        with torch.no_grad():
            model.logit_scale.clamp_(max=MOST_SCALE)
        course.average.update()
        if course.tells:
            course.tell("clip", found, f", {how_many_right(lesson, images, texts)}, scale {scale.item():.1f}")
        if course.saves(30):
            write(out / WEIGHTS, _weights(course.average), finished="no")
    write(out / WEIGHTS, _weights(course.average), finished="yes")


def how_many_right(lesson: Lesson, images: Float[Tensor, "pictures width"], texts: Float[Tensor, "batch width"]) -> str:
    """For the log: how often what belongs together is nearest."""
    painted, pairs = lesson.painted, lesson.pairs
    said = f"first among {GROUP}: {among_neighbours(images[painted], texts[painted]):.3f} painted"
    if painted.start:
        said += f", {among_neighbours(images[: painted.start], texts[: painted.start]):.3f} drawn over"
    if pairs:
        last = texts[-pairs:]
        right = (images[len(texts) - pairs : len(texts)] * last).sum(dim=1) > (images[-pairs:] * last).sum(dim=1)
        said += f"; {right.float().mean():.3f} of pairs"
    return said


def among_neighbours(images: Float[Tensor, "batch width"], texts: Float[Tensor, "batch width"]) -> float:
    """How often a picture's own caption is nearest to it, among its group's."""
    width = images.shape[-1]
    near = images.view(-1, GROUP, width) @ texts.view(-1, GROUP, width).transpose(1, 2)
    return float((near.argmax(dim=-1) == torch.arange(GROUP, device=near.device)).float().mean())


def _weights(average: Average) -> dict[str, Tensor]:
    return {name.removeprefix("clip."): tensor for name, tensor in average.weights.items()}


def main() -> None:
    logging.disable(logging.WARNING)
    parser = options(__doc__, minutes=60, batch=128, rate=PEAK_RATE)
    parser.add_argument("--resume", action="store_true", help="begin with the weights that are there")
    parser.add_argument("--reader", type=Path, help="folder of a detector that finds pairs, trained as a judge is")
    given = parser.parse_args()
    how = {"batch": given.batch, "peak": given.rate, "seed": given.seed, "device": given.device}
    train(given.cache, given.out, Clock(given), **how, resume=given.resume, reader=given.reader)


if __name__ == "__main__":
    main()
