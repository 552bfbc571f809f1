"""``sampler.batch_size: auto``: how many pictures at once this machine draws best, measured once and remembered."""

import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from raftdiff import embedded
from raftdiff.diffusion.models import kept, measured
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig
from raftdiff.recipes.config import plain
from raftdiff.records.provenance import fingerprints
from raftdiff.training.devices import find_device, now
from raftdiff.training.fitting import attempted
from raftdiff.types import Prompt

FILE = "batches.json"
"""Where what was found is remembered, for all runs of this user."""
GAIN = 1.05
"""As many more pictures a second twice the batch has to give; less is noise, and memory for nothing."""
MOST = 256
SPARE = 0.15
"""Of a GPU's memory, for what is beside the model then: rewards, trained weights, the decoder."""
STEADY = 0.5
"""Seconds for which a batch is measured, at least one that is not the first."""
ELSEWHERE = ("device", "text_device", "keep_texts", "embedded_guidance")
"""Of a model what changes no speed, or is the machine's."""
Facts = Mapping[str, Any]


def facts(model: ModelConfig, drawing: DiffusionSamplerConfig) -> Facts:
    """All that the best batch depends on."""
    held = plain(model)
    return {
        "model": {key: value for key, value in held.items() if key not in ELSEWHERE},
        "weights": fingerprints({"model": held}, embedded.resolve),
        "size": [drawing.height, drawing.width, drawing.sizes],
        "guided": drawing.guidance != 1,
        "machine": kept.machine(find_device(model.device)),
        "torch": torch.__version__,
    }


def found(model: ModelConfig, drawing: DiffusionSamplerConfig, load: Callable[[], Parts]) -> int:
    """The best batch: what is remembered of this model on this machine, or what is measured now. ``load`` gives the
    model where it has to be."""
    where = facts(model, drawing)
    if (known := remembered(where)) is not None:
        return known
    measure, seen = measuring(drawing, load()), dict[int, float]()

    def speed(count: int) -> float | None:
        if (reached := measure(count)) is not None:
            seen[count] = reached
        return reached

    best = largest(speed)
    listed = ", ".join(f"{count}: {each:.3g}" for count, each in seen.items())
    file = measured.place(FILE)
    told = f"It cannot be remembered in {file}."
    if remember(where, best):
        told = f"It is remembered in {file}; 'raftdiff bench RECIPE' measures it anew."
    sys.stderr.write(
        f"raftdiff: sampler.batch_size: auto is {best} on this machine (pictures at once: steps of pictures a second; "
        f"{listed}). {told}\n"
    )
    return best


def largest(speed: Callable[[int], float | None], most: int = MOST) -> int:
    """Doubled as long as that is faster; ``speed`` is None where memory does not suffice.

    >>> largest({1: 5.0, 2: 9.0, 4: 12.0, 8: 12.1}.get), largest({1: 5.0, 2: 9.0}.get), largest({}.get)
    (4, 2, 1)
    """
    count, reached = 1, speed(1)
    while reached is not None and 2 * count <= most:
        faster = speed(2 * count)
        if faster is None or faster < GAIN * reached:
            break
        count, reached = 2 * count, faster
    return count


def measuring(drawing: DiffusionSamplerConfig, parts: Parts) -> Callable[[int], float | None]:
    """``throughput`` by the number of pictures at once; not compiled, or every number would be."""
    quick = drawing.model_copy(update={"batch_size": 1, "steps": 2, "reuse": None}).build(
        replace(parts, network=parts.denoiser)
    )
    return lambda count: throughput(quick, count)


def throughput(sampler: DiffusionSampler, count: int) -> float | None:
    """Steps of pictures a second, so many pictures at once, of the largest size; None where memory does not suffice, or
    a GPU has hardly any left then."""
    device = sampler.parts.device
    prompt = Prompt("measured", "a picture", "a picture", "a picture")

    def work() -> float:
        jobs = [(prompt, index) for index in range(count)]
        noise, generators = sampler.noise(jobs, 0, max(sampler.sizes, key=math.prod))
        texts, times = sampler.texts(jobs), list[float]()
        while len(times) < 2 or sum(times) < STEADY:  # the first allocates
            began = now(device)
            sampler.denoise(noise, *texts, generators)
            times.append(now(device) - began)
        return count * sampler.config.steps / min(times[1:])

    made = attempted(work)
    if made is not None and device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        torch.cuda.empty_cache()
        return made[0] if free > SPARE * whole else None
    return None if made is None else made[0]


def remembered(where: Facts) -> int | None:
    """What was found before; None where nothing is known, or the file is no longer what was written."""
    held = measured.entry(FILE, measured.key(where)) or {}
    count = held.get("batch_size")
    return count if isinstance(count, int) and 1 <= count <= MOST else None


def remember(where: Facts, count: int) -> bool:
    """For the next run; whether the disk took it, or it is measured again then."""
    with contextlib.suppress(OSError):
        measured.keep(FILE, measured.key(where), {"batch_size": count, **where})
        return True
    return False


def forget(model: ModelConfig, drawing: DiffusionSamplerConfig) -> None:
    """What was found may have been found beside other work: the next run that asks measures."""
    measured.forget(FILE, measured.key(facts(model, drawing)))


def lower(where: Facts, count: int) -> None:
    """What was found turned out to be too many: the next run begins with so many."""
    if (known := remembered(where)) is not None and known > count:
        remember(where, count)
