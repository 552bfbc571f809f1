"""emoji-sd trained on from the weights that ship, in large batches and bfloat16, the best kept by emoji-judge.

Trained are the U-Net and the text encoder. The others stay as they are: the U-Net has learned this autoencoder's
latents, a new judge could not be compared with the figures of the cards, and a new reward would change the base of
every figure that was measured with it.

Every so often the average of the weights is looked at as it would ship: stored in float16, opened as a pipeline, and
its pictures of training concepts judged, always the same captions from the same seeds. The best of these looks is in
the folder of results at any time, so that a killed step loses nothing but what came after. At the end the best is
measured as the card's figures were, beside the weights that ship, measured likewise at the beginning: with captions and
seeds that chose nothing, training and held-out concepts apart, at guidance 1 and 3.
"""

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from raftdiff.diffusion.models.quiet import quietly
from raftdiff.embedded import folder
from raftdiff.embedded.emoji.art import SHEET, art_sheet
from raftdiff.embedded.emoji.data import World
from raftdiff.embedded.emoji.judge import EmojiJudge
from raftdiff.embedded.emoji.measure import grid, open_pipeline, sample, shares
from raftdiff.embedded.emoji.train_unet import PEAK_RATE, Pace, begin, encode, export_average, learn
from raftdiff.embedded.emoji.world import Concept, draw, held_out_concepts, training_concepts
from raftdiff.embedded.training import Average, prepare
from raftdiff.errors import UserError

Figures = Iterator[dict[str, Any]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 3
"""Of the training; 0 to 2 made the weights that ship."""
SPARE = 10.0
"""Seconds left over at the end of the step."""
KEPT = {
    "emoji-sd.unet.safetensors": "unet/diffusion_pytorch_model.safetensors",
    "emoji-sd.text_encoder.safetensors": "text_encoder/model.safetensors",
}
"""File of the results -> file of a pipeline's folder."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    lessons: int = 262_144
    at_once: int = 2048
    """Pictures encoded at once."""
    batch: int = 2048
    look_every: float = 25.0
    """Seconds."""
    choosing: int = 480
    """Captions that choose the best."""
    choosing_seeds: tuple[int, ...] = (10, 11)
    reported: int = 96
    """Captions of the card's figures, and its seeds and steps."""
    reported_seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 10
    sampled_at_once: int = 480
    columns: int = 16
    """Pictures in a row of the contact sheet."""
    sampled_in: torch.dtype = torch.bfloat16
    """As the card's figures were; some CPUs are slow in it."""
    longest: float = math.inf
    """Seconds of training at most, however many are left."""


SMALL = Size(8, 8, 2, 0.5, 1, (10,), 1, (0,), 1, 1, 1, torch.float32, longest=1.5)
GUIDANCE = (1.0, 3.0)
SOURCES = {"training": training_concepts(), "held-out": held_out_concepts()}

Judged = dict[tuple[str, float], tuple[dict[str, float], list[Image.Image]]]
"""(concepts, guidance) -> the judge's shares, and the pictures."""


def figures(given: argparse.Namespace) -> Figures:
    """What the judge says of the weights that ship, of each look, and of the best; files go to ``given.out``.

    Raises:
        UserError: the art is missing, or the time is too short for any training.
    """
    if not (given.pack / SHEET).is_file():
        raise UserError(f"{given.pack / SHEET} is missing: run tests/gpu/pack.sh where there is a network.")
    size = SMALL if given.small else Size()
    prepare(SEED)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    judge = EmojiJudge(folder("emoji-judge"), DEVICE)
    began = time.time()
    with quietly():
        before = report(folder("emoji-sd"), judge, size)
    reserved = 1.5 * (time.time() - began) + SPARE * (0.2 if given.small else 1)
    yield from told("shipped", before, size)
    with tempfile.TemporaryDirectory() as scratch, quietly():
        best = Path(scratch) / "best"
        yield from train(given, size, judge, best, given.deadline - reserved)
        after = report(best, judge, size)
    yield from told("trained on", after, size)
    contact_sheet({"shipped": before, "trained on": after}, size.columns).save(given.out / "contact.png")


def train(given: argparse.Namespace, size: Size, judge: EmojiJudge, best: Path, deadline: float) -> Figures:
    """Train until ``deadline``; ``best`` becomes the pipeline's folder of the best look."""
    chosen = choosing(size)
    shipped = score(folder("emoji-sd"), chosen, judge, size)
    yield _figure("shipped, choosing", shipped, _share(chosen, size))
    modules, tokenizer, vae = begin(folder("emoji-sd"), given.pack, DEVICE)
    world = World(art_sheet(given.pack), seed=SEED, device=DEVICE)
    lessons = encode(world, vae, size.lessons, at_once=size.at_once)
    del world
    minutes = min(deadline - time.time(), size.longest) / 60
    if minutes <= 0:
        raise UserError(f"{given.seconds:.0f} seconds are too short: all went into loading and measuring.")
    batch, peak = given.batch or size.batch, given.rate or PEAK_RATE
    pace = Pace(minutes, batch, peak, precision="bfloat16", look_every=size.look_every / 60)
    average, highest = Average(modules, decay=pace.decay), -1.0
    latest = best.with_name("latest")
    for spent in learn(modules, average, lessons, tokenizer, pace):
        export_average(latest, modules, average, tokenizer, vae)
        exact = score(latest, chosen, judge, size)
        name = f"choosing, after {60 * spent:.0f} s and {average.updates} steps of {batch}"
        yield _figure(name, exact, _share(chosen, size))
        if exact >= highest:  # of two alike the one that has learned more
            highest = exact
            shutil.rmtree(best, ignore_errors=True)
            latest.rename(best)
            keep(best, given.out)
    yield _figure("best, choosing, less shipped", highest - shipped, "to be above 0 before anything is shipped")
    yield _figure("trained for", 60 * minutes, "s, looks included")
    yield _figure("pictures learned from", average.updates * batch, "pictures, repeats counted")


def choosing(size: Size) -> tuple[Concept, ...]:
    """Training concepts that no reported figure is measured on."""
    reported = set(draw(SOURCES["training"], size.reported, seed=0))
    return draw([concept for concept in SOURCES["training"] if concept not in reported], size.choosing, seed=1)


def score(model: Path, chosen: Sequence[Concept], judge: EmojiJudge, size: Size) -> float:
    """Share of pictures, at guidance 3, that show what their caption asks for."""
    captions = [concept.caption for concept in chosen]
    images = pictures(open_pipeline(model, DEVICE, size.sampled_in), captions, 3.0, size.choosing_seeds, size)
    return shares(judge.judge(images, captions * len(size.choosing_seeds)))["exact"]


def report(model: Path, judge: EmojiJudge, size: Size) -> Judged:
    """The figures of the card, for the captions as they are."""
    pipeline, found = open_pipeline(model, DEVICE, size.sampled_in), {}
    for name, concepts in SOURCES.items():
        captions = [concept.caption for concept in draw(concepts, size.reported, seed=0)]
        for guidance in GUIDANCE:
            images = pictures(pipeline, captions, guidance, size.reported_seeds, size)
            found[name, guidance] = (shares(judge.judge(images, captions * len(size.reported_seeds))), images)
    return found


def pictures(
    pipeline: Any, captions: list[str], guidance: float, seeds: Sequence[int], size: Size
) -> list[Image.Image]:
    """A picture for each caption from each seed."""
    how: dict[str, Any] = {"steps": size.steps, "guidance": guidance, "at_once": size.sampled_at_once}
    return [image for seed in seeds for image in sample(pipeline, captions, seed=seed, **how)]


def told(model: str, judged: Judged, size: Size) -> Figures:
    """A figure for each of the judge's shares."""
    unit = f"share of {size.reported * len(size.reported_seeds)} pictures"
    for (concepts, guidance), (right, _) in judged.items():
        for verdict, value in right.items():
            yield _figure(f"{model}, {concepts} concepts, guidance {guidance:g}: {verdict}", value, unit)


def keep(model: Path, out: Path) -> None:
    """The trained weights of a pipeline's folder, as files of ``out``, each whole at any time."""
    for name, source in KEPT.items():
        aside = out / f"{name}.part"
        shutil.copyfile(model / source, aside)
        aside.replace(out / name)


def contact_sheet(models: dict[str, Judged], columns: int) -> Image.Image:
    """The first pictures of each model, a row for each choice of concepts and guidance, models one above the other."""
    side, label = 64, 190
    rows = [(name, key) for key in next(iter(models.values())) for name in models]
    sheet = Image.new("RGB", (label + columns * side, len(rows) * side), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (name, key) in enumerate(rows):
        images = models[name][key][1][:columns]
        pen.text((6, row * side + 18), f"{name}\n{key[0]} concepts, guidance {key[1]:g}", fill="black")
        sheet.paste(grid(images, columns), (label, row * side))
    return sheet


def _share(chosen: Sequence[Concept], size: Size) -> str:
    return f"share of {len(chosen) * len(size.choosing_seeds)} pictures exact, training concepts, guidance 3"


def _figure(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": float(f"{value:.4g}"), "unit": unit}
