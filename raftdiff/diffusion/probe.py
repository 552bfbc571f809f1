"""What a recipe will do, counted; and how long it will take on this machine, from a short measurement."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner, DiffusionFineTunerConfig
from raftdiff.diffusion.learning.rules import PathRule
from raftdiff.diffusion.models.pictures import decode
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig
from raftdiff.diffusion.sizes import Size
from raftdiff.training.devices import now
from raftdiff.types import Item, Prompt, Sample, Selection


@dataclass(frozen=True, slots=True)
class Counts:
    """The work of one round, from the recipe alone."""

    images: int
    """Pictures sampled."""
    sampling_evaluations: int
    """Rows through the U-Net while sampling, where it is asked for its outer layers alone too."""
    selected: int
    """Pictures learned from, replayed ones included."""
    tuning_steps: int
    tuning_rows: int
    """Pictures shown while tuning, repeats counted."""
    tuning_evaluations: int
    """Rows through the U-Net while tuning, with gradient and without; the drift's are left out."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Seconds and bytes, measured on this machine at the recipe's size, of several the largest, dtype and batch."""

    seconds_per_evaluation: float
    """One row through the U-Net while sampling, the solver's share included; with ``sampler.reuse`` the mean of whole
    and outer ones."""
    seconds_per_decode: float
    """One picture through the VAE's decoder."""
    seconds_per_tuned_row: float
    """One picture of an optimizer step, everything that the loss asks for included."""
    trained_parameters: int
    model_parameters: int
    """Of U-Net, VAE and text encoder, without what was added to be trained."""
    memory_bytes: int
    """The most that the process held while measuring: of the GPU where there is one, else resident memory."""

    def seconds_per_round(self, counts: Counts) -> float:
        """Sampling, decoding and tuning; scoring is the rewards' own."""
        return (
            counts.sampling_evaluations * self.seconds_per_evaluation
            + counts.images * self.seconds_per_decode
            + counts.tuning_rows * self.seconds_per_tuned_row
        )


class Spread(NamedTuple):
    """A round whose candidates several machines draw, each a shard, and of which one machine does all else."""

    at_work: int
    """Machines that have a batch to draw."""
    seconds: float
    """Of the round, without loading and traffic."""


class Traffic(NamedTuple):
    """Bytes of a round that is sampled in shards."""

    to_each: int
    """What the last round left: trained weights, their optimizer's state and their average."""
    from_all: int
    """Pictures and latents, at most: as if PNG made no picture smaller."""


def spread(machines: int, *, images: int, at_once: int, drawing: float, rest: float) -> Spread:
    """``images`` in batches of ``at_once``, drawn by so many machines like the one that takes ``drawing`` seconds for
    all of them, and ``rest`` for what else a round is.

    >>> spread(64, images=200, at_once=16, drawing=26.0, rest=4.0)
    Spread(at_work=13, seconds=6.0)
    """
    batches = -(-images // at_once)
    return Spread(min(machines, batches), drawing * -(-batches // machines) / batches + rest)


def traffic(sampler: DiffusionSampler, tuner: DiffusionFineTuner, *, images: int) -> Traffic:
    """What a machine that draws a shard is sent, and what all of them send: of several sizes as if all were the
    largest."""
    height, width = max(sampler.sizes, key=math.prod)
    moments = 8 if tuner.config.optimizer == "adamw" else 2
    latent = 4 * math.prod(sampler.parts.latent_shape(height, width))
    states = 1 + (sampler.config.steps + 1 if "path" in tuner.requires.aux else 0)
    picture = 3 * height * width + latent * states
    return Traffic(tuner.parameter_count() * (4 + moments + (4 if tuner.config.ema else 0)), images * picture)


def count(
    sampler: DiffusionSamplerConfig,
    tuner: DiffusionFineTunerConfig,
    *,
    prompts: int,
    per_prompt: int,
    selected: int,
    guidance: float | None = None,
) -> Counts:
    """The work of a round of ``prompts`` times ``per_prompt`` pictures, of which ``selected`` are learned from.
    ``guidance`` is what the tuned model is used with, by default the sampler's.

    >>> from raftdiff.diffusion.sampler import DiffusionSamplerConfig
    >>> sampler = DiffusionSamplerConfig(steps=20, guidance=7.5)
    >>> count(sampler, DiffusionFineTunerConfig(), prompts=10, per_prompt=20, selected=10).sampling_evaluations
    8000
    """
    images = prompts * per_prompt
    pictures = tuner.pictures_an_item
    rows_a_step = tuner.items_at_once * pictures * tuner.gradient_accumulation
    rows = tuner.steps * rows_a_step if selected else 0
    if selected and tuner.exposures is not None:
        rows = min(rows, pictures * max(1, int(tuner.exposures * selected)))
    return Counts(
        images=images,
        sampling_evaluations=images * sampler.evaluations,
        selected=selected,
        tuning_steps=-(-rows // rows_a_step),
        tuning_rows=rows,
        tuning_evaluations=rows
        * evaluations_per_row(tuner, sampler.guidance if guidance is None else guidance, drawn=sampler.guidance),
    )


def evaluations_per_row(tuner: DiffusionFineTunerConfig, guidance: float, *, drawn: float) -> int:
    """Rows through the U-Net for each picture shown: its own, the guided loss's second, those of base and old. Steps of
    a path are learnt with the guidance that they were ``drawn`` with."""
    rule, anchored = tuner.learning.build(), tuner.anchor > 0
    if isinstance(rule, PathRule):
        return (1 if drawn == 1 else 2) * rule.passes + int(anchored)
    guided = tuner.loss_on == "guided" and (tuner.guidance or guidance) != 1
    fixed = {rule.reference, "base" if anchored else "none"} - {"none"}
    return 1 + int(guided) + len(fixed)


def measure(sampler: DiffusionSampler, tuner: DiffusionFineTuner) -> Probe:
    """Sample one batch for two steps, decode it and tune on it for two steps, each once to warm up and once by the
    clock; the fine-tuner is put back as it was. A few seconds with a small model, up to a minute with a large one on a
    CPU; the sampler's evaluations count goes on.
    """
    parts = sampler.parts
    forget(parts.device)
    evaluation, decoding, noise = pace(sampler)
    seconds, tuned_rows = tuning(tuner, noise, sampler.config.steps)
    return Probe(
        seconds_per_evaluation=evaluation,
        seconds_per_decode=decoding,
        seconds_per_tuned_row=seconds / tuned_rows,
        trained_parameters=tuner.parameter_count(),
        model_parameters=model_parameters(tuner),
        memory_bytes=memory(parts.device),
    )


def pace(sampler: DiffusionSampler) -> tuple[float, float, torch.Tensor]:
    """Seconds of one row through the network and of one picture through the decoder, of the largest size and a whole
    batch, and the noise (batch, channels, height, width) that it was begun with."""
    parts, batch = sampler.parts, sampler.config.at_once
    draw, rows, noise = drawing(sampler, batch, max(sampler.sizes, key=math.prod))
    sampling = _seconds(draw, parts.device)
    decoding = _seconds(lambda: decode(parts, noise, sampler.config.decoded_at_once), parts.device)
    return sampling / rows, decoding / batch, noise


def model_parameters(tuner: DiffusionFineTuner) -> int:
    """Numbers in denoiser, VAE and text encoders, without an adapter's."""
    modules = [tuner.parts.modules[name] for name in tuner.parts.family.components]
    total = sum(parameter.numel() for module in modules for parameter in module.parameters())
    return int(total) - (tuner.parameter_count() if tuner.config.adapter == "lora" else 0)


def drawing(sampler: DiffusionSampler, count: int, size: Size) -> tuple[Callable[[], object], int, torch.Tensor]:
    """What denoises ``count`` pictures of this size for two steps, or from one that asks the whole network to the next,
    the rows through the network that this takes, and the noise that it begins with."""
    parts, reuse = sampler.parts, sampler.config.reuse
    steps = 2 if reuse is None else min(max(2, reuse.every), sampler.config.steps)
    quick = DiffusionSampler(sampler.config.model_copy(update={"steps": steps}), parts)
    shape = (1, *parts.latent_shape(*size))
    generators = [torch.Generator().manual_seed(row) for row in range(count)]
    noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
    text = parts.prompts(["a picture"] * count)
    negative = parts.prompts([""] * count) if sampler.config.guidance != 1 else None
    rows = steps * count * (1 if negative is None else 2)
    return lambda: quick.denoise(noise, text, negative, generators), rows, noise


def tuning(tuner: DiffusionFineTuner, latents: torch.Tensor, steps: int, *, count: int = 2) -> tuple[float, int]:
    """Seconds of the last of ``count`` optimizer steps, and its rows; the state is put back afterwards. ``steps``: of
    a path, for rules that learn from one."""
    before = tuner.state_dict()
    pictures = tuner.config.pictures_an_item
    rows = tuner.config.items_at_once * pictures * tuner.config.gradient_accumulation
    prompt = Prompt("probe", "a picture", "a picture", "a picture")
    aux = [{"latent": one, "path": one.expand(steps + 1, *one.shape)} for one in latents]
    samples = {
        sample.key: sample
        for sample in (
            Sample(0, prompt, row, 0, "policy", Image.new("RGB", (1, 1)), aux[row % len(latents)])
            for row in range(rows)
        )
    }
    keys = list(samples)
    items = tuple(Item(tuple(keys[first : first + pictures])) for first in range(0, rows, pictures))
    selection = Selection(tuner.requires.kinds[0], items)
    config, ticks = tuner.config, [now(tuner.parts.device)]
    tuner.config = config.model_copy(update={"steps": count, "exposures": None})
    try:
        tuner.fit(selection, samples, seed=0, report=lambda *_: ticks.append(now(tuner.parts.device)))
    finally:
        tuner.config = config
        tuner.load_state_dict(before)
    return ticks[-1] - ticks[-2], rows


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the second run: the first allocates, and compiles where it is asked to."""
    work()
    start = now(device)
    work()
    return now(device) - start


def forget(device: torch.device) -> None:
    """Let ``memory`` count from here on a GPU; what a process held at most without one is never forgotten."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def memory(device: torch.device) -> int:
    """The most bytes that were held: of a GPU, else of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", 0) or _peak_resident() or memory.rss)


def _peak_resident() -> int:
    """The most resident memory so far, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
