"""What ``raftdiff bench`` times of a recipe: its parts one at a time, and small rounds of it that grow."""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from raftdiff.diffusion.assembly import Assembly
from raftdiff.diffusion.models.pictures import decode
from raftdiff.diffusion.probe import drawing, tuning
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.diffusion.sizes import Size, told
from raftdiff.diffusion.speed import holding
from raftdiff.diffusion.speed.operations import operations, product
from raftdiff.diffusion.speed.repeats import Call, Way
from raftdiff.errors import counted
from raftdiff.progress import Quiet
from raftdiff.raft import raft
from raftdiff.records.media import store
from raftdiff.records.run import Run
from raftdiff.training.devices import now
from raftdiff.types import Sample

BATCHES = (1, 4, 16, 64)
"""Pictures drawn at once, beside the recipe's own number."""
STEPS, TUNED = 4, 2
"""Denoising and optimizer steps of the small rounds, at most."""
PEAK, BATCH, PARTS, ROUNDS = "peak", "sampling, by pictures at once", "parts", "small rounds"
OTHERWISE = "sampling, by a copy of the network that is held otherwise"
AS_IT_IS = "as the recipe says"
PRODUCT, SAMPLING, DECODING, REWARDS, WRITING, TUNING = (
    "a large matrix product",
    "sampling",
    "decoding",
    "rewards",
    "writing PNG",
    "tuning",
)
OUTSIDE = "outside"
"""What of a small round is spent in none of its networks."""


def everything(assembly: Assembly) -> list[Way]:
    """What there is to be timed, from what is soon told to what takes long."""
    size = max(assembly.sampler.sizes, key=math.prod)
    return [_peak(assembly), *_parts(assembly, size), *_batches(assembly, size), *_rounds(assembly, size)]


def otherwise(assembly: Assembly, *, compiled: bool) -> list[Way]:
    """Sampling with the network as it is held and as it could be; each draws once before its clock starts. Apart from
    everything else, since each has a copy of the network beside it. ``compiled``: see ``holding.changes``."""
    parts, config = assembly.model, assembly.sampler.config
    size = max(assembly.sampler.sizes, key=math.prod)
    _, rows, _ = drawing(assembly.sampler, config.at_once, size)

    def drawn(change: holding.Change) -> Callable[[], Call]:
        def call() -> Call:
            held = holding.held(parts, change) if change else parts
            draw, _, _ = drawing(DiffusionSampler(config, held), config.at_once, size)
            draw()
            return _clocked(draw, parts.device)()

        return call

    tried = list(holding.changes(assembly.recipe.model, parts, compiled=compiled))
    named = {AS_IT_IS: drawn({}), **{holding.told(change): drawn(change) for change in tried}} if tried else {}
    return [Way(OTHERWISE, name, "network evaluations", rows, call) for name, call in named.items()]


def asked(assembly: Assembly) -> dict[str, float]:
    """Operations, multiplications and additions, of one evaluation while sampling and of one picture tuned on."""
    size, parts = max(assembly.sampler.sizes, key=math.prod), assembly.model
    plain = DiffusionSampler(assembly.sampler.config, replace(parts, network=parts.denoiser))  # not compiled for it
    draw, rows, noise = drawing(plain, 1, size)

    def steps(count: int) -> int:
        return operations(lambda: tuning(assembly.finetuner, noise, assembly.sampler.config.steps, count=count))

    config = assembly.finetuner.config
    tuned = config.items_at_once * config.pictures_an_item * config.gradient_accumulation
    return {SAMPLING: operations(draw) / rows, TUNING: (steps(2) - steps(1)) / tuned}  # without what follows the steps


def _peak(assembly: Assembly) -> Way:
    device = assembly.model.device
    multiply, count = product(device, assembly.model.dtype)
    return Way(PEAK, PRODUCT, "operations", count, _clocked(multiply, device))


def _parts(assembly: Assembly, size: Size) -> Iterator[Way]:
    parts, sampler, tuner = assembly.model, assembly.sampler, assembly.finetuner
    batch = sampler.config.at_once
    draw, rows, noise = drawing(sampler, batch, size)
    yield Way(PARTS, SAMPLING, "network evaluations", rows, _clocked(draw, parts.device))
    at_once = sampler.config.decoded_at_once
    yield Way(PARTS, DECODING, "pictures", batch, _clocked(lambda: decode(parts, noise, at_once), parts.device))
    fresh = np.random.default_rng(0)

    def pictures() -> list[Sample[Image.Image]]:
        """Never the same: rewards remember what they saw."""
        shown = fresh.integers(0, 256, (batch, *size, 3), dtype=np.uint8)
        prompts = [assembly.parts.prompts[row % len(assembly.parts.prompts)] for row in range(batch)]
        return [
            Sample(0, prompt, row, 0, "policy", Image.fromarray(one), {})
            for row, (prompt, one) in enumerate(zip(prompts, shown, strict=True))
        ]

    def rewarded() -> Call:
        shown = pictures()
        return _clocked(lambda: assembly.ranker.raw(shown), parts.device)()

    def written() -> Call:
        shown = pictures()
        with tempfile.TemporaryDirectory() as scratch:
            return _clocked(lambda: [store(Path(scratch), one) for one in shown], parts.device)()

    yield Way(PARTS, REWARDS, "pictures", batch, rewarded)
    yield Way(PARTS, WRITING, "pictures", batch, written)
    config = tuner.config
    tuned = config.items_at_once * config.pictures_an_item * config.gradient_accumulation
    yield Way(PARTS, TUNING, "pictures", tuned, lambda: Call(tuning(tuner, noise, sampler.config.steps)[0]))


def _batches(assembly: Assembly, size: Size) -> Iterator[Way]:
    for count in sorted({*BATCHES} - {assembly.sampler.config.at_once}):
        draw, rows, _ = drawing(assembly.sampler, count, size)
        yield Way(BATCH, f"{count}", "network evaluations", rows, _clocked(draw, assembly.model.device))


def _rounds(assembly: Assembly, size: Size) -> Iterator[Way]:
    count, multiple = assembly.parts.loop.candidates, assembly.model.multiple
    half = (max(multiple, size[0] // 2 // multiple * multiple), max(multiple, size[1] // 2 // multiple * multiple))
    grown = [(1, count, size), (1, 2 * count, size), (2, count, size)]
    if half != size and "path" not in assembly.finetuner.requires.aux:  # whose steps are those of the recipe's size
        grown.append((1, count, half))
    for prompts, candidates, pixels in grown:
        name = f"{counted(prompts, 'prompt')}, {candidates} candidates, {told(pixels)}"

        def call(prompts: int = prompts, candidates: int = candidates, pixels: Size = pixels) -> Call:
            return small_round(assembly, prompts, candidates, pixels)

        yield Way(ROUNDS, name, "pictures", prompts * candidates, call)


def small_round(assembly: Assembly, prompts: int, candidates: int, size: Size) -> Call:
    """A round of the loop itself, of few steps, into a folder that is thrown away: its seconds, by stage too, and those
    that it spends in none of its networks. The fine-tuner is put back as it was."""
    sampler, tuner = assembly.sampler, assembly.finetuner
    steps = sampler.config.steps if "path" in tuner.requires.aux else min(STEPS, sampler.config.steps)
    drawn = sampler.config.at(size).model_copy(update={"steps": steps, "prune": None})
    small = {"rounds": 1, "candidates": candidates, "prompts_per_round": None, "sample_every": 1}
    known = assembly.parts.prompts
    some = [replace(known[place % len(known)], id=f"{place}") for place in range(prompts)]
    parts = replace(
        assembly.parts,
        sampler=DiffusionSampler(drawn, sampler.parts, tuner.requires.aux),
        prompts=some,
        held_out=(),
        loop=assembly.parts.loop.model_copy(update=small),
    )
    before, config = tuner.state_dict(), tuner.config
    tuner.config = config.model_copy(update={"steps": min(TUNED, config.steps), "exposures": None})
    try:
        with tempfile.TemporaryDirectory() as scratch, _networks(assembly) as spent:
            run = Run.create(Path(scratch) / "run", assembly.recipe, seed=0)
            began = now(sampler.parts.device)
            (finished,) = raft(run, parts, Quiet())
            took = now(sampler.parts.device) - began
    finally:
        tuner.config = config
        tuner.load_state_dict(before)
    stages = {name: float(seconds) for name, seconds in finished.metrics["seconds"].items()}
    outside = {OUTSIDE: took - sum(spent)} if spent else {}
    return Call(took, {**stages, "records": max(0.0, took - sum(stages.values())), **outside})


@contextmanager
def _networks(assembly: Assembly) -> Iterator[list[float]]:
    """Within, the seconds of every call of a network, of a reward and of the backward pass are put into the list;
    nothing where the network is compiled, which looking on would compile anew."""
    model, depth, spent = assembly.model, [0], list[float]()

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*words: Any, **named: Any) -> Any:
            depth[0] += 1
            began = now(model.device)
            try:
                return call(*words, **named)
            finally:
                depth[0] -= 1
                if not depth[0]:  # what it calls itself is within its own time
                    spent.append(now(model.device) - began)

        return timing

    texts = [(it, "forward") for it in model.text_encoders.values()]
    rewards = [(reward, "score") for reward, _ in assembly.ranker.rewards]
    places = [(model.denoiser, "forward"), (model.vae, "decode"), (torch.autograd, "backward"), *texts, *rewards]
    with ExitStack() as stack:
        for holder, name in places if model.network is model.denoiser else ():
            stack.enter_context(_in_place(holder, name, timed(getattr(holder, name))))
        yield spent


@contextmanager
def _in_place(holder: Any, name: str, call: Callable[..., Any]) -> Iterator[None]:
    """Within, ``call`` stands in the place of what a holder has by this name."""
    own, held = name in vars(holder), getattr(holder, name)
    setattr(holder, name, call)
    try:
        yield
    finally:
        setattr(holder, name, held) if own else delattr(holder, name)


def _clocked(work: Callable[[], object], device: torch.device) -> Callable[[], Call]:
    def call() -> Call:
        began = now(device)
        work()
        return Call(now(device) - began)

    return call
