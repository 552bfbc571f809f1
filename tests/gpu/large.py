"""Stable Diffusion 1.5 and SDXL at their true size, with random weights, in bfloat16: pictures a second beside plain
diffusers in one run, LoRA tuning, memory, the share of what a large matrix product reaches; and the published job as a
whole, 10 prompts, 20 candidates each, 100 steps a stage, 5 rounds, at 256 px.

Random weights draw noise, and take as long as others. The job's reward is the size of a JPEG file, which costs nothing.
"""

import argparse
import gc
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raftdiff.training.devices import DTYPES, find_device, now
from raftdiff.types import Prompt

Figures = Iterator[dict[str, Any]]
DEVICE = find_device("auto")
PICTURES = {"sd15": {256: 32, 512: 16, 1024: 4}, "sdxl": {256: 32, 512: 8, 1024: 4}}
"""At once, by side in pixels."""
TOLD = {"sd15": "SD 1.5's size", "sdxl": "SDXL's size"}
STEPS, GUIDANCE, REPEATS = 10, 5.0, 2
JOB = {"prompts": 10, "candidates": 20, "rounds": 5, "sampling": 20, "tuning": 100}
SMALL_JOB = {"prompts": 2, "candidates": 2, "rounds": 1, "sampling": 2, "tuning": 1}


def figures(given: argparse.Namespace) -> Figures:
    """Each group by itself: one that fails is told as such, and the next goes on."""
    groups: dict[str, Callable[[], Figures]] = {
        "sd15": lambda: model("sd15", small=given.small),
        "the published job": lambda: job(small=given.small),
        "sdxl": lambda: model("sdxl", small=given.small),
    }
    for name, group in groups.items():
        try:
            yield from group()
        except Exception as error:
            traceback.print_exc()
            yield {"name": name, "failed": f"{type(error).__name__}: {error}"}
        gc.collect()
        torch.cuda.empty_cache()


def model(kind: str, *, small: bool) -> Figures:
    """Sampling at each side, and then tuning, which puts a LoRA into the network."""
    from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
    from raftdiff.diffusion.probe import drawing, tuning
    from raftdiff.diffusion.sampler import DiffusionSamplerConfig
    from raftdiff.diffusion.speed.operations import operations, product

    parts = tiny_parts(kind) if small else random_parts(kind)
    multiply, count = product(DEVICE, parts.dtype) if not small else (lambda: None, 1)
    peak = count / seconds_of(multiply)
    sides = {32: 2} if small else PICTURES[kind]
    steps = 2 if small else STEPS
    samplers = {
        side: DiffusionSamplerConfig(
            height=side, width=side, steps=steps, guidance=GUIDANCE, batch_size=at_once, scheduler="dpm++"
        ).build(parts)
        for side, at_once in sides.items()
    }
    for side, sampler in samplers.items():
        told = f"{TOLD[kind]}, random, {side} px, batches of {sides[side]}"
        forget()
        ours, theirs = beside(sampler, plain(parts, steps, side), sides[side], repeats=1 if small else REPEATS)
        yield figure(f"{told}: drawn", ours, "pictures/s")
        yield figure(f"{told}: drawn by plain diffusers", theirs, "pictures/s")
        yield figure(f"{told}: raftdiff over plain diffusers", ours / theirs, "times")
        draw, rows, _ = drawing(sampler, 1, (side, side))
        share = ours * 2 * steps * operations(draw) / rows / peak
        yield figure(f"{told}: drawn, of a large product, decoding included", 100 * share, "%")
        yield from most(f"{told}: most memory held, drawing")
    config = DiffusionFineTunerConfig(batch_size=2 if small else 4, rank=8)
    tuner = config.build(parts, total_rounds=1, guidance=GUIDANCE, seed=0)
    for side, sampler in samplers.items():
        _, _, noise = drawing(sampler, config.batch_size, (side, side))
        forget()
        seconds, tuned = tuning(tuner, noise, steps, count=2 if small else 4)
        told = f"{TOLD[kind]}, random, {side} px, batches of {config.batch_size}"
        yield figure(f"{told}: LoRA tuning", tuned / seconds, "pictures/s")
        yield from most(f"{told}: most memory held, tuning")


def job(*, small: bool) -> Figures:
    """By the loop itself, everything written; loading is left out."""
    import diffusers
    import yaml

    from raftdiff.diffusion.assembly import assemble
    from raftdiff.diffusion.recipe_files import load_recipe
    from raftdiff.progress import Quiet
    from raftdiff.raft import raft
    from raftdiff.records.run import Run

    asked = SMALL_JOB if small else JOB
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parts = tiny_parts("sd15") if small else random_parts("sd15")
        pipeline = getattr(diffusers, parts.family.pipeline)
        pipeline(**parts.modules, scheduler=parts.scheduler, **parts.family.pipeline_arguments()).save_pretrained(
            folder / "model"
        )
        del parts
        side = 32 if small else 256
        recipe = {
            "name": "job",
            "model": {"base": str(folder / "model"), "dtype": "float32" if small else "bfloat16"},
            "prompts": {"captions": [f"picture {place}" for place in range(asked["prompts"])]},
            "sampler": {"type": "diffusion", "steps": asked["sampling"], "guidance": 7.5, "batch_size": 100}
            | {"height": side, "width": side},
            "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
            "finetuner": {"type": "diffusion", "steps": asked["tuning"], "batch_size": 8, "exposures": None},
            "loop": {"rounds": asked["rounds"], "candidates": asked["candidates"]},
            "logging": {"tracker": None},
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(recipe))
        read = load_recipe(str(folder / "job.yaml"))
        assembly = assemble(read)
        run = Run.create(folder / "run", read, seed=0)
        forget()
        began = now(DEVICE)
        stages = [finished.metrics["seconds"] for finished in raft(run, assembly.parts, Quiet())]
        whole = now(DEVICE) - began
    told = ", ".join(f"{count} {what}" for what, count in asked.items())
    yield figure(f"the published job ({told}, {side} px, SD 1.5's size, random)", whole, "s")
    for stage in ("sample", "tune"):
        yield figure(f"the published job, {stage}", sum(float(it[stage]) for it in stages), "s")
    yield from most("the published job: most memory held")


def tiny_parts(kind: str) -> Any:
    from raftdiff.diffusion.models import tiny
    from raftdiff.diffusion.models.loading import ModelConfig, load

    with tempfile.TemporaryDirectory() as scratch:
        folder: Any = tiny.write_folder(Path(scratch) / kind, kind)  # type: ignore[arg-type]
        return load(ModelConfig(base=str(folder)))


def random_parts(kind: str) -> Any:
    """A model of the published sizes, without a download."""
    import diffusers
    import transformers

    from raftdiff.diffusion.families.sd import StableDiffusion
    from raftdiff.diffusion.families.sdxl import StableDiffusionXL
    from raftdiff.diffusion.models.checkpoints import folder_layout
    from raftdiff.diffusion.models.components import without_weights
    from raftdiff.diffusion.models.loading import ModelConfig, assemble

    family: Any
    family, published = {"sd15": (StableDiffusion(), "sd1"), "sdxl": (StableDiffusionXL(), "sdxl")}[kind]
    with tempfile.TemporaryDirectory() as scratch:
        configs, modules = Path(scratch), {}
        family.configs(published, None, configs, configs)
        rest = without_weights(folder_layout(configs, weights=False))
        with torch.device(DEVICE):
            for name, component in family.components.items():
                library: Any = {"diffusers": diffusers, "transformers": transformers}[component.library]
                made = getattr(library, component.kind)
                if component.library == "diffusers":
                    modules[name] = made.from_config(made.load_config(configs / name))
                else:
                    modules[name] = made(made.config_class.from_pretrained(configs / name))
    config = ModelConfig(base=f"{TOLD[kind]}, random", dtype="bfloat16", channels_last=True)
    return assemble(family, {**modules, **rest}, config, DEVICE, DTYPES["bfloat16"])


def plain(parts: Any, steps: int, side: int) -> Callable[[int], object]:
    """So many pictures by diffusers' own pipeline of the same networks, one batch, the same solver."""
    import diffusers

    solver = diffusers.DPMSolverMultistepScheduler.from_config(parts.scheduler.config)
    pipeline = getattr(diffusers, parts.family.pipeline)
    pipe = pipeline(**parts.modules, scheduler=solver, **parts.family.pipeline_arguments())
    pipe.set_progress_bar_config(disable=True)
    asked = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "height": side, "width": side}
    return lambda count: pipe(prompt=["a picture"] * count, **asked)


def beside(sampler: Any, other: Callable[[int], object], count: int, *, repeats: int) -> tuple[float, float]:
    """Pictures a second of both, in turn: medians of the repeats, after one each to warm up."""
    prompts = [Prompt(f"{row}", "a picture", "a picture", "a picture") for row in range(count)]
    ours, theirs = list[float](), list[float]()
    for seed in range(repeats + 1):
        again = {"per_prompt": 1, "seed": seed, "round": 0, "done": frozenset()}
        ours.append(seconds_of(lambda again=again: list(sampler.sample(prompts, **again))))  # type: ignore[misc]
        theirs.append(seconds_of(lambda: other(count)))
    return count / median(ours[1:]), count / median(theirs[1:])


def seconds_of(work: Callable[[], object]) -> float:
    began = now(DEVICE)
    work()
    return max(now(DEVICE) - began, time.get_clock_info("perf_counter").resolution)


def forget() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats(DEVICE)


def most(name: str) -> Figures:
    """Of a GPU alone: a process without one holds what it held before."""
    if DEVICE.type == "cuda":
        yield figure(name, torch.cuda.max_memory_allocated(DEVICE) / 2**30, "GiB")


def figure(name: str, value: float, unit: str) -> dict[str, Any]:
    return {"name": name, "value": float(f"{value:.4g}"), "unit": unit}
