"""How what draws scenes learns on the latents of scene-sd's autoencoder: its lessons, its loop, and what it saves.

Captions are as those of the web: most are plain, some boast, and a part of the pictures are spoilt, mostly without
saying so. The hold-outs of ``world.py`` never occur. Lessons are painted and encoded on the device that learns, into a
pool of which a part is made anew with every step.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.networks import LATENT, VAE, load_vae, read, write
from raftdiff.embedded.scenes.rows import random_rows
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise, tokenise_captions
from raftdiff.embedded.scenes.training import timing
from raftdiff.embedded.scenes.training.pools import Ring
from raftdiff.embedded.scenes.training.timing import Begin, Clock, Course
from raftdiff.embedded.scenes.world import HIGH_QUALITY, LOW_QUALITY
from raftdiff.embedded.training import Average, prepare

PEAK_RATE = 1e-3
CAPTION_DROPOUT = 0.1
REMARKS = ("", HIGH_QUALITY, LOW_QUALITY)
SHARES = ((False, 0, 0.53), (False, 1, 0.22), (True, 2, 0.09), (True, 0, 0.16))
"""(spoilt, index into REMARKS, share of the training data)."""
RENEWED = 0.25
"""Lessons made anew in each step, as a share of the batch."""


Draw = Callable[[int], dict[str, Tensor]]
"""So many lessons, a row of each tensor for each; as a pool draws them: ``tokens`` (batch, tokens) of captions and
``x0`` (batch, 4, 20, 20), latents."""


def as_drawn(_modules: Mapping[str, Any], draw: Draw) -> Draw:
    """Lessons are what the pool holds."""
    return draw


def not_at_all(_modules: Mapping[str, Any], _captions: Tensor) -> None:
    """Nothing is learnt before the lessons."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What learns to draw."""

    name: str
    """Of the network that draws, among ``modules``; its program's too."""
    build: Callable[[Any], dict[str, Any]]
    """Untrained modules by name, for a tokenizer."""
    files: Mapping[str, str]
    """Of each module."""
    loss: Callable[[Mapping[str, Any], Mapping[str, Tensor]], Tensor]
    """Of the modules and lessons: a number. What takes no gradient does not learn."""
    optimizer: Begin
    lessons: Callable[[Mapping[str, Any], Draw], Draw] = as_drawn
    """Of the modules and what draws from the pool: what draws lessons."""
    read_first: Callable[[Mapping[str, Any], Tensor], None] = not_at_all
    """What untrained modules learn from captions (captions, tokens) alone, before the lessons."""


@final
class Pool:
    """Latents and the tokens of their captions, renewed little by little."""

    def __init__(self, painter: Painter, size: int, scenes: int, seed: int, *, at_once: int) -> None:
        self._painter, self._size, self._at_once = painter, size, at_once
        self._vae: Any = None
        device = painter.device
        rows, captions = random_rows(scenes, seed=seed, held_out=False)
        tokenizer = build_tokenizer()
        self._rows = rows.to(device)
        said = [tokenise_captions(tokenizer, [caption + remark for caption in captions]) for remark in REMARKS]
        self._tokens = torch.stack(said, dim=1).to(device)
        self._empty = tokenise(tokenizer, [""]).to(device)
        latents = torch.zeros(4, LATENT, LATENT, device=device, dtype=torch.float16)
        self._ring = Ring(size, latents=latents, tokens=self._tokens[0, 0])

    @property
    def captions(self) -> Int64[Tensor, "captions tokens"]:
        """All that are learnt from, the empty one last."""
        return torch.cat([self._tokens.flatten(0, 1), self._empty])

    def take(self, vae: Any) -> None:
        """The autoencoder is there: fill the pool."""
        self._vae = vae
        for _ in range(0, self._size, self._at_once):
            self.renew(self._at_once)

    @torch.no_grad()
    def renew(self, count: int) -> None:
        """Replace the oldest ``count`` lessons."""
        device = self._painter.device
        chosen = torch.randint(len(self._rows), (count,), device=device)
        pictures = self._painter.paint(self._rows[chosen]).pictures
        kind = torch.multinomial(torch.tensor([share for _, _, share in SHARES], device=device), count, True)
        bad = torch.tensor([spoilt for spoilt, _, _ in SHARES], device=device)[kind].nonzero()[:, 0]
        if len(bad):
            pictures[bad] = self._painter.spoil(pictures[bad])
        remark = torch.tensor([said for _, said, _ in SHARES], device=device)[kind]
        posterior = self._vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        latents = posterior.sample() * self._vae.config.scaling_factor
        self._ring.put(latents=latents, tokens=self._tokens[chosen, remark])

    def draw(self, count: int) -> dict[str, Tensor]:
        """``tokens`` and ``x0`` of ``count`` lessons, some of the captions emptied."""
        latents, tokens = self._ring.draw(count)
        dropped = torch.rand(count, device=tokens.device) < CAPTION_DROPOUT
        return {"tokens": torch.where(dropped[:, None], self._empty, tokens), "x0": latents.float()}


def options(description: str | None) -> argparse.ArgumentParser:
    """Those of every program that trains what draws."""
    parser = timing.options(description, minutes=600, batch=32, rate=PEAK_RATE)
    parser.add_argument("--compile", action="store_true", help="compile the network, which takes a minute")
    parser.add_argument("--pool", type=int, default=4096, help="lessons kept (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=20_000, help="captions learned from (default: %(default)s)")
    parser.add_argument(
        "--renewed", type=float, default=RENEWED, help="share of a batch made anew in each step (default: %(default)s)"
    )
    parser.add_argument("--save-every", type=float, default=40.0, help="seconds (default: %(default)s)")
    parser.add_argument("--ready", type=Path, help="a file to make when only the autoencoder is awaited")
    parser.add_argument("--resume", action="store_true", help="begin with the weights that are there")
    return parser


def warm_up(learner: Learner, modules: Mapping[str, Any], tokens: Tensor) -> bool:
    """Compile the network for training while there is nothing to learn from yet; whether that worked."""
    name, device = learner.name, tokens.device
    try:
        modules[name].compile(dynamic=False)
        began = time.time()
        blank = {"tokens": tokens, "x0": torch.randn(len(tokens), 4, LATENT, LATENT, device=device)}
        draw = learner.lessons(modules, lambda count: {name: rows[:count] for name, rows in blank.items()})
        for _ in range(2):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                found = learner.loss(modules, draw(len(tokens)))
            found.backward()  # type: ignore[no-untyped-call]
        for module in modules.values():
            module.zero_grad(set_to_none=True)
        print(f"{name}: compiled in {time.time() - began:.0f} s", flush=True)
    except Exception as error:  # whatever the compiler stumbles over, training goes on without it
        print(f"{name}: not compiled: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return False
    return True


def train(given: argparse.Namespace, clock: Clock, learner: Learner) -> None:
    """Train until the clock says stop; ``given.out`` has the average's weights, now and then and at the end."""
    device, out = given.device, given.out
    prepare(given.seed)
    torch.backends.cudnn.benchmark = True
    tokenizer = build_tokenizer()
    modules = learner.build(tokenizer)
    if given.resume:
        for name, file in learner.files.items():
            read(out / file, modules[name])
    place(modules, device)
    painter = Painter(art_sheet(given.cache), seed=given.seed, device=device)
    empty = tokenise(tokenizer, [""]).to(device)
    if given.compile and not warm_up(learner, modules, empty.expand(given.batch, -1)):
        compiled, modules = modules, learner.build(tokenizer)
        for name, module in compiled.items():
            modules[name].load_state_dict(module.state_dict())
        place(modules, device)
    if given.ready:
        given.ready.touch()
    pool = Pool(painter, given.pool, given.scenes, given.seed, at_once=min(1024, given.pool))
    if not given.resume:
        learner.read_first(modules, pool.captions)
    clock.wait_for(out / VAE)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        pool.take(load_vae(out / VAE, device))
    clock.restart()
    learn(given, clock, learner, modules, pool)


def place(modules: Mapping[str, Any], device: str) -> None:
    """On the device that learns, convolutions in the layout that is fast there."""
    for module in modules.values():
        module.to(device, memory_format=torch.channels_last)


def learn(given: argparse.Namespace, clock: Clock, learner: Learner, modules: Mapping[str, Any], pool: Pool) -> None:
    device, batch = given.device, given.batch
    weights = [weight for module in modules.values() for weight in module.parameters() if weight.requires_grad]
    averaged = 0.999 if device == "cuda" else 0.995
    how: dict[str, Any] = {"peak": given.rate, "weight_decay": 0.01, "averaged": averaged, "warmup": 200}
    course = Course(modules, weights, clock, **how, device=device, begin=learner.optimizer)
    draw = learner.lessons(modules, pool.draw)
    step, mean = 0, torch.zeros((), device=device)
    for step in course.steps():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            pool.renew(max(1, int(given.renewed * batch)))
            found = learner.loss(modules, draw(batch))
        course.learn(found)
        course.average.update()
        mean = torch.lerp(mean, found.detach(), 0.02 if step else 1.0)
        if course.tells and not course.tell(learner.name, mean, f", {step * batch} pictures"):
            mean = torch.zeros((), device=device)
        if course.saves(given.save_every):
            save(given.out, learner, course.average, finished="no", step=str(step))
    save(given.out, learner, course.average, finished="yes", step=str(step))


def save(out: Path, learner: Learner, average: Average, **metadata: str) -> None:
    """The average's weights, a file for each module."""
    for name, file in learner.files.items():
        front = f"{name}."
        kept = {key.removeprefix(front): tensor for key, tensor in average.weights.items() if key.startswith(front)}
        write(out / file, kept, **metadata)


def spread(count: int, device: torch.device) -> Float[Tensor, " count"]:
    """Numbers in 0..1, one in each of ``count`` equal parts, so that every batch sees all levels of noise."""
    return (torch.arange(count, device=device) + torch.rand(count, device=device)) / count
