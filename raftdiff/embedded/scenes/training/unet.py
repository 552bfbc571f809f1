"""Train the U-Net and the text encoder of scene-sd, jointly and from scratch, on the latents of its autoencoder.

    python -m raftdiff.embedded.scenes.training.unet --minutes 600

Zero terminal SNR, v-prediction and trailing spacing (Lin et al. 2023, arXiv:2305.08891). Captions are as those of the
web: most are plain, some boast, and a part of the pictures are spoilt, mostly without saying so. The hold-outs of
``world.py`` never occur. Lessons are painted and encoded on the device that learns, into a pool of which a part is made
anew with every step.
"""

import time
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.networks import (
    LATENT,
    SCHEDULE,
    TEXT,
    UNET,
    VAE,
    build_text_encoder,
    build_unet,
    load_vae,
    read,
    write,
)
from raftdiff.embedded.scenes.rows import random_rows
from raftdiff.embedded.scenes.tokens import build_tokenizer, tokenise, tokenise_captions
from raftdiff.embedded.scenes.training.pools import Ring
from raftdiff.embedded.scenes.training.timing import Clock, Course, options
from raftdiff.embedded.scenes.world import HIGH_QUALITY, LOW_QUALITY
from raftdiff.embedded.training import Average, prepare

PEAK_RATE = 1e-3
CAPTION_DROPOUT = 0.1
REMARKS = ("", HIGH_QUALITY, LOW_QUALITY)
SHARES = ((False, 0, 0.53), (False, 1, 0.22), (True, 2, 0.09), (True, 0, 0.16))
"""(spoilt, index into REMARKS, share of the training data)."""
RENEWED = 0.25
"""Lessons made anew in each step, as a share of the batch."""


@final
class Pool:
    """Latents and the tokens of their captions, renewed little by little."""

    def __init__(self, painter: Painter, size: int, scenes: int, seed: int, *, at_once: int) -> None:
        self._painter, self._size, self._at_once = painter, size, at_once
        self._vae: Any = None
        device = painter.device
        rows, captions = random_rows(scenes, seed=seed, held_out=False)
        tokenizer = build_tokenizer()
        self._rows = rows.to(device)
        said = [tokenise_captions(tokenizer, [caption + remark for caption in captions]) for remark in REMARKS]
        self._tokens = torch.stack(said, dim=1).to(device)
        latents = torch.zeros(4, LATENT, LATENT, device=device, dtype=torch.float16)
        self._ring = Ring(size, latents=latents, tokens=self._tokens[0, 0])

    def take(self, vae: Any) -> None:
        """The autoencoder is there: fill the pool."""
        self._vae = vae
        for _ in range(0, self._size, self._at_once):
            self.renew(self._at_once)

    @torch.no_grad()
    def renew(self, count: int) -> None:
        """Replace the oldest ``count`` lessons."""
        device = self._painter.device
        chosen = torch.randint(len(self._rows), (count,), device=device)
        pictures = self._painter.paint(self._rows[chosen]).pictures
        kind = torch.multinomial(torch.tensor([share for _, _, share in SHARES], device=device), count, True)
        bad = torch.tensor([spoilt for spoilt, _, _ in SHARES], device=device)[kind].nonzero()[:, 0]
        if len(bad):
            pictures[bad] = self._painter.spoil(pictures[bad])
        remark = torch.tensor([said for _, said, _ in SHARES], device=device)[kind]
        posterior = self._vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
        latents = posterior.sample() * self._vae.config.scaling_factor
        self._ring.put(latents=latents, tokens=self._tokens[chosen, remark])

    def draw(self, count: int) -> tuple[Float[Tensor, "count 4 20 20"], Int64[Tensor, "count tokens"]]:
        latents, tokens = self._ring.draw(count)
        return latents.float(), tokens


def loss(unet: Any, context: Tensor, x0: Tensor, abar: Tensor) -> Tensor:
    """Mean squared error of the velocity at timesteps spread evenly over the schedule. All on one device."""
    count, device = len(x0), x0.device
    places = torch.arange(count, device=device) + torch.rand(count, device=device)
    timesteps = (places * len(abar) / count).long().clamp(max=len(abar) - 1)
    noise = torch.randn_like(x0)
    a = abar[timesteps].sqrt()[:, None, None, None]
    s = (1 - abar[timesteps]).sqrt()[:, None, None, None]
    noisy = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
    predicted = unet(noisy, timesteps, encoder_hidden_states=context, return_dict=False)[0]
    error: Tensor = predicted.float() - (a * noise - s * x0)
    return error.square().mean()


def warm_up(unet: Any, text: Any, tokens: Tensor, abar: Tensor) -> bool:
    """Compile the network for training while there is nothing to learn from yet; whether that worked."""
    try:
        unet.compile(dynamic=False)
        began = time.time()
        device = tokens.device
        for _ in range(2):
            x0 = torch.randn(len(tokens), 4, LATENT, LATENT, device=device)
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                found = loss(unet, text(tokens).last_hidden_state, x0, abar)
            found.backward()  # type: ignore[no-untyped-call]
        text.zero_grad(set_to_none=True)
        unet.zero_grad(set_to_none=True)
        print(f"unet: compiled in {time.time() - began:.0f} s", flush=True)
    except Exception as error:  # whatever the compiler stumbles over, training goes on without it
        print(f"unet: not compiled: {type(error).__name__}: {str(error)[:300]}", flush=True)
        return False
    return True


def main() -> None:
    parser = options(__doc__, minutes=600, batch=32, rate=PEAK_RATE)
    parser.add_argument("--compile", action="store_true", help="compile the network, which takes a minute")
    parser.add_argument("--pool", type=int, default=4096, help="lessons kept (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=20_000, help="captions learned from (default: %(default)s)")
    parser.add_argument("--save-every", type=float, default=40.0, help="seconds (default: %(default)s)")
    parser.add_argument("--ready", type=Path, help="a file to make when only the autoencoder is awaited")
    parser.add_argument("--resume", action="store_true", help="begin with the weights that are there")
    given = parser.parse_args()
    clock = Clock(given)
    train(given, clock)


def train(given: Any, clock: Clock) -> None:
    """Train until the clock says stop; ``given.out`` has the average's weights, now and then and at the end."""
    from diffusers import DDPMScheduler

    device, out = given.device, given.out
    prepare(given.seed)
    torch.backends.cudnn.benchmark = True
    tokenizer = build_tokenizer()
    unet, text = build_unet(), build_text_encoder(tokenizer)
    if given.resume:
        read(out / UNET, unet)
        read(out / TEXT, text)
    unet.to(device, memory_format=torch.channels_last)
    text.to(device)
    painter = Painter(art_sheet(given.cache), seed=given.seed, device=device)
    empty, abar = tokenise(tokenizer, [""]).to(device), DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    if given.compile and not warm_up(unet, text, empty.expand(given.batch, -1), abar):
        unet = _fresh(unet, device)
    if given.ready:
        given.ready.touch()
    pool = Pool(painter, given.pool, given.scenes, given.seed, at_once=min(1024, given.pool))
    clock.wait_for(out / VAE)
    with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
        pool.take(load_vae(out / VAE, device))
    clock.restart()
    learn(given, clock, {"unet": unet, "text": text}, pool=pool, empty=empty, abar=abar)


def learn(given: Any, clock: Clock, modules: dict[str, Any], *, pool: Pool, empty: Tensor, abar: Tensor) -> None:
    device, batch = given.device, given.batch
    weights = [*modules["unet"].parameters(), *modules["text"].parameters()]
    averaged = 0.999 if device == "cuda" else 0.995
    how: dict[str, Any] = {"peak": given.rate, "weight_decay": 0.01, "averaged": averaged, "warmup": 200}
    course = Course(modules, weights, clock, **how, device=device)
    step, mean = 0, torch.zeros((), device=device)
    for step in course.steps():
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            pool.renew(max(1, int(RENEWED * batch)))
            x0, tokens = pool.draw(batch)
            dropped = torch.rand(batch, device=device) < CAPTION_DROPOUT
            tokens = torch.where(dropped[:, None], empty, tokens)
            context = modules["text"](tokens).last_hidden_state
            found = loss(modules["unet"], context, x0, abar)
        course.learn(found)
        course.average.update()
        mean = torch.lerp(mean, found.detach(), 0.02 if step else 1.0)
        if course.tells and not course.tell("unet", mean, f", {step * batch} pictures"):
            mean = torch.zeros((), device=device)
        if course.saves(given.save_every):
            save(given.out, course.average, finished="no", step=str(step))
    save(given.out, course.average, finished="yes", step=str(step))


def save(out: Path, average: Average, **metadata: str) -> None:
    """The average's weights, in the two files of a pipeline."""
    for prefix, name in (("unet.", UNET), ("text.", TEXT)):
        kept = {key.removeprefix(prefix): tensor for key, tensor in average.weights.items() if key.startswith(prefix)}
        write(out / name, kept, **metadata)


def _fresh(unet: Any, device: str) -> Any:
    plain = build_unet()
    plain.load_state_dict(unet.state_dict())
    return plain.to(device, memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
