"""What rounding to half precision leaves of a LoRA that is merged into the weights, and what a LoRA beside them costs.

    OMP_NUM_THREADS=1 python tests/benchmarks/merged_half.py RUN/rounds/003/state/adapter.safetensors

``scene-sd`` and a LoRA of rank 16 on all layers that was learnt on it, at its size and at smaller ones. Everything is
computed in float32, so that the rounding of weights alone differs: what the LoRA changes of the output on four
noisy latents, how much of that is found along it where the sum was rounded (1 is all), and what is off, as a share of
its size. Ways: to the nearest number; likewise, but the sum with the float32 weights that the half ones were rounded
from; up or down at random; evenly, as raftdiff does. Then the network's processor time, merged and not.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner, DiffusionFineTunerConfig
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.embedded import resolve
from raftdiff.training.trainable import lora_layers
from raftdiff.training.weights import rounded_evenly

CAPTIONS = ["a cartoon star", "four blue sketched foxes", "two cats on a white background", "a bird above a mushroom"]
TIMES = (900, 600, 300, 100)
SCALES = (1.0, 0.3, 0.1, 0.03, 0.01)


class Network:
    """The network with any weights in the layers of the LoRA, which is asked for only where that is said."""

    def __init__(self, tuner: DiffusionFineTuner) -> None:
        self._tuner, self._parts = tuner, tuner.parts
        self._layers = lora_layers([self._parts.denoiser])
        tuner.trainable.wake(torch.float32)
        self.own = [layer.get_base_layer().weight.detach().clone() for layer in self._layers]
        self.change = [layer.get_delta_weight("default").detach().clone() for layer in self._layers]
        self._latents = torch.randn(len(TIMES), *self._parts.latent_shape(80, 80))

    @torch.no_grad()
    def output(self, weights: Sequence[Tensor], *, beside: bool = False) -> Tensor:
        self._tuner.trainable.enable(beside)
        for layer, weight in zip(self._layers, weights, strict=True):
            layer.get_base_layer().weight.data = weight
        return self._parts.predict(self._latents, torch.tensor(TIMES), self._parts.prompts(CAPTIONS))


def at_random(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Up or down, as often as the weight lies near to either."""
    exponent = torch.frexp(weight).exponent - 1
    fine = torch.finfo(dtype)
    apart = torch.ldexp(torch.full_like(weight, fine.eps), exponent).clamp_min(fine.smallest_normal * fine.eps)
    return ((weight / apart + torch.rand_like(weight)).floor() * apart).to(dtype)


def kept(network: Network, dtype: torch.dtype, scale: float) -> dict[str, tuple[float, float]]:
    """By way: the share of the LoRA's effect along it, and what is off, of its size."""
    held = [weight.to(dtype).float() for weight in network.own]
    change = [scale * one for one in network.change]
    before = network.output(held)
    effect = network.output([a + b for a, b in zip(held, change, strict=True)]) - before

    def told(start: Sequence[Tensor], way: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        moved = network.output([way(a + b).float() for a, b in zip(start, change, strict=True)]) - before
        return float((moved * effect).sum() / effect.square().sum()), float((moved - effect).norm() / effect.norm())

    return {
        "to the nearest": told(held, lambda weight: weight.to(dtype)),
        "from float32": told(network.own, lambda weight: weight.to(dtype)),
        "at random": told(held, lambda weight: at_random(weight, dtype)),
        "evenly": told(held, lambda weight: rounded_evenly(weight, dtype)),
    }


def seconds(network: Network, *, beside: bool) -> float:
    began = time.process_time()
    network.output(network.own, beside=beside)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = load(ModelConfig(base="scene-sd"), resolve)
    config = DiffusionFineTunerConfig(rank=16, target_modules="all", batch_size=2)
    tuner = config.build(parts, total_rounds=1, guidance=1.0, seed=0)
    tuner.trainable.load(load_file(given.adapter))
    network = Network(tuner)
    pairs = zip(network.change, network.own, strict=True)
    size = statistics.median(float(change.norm() / own.norm()) for change, own in pairs)
    print("| size of BA beside W | dtype | to the nearest | from float32 | at random | evenly |")
    print("|--:|---|--:|--:|--:|--:|")
    for scale in SCALES:
        for dtype in (torch.bfloat16, torch.float16):
            cells = [f"{along:.2f}, off {off:.3f}" for along, off in kept(network, dtype, scale).values()]
            print(f"| {scale * size:.3%} | {str(dtype).removeprefix('torch.')} | {' | '.join(cells)} |", flush=True)
    taken = {beside: [] for beside in (False, True)}
    for turn in range(6):
        for beside, rows in taken.items():
            if (took := seconds(network, beside=beside)) and turn:  # the first warms up
                rows.append(took)
    merged, beside = (statistics.median(rows) for rows in taken.values())
    print(f"\nmerged {merged:.3f} s, beside {beside:.3f} s: {beside / merged:.2f} times")


if __name__ == "__main__":
    main()
