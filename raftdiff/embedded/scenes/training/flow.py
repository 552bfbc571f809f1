"""Train the transformer and the text encoders of emoji-flow by what scene-sd says, on the latents of its autoencoder.

    python -m raftdiff.embedded.scenes.training.flow --minutes 600

A rectified flow as Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206): levels of noise are logit-normal,
and shifted. What it learns from noisy latents is not the velocity from their own picture to their own noise, of
which the most part is chance, but the mean of all velocities that may lie behind them, as scene-sd predicts it:
without that noise in the target a few hundred thousand pictures do. ``latents.py`` holds what is shared with the
U-Net's program.
"""

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any, final

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from raftdiff.embedded import folder
from raftdiff.embedded.scenes.flow import CLIPS, FILES, SHIFT, T5_TOKENS, build, say
from raftdiff.embedded.scenes.networks import build_text_encoder, build_unet, read
from raftdiff.embedded.scenes.tokens import build_tokenizer
from raftdiff.embedded.scenes.training.latents import Draw, Learner, options, spread, train
from raftdiff.embedded.scenes.training.muon import muon
from raftdiff.embedded.scenes.training.pools import Ring
from raftdiff.embedded.scenes.training.timing import Clock
from raftdiff.embedded.scenes.training.unet import kept
from raftdiff.embedded.training import update

READING_BATCH, READING_RATE = 64, 4e-3
LESSONS, NEW = 4096, 0.25
"""Those that are kept, and those made anew in each step as a share of the batch: each is learnt from four times."""
BATCH, RATE, RENEWED = 16, 8e-3, 0.0625


@final
class CountedOnce:
    """Joint attention in which the last token of the text stands for the 256 zeros in T5's place.

    Those tokens have no places, so that they begin alike and stay alike through every block: one of them whose
    attention is raised by log 256 before the softmax does what all of them do, for a third of the work.
    """

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Of a picture's tokens (batch, patches, width) and the text's (batch, tokens, width): both, attended."""
        batch, patches, _width = hidden_states.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(batch, -1, attn.heads, projected.shape[-1] // attn.heads).transpose(1, 2)

        picture = [heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v)]
        projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        text = [heads(project(encoder_hidden_states)) for project in projections]
        query = torch.cat([attn.norm_q(picture[0]), attn.norm_added_q(text[0])], dim=2)
        key = torch.cat([attn.norm_k(picture[1]), attn.norm_added_k(text[1])], dim=2)
        raised = query.new_zeros(key.shape[2])
        raised[-1] = math.log(T5_TOKENS)
        mask = raised.expand(batch, 1, query.shape[2], -1)
        attended = scaled_dot_product_attention(query, key, torch.cat([picture[2], text[2]], dim=2), attn_mask=mask)
        attended = attended.transpose(1, 2).flatten(2)
        of_text = attended[:, patches:]
        return attn.to_out[0](attended[:, :patches]), of_text if attn.context_pre_only else attn.to_add_out(of_text)


@final
class Teacher:
    """scene-sd, as what emoji-flow learns from."""

    def __init__(self, device: str) -> None:
        place, unet, encoder = folder("scene-sd"), build_unet(), build_text_encoder(build_tokenizer())
        read(place / "unet" / "diffusion_pytorch_model.safetensors", unet)
        read(place / "text_encoder" / "model.safetensors", encoder)
        self._unet = unet.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)
        self.encoder = encoder.eval().requires_grad_(False).to(device)

    @torch.no_grad()
    def tell(self, tokens: Int64[Tensor, "batch tokens"], x0: Float[Tensor, "batch 4 20 20"]) -> dict[str, Tensor]:
        """Latents made noisy, ``x``, their ``timesteps``, and the mean ``velocity`` from picture to noise there."""
        even = torch.special.ndtri(spread(len(x0), x0.device).clamp(1e-6, 1 - 1e-6)).sigmoid()
        every = levels(x0.device)
        timesteps = torch.searchsorted(every, SHIFT * even / (1 + (SHIFT - 1) * even)).clamp(max=len(every) - 1)
        abar = kept(x0.device)[timesteps][:, None, None, None]
        a, s = abar.sqrt(), (1 - abar).sqrt()
        noisy = (a * x0 + s * torch.randn_like(x0)).contiguous(memory_format=torch.channels_last)
        context = self.encoder(tokens).last_hidden_state
        told = self._unet(noisy, timesteps, encoder_hidden_states=context, return_dict=False)[0].float()
        picture, noise = a * noisy - s * told, s * noisy + a * told
        return {"x": noisy / (a + s), "velocity": noise - picture, "timesteps": timesteps}


@final
class Taught:
    """Lessons that the teacher gives of what a pool holds. It is asked less often than they are learnt from."""

    def __init__(self, modules: Mapping[str, Any], draw: Draw) -> None:
        device = next(modules["transformer"].parameters()).device
        self._modules, self._draw, self._teacher = modules, draw, Teacher(device.type)
        self._ring: Ring | None = None
        self._names: tuple[str, ...] = ()

    def __call__(self, count: int) -> dict[str, Tensor]:
        """``count`` lessons after a share of so many were made anew: as `Teacher.tell` has them, with ``told`` and
        ``pooled`` as `say` has them; in float32."""
        made = self._made(count if self._ring is None else max(1, int(NEW * count)))
        if self._ring is None:
            kept_as = {name: one[0].half() if one.is_floating_point() else one[0] for name, one in made.items()}
            self._ring, self._names = Ring(LESSONS, **kept_as), tuple(kept_as)
        self._ring.put(**made)
        drawn = dict(zip(self._names, self._ring.draw(count), strict=True))
        return {name: one.float() if one.is_floating_point() else one for name, one in drawn.items()}

    @torch.no_grad()
    def _made(self, count: int) -> dict[str, Tensor]:
        drawn = self._draw(count)
        told, pooled = say(self._modules, drawn["tokens"], zeros=1)
        return {**self._teacher.tell(drawn["tokens"], drawn["x0"]), "told": told, "pooled": pooled}


@cache
def levels(device: torch.device) -> Float[Tensor, " timesteps"]:
    """Of each timestep of scene-sd's schedule, the level of a flow with the same ratio of noise s to picture a:
    (1 - level) x0 + level noise is the noisy latents a x0 + s noise, divided by a + s."""
    abar = kept(device)
    a, s = abar.sqrt(), (1 - abar).sqrt()
    return s / (a + s)


def begun(tokenizer: Any) -> dict[str, Any]:
    """The parts, untrained, with the zeros in T5's place counted once. The text encoders do not learn with the
    transformer: the first has read before, and the second, which it can do without, stays as it is."""
    modules = build(tokenizer)
    modules["transformer"].set_attn_processor(CountedOnce())
    for name in CLIPS:
        modules[name].requires_grad_(False)
    return modules


def read_first(modules: Mapping[str, Any], captions: Tensor, *, steps: int) -> None:
    """The first text encoder learns what scene-sd's says: of each token by its states before the last layer, which is
    what the transformer sees of it, and of the caption by its own words; both through linear maps that are let go."""
    device = captions.device.type
    theirs, ours = Teacher(device).encoder, modules["text_encoder"].requires_grad_(True)
    maps = [nn.Linear(ours.config.hidden_size, theirs.config.hidden_size).to(device) for _ in range(2)]
    weights = [weight for module in (ours, *maps) for weight in module.parameters()]
    optimizer = muon(weights, READING_RATE, 0.0, device)
    for step in range(steps):
        tokens = captions[torch.randint(len(captions), (READING_BATCH,), device=captions.device)]
        tokens[0] = captions[-1]  # the empty one, of which there is one alone
        with torch.no_grad():
            said = theirs(tokens)
        found = ours(tokens, output_hidden_states=True)
        of_tokens = maps[0](found.hidden_states[-2]) - said.last_hidden_state
        of_caption = maps[1](found.text_embeds) - said.pooler_output
        missed = of_tokens.square().mean() + of_caption.square().mean()
        update(optimizer, missed, READING_RATE * min(1.0, (step + 1) / 50) * (1 - step / steps), weights)
        if step % 100 == 0 or step == steps - 1:
            print(f"text_encoder: step {step}, {missed.item():.4f} missed", flush=True)
    ours.requires_grad_(False)


def loss(modules: Mapping[str, Any], lessons: Mapping[str, Tensor]) -> Tensor:
    """Mean squared difference from the velocity that the teacher tells."""
    predicted = modules["transformer"](
        lessons["x"],
        encoder_hidden_states=lessons["told"],
        pooled_projections=lessons["pooled"],
        timestep=1000 * levels(lessons["x"].device)[lessons["timesteps"]],
        return_dict=False,
    )[0]
    missed: Tensor = predicted.float() - lessons["velocity"]
    return missed.square().mean()


def main() -> None:
    parser = options(__doc__)
    parser.add_argument(
        "--reading", type=int, default=1500, help="steps in which the text encoder learns alone (default: %(default)s)"
    )
    parser.set_defaults(batch=BATCH, rate=RATE, renewed=RENEWED)
    given = parser.parse_args()
    reading = partial(read_first, steps=given.reading)
    train(given, Clock(given), Learner("transformer", begun, FILES, loss, muon, Taught, reading))


if __name__ == "__main__":
    main()
