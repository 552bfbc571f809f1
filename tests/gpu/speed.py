"""The GPU rows of docs/performance.md: after a warm-up, and with the GPU's work done when the clock is read.

Sampling and LoRA tuning are medians of several runs; the U-Net's training is one stretch of 12 seconds.
"""

import argparse
import gc
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raftdiff.embedded import folder
from raftdiff.errors import UserError
from raftdiff.training.devices import DTYPES, find_device
from raftdiff.types import Prompt

Figures = Iterator[dict[str, Any]]
DEVICE = find_device("auto")


def figures(given: argparse.Namespace) -> Figures:
    """Each group by itself: one that fails is told as such, and the next goes on."""
    for group in (emoji_sampling, emoji_training, reviews, sd15):
        try:
            yield from group(small=given.small)
        except Exception as error:
            traceback.print_exc()
            yield {"name": group.__name__, "failed": f"{type(error).__name__}: {error}"}
        gc.collect()
        torch.cuda.empty_cache()


def emoji_sampling(*, small: bool) -> Figures:
    """emoji-sd from captions to pictures, decoding included."""
    from raftdiff.diffusion.models.loading import ModelConfig, load
    from raftdiff.diffusion.sampler import DiffusionSamplerConfig
    from raftdiff.embedded.emoji.world import draw, training_concepts

    count, steps = (2, 2) if small else (512, 10)
    captions = [concept.caption for concept in draw(training_concepts(), count, seed=0)]
    prompts = [Prompt(text, text, text, text) for text in captions]
    for dtype in ("float32",) if small else ("float32", "bfloat16"):
        parts = load(ModelConfig(base=str(folder("emoji-sd")), dtype=dtype))
        sampler = DiffusionSamplerConfig(steps=steps, guidance=3.0, batch_size=count).build(parts)

        def evaluations(seed: int, sampler: Any = sampler) -> int:
            before = sampler.network_evaluations()
            list(sampler.sample(prompts, per_prompt=1, seed=seed, round=0, done=set()))
            return int(sampler.network_evaluations() - before)

        value = per_second(evaluations, repeats=1 if small else 5)
        yield _figure(f"emoji-sd sampling, {dtype}, batches of {count}", value, "network evaluations/s")


def emoji_training(*, small: bool) -> Figures:
    """The loop that trained emoji-sd, on latents that are noise: what they show does not matter to the clock."""
    from raftdiff.embedded.emoji.data import training_indices
    from raftdiff.embedded.emoji.train_unet import Lessons, Pace, begin, learn
    from raftdiff.embedded.training import Average

    count, seconds = (2, 2.0) if small else (2048, 3.0)
    table = training_indices().to(DEVICE)
    rows = table[torch.arange(2 * count, device=DEVICE) % len(table)]
    noise = torch.randn(2 * count, 4, 16, 16, device=DEVICE)
    lessons = Lessons(noise, torch.rand(2 * count, device=DEVICE) < 0.35, rows)
    for precision in ("bfloat16",) if small else ("float32", "bfloat16"):
        modules, tokenizer, _ = begin(folder("emoji-sd"), Path(), str(DEVICE))
        average = Average(modules, decay=0.999)
        pace = Pace(5 * seconds / 60, count, precision=precision, look_every=seconds / 60)
        looks = [(_now(), average.updates) for _ in learn(modules, average, lessons, tokenizer, pace)]
        (begun, before), (ended, after) = looks[0], looks[-1]  # until the first look it warms up
        if after == before:
            raise UserError(f"One step took longer than the {5 * seconds:.0f} s that there are for all.")
        value = count * (after - before) / (ended - begun)
        yield _figure(f"U-Net training of emoji-sd, {precision}, batches of {count}", value, "pictures/s")


def reviews(*, small: bool) -> Figures:
    """review-lm answering its own prompts."""
    from raftdiff.embedded.reviews.world import training_prompts
    from raftdiff.llm.model.loading import LMConfig, load
    from raftdiff.llm.sampling.policy import PolicySamplerConfig

    count = 4 if small else 1024
    texts = (training_prompts() * math.ceil(count / len(training_prompts())))[:count]
    prompts = [Prompt(f"{row}", text, text, text) for row, text in enumerate(texts)]
    for dtype in ("float32",) if small else ("float32", "bfloat16"):
        lm = load(LMConfig(base=str(folder("review-lm")), dtype=dtype), str)
        sampler = PolicySamplerConfig(batch_size=count).build(lm)

        def tokens(seed: int, sampler: Any = sampler) -> int:
            before = sampler.network_evaluations()
            list(sampler.sample(prompts, per_prompt=1, seed=seed, round=0, done=set()))
            return int(sampler.network_evaluations() - before)

        value = per_second(tokens, repeats=1 if small else 3)
        yield _figure(f"review-lm sampling, {dtype}, batches of {count}", value, "tokens/s")


def sd15(*, small: bool) -> Figures:
    """A model of Stable Diffusion 1.5's size with random weights, in bfloat16 at 256 px: sampling with guidance, and
    LoRA tuning."""
    from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
    from raftdiff.diffusion.probe import measure, model_parameters
    from raftdiff.diffusion.sampler import DiffusionSamplerConfig

    count, side = (2, 64) if small else (16, 256)
    parts = sd15_parts(small=small)
    sampler = DiffusionSamplerConfig(height=side, width=side, batch_size=count).build(parts)
    tuner = DiffusionFineTunerConfig(batch_size=count).build(parts, total_rounds=1, guidance=7.5, seed=0)
    probes = [measure(sampler, tuner) for _ in range(1 if small else 5)]
    told = f"a random U-Net of SD 1.5's size, {side} px, bfloat16, batches of {count}"
    evaluation = median(probe.seconds_per_evaluation for probe in probes)
    yield _figure(f"{told}: sampling", 1 / evaluation, "network evaluations/s")
    tuned = median(probe.seconds_per_tuned_row for probe in probes)
    yield _figure(f"{told}: LoRA tuning", 1 / tuned, "pictures/s")
    yield _figure(f"{told}: most memory held", max(probe.memory_bytes for probe in probes) / 2**30, "GiB")
    yield _figure(f"{told}: parameters", model_parameters(tuner), "parameters")


def sd15_parts(*, small: bool) -> Any:
    """SD 1.5's five parts, without a download; ``small`` has the same blocks and a hundredth of their width."""
    import diffusers
    import transformers

    from raftdiff.diffusion.models.loading import ModelConfig, assemble
    from raftdiff.diffusion.models.single_file import write_configs

    narrow = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    with tempfile.TemporaryDirectory() as scratch, torch.device(DEVICE):
        configs = write_configs("sd1", Path(scratch), None, Path("sd1"))
        kinds = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}
        modules = {
            name: kind.from_config(kind.load_config(configs / name), **(narrow if small else {}))
            for name, kind in kinds.items()
        }
        text = transformers.CLIPTextConfig.from_pretrained(configs / "text_encoder")
        text.num_hidden_layers = 1 if small else text.num_hidden_layers
        modules["text_encoder"] = transformers.CLIPTextModel(text)
        with torch.device("cpu"):  # where a scheduler's tables live
            modules["tokenizer"] = transformers.CLIPTokenizer.from_pretrained(configs / "tokenizer")
            modules["scheduler"] = diffusers.DDIMScheduler.from_pretrained(configs / "scheduler")
    config = ModelConfig(base="SD 1.5's size, random", dtype="bfloat16", channels_last=True)
    return assemble(modules, config, DEVICE, DTYPES["bfloat16"])


def per_second(work: Callable[[int], int], *, repeats: int) -> float:
    """What ``work(seed)`` counts, a second: the median of the repeats, after one to warm up."""
    work(0)
    found = []
    for seed in range(1, repeats + 1):
        begun = _now()
        count = work(seed)
        found.append(count / (_now() - begun))
    return median(found)


def _now() -> float:
    """The clock, when what was asked of the GPU is done."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize(DEVICE)
    return time.perf_counter()


def _figure(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": float(f"{value:.4g}"), "unit": unit}
