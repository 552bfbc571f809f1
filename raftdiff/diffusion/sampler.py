"""Sampling a diffusion model: batched across prompts, one seed per sample."""

import warnings
from collections import deque
from collections.abc import Iterator, Sequence, Set
from typing import Annotated, Any, Literal, NamedTuple, final

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.pictures import check_size, decode
from raftdiff.diffusion.process import guided
from raftdiff.diffusion.reuse import ReuseConfig
from raftdiff.diffusion.sizes import LONGEST, Side, Size, buckets, cut, size_of_prompt
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.selection.pruning import PruneConfig
from raftdiff.training.compiled import Compiled
from raftdiff.training.fitting import Fitting
from raftdiff.types import Prompt, Sample, Source


class DiffusionSamplerConfig(Config):
    """How pictures are drawn."""

    type: Literal["diffusion"] = "diffusion"
    steps: int = Field(default=20, ge=1, le=1000)
    """Denoising steps."""
    guidance: float = Field(default=7.5, ge=0)
    """Classifier-free guidance; at 1 it is off, and a step costs half."""
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    """How far the spread that guidance adds to what is predicted is taken back (arXiv:2305.08891, phi; 0.7 there,
    against overexposed pictures). At guidance 1 it does nothing."""
    scheduler: Literal["dpm++", "ddim", "euler", "euler_a", "ddpm", "unipc", "lcm", "tcd"] = "dpm++"
    """The solver, of those that the model's family has. euler_a, ddpm and lcm draw noise at every step, as do ddim and
    tcd with eta; lcm and tcd are for models distilled so. Models of flow have euler, euler_a, dpm++ and unipc."""
    spacing: Literal["leading", "linspace", "trailing"] | None = None
    """Where the steps lie on the schedule (arXiv:2305.08891, Table 2); None takes the model's own, as flows must, and
    lcm and tcd. Distilled models want trailing."""
    eta: float = Field(default=0.0, ge=0, le=1)
    """ddim and tcd only: 0 is deterministic; at 1 ddim draws as much noise as ddpm, and tcd as lcm."""
    height: int | None = Field(default=None, ge=8, le=LONGEST)
    """Pixels; None takes the size that the model was trained at."""
    width: int | None = Field(default=None, ge=8, le=LONGEST)
    sizes: Annotated[list[tuple[Side, Side]], Field(min_length=1)] | Literal["buckets"] | None = None
    """Several sizes in one run, each [width, height], in place of height and width; or buckets, for shapes from 1:2 to
    2:1 with about as many pixels as height and width say. A prompt is drawn in one of them, by its id and the round; a
    picture of a folder has that of the nearest shape. The first, of buckets height and width, is what the model is
    looked at in."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 16
    """Pictures denoised at once. auto is measured where a run begins, once a machine, and is a number in the run: as
    many as there is memory for, while more at once are faster."""
    vae_batch_size: int | None = Field(default=None, ge=1)
    """Pictures decoded at once; None takes batch_size. Lower it where decoding runs out of memory."""
    prune: PruneConfig | None = None
    """Which of a round's candidates are drawn to the end: all by default. Evaluations draw all, whatever it says."""
    reuse: ReuseConfig | None = None
    """At which steps of a candidate's drawing all of a U-Net is asked: at each by default. Evaluations ask all."""

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
        """What a model is looked at with: the same at its main size alone, by the whole network."""
        if isinstance(self.sizes, list):
            return self.at((self.sizes[0][1], self.sizes[0][0])).main
        return self.model_copy(update={"sizes": None, "reuse": None})

    def at(self, *sizes: Size) -> "DiffusionSamplerConfig":
        """The same at this size, or at these, the main one first."""
        own: dict[str, Any] = {"height": None, "width": None, "sizes": [(width, height) for height, width in sizes]}
        if len(sizes) == 1:
            own = {"height": sizes[0][0], "width": sizes[0][1], "sizes": None}
        return self.model_copy(update=own)

    @property
    def at_once(self) -> int:
        """Pictures denoised at once; 1, the least that it can be, of auto that is not yet measured."""
        return self.batch_size if isinstance(self.batch_size, int) else 1

    @property
    def decoded_at_once(self) -> int:
        return self.vae_batch_size or self.at_once

    @property
    def evaluations(self) -> int:
        """Of the network, for a picture that is drawn to the end."""
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


Picture = tuple[dict[str, Tensor], Image.Image]
"""A picture with what it carries."""
AT_ONCE = {"batch_size": "draw", "vae_batch_size": "decode"}
Job = tuple[Prompt, int]
"""A candidate to be drawn: its prompt, and which of the prompt's it is."""


class Step(NamedTuple):
    """A denoising step that was taken; all but the timestep are (batch, channels, height, width), float32."""

    seen: Tensor
    """What the network saw: a x0 + s noise."""
    timestep: Tensor
    predicted: Tensor
    """Guidance included."""
    following: Tensor
    """Where it led, as the solver keeps it; after the last step the latents."""


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
        self.fits, self._decodes = (Fitting(f"sampler.{key}", verb) for key, verb in AT_ONCE.items())
        parts.check_guidance("sampler.guidance", config.guidance)
        if config.reuse is not None:
            config.reuse.network(parts)  # raises before anything is drawn
        if "path" in aux and config.scheduler not in parts.family.paths:
            raise UserError(
                f"sampler.scheduler: what {config.scheduler} draws with {parts.family.told} keeps no path that a rule "
                f"could learn from; use {' or '.join(parts.family.paths)}."
            )

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: Set[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        """Yield ``per_prompt`` pictures for each prompt, in order, of several sizes size by size; ``aux["latent"]`` is
        (channels, height, width), float32, scaled as the denoiser sees it, ``aux["path"]`` (steps + 1, channels,
        height, width): what it saw at each step, the noise first, and the latent last.

        A batch with any sample left to draw is drawn whole, so that what is in ``done`` changes nothing in the rest;
        in parts where memory does not suffice.
        """
        batches = self._cut(prompts, per_prompt, round)
        wanted = [(size, batch) for size, batch in batches if any((p.id, k) not in done for p, k in batch)]
        self.remember([prompt for _, batch in wanted for prompt, _ in batch])
        full = {size: len(batch) for size, batch in reversed(batches)}  # of each size the first
        for size, batch in wanted:
            for (prompt, index), (aux, picture) in zip(batch, self._drawn(size, batch, full[size], seed), strict=True):
                if (prompt.id, index) not in done:
                    one = fold(seed, prompt.id, index)
                    yield Sample(round, prompt, index, one, self.source, picture, aux)

    def remember(self, prompts: Sequence[Prompt]) -> None:
        """Read the texts of all that is going to be drawn, each once."""
        guided = self.config.guidance != 1
        texts = [text for one in prompts for text in ((one.sampling, one.negative) if guided else (one.sampling,))]
        if texts:
            self.parts.prompts.remember(texts)

    def batches(self, prompts: Sequence[Prompt], *, per_prompt: int, round: int) -> list[list[tuple[str, int]]]:
        """(prompt id, index) of what is drawn at once, batch by batch."""
        cut_up = self._cut(prompts, per_prompt, round)
        return [[(prompt.id, index) for prompt, index in batch] for _, batch in cut_up]

    def _cut(
        self, prompts: Sequence[Prompt], per_prompt: int, round: int
    ) -> list[tuple[Size, list[tuple[Prompt, int]]]]:
        jobs = [(prompt, index) for prompt in prompts for index in range(per_prompt)]
        return cut(jobs, lambda job: size_of_prompt(self.sizes, job[0].id, round), self.config.at_once)

    def network_evaluations(self) -> int:
        """Rows through the network since construction, with guidance two a step; with ``reuse`` as many as without."""
        return self._evaluations

    def solver(self, size: Size | None = None) -> Any:
        """The scheduler of diffusers, its steps set for pictures of this size, the main one by default. It counts them
        on the CPU: to look one up where a GPU has them, it would wait for all that the GPU has yet to do."""
        parts, pixels = self.parts, size or self.sizes[0]
        with warnings.catch_warnings():  # diffusers asks numpy for an array in a way that numpy 2 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            parts.family.set_steps(
                self.scheduler, self.config.steps, parts.modules, pixels=pixels, device=torch.device("cpu")
            )
        return self.scheduler

    def _drawn(self, size: Size, batch: Sequence[Job], full: int, seed: int) -> list[Picture]:
        """A batch, or in parts what of it does not fit. A network that is compiled is asked ``full`` batches alone."""
        filled = isinstance(self.parts.network, Compiled)

        def in_parts(width: int) -> list[Picture]:
            cut_up = [batch[start : start + width] for start in range(0, len(batch), width)]
            return [one for part in cut_up for one in self._draw(size, part, width if filled else 0, seed)]

        return self.fits(full if filled else len(batch), in_parts)

    def _draw(self, size: Size, batch: Sequence[Job], width: int, seed: int) -> list[Picture]:
        rows = [*batch, *[batch[0]] * (width - len(batch))]
        noise, generators = self.noise(rows, seed, size)
        way = (one[: len(batch)] for one in self.denoising(noise, *self.texts(rows), generators))
        path = deque(way, maxlen=None if "path" in self.provides else 1)
        latents = path[-1]
        pictures = self.decoded(latents)
        held = {"latent": latents.cpu()}
        if "path" in self.provides:
            held["path"] = torch.stack([one.cpu() for one in path], dim=1)
        return [
            ({name: tensor[row].clone() for name, tensor in held.items()}, picture)
            for row, picture in enumerate(pictures)
        ]

    def noise(
        self, jobs: Sequence[Job], seed: int, size: Size
    ) -> tuple[Float[Tensor, "jobs channels height width"], list[torch.Generator]]:
        """What each begins with, on the CPU, and the generator that it came from, for stochastic solvers."""
        generators = [torch.Generator().manual_seed(fold(seed, prompt.id, index)) for prompt, index in jobs]
        shape = (1, *self.parts.latent_shape(*size))
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators]), generators

    def texts(self, jobs: Sequence[Job]) -> tuple[Texts, Texts | None]:
        """What is drawn, and what guidance leads away from."""
        texts = self.parts.prompts([prompt.sampling for prompt, _ in jobs])
        return texts, None if self.config.guidance == 1 else self.parts.prompts([it.negative for it, _ in jobs])

    def decoded(self, latents: Float[Tensor, "batch channels height width"]) -> list[Image.Image]:
        most = min(len(latents), self.config.decoded_at_once)
        return self._decodes(most, lambda width: decode(self.parts, latents, width))

    def denoise(
        self,
        noise: Float[Tensor, "batch channels height width"],
        texts: Texts,
        negative: Texts | None,
        generators: list[torch.Generator],
    ) -> Float[Tensor, "batch channels height width"]:
        """The last of ``denoising``."""
        return deque(self.denoising(noise, texts, negative, generators), maxlen=1).pop()

    def denoising(
        self,
        noise: Float[Tensor, "batch channels height width"],
        texts: Texts,
        negative: Texts | None,
        generators: list[torch.Generator],
    ) -> Iterator[Float[Tensor, "batch channels height width"]]:
        """From standard normal noise to latents, float32 on the model's device: what the network sees at each step, and
        then the latents. ``generators``, one a row, feed stochastic solvers."""
        height, width = (side * self.parts.vae_factor for side in noise.shape[-2:])
        solver = self.solver((height, width))
        latents = self.begun(noise, solver)
        for step in self.steps(solver, solver.timesteps, latents, (texts, negative), generators):
            yield step.seen
            latents = step.following
        yield latents

    def begun(
        self, noise: Float[Tensor, "batch channels height width"], solver: Any
    ) -> Float[Tensor, "batch channels height width"]:
        """Noise as the solver keeps it, on the model's device."""
        return noise.to(self.parts.device) * getattr(solver, "init_noise_sigma", 1.0)

    @torch.no_grad()
    def steps(
        self,
        solver: Any,
        timesteps: Shaped[Tensor, " steps"],
        latents: Float[Tensor, "batch channels height width"],
        texts: tuple[Texts, Texts | None],
        generators: list[torch.Generator],
    ) -> Iterator[Step]:
        """The solver's next steps, at these of its timesteps.

        Euler's solvers keep x0 + sigma noise; what is seen of it is a x0 + s noise, as everywhere, and flows see what
        they step on. The solver works in float32 whatever the network computes in. The second of ``texts`` is what
        guidance leads away from; None for no guidance. With ``reuse`` the first step asks the whole network.
        """
        parts, config, (toward, away) = self.parts, self.config, texts
        network = parts.network if config.reuse is None else config.reuse.network(parts)
        context = (toward if away is None else Texts.cat([away, toward])).to(parts.device, parts.dtype)
        extra = _step_arguments(config, generators)
        strength = torch.full((len(latents),), config.guidance).to(latents)
        for timestep in timesteps:
            seen = solver.scale_model_input(latents, timestep) if hasattr(solver, "scale_model_input") else latents
            rows = seen if away is None else torch.cat([seen, seen])
            predicted = parts.ask(network, rows.to(parts.dtype), timestep.to(parts.device), context).float()
            self._evaluations += len(rows)
            if away is not None:
                without, told = predicted.chunk(2)
                predicted = guided(without, told, strength, config.guidance_rescale)
            latents = solver.step(predicted, timestep, latents, return_dict=False, **extra)[0].float()
            yield Step(seen, timestep, predicted, latents)


def make_scheduler(config: DiffusionSamplerConfig, parts: Parts) -> Any:
    """The chosen solver on the model's own noise schedule.

    Raises:
        UserError: ``eta`` with another solver than ddim and tcd, more steps than the schedule or lcm has, or a solver
            or a spacing that the model's family does not have.
    """
    import diffusers

    if config.steps > (trained := parts.scheduler.config.num_train_timesteps):
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
        sizes = (size_of(config, parts),) if config.sizes is None else buckets(size_of(config, parts), parts.multiple)
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
