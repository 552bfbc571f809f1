"""What a step of tuning costs beside the network: steps of a round against a bare loop of forward, backward and AdamW.

    OMP_NUM_THREADS=1 python tests/benchmarks/tuning.py scene-sd --steps 3 --repeats 3
    OMP_NUM_THREADS=1 python tests/benchmarks/tuning.py tiny --steps 20

A LoRA of rank 16 on all layers, batches of 16. Both ways in turn, in one run, by processor time: a line for each, and
the share of a step that is not the network.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from PIL import Image

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner, DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.embedded import folder
from raftdiff.records.provenance import provenance
from raftdiff.training.devices import flush_denormals
from raftdiff.types import Item, Prompt, Sample, Selection

BATCH, PICTURES, CAPTIONS = 16, 64, 8


def learnt(tuner: DiffusionFineTuner, latents: torch.Tensor, steps: int) -> float:
    """Seconds a step, of a round but for its first, which begins the optimizer."""
    prompts = [Prompt(f"p{row}", *[f"a picture {row}"] * 3) for row in range(CAPTIONS)]
    samples = {
        one.key: one
        for one in (
            Sample(0, prompts[row % CAPTIONS], row, row, "policy", Image.new("RGB", (8, 8)), {"latent": latent})
            for row, latent in enumerate(latents)
        )
    }
    ticks: list[float] = []
    tuner.config = tuner.config.model_copy(update={"steps": steps + 1})
    taught = Selection("weighted", tuple(Item((key,)) for key in samples))
    tuner.fit(taught, samples, seed=0, report=lambda *_: ticks.append(time.process_time()))
    return (ticks[-1] - ticks[0]) / steps


def bare(tuner: DiffusionFineTuner, latents: torch.Tensor, steps: int) -> float:
    """Seconds a step of the same network on the same number of pictures."""
    parts, by = tuner.parts, tuner.course.optimizer
    tuner.trainable.wake(torch.float32)
    texts = parts.prompts(["a picture 0"] * BATCH)
    noise, timesteps = torch.randn_like(latents[:BATCH]), torch.arange(0, 1000, 1000 // BATCH)[:BATCH]
    began = 0.0
    for step in range(steps + 1):
        if step == 1:
            began = time.process_time()
        loss = ((parts.denoiser(latents[:BATCH], timesteps, texts.tokens).sample - noise) ** 2).mean()
        torch.autograd.backward(loss)
        by.step()
        by.zero_grad(set_to_none=True)
    found = (time.process_time() - began) / steps
    tuner.trainable.rest(None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="tiny, a shipped model of Stable Diffusion's kind, or a folder of one")
    parser.add_argument("--steps", type=int, default=3, help="a round, timed (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of both ways in turn (default: %(default)s)")
    given = parser.parse_args()
    flush_denormals()
    with tempfile.TemporaryDirectory() as scratch:
        if given.model == "tiny":
            base = tiny.write_folder(Path(scratch) / "sd15", "sd15")
        else:
            base = Path(given.model) if Path(given.model).is_dir() else folder(given.model)
        parts = load(ModelConfig(base=str(base), device="cpu"))
    config = DiffusionFineTunerConfig(rank=16, target_modules="all", batch_size=BATCH, exposures=None, steps=1)
    tuner = config.build(parts, total_rounds=1, guidance=3.0, seed=0)
    assert parts.size is not None
    shape = (PICTURES, *parts.latent_shape(*parts.size))
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = [(learnt(tuner, latents, given.steps), bare(tuner, latents, given.steps)) for _ in range(given.repeats)]
    ours, least = (median(one[way] for one in found) for way in (0, 1))
    shares = sorted(1 - alone / whole for whole, alone in found)
    figures = {"step": ours, "bare": least, "share": median(shares), "shares": [shares[0], shares[-1]]}
    print(json.dumps({"model": given.model, **figures, "provenance": provenance()}, indent=2))


if __name__ == "__main__":
    main()
