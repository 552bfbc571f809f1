"""Train scene-judge, the held-out detector, on scenes clean, spoilt and rebuilt by the autoencoder.

    python -m raftdiff.embedded.scenes.training.judge --minutes 60 --seed 7

A part of the objects is made unrecognisable, and nothing is to be found there: the judge is to be strict. It begins
without the autoencoder, and takes up its pictures as soon as its file is finished.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.data import Batch, Painter, Pictures
from raftdiff.embedded.scenes.judge import WEIGHTS, Network, loss, peaks
from raftdiff.embedded.scenes.networks import VAE, Newest, write
from raftdiff.embedded.scenes.rows import random_rows
from raftdiff.embedded.scenes.rules import verdicts
from raftdiff.embedded.scenes.training.timing import Clock, Course, options
from raftdiff.embedded.scenes.world import parse
from raftdiff.embedded.training import Average, prepare

PEAK_RATE = 2e-3
SHARES = (0.45, 0.15, 0.1)
"""Of a batch: rebuilt by the autoencoder, noisy or washed out, photocopied. The others are clean."""
MUSH = 0.2
"""Share of the objects that are made unrecognisable."""
LATENT_NOISE = 0.25
"""Largest standard deviation of the noise put on latents of unit spread."""
LEAST = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6)
"""Certainties that a thing may have to be found, of which the best is kept."""


@torch.no_grad()
def rebuild(vae: Any, pictures: Pictures, noise: float = LATENT_NOISE) -> Pictures:
    """Passed through the autoencoder, with more or less noise on the latents, as generated pictures look."""
    latents = vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.sample()
    level = noise / vae.config.scaling_factor * torch.rand(len(latents), 1, 1, 1, device=latents.device)
    rebuilt: Tensor = vae.decode(latents + level * torch.randn_like(latents)).sample
    return rebuilt.float().clamp(-1, 1)


def lesson(painter: Painter, vae: Any, rows: Tensor) -> tuple[Batch, Pictures, Tensor]:
    """Scenes, how they look, and whether their colours are still to be seen (1 or 0)."""
    batch = painter.paint(rows, mush=MUSH)
    pictures, chance = batch.pictures.clone(), torch.rand(len(rows), device=painter.device)
    rebuilt = (chance < SHARES[0]).nonzero()[:, 0]
    bad = ((chance >= SHARES[0]) & (chance < SHARES[0] + SHARES[1])).nonzero()[:, 0]
    grey = (chance >= 1 - SHARES[2]).nonzero()[:, 0]
    if vae is not None and len(rebuilt):
        pictures[rebuilt] = rebuild(vae, pictures[rebuilt])
    if len(bad):
        pictures[bad] = painter.spoil(pictures[bad], ("noisy", "washed out"))
    if len(grey):
        pictures[grey] = painter.spoil(pictures[grey], ("photocopied",))
    return batch, pictures, (chance < 1 - SHARES[2]).float()


def train(cache: Path, out: Path, clock: Clock, *, batch: int, peak: float, seed: int, device: str) -> None:
    """Train until the clock says stop; ``out`` has the average's weights, now and then and at the end."""
    prepare(seed)
    painter = Painter(art_sheet(cache), seed=seed, device=device, held_out=True)
    rows = random_rows(40_000 if device == "cuda" else 4000, seed=seed)[0].to(device)
    network = Network().to(device).to(memory_format=torch.channels_last)
    how: dict[str, Any] = {"peak": peak, "weight_decay": 0.02, "averaged": 0.998, "warmup": 200}
    course = Course({"judge": network}, network.parameters(), clock, **how, device=device)
    newest, vae = Newest(out / VAE, device), None
    clock.restart()
    for step in course.steps():
        if step % 50 == 0:
            vae = newest.look()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            shown, pictures, coloured = lesson(painter, vae, rows[torch.randint(len(rows), (batch,), device=device)])
            found = loss(network, shown, pictures.contiguous(memory_format=torch.channels_last), coloured)
        course.learn(found)
        course.average.update()
        if course.tells:
            course.tell("judge", found)
        if course.saves(30):
            write(out / WEIGHTS, _weights(course.average), finished="no", least="0.4")
    network.eval()
    course.average.copy_to({"judge": network})
    least = choose(network, painter, vae, 1024 if device == "cuda" else 128)
    write(out / WEIGHTS, _weights(course.average), finished="yes", least=json.dumps(least))


@torch.no_grad()
def choose(network: Network, painter: Painter, vae: Any, count: int) -> float:
    """The certainty at which the verdict ``exact`` is most often true, on pictures half of which hold mush."""
    rows, captions = random_rows(count, seed=1_000_003)
    half = count // 2
    clean, spoilt = painter.paint(rows[:half]), painter.paint(rows[half:], mush=0.5)
    pictures = torch.cat([clean.pictures, spoilt.pictures])
    if vae is not None:
        again = torch.arange(count, device=painter.device) % 4 != 0
        pictures[again] = torch.cat([rebuild(vae, part) for part in torch.split(pictures[again], 256)])
    whole = (spoilt.objects >= 0) == (spoilt.layout.part >= 0)
    true = [True] * half + whole.all(dim=1).tolist()
    scenes = [parse(caption) for caption in captions]
    maps = [network(part.contiguous(memory_format=torch.channels_last)) for part in torch.split(pictures, 256)]
    joined = tuple(torch.cat(parts) for parts in zip(*maps, strict=True))
    right = {}
    for least in LEAST:
        things = peaks(joined, least)  # type: ignore[arg-type]
        said = [
            # the ground is judged elsewhere
            bool(verdicts(replace(scene, ground=""), seen, None)["exact"])
            for scene, seen in zip(scenes, things, strict=True)
            if scene is not None
        ]
        agree = [one == other for one, other in zip(said, true, strict=True)]
        hit = sum(one for one, other in zip(said, true, strict=True) if other) / max(1, sum(true))
        right[least] = sum(agree) / count
        print(f"judge: at {least} right {right[least]:.4f}, of whole pictures {hit:.4f}", flush=True)
    return max(LEAST, key=lambda least: right[least])


def _weights(average: Average) -> dict[str, Tensor]:
    return {name.removeprefix("judge."): tensor for name, tensor in average.weights.items()}


def main() -> None:
    given = options(__doc__, minutes=60, batch=32, rate=PEAK_RATE).parse_args()
    clock = Clock(given)
    train(given.cache, given.out, clock, batch=given.batch, peak=given.rate, seed=given.seed, device=given.device)


if __name__ == "__main__":
    main()
