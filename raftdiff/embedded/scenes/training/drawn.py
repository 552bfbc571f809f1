"""What scene-sd draws, for the reward to learn from: pictures with the model's own faults, and what they show.

Scenes drawn over: a painted scene is noised to somewhere along the schedule and denoised under its caption, as SDEdit
does (arXiv:2108.01073). Things stay where they stood, and nearly all captions stay right.

Pairs: of some pictures drawn of one caption one that shows it and one that does not, as a detector says that no result
is ever judged by. It stands for the people whose choices a preference model learns.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from PIL.Image import Image
from torch import Tensor

from raftdiff.embedded.scenes.data import Painter, Pictures
from raftdiff.embedded.scenes.judge import Verdicts
from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.embedded.scenes.measure import to_images
from raftdiff.embedded.scenes.networks import (
    LATENT,
    SCHEDULE,
    TEXT,
    UNET,
    VAE,
    build_text_encoder,
    build_unet,
    finished,
    load_vae,
    read,
)
from raftdiff.embedded.scenes.tokens import tokenise
from raftdiff.embedded.scenes.training.neighbours import GROUP
from raftdiff.embedded.scenes.training.pools import Groups, Ring

Tokens = Int64[Tensor, "batch tokens"]
Reads = Callable[[Sequence[Image], Sequence[str]], Verdicts]
"""A detector's verdicts on pictures and their captions."""
STRENGTH = (0.25, 0.65)
"""Of the schedule; drawn over from 0.65, seven pictures of eight still show what their captions say, by the judge."""
GUIDANCE = (1.0, 3.5)
OVER_STEPS, STEPS = 6, 10
CANDIDATES = 4
"""Pictures drawn of a caption to find a pair among them."""


def there(results: Path) -> bool:
    """Whether the folder holds a model whose training is over."""
    return all(finished(results / name) for name in (VAE, UNET, TEXT))


@final
class Drawer:
    """The model of a folder of results."""

    def __init__(self, results: Path, tokenizer: Any, device: str) -> None:
        from diffusers import DDPMScheduler

        self._vae, self._unet, self._text = load_vae(results / VAE, device), build_unet(), build_text_encoder(tokenizer)
        read(results / UNET, self._unet)
        read(results / TEXT, self._text)
        self._unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self._text.eval().requires_grad_(False).to(device)
        self._empty = tokenise(tokenizer, [""]).to(device)
        self._abar = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
        self._device = device

    @torch.no_grad()
    def over(self, pictures: Pictures, tokens: Tokens) -> Pictures:
        """The pictures drawn over, each from a strength of its own and with a guidance of its own."""
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._device == "cuda"):
            posterior = self._vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist
            x0 = posterior.sample().float() * self._vae.config.scaling_factor
            strength, guidance = uniform(len(x0), *STRENGTH, self._device), uniform(len(x0), *GUIDANCE, self._device)
            return self._draw(x0, strength, tokens, guidance, OVER_STEPS)

    @torch.no_grad()
    def new(self, tokens: Tokens, guidance: Float[Tensor, " batch"]) -> Pictures:
        """Pictures of captions, from nothing but noise."""
        nothing = torch.zeros(len(tokens), 4, LATENT, LATENT, device=self._device)
        with torch.autocast(self._device, dtype=torch.bfloat16, enabled=self._device == "cuda"):
            return self._draw(nothing, torch.ones(len(tokens), device=self._device), tokens, guidance, STEPS)

    def _draw(
        self,
        x0: Any,
        strength: Float[Tensor, " batch"],
        tokens: Tokens,
        guidance: Float[Tensor, " batch"],
        steps: int,
    ) -> Pictures:
        """DDIM with eta 0 (arXiv:2010.02502, equation 12), from velocities."""
        count = len(x0)
        context = self._text(torch.cat([tokens, self._empty.expand(count, -1)])).last_hidden_state
        share = torch.linspace(1, 0, steps + 1, device=self._device)
        timesteps = (strength[:, None] * share * (len(self._abar) - 1)).long()
        a, s = (part[..., None, None, None].sqrt() for part in (self._abar[timesteps], 1 - self._abar[timesteps]))
        x = a[:, 0] * x0 + s[:, 0] * torch.randn_like(x0)
        for step in range(steps):
            twice = torch.cat([x, x]).contiguous(memory_format=torch.channels_last)
            told = self._unet(twice, timesteps[:, step].repeat(2), encoder_hidden_states=context, return_dict=False)[0]
            given, free = told.float().chunk(2)
            v = free + guidance[:, None, None, None] * (given - free)
            x0, noise = a[:, step] * x - s[:, step] * v, a[:, step] * v + s[:, step] * x
            x = a[:, step + 1] * x0 + s[:, step + 1] * noise
        decoded: Tensor = self._vae.decode(x0 / self._vae.config.scaling_factor).sample
        return decoded.float().clamp(-1, 1)


def uniform(count: int, low: float, high: float, device: "str | torch.device") -> Float[Tensor, " batch"]:
    return low + (high - low) * torch.rand(count, device=device)


@final
class Over:
    """Groups drawn over, ``size`` of them; ``at_once`` are replaced at a time."""

    def __init__(self, drawer: Drawer, painter: Painter, groups: Groups, *, size: int, at_once: int) -> None:
        self._drawer, self._painter, self._groups, self._at_once = drawer, painter, groups, at_once
        chosen = torch.arange(GROUP, device=groups.rows.device)
        self._ring = Ring(size, chosen=chosen, pictures=torch.zeros(GROUP, 3, SIZE, SIZE).to(chosen.device).half())
        while len(self._ring) < size:
            self.renew()

    def renew(self) -> None:
        chosen = self._groups.choose(self._at_once)
        painted = self._painter.paint(self._groups.rows[chosen]).pictures
        drawn = self._drawer.over(painted, self._groups.tokens[chosen])
        self._ring.put(chosen=chosen.view(-1, GROUP), pictures=drawn.view(-1, GROUP, 3, SIZE, SIZE))

    def draw(self, count: int) -> tuple[Int64[Tensor, " rows"], Pictures]:
        """``count`` groups: their rows, and the pictures drawn of them."""
        chosen, pictures = self._ring.draw(count)
        return chosen.flatten(), pictures.flatten(0, 1).float()


@final
class Pairs:
    """Pairs of pictures of one caption, an eighth of ``size`` at first, then more; of ``at_once`` captions pairs are
    sought at a time."""

    def __init__(
        self, drawer: Drawer, reads: Reads, captions: Sequence[str], tokens: Tensor, *, size: int, at_once: int
    ) -> None:
        self._drawer, self._reads, self._captions, self._tokens = drawer, reads, captions, tokens
        self._at_once = at_once
        picture = torch.zeros(3, SIZE, SIZE, device=tokens.device, dtype=torch.float16)
        self._ring = Ring(size, tokens=tokens[0], right=picture, wrong=picture)
        for _ in range(size // max(1, at_once)):  # a detector that knows nothing finds none
            if len(self) < size // 8:
                self.renew()

    def __len__(self) -> int:
        return len(self._ring)

    def renew(self) -> None:
        chosen = torch.randint(len(self._captions), (self._at_once,)).repeat_interleave(CANDIDATES)
        tokens = self._tokens[chosen.to(self._tokens.device)]
        # of one caption all with one guidance, or the reward would learn to tell guidances apart
        guidance = uniform(self._at_once, *GUIDANCE, tokens.device).repeat_interleave(CANDIDATES)
        pictures = self._drawer.new(tokens, guidance)
        verdicts = self._reads(to_images(pictures), [self._captions[row] for row in chosen.tolist()])
        right = torch.from_numpy(verdicts["exact"]).to(pictures).view(-1, CANDIDATES)
        mixed = (right.amax(dim=1) > right.amin(dim=1)).nonzero()[:, 0]
        best, worst = (CANDIDATES * mixed + found[mixed] for found in (right.argmax(dim=1), right.argmin(dim=1)))
        if len(mixed):
            self._ring.put(tokens=tokens[best], right=pictures[best], wrong=pictures[worst])

    def draw(self, count: int) -> tuple[Tokens, Pictures, Pictures]:
        """``count`` captions, a right picture of each and a wrong one."""
        tokens, right, wrong = self._ring.draw(count)
        return tokens, right.float(), wrong.float()
