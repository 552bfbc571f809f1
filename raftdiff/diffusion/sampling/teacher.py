"""Candidates that another model draws, which stays as it is."""

from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal, final

import torch
from PIL import Image

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.models.pictures import check_size, encode
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig, sizes_of
from raftdiff.recipes.config import Config
from raftdiff.types import Prompt, Sample, Source

Within = Callable[[], AbstractContextManager[None]]


class TeacherSamplerConfig(Config):
    """Another model draws, and stays as it is. With ``loop.sample_every`` its pictures are drawn once and learnt from
    in several rounds."""

    type: Literal["teacher"] = "teacher"
    model: ModelConfig | None = None
    """Which, held in memory beside the model that is tuned; None takes that one as it was before any tuning, which
    costs no memory."""
    drawing: DiffusionSamplerConfig = DiffusionSamplerConfig()
    """How it draws, at the size of the model that is tuned unless it says another; the tuned model is looked at
    likewise, but for what the evaluation says."""

    @property
    def evaluations(self) -> int:
        """Of the network, for a picture."""
        return self.drawing.evaluations

    def build(self, parts: Parts, base_weights: Within, resolve: Callable[[str], str]) -> "TeacherSampler":
        """
        Args:
            parts: the model that is tuned.
            base_weights: within it, that is the model as it was before any tuning.

        Raises:
            UserError: the teacher cannot be loaded, or what it draws is of a size that ``parts`` cannot learn.
        """
        drawing = self.drawing.at(*sizes_of(self.drawing, parts))
        if self.model is None:
            return TeacherSampler(drawing.build(parts), parts, base_weights)
        return TeacherSampler(drawing.build(load(self.model, resolve)), parts, nullcontext)


@final
class TeacherSampler:
    """What a ``DiffusionSampler`` draws, as a teacher's: where its autoencoder is another than the policy's, pictures
    are encoded by that one, so that ``aux["latent"]`` is always what the policy sees."""

    source: Source = "teacher"
    provides: tuple[str, ...] = ("latent",)

    def __init__(self, drawing: DiffusionSampler, policy: Parts, within: Within) -> None:
        for height, width in drawing.sizes:
            check_size(height, width, policy)
        self.drawing, self.policy, self._within = drawing, policy, within
        self.sizes = drawing.sizes
        self._alike = drawing.parts is policy or same_vae(drawing.parts, policy)

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        """As the ``DiffusionSampler`` does. Until the last is drawn a shared network is the base."""
        with self._within():
            for sample in self.drawing.sample(prompts, per_prompt=per_prompt, seed=seed, round=round, done=done):
                yield replace(sample, source=self.source, aux={"latent": self._latent(sample)})

    def batches(self, prompts: Sequence[Prompt], *, per_prompt: int, round: int) -> list[list[tuple[str, int]]]:
        """As the ``DiffusionSampler``'s."""
        return self.drawing.batches(prompts, per_prompt=per_prompt, round=round)

    def network_evaluations(self) -> int:
        return self.drawing.network_evaluations()

    def _latent(self, sample: Sample[Image.Image]) -> torch.Tensor:
        return sample.aux["latent"] if self._alike else encode(self.policy, [sample.media], 1)[0]


def same_vae(one: Parts, other: Parts) -> bool:
    """Whether latents of the one mean the same to the other: autoencoders of one scale with the same numbers."""
    settings = [(vae.config.scaling_factor, getattr(vae.config, "shift_factor", None)) for vae in (one.vae, other.vae)]
    theirs, ours = one.vae.state_dict(), other.vae.state_dict()
    return (
        settings[0] == settings[1]
        and theirs.keys() == ours.keys()
        and all(
            weight.shape == ours[name].shape and torch.equal(weight.cpu().float(), ours[name].cpu().float())
            for name, weight in theirs.items()
        )
    )
