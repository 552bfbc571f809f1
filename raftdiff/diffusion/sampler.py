"""Sampling a diffusion model: batched across prompts, one seed per sample."""

import warnings
from collections import deque
from collections.abc import Iterator, Sequence, Set
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.models.loading import Parts
from raftdiff.diffusion.sizes import Size, buckets, cut, size_of_prompt, told
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample, Source

Side: TypeAlias = Annotated[int, Field(ge=8)]


class DiffusionSamplerConfig(Config):
    """How pictures are drawn."""

    type: Literal["diffusion"] = "diffusion"
    steps: int = Field(default=20, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=7.5, ge=0)
    """Classifier-free guidance; at 1 it is off, and a step costs half."""
    scheduler: Literal["dpm++", "ddim", "euler", "euler_a", "ddpm", "unipc", "lcm", "tcd"] = "dpm++"
    """The solver, of those that the model's family has. euler_a, ddpm and lcm draw noise at every step, as do ddim and
    tcd with eta; lcm and tcd are for models distilled so. Models of flow have euler, euler_a, dpm++ and unipc."""
    spacing: Literal["leading", "linspace", "trailing"] | None = None
    """Where the steps lie on the schedule (arXiv:2305.08891, Table 2); None takes the model's own, as flows must, and
    lcm and tcd. Distilled models want trailing."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """ddim and tcd only: 0 is deterministic; at 1 ddim draws as much noise as ddpm, and tcd as lcm."""
    height: int | None = Field(default=None, ge=8)
    """Pixels; None takes the size that the model was trained at."""
    width: int | None = Field(default=None, ge=8)
    sizes: Annotated[list[tuple[Side, Side]], Field(min_length=1)] | Literal["buckets"] | None = None
    """Several sizes in one run, each [width, height], in place of height and width; or buckets, for shapes from 1:2 to
    2:1 with about as many pixels as height and width say. A prompt is drawn in one of them, by its id and the round; a
    picture of a folder has that of the nearest shape. The first, of buckets the model's own, is what the model is
    looked at in."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures denoised at once."""
    vae_batch_size: int | None = Field(default=None, ge=1)
    """Pictures decoded at once; None takes batch_size. Lower it where decoding runs out of memory."""

    @model_validator(mode="after")
    def _one_place_for_sizes(self) -> "DiffusionSamplerConfig":
        if not isinstance(self.sizes, list):
            return self
        if self.height or self.width:
            raise ValueError("sizes say heights and widths, the first the main one; leave height and width out")
        if len(set(self.sizes)) < len(self.sizes):
            raise ValueError("sizes: one of them stands there twice; name each once")
        return self

    @property
    def main(self) -> "DiffusionSamplerConfig":
        """The same at its main size alone."""
        if isinstance(self.sizes, list):
            return self.at((self.sizes[0][1], self.sizes[0][0]))
        return self if self.sizes is None else self.model_copy(update={"sizes": None})

    def at(self, *sizes: Size) -> "DiffusionSamplerConfig":
        """The same at this size, or at these, the main one first."""
        own: dict[str, Any] = {"height": None, "width": None, "sizes": [(width, height) for height, width in sizes]}
        if len(sizes) == 1:
            own = {"height": sizes[0][0], "width": sizes[0][1], "sizes": None}
        return self.model_copy(update=own)

    @property
    def evaluations(self) -> int:
        """Of the network, for a picture."""
        return self.steps * (1 if self.guidance == 1 else 2)

    @property
    def effective_eta(self) -> float:
        """The eta that is drawn with. At 1 and SNR 0 diffusers takes the root of a difference that rounding can make
        negative."""
        return min(self.eta, 0.99999)

    @property
    def can_provide(self) -> tuple[str, ...]:
        """What samples may carry: their path where its states are pictures under noise of a known level, which they are
        of euler and euler_a in every family, of others in those that name them."""
        return ("latent",) if self.scheduler in ("ddpm", "unipc") else ("latent", "path")

    def build(self, parts: Parts, aux: Sequence[str] = ("latent",)) -> "DiffusionSampler":
        """``aux``: what each sample is to carry, of ``can_provide``."""
        return DiffusionSampler(self, parts, aux)


@final
class DiffusionSampler:
    """Draws from the model as it now stands: tuned, or within ``base_weights()`` the base.

    The initial noise, and that of stochastic solvers, comes from a CPU generator of each sample's own, so neither the
    device nor the batch changes what is drawn. A sample's latent is kept as it was before decoding, and by choice all
    those on the way to it.
    """

    source: Source = "policy"

    def __init__(self, config: DiffusionSamplerConfig, parts: Parts, aux: Sequence[str] = ("latent",)) -> None:
        self.config = config
        self.provides = tuple(aux)
        self.parts = parts
        self.sizes = sizes_of(config, parts)
        self.height, self.width = self.sizes[0]
        self.scheduler = make_scheduler(config, parts)
        self._evaluations = 0
        parts.check_guidance("sampler.guidance", config.guidance)
        if "path" in aux and config.scheduler not in parts.family.paths:
            known = " or ".join(parts.family.paths)
            raise UserError(
                f"sampler.scheduler: what {config.scheduler} draws with {parts.family.told} keeps no path that a rule "
                f"could learn from; use {known}."
            )

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: Set[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        """Yield ``per_prompt`` pictures for each prompt, in order, of several sizes size by size; ``aux["latent"]`` is
        (channels, height, width), float32, scaled as the denoiser sees it, ``aux["path"]`` (steps + 1, channels,
        height, width): what it saw at each step, the noise first, and the latent last.

        A batch with any sample left to draw is drawn whole, so that what is in ``done`` changes nothing in the rest.
        Under accelerate launch the processes draw batches in turn, and each yields all of them.
        """
        jobs = [(prompt, index) for prompt in prompts for index in range(per_prompt)]
        batches = cut(jobs, lambda job: size_of_prompt(self.sizes, job[0].id, round), self.config.batch_size)
        wanted = [(size, batch) for size, batch in batches if any((p.id, k) not in done for p, k in batch)]
        if wanted:
            texts = [text for _, batch in wanted for prompt, _ in batch for text in self._texts(prompt)]
            self.parts.prompts.remember(texts)
        for (_, batch), drawn in _shared(wanted, lambda sized: self._draw(sized[0], sized[1], seed)):
            for (prompt, index), (aux, picture) in zip(batch, drawn, strict=True):
                if (prompt.id, index) not in done:
                    one = fold(seed, prompt.id, index)
                    yield Sample(round, prompt, index, one, self.source, picture, aux)

    def _texts(self, prompt: Prompt) -> tuple[str, ...]:
        return (prompt.sampling, prompt.negative) if self.config.guidance != 1 else (prompt.sampling,)

    def network_evaluations(self) -> int:
        """Rows through the network since construction; a picture with guidance counts two a step."""
        return self._evaluations

    def solver(self, size: Size | None = None) -> Any:
        """The scheduler of diffusers, its steps set for pictures of this size, the main one by default."""
        parts, pixels = self.parts, size or self.sizes[0]
        with warnings.catch_warnings():  # diffusers asks numpy for an array in a way that numpy 2 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            parts.family.set_steps(self.scheduler, self.config.steps, parts.modules, pixels=pixels, device=parts.device)
        return self.scheduler

    def _draw(
        self, size: Size, batch: Sequence[tuple[Prompt, int]], seed: int
    ) -> list[tuple[dict[str, Tensor], Image.Image]]:
        generators = [torch.Generator().manual_seed(fold(seed, prompt.id, index)) for prompt, index in batch]
        texts = self.parts.prompts([prompt.sampling for prompt, _ in batch])
        negative = self.parts.prompts([prompt.negative for prompt, _ in batch]) if self.config.guidance != 1 else None
        shape = (1, *self.parts.latent_shape(*size))
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        way = self.denoising(noise, texts, negative, generators)
        path = deque(way, maxlen=None if "path" in self.provides else 1)
        latents = path[-1]
        pictures = decode(self.parts, latents, self.config.vae_batch_size or self.config.batch_size)
        held = {"latent": latents.cpu()}
        if "path" in self.provides:
            held["path"] = torch.stack([one.cpu() for one in path], dim=1)
        return [
            ({name: tensor[row].clone() for name, tensor in held.items()}, picture)
            for row, picture in enumerate(pictures)
        ]

    def denoise(
        self,
        noise: Float[Tensor, "batch channels height width"],
        texts: Texts,
        negative: Texts | None,
        generators: list[torch.Generator],
    ) -> Float[Tensor, "batch channels height width"]:
        """The last of ``denoising``."""
        return deque(self.denoising(noise, texts, negative, generators), maxlen=1).pop()

    @torch.no_grad()
    def denoising(
        self,
        noise: Float[Tensor, "batch channels height width"],
        texts: Texts,
        negative: Texts | None,
        generators: list[torch.Generator],
    ) -> Iterator[Float[Tensor, "batch channels height width"]]:
        """From standard normal noise to latents, float32 on the model's device: what the network sees at each step, and
        then the latents.

        Euler's solvers keep x0 + sigma noise; what the network sees of it is a x0 + s noise, as everywhere. The solver
        works in float32 whatever the network computes in. ``negative`` is what guidance leads away from;
        without it there is no guidance. ``generators``, one a row, feed stochastic solvers.
        """
        parts, guidance = self.parts, self.config.guidance
        height, width = (side * parts.vae_factor for side in noise.shape[-2:])
        scheduler = self.solver((height, width))
        context = (texts if negative is None else Texts.cat([negative, texts])).to(parts.device, parts.dtype)
        extra = _step_arguments(self.config, generators)
        latents = noise.to(parts.device) * getattr(scheduler, "init_noise_sigma", 1.0)
        for timestep in scheduler.timesteps:
            # flows see what they step on
            seen = (
                scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
            )
            yield seen
            seen = seen if negative is None else torch.cat([seen, seen])
            predicted = parts.ask(parts.network, seen.to(parts.dtype), timestep, context).float()
            self._evaluations += len(seen)
            if negative is not None:
                away, toward = predicted.chunk(2)
                predicted = away + guidance * (toward - away)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0].float()
        yield latents


@torch.no_grad()
def decode(parts: Parts, latents: Float[Tensor, "batch channels height width"], batch_size: int) -> list[Image.Image]:
    """Pictures from latents scaled as the denoiser sees them.

    One with any number that is none (NaN, infinity) is black all over: a picture of one colour is discarded, a part of
    one would not be noticed.
    """
    with parts.idle.fetched(parts.vae):
        decoded = [(rows, parts.decode(rows)) for rows in torch.split(latents, batch_size)]
    pictures: list[Image.Image] = []
    for rows, pixels in decoded:
        whole = pixels.isfinite().flatten(1).all(dim=1) & rows.isfinite().flatten(1).all(dim=1).to(pixels.device)
        shown = torch.where(whole[:, None, None, None], pixels, -1.0)
        bytes_ = ((shown / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        pictures += [Image.fromarray(np.asarray(one)) for one in bytes_.permute(0, 2, 3, 1).cpu().numpy()]
    return pictures


@torch.no_grad()
def encode(
    parts: Parts, pictures: Sequence[Image.Image], batch_size: int
) -> Float[Tensor, "batch channels height width"]:
    """Latents of pictures of one size, scaled as the denoiser sees them, float32 on the CPU."""
    found = []
    for start in range(0, len(pictures), batch_size):
        rows = np.stack([np.asarray(one.convert("RGB")) for one in pictures[start : start + batch_size]])
        pixels = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 127.5 - 1
        with parts.idle.fetched(parts.vae):
            found.append(parts.encode(pixels).cpu())
    return torch.cat(found)


def make_scheduler(config: DiffusionSamplerConfig, parts: Parts) -> Any:
    """The chosen solver on the model's own noise schedule.

    Raises:
        UserError: ``eta`` with another solver than ddim and tcd, more steps than the schedule or lcm has, or a solver
            or a spacing that the model's family does not have.
    """
    import diffusers

    trained = parts.scheduler.config.num_train_timesteps
    if config.steps > trained:
        raise UserError(f"sampler.steps: {config.steps} is more than the {trained} steps the model was trained with.")
    if config.eta > 0 and config.scheduler not in ("ddim", "tcd"):
        raise UserError(f"sampler.eta: only the schedulers ddim and tcd have an eta, not {config.scheduler}.")
    if config.spacing is not None and config.scheduler in ("lcm", "tcd"):
        raise UserError(f"sampler.spacing: the steps of {config.scheduler} are its own. Leave it out.")
    solvers = parts.family.solvers(parts.scheduler)
    if config.scheduler not in solvers:
        raise UserError(
            f"sampler.scheduler: {parts.family.told} does not draw with {config.scheduler}; it draws with "
            f"{', '.join(solvers)}."
        )
    kind, settings = solvers[config.scheduler]
    changes: dict[str, Any] = dict(settings)
    if config.spacing is not None:
        if parts.process.predicts == "flow":
            raise UserError(f"sampler.spacing: {parts.family.told} is a flow, whose steps are its own. Leave it out.")
        changes["timestep_spacing"] = config.spacing
    made = getattr(diffusers, kind)
    known = {name: value for name, value in changes.items() if name in made.__init__.__annotations__}
    solver = made.from_config(parts.scheduler.config, **known)
    if config.scheduler == "lcm" and config.steps > (most := solver.config.original_inference_steps):
        raise UserError(
            f"sampler.steps: lcm takes at most the {most} steps that consistency is distilled on, not {config.steps}."
        )
    return solver


def _step_arguments(config: DiffusionSamplerConfig, generators: list[torch.Generator]) -> dict[str, Any]:
    if config.scheduler in ("ddim", "tcd"):  # told even where it is 0: tcd's own default is 0.3
        return {"eta": config.effective_eta, "generator": generators}
    return {"generator": generators} if config.scheduler in ("euler_a", "ddpm", "lcm") else {}


def sizes_of(config: DiffusionSamplerConfig, parts: Parts) -> tuple[Size, ...]:
    """All sizes of the pictures, the main one first.

    Raises:
        UserError: neither config nor model says one, or a picture of one does not fit the model.
    """
    if isinstance(config.sizes, list):
        sizes = tuple((height, width) for width, height in config.sizes)
    else:
        main = size_of(config, parts)
        sizes = (main,) if config.sizes is None else buckets(main, parts.multiple)
    for height, width in sizes:
        check_size(height, width, parts)
    return sizes


def size_of(config: DiffusionSamplerConfig, parts: Parts) -> Size:
    """The main one: height and width, the model's own where the config names none.

    Raises:
        UserError: neither says it.
    """
    config, own = config.main, parts.size
    if own is None and not (config.height and config.width):
        raise UserError(
            f"sampler: the model '{parts.name}' does not say at what size it was trained ({parts.family.denoiser}/"
            "config.json has no sample_size). Set sampler.height and sampler.width, 512 for most."
        )
    height, width = own or (0, 0)
    return config.height or height, config.width or width


def check_size(height: int, width: int, parts: Parts) -> None:
    """
    Raises:
        UserError: a picture of so many pixels does not fit the model.
    """
    multiple = parts.multiple
    if height % multiple or width % multiple:
        high, wide = (max(multiple, round(side / multiple) * multiple) for side in (height, width))
        raise UserError(
            f"sampler: a picture of {told((height, width))} does not fit this model; both must be multiples of "
            f"{multiple}, as in {told((high, wide))}."
        )


def _shared(batches: list[Any], draw: Any) -> Iterator[tuple[Any, Any]]:
    """Each batch with what was drawn for it, in order; several processes draw side by side and exchange."""
    world = _processes()
    for start in range(0, len(batches), world.num_processes):
        group = batches[start : start + world.num_processes]
        mine = [draw(batch) for batch in group[world.process_index : world.process_index + 1]]
        if world.num_processes == 1:
            yield group[0], mine[0]
        else:
            from accelerate.utils import gather_object

            yield from zip(group, gather_object(mine), strict=True)


@cache
def _processes() -> Any:
    from accelerate import PartialState

    return PartialState()
