"""The GPU rows of docs/performance.md: after a warm-up, and with the GPU's work done when the clock is read.

Sampling and LoRA tuning are medians of several runs; the U-Net's training is one stretch of 220 steps.
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

import numpy as np
import torch

from raftdiff.embedded import folder
from raftdiff.training.devices import DTYPES, find_device
from raftdiff.types import Prompt

Figures = Iterator[dict[str, Any]]
DEVICE = find_device("auto")


def figures(given: argparse.Namespace) -> Figures:
    """Each group by itself: one that fails is told as such, and the next goes on."""
    for group in (scene_sampling, scene_training, reviews, sd15):
        try:
            yield from group(small=given.small)
        except Exception as error:
            traceback.print_exc()
            yield {"name": group.__name__, "failed": f"{type(error).__name__}: {error}"}
        gc.collect()
        torch.cuda.empty_cache()


def scene_sampling(*, small: bool) -> Figures:
    """scene-sd from captions to pictures, decoding included."""
    from raftdiff.diffusion.models.loading import ModelConfig, load
    from raftdiff.diffusion.sampler import DiffusionSamplerConfig
    from raftdiff.embedded.scenes.world import draw

    count, steps = (2, 2) if small else (512, 10)
    captions = [scene.caption for scene in draw(count, seed=0)]
    prompts = [Prompt(text, text, text, text) for text in captions]
    for dtype in ("float32",) if small else ("float32", "bfloat16"):
        parts = load(ModelConfig(base=str(folder("scene-sd")), dtype=dtype))
        sampler = DiffusionSamplerConfig(steps=steps, guidance=3.0, batch_size=count).build(parts)

        def evaluations(seed: int, sampler: Any = sampler) -> int:
            before = sampler.network_evaluations()
            list(sampler.sample(prompts, per_prompt=1, seed=seed, round=0, done=set()))
            return int(sampler.network_evaluations() - before)

        value = per_second(evaluations, repeats=1 if small else 5)
        yield _figure(f"scene-sd sampling, {dtype}, batches of {count}", value, "network evaluations/s")


def scene_training(*, small: bool) -> Figures:
    """The loop that trains scene-sd, lessons painted and encoded beside it; the art is blank, which does not matter to
    the clock."""
    from raftdiff.embedded.scenes import networks
    from raftdiff.embedded.scenes.art import OBJECTS, STYLES
    from raftdiff.embedded.scenes.data import TEXTURE, Painter
    from raftdiff.embedded.scenes.tokens import build_tokenizer
    from raftdiff.embedded.scenes.training.latents import Pool, learn, options, place
    from raftdiff.embedded.scenes.training.timing import Clock
    from raftdiff.embedded.scenes.training.unet import LEARNER

    count, scenes, steps, every = (2, 8, 3, 1) if small else (512, 4096, 241, 20)
    device, tokenizer = DEVICE.type, build_tokenizer()
    painter = Painter(np.zeros((len(OBJECTS), len(STYLES), TEXTURE, TEXTURE, 4), dtype=np.uint8), seed=0, device=device)
    marks: list[float] = []
    ran = 0

    def mark(*_: Any) -> None:
        nonlocal ran
        if ran % every == 0:
            marks.append(_now())
        ran += 1

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        networks.take_apart(folder("scene-sd"), out)
        modules = LEARNER.build(tokenizer)
        for name, file in LEARNER.files.items():
            networks.read(out / file, modules[name])
        place(modules, device)
        modules["unet"].register_forward_pre_hook(mark)
        asked = [f"--device={device}", f"--most={steps}", "--minutes=10", f"--out={out}", f"--batch={count}"]
        given = options("Speed.").parse_args(asked)
        given.save_every = math.inf
        pool = Pool(painter, 2 * count, scenes, 0, at_once=2 * count)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            pool.take(networks.load_vae(out / networks.VAE, device))
        learn(given, Clock(given), LEARNER, modules, pool)
    warm = marks[1:]  # until the second it warms up
    value = count * every * (len(warm) - 1) / (warm[-1] - warm[0])
    precision = "bfloat16" if device == "cuda" else "float32"
    yield _figure(f"U-Net training of scene-sd, {precision}, batches of {count}", value, "pictures/s")


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

    from raftdiff.diffusion.families.sd import StableDiffusion
    from raftdiff.diffusion.models.loading import ModelConfig, assemble

    narrow = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    with tempfile.TemporaryDirectory() as scratch, torch.device(DEVICE):
        configs, family = Path(scratch), StableDiffusion()
        family.configs("sd1", None, configs, Path("sd1"))
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
    return assemble(family, modules, config, DEVICE, DTYPES["bfloat16"])


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
