"""Train emoji-judge, the held-out classifier of object, style and ground.

    python -m raftdiff.embedded.train_judge --minutes 5 --seed 7
"""

import json
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from raftdiff.embedded.data import Batch, World
from raftdiff.embedded.judge import Network
from raftdiff.embedded.training import Average, arguments, half, prepare, rate, steps, update
from raftdiff.embedded.world import BACKGROUNDS, OBJECTS, STYLES

BATCH = 64
PEAK_RATE = 2e-3
CHANNELS = (32, 64, 96, 128, 160)
HEADS = {"object": len(OBJECTS), "style": len(STYLES), "background": len(BACKGROUNDS)}
SPOILT_SHARE, REBUILT_SHARE = 0.3, 0.4


@torch.no_grad()
def roughen(world: World, vae: Any, pictures: Tensor, device: str) -> Tensor:
    """Some pictures spoilt, some passed through the autoencoder with noise on their latents, as generated ones look."""
    chance = torch.rand(len(pictures))
    spoilt, rebuilt = chance < SPOILT_SHARE, chance > 1 - REBUILT_SHARE
    rough = pictures.clone()
    rough[spoilt] = world.degrade(pictures[spoilt])
    if vae is not None and rebuilt.any():
        latents = vae.encode(pictures[rebuilt].to(device)).latent_dist.sample()
        noise = torch.randn_like(latents) * torch.rand(len(latents), 1, 1, 1, device=device)
        rough[rebuilt] = vae.decode(latents + 0.25 / vae.config.scaling_factor * noise).sample.cpu()
    return rough.clamp(-1, 1)


def loss(network: Network, batch: Batch, pictures: Tensor) -> Tensor:
    """Sum of the three cross-entropies, labels smoothed a little."""
    logits = network(pictures)
    labels = {"object": batch.objects, "style": batch.styles, "background": batch.backgrounds}
    parts = [
        functional.cross_entropy(logits[name], rows.to(pictures.device), label_smoothing=0.05)
        for name, rows in labels.items()
    ]
    return torch.stack(parts).sum()


def load_vae(cache: Any, device: str) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(cache / "vae").eval().requires_grad_(False).to(device)


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=5).parse_args()
    prepare(given.seed)
    world, vae = World(given.cache, seed=given.seed), load_vae(given.cache, given.device)
    network = Network(CHANNELS, HEADS).to(given.device, memory_format=torch.channels_last)
    average = Average({"judge": network}, decay=0.998)
    optimizer = torch.optim.AdamW(network.parameters(), PEAK_RATE, weight_decay=0.02)
    for step, progress in steps(given.minutes):
        batch = world.batch(BATCH)
        rough = roughen(world, vae, batch.pictures, given.device)
        found = loss(network, batch, rough.to(given.device, memory_format=torch.channels_last))
        update(optimizer, found, rate(PEAK_RATE, progress, step), network.parameters())
        average.update()
        if step % 100 == 0:
            print(f"step {step} loss {found.item():.3f}", flush=True)
    average.copy_to({"judge": network})
    folder = given.out / "emoji-judge"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"channels": CHANNELS, "heads": HEADS}, indent=2) + "\n")
    weights = half(network.eval()).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


if __name__ == "__main__":
    main()
