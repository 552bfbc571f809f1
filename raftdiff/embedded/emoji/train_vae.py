"""Train the autoencoder of emoji-sd: 64 px pictures to 16 x 16 latents of four channels and back.

    python -m raftdiff.embedded.emoji.train_vae --minutes 15

The autoencoder is the ceiling of everything else. It has few channels where pictures are large, which is where a CPU
spends its time, and no attention. The loss is L1 on pixels and on their differences to the neighbours, which is what
keeps edges sharp, and a small pull of the latents towards a standard normal.
"""

from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.emoji.art import art_sheet
from raftdiff.embedded.emoji.data import SIZE, World
from raftdiff.embedded.training import (
    Average,
    arguments,
    load_checkpoint,
    prepare,
    rate,
    save_checkpoint,
    steps,
    update,
)

BATCH = 16
PEAK_RATE = 2e-3
EDGE_WEIGHT = 0.5
KL_WEIGHT = 2e-4
"""Per latent number, against a loss per pixel."""


def build() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def loss(vae: Any, pictures: Tensor) -> Tensor:
    """Pixels, edges and the pull on the latents."""
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.sample()
    error = vae.decode(latents).sample - pictures
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    pull: Tensor = posterior.kl().mean() / latents[0].numel()
    total: Tensor = error.abs().mean() + EDGE_WEIGHT * edges + KL_WEIGHT * pull
    return total


@torch.no_grad()
def set_scale(vae: Any, world: World, device: str) -> None:
    """``scaling_factor`` such that the latents of pictures have unit spread."""
    latents = vae.encode(world.batch(512).pictures.to(device)).latent_dist.sample()
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    print(f"latents before scaling: mean {latents.mean():.3f}, std {latents.std():.3f}")


def main() -> None:
    given = arguments(__doc__.splitlines()[0], minutes=15).parse_args()
    prepare(given.seed)
    world = World(art_sheet(given.cache), seed=given.seed)
    vae = build().to(given.device, memory_format=torch.channels_last)
    modules = {"vae": vae}
    average = Average(modules, decay=0.998)
    checkpoint = given.cache / "vae.safetensors"
    spent = load_checkpoint(checkpoint, modules, average)
    optimizer = torch.optim.AdamW(vae.parameters(), PEAK_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    for step, progress in steps(given.minutes, begun=spent):
        pictures = world.batch(BATCH).pictures
        pictures = pictures.to(given.device, memory_format=torch.channels_last)
        found = loss(vae, pictures)
        update(optimizer, found, rate(PEAK_RATE, progress, step), vae.parameters())
        average.update()
        if step % 200 == 0:
            print(f"step {step} loss {found.item():.4f}", flush=True)
        if step % 1000 == 999:
            save_checkpoint(checkpoint, modules, average, given.minutes * progress)
    save_checkpoint(checkpoint, modules, average, given.minutes)
    average.copy_to(modules)
    set_scale(vae.eval(), world, given.device)
    vae.to(memory_format=torch.contiguous_format).save_pretrained(given.cache / "vae")


if __name__ == "__main__":
    main()
