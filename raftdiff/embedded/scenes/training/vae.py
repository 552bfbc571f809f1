"""Train the autoencoder of scene-sd: 80 px pictures to 20 x 20 latents of four channels and back.

    python -m raftdiff.embedded.scenes.training.vae --minutes 60

The autoencoder is the ceiling of everything else. The loss is L1 on pixels and on their differences to the neighbours,
near and two apart, which is what keeps edges sharp, and a small pull of the latents towards a standard normal.

With ``--decoder`` only the decoder learns, from the weights that are there: the latents stay what they are, and with
them all that other networks learnt of them.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.networks import VAE, build_vae, read, write
from raftdiff.embedded.scenes.rows import random_rows
from raftdiff.embedded.scenes.training.timing import Clock, Course, options
from raftdiff.embedded.training import Average, prepare

PEAK_RATE = 2e-3
EDGE_WEIGHT = 0.5
KL_WEIGHT = 1e-4
"""Per latent number, against a loss per pixel."""
SPOILT = 0.12
SCENES = 20_000


def loss(vae: Any, pictures: Tensor) -> Tensor:
    """Pixels, edges and the pull on the latents."""
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.sample()
    error = vae.decode(latents).sample.float() - pictures.float()
    near = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    far = (error[..., 2:] - error[..., :-2]).abs().mean() + (error[..., 2:, :] - error[..., :-2, :]).abs().mean()
    pull: Tensor = posterior.kl().float().mean() / latents[0].numel()
    total: Tensor = error.abs().mean() + EDGE_WEIGHT * (near + 0.5 * far) + KL_WEIGHT * pull
    return total


@torch.no_grad()
def scale(vae: Any, pictures: Tensor) -> float:
    """The factor that gives the latents of these pictures unit spread."""
    return round(1 / float(vae.encode(pictures).latent_dist.sample().std()), 4)


def train(
    cache: Path, out: Path, clock: Clock, *, batch: int, peak: float, seed: int, device: str, decoder: bool = False
) -> Any:
    """Train until the clock says stop; ``out`` has the average's weights, now and then and at the end.

    With ``decoder``, its decoder alone, from the weights in ``out``.
    """
    prepare(seed)
    torch.backends.cudnn.benchmark = True
    painter = Painter(art_sheet(cache), seed=seed, device=device)
    rows = random_rows(SCENES if device == "cuda" else 2000, seed=seed, held_out=False)[0].to(device)
    vae = build_vae()
    factor = float(read(out / VAE, vae)["scaling_factor"]) if decoder else None
    vae.to(device, memory_format=torch.channels_last)
    if decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    weights = [weight for weight in vae.parameters() if weight.requires_grad]
    how: dict[str, Any] = {"peak": peak, "weight_decay": 1e-4, "averaged": 0.998, "warmup": 100}
    course = Course({"vae": vae}, weights, clock, **how, device=device)
    clock.restart()
    for step in course.steps():
        chosen = rows[torch.randint(len(rows), (batch,), device=device)]
        pictures = painter.paint(chosen).pictures
        spoilt = (torch.rand(batch, device=device) < SPOILT).nonzero()[:, 0]
        if len(spoilt):
            pictures[spoilt] = painter.spoil(pictures[spoilt])
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            found = loss(vae, pictures)
        course.learn(found)
        course.average.update()
        if course.tells:
            course.tell("vae", found, f", {step * batch} pictures")
        if course.saves(25):
            save(out, course.average, painter, rows, finished=decoder, factor=factor)
    return save(out, course.average, painter, rows, finished=True, factor=factor)


def save(
    out: Path, average: Average, painter: Painter, rows: Tensor, *, finished: bool, factor: float | None = None
) -> Any:
    """The average as a file, with ``factor`` as the scale of its latents or their own; returns it as a module."""
    best = build_vae().to(painter.device)
    average.copy_to({"vae": best})
    best.eval().requires_grad_(False)
    factor = factor or scale(best, painter.paint(rows[:512]).pictures)
    best.register_to_config(scaling_factor=factor)
    write(out / VAE, best.state_dict(), scaling_factor=str(factor), finished="yes" if finished else "no")
    return best


def main() -> None:
    parser = options(__doc__, minutes=60, batch=16, rate=PEAK_RATE)
    parser.add_argument("--decoder", action="store_true", help="train the decoder alone, from the weights there")
    given = parser.parse_args()
    how = {"batch": given.batch, "peak": given.rate, "seed": given.seed, "device": given.device}
    train(given.cache, given.out, Clock(given), **how, decoder=given.decoder)


if __name__ == "__main__":
    main()
