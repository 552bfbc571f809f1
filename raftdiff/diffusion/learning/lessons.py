"""What networks are shown of the pictures that a round learns from: pictures under noise, or steps of their paths."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning import losses
from raftdiff.diffusion.learning.policy_gradient import Chain, ddim_mean, log_ratio
from raftdiff.diffusion.learning.resident import onto
from raftdiff.diffusion.learning.reward_gradient import Graded
from raftdiff.diffusion.learning.rules import Ddpo, Walk, row_mean
from raftdiff.diffusion.process import Level, Prediction, Process, draw_places, guided
from raftdiff.types import Prompt

Held = Float[Tensor, "rows ..."]
D = TypeVar("D")


@final
@dataclass(frozen=True, slots=True)
class Part(Generic[D]):
    """Some rows of a step, whole items: texts are on the model's device already, what is held may be, all else is on
    the CPU."""

    held: Held
    """What the lesson names as its ``aux``, of each row."""
    drawn: D
    captions: Texts
    against: Texts | None
    """What guidance leads away from; None where the lesson does not ask."""
    weights: Float[Tensor, " rows"]
    prompts: Sequence[Prompt] = ()
    """Whose captions rewards read."""


@runtime_checkable
class Lesson(Protocol[D]):
    """Draws what is random about a step, for each of its items, and says what some of its rows come to."""

    @property
    def aux(self) -> str:
        """What of a sample is learnt from."""
        ...

    def against(self, prompt: Prompt) -> str | None:
        """The text that guidance leads away from; None where there is none for any prompt."""
        ...

    def draw(self, shape: torch.Size, generator: torch.Generator) -> D:
        """For each of some pictures, whose ``held`` is of this shape; it has ``rows(chosen)``."""
        ...

    def terms(self, part: Part[D], networks: losses.Networks) -> losses.Terms: ...


@final
@dataclass(frozen=True, slots=True)
class Noised:
    """Pictures under fresh noise, at a timestep of the training's schedule: what ``losses`` says."""

    objective: losses.Objective
    process: Process
    """On the model's device."""
    timesteps: str
    """How they are drawn."""
    offset: float
    dropout: float
    aux: str = "latent"

    def against(self, prompt: Prompt) -> str | None:
        """Nothing: negative prompts are a matter of sampling."""
        del prompt
        return "" if self.dropout > 0 or self.objective.guidance != 1 else None

    def draw(self, shape: torch.Size, generator: torch.Generator) -> losses.Draws:
        count, channels, height, width = shape
        return losses.draw(
            (count, channels, height, width),
            len(self.process),
            generator,
            kind=self.timesteps,
            offset=self.offset,
            dropout=self.dropout,
        )

    def terms(self, part: Part[losses.Draws], networks: losses.Networks) -> losses.Terms:
        device = part.captions.device
        x0, weights = onto(part.held, device), onto(part.weights, device)
        batch = losses.Batch(x0, part.captions, part.against, weights, part.drawn.to(device))
        return losses.step_loss(batch, self.process, self.objective, networks)


@final
@dataclass(frozen=True, slots=True)
class Places:
    """Which step of its path each row is shown."""

    at: Int[Tensor, " batch"]

    def rows(self, chosen: Int[Tensor, " some"]) -> "Places":
        return Places(self.at[chosen])


@final
@dataclass(frozen=True, slots=True)
class Steps:
    """Steps of the paths on which pictures were drawn, one at random each time that a picture is shown.

    The prediction is the guided one that the path was drawn with, and its gradient goes through both halves, as in the
    authors' code. A departure from it: the probability under the policy that drew is not kept from sampling, but
    computed again beside the new one. It costs as many evaluations without gradient, and nothing but the change of the
    weights is then in the ratio: rounding alone moves it by as much as its clip where pictures are drawn in half
    precision and learnt in full.
    """

    chain: Chain
    rule: Ddpo
    predicts: Prediction
    timesteps: str
    """How steps are drawn."""
    anchor: float
    """Weight of the squared distance between the prediction for the caption and the base's."""
    aux: str = "path"

    def against(self, prompt: Prompt) -> str | None:
        return prompt.negative if self.chain.guidance != 1 else None

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Places:
        random = self.chain.random()
        return Places(random[draw_places(self.timesteps, shape[0], len(random), generator)])

    def terms(self, part: Part[Places], networks: losses.Networks) -> losses.Terms:
        device, at, chain = part.captions.device, part.drawn.at, self.chain
        xt, then = _state(part, at), _state(part, at + 1)
        timesteps, level = onto(chain.timesteps[at], device), _level(chain.level[at], device)
        following, deviation = _level(chain.following[at], device), onto(chain.deviation[at], device)

        def said(network: losses.Predict) -> tuple[Tensor, Tensor]:
            """The prediction for the caption, and where the step leads on average."""
            toward, followed = _predicted(network, xt, timesteps, part, chain)
            return toward, ddim_mean(self.predicts, followed, xt, level=level, following=following, deviation=deviation)

        # what is held fixed first, as in losses.step_loss
        base = _base(self.anchor, networks, xt, timesteps, part)
        with torch.no_grad():
            _, old = said(networks.old)
        conditional, mean = said(networks.policy)
        change = log_ratio(then, mean, old, deviation)
        loss = self.rule.loss(change, onto(part.weights, device))
        evaluations = len(at) * ((1 if chain.guidance == 1 else 2) * self.rule.passes + int(base is not None))
        anchor = _pull(self.anchor, conditional, base)
        return losses.Terms(loss.sum(), anchor, evaluations, self.rule.figures(change.detach()))


@final
@dataclass(frozen=True, slots=True)
class Endings:
    """The ends of the paths on which pictures were drawn, walked again with gradient.

    The loss is minus what the rewards say of the picture that they lead to, decoded with gradient too, times the item's
    weight. The steps are DDIM's, guided as the drawing was, and draw no noise, whatever drew.
    """

    chain: Chain
    walk: Walk
    reward: Graded
    predicts: Prediction
    timesteps: str
    """How the first step is drawn, of those that may be it."""
    anchor: float
    """Weight of the squared distance between the first step's prediction for the caption and the base's."""
    aux: str = "path"

    def against(self, prompt: Prompt) -> str | None:
        return prompt.negative if self.chain.guidance != 1 else None

    def draw(self, shape: torch.Size, generator: torch.Generator) -> Places:
        starts = torch.tensor(self.walk.starts)
        return Places(starts[draw_places(self.timesteps, shape[0], len(starts), generator)])

    def terms(self, part: Part[Places], networks: losses.Networks) -> losses.Terms:
        device, chain, first = part.captions.device, self.chain, part.drawn.at
        xt = _state(part, first)
        base = _base(self.anchor, networks, xt, onto(chain.timesteps[first], device), part)
        anchor = torch.zeros((), device=device)
        for step in range(self.walk.steps):
            at = first + step
            level, following = _level(chain.level[at], device), _level(chain.following[at], device)
            toward, followed = _predicted(networks.policy, xt, onto(chain.timesteps[at], device), part, chain)
            if step == 0:
                anchor = _pull(self.anchor, toward, base)
            none, all_of_it = torch.zeros_like(level.s), torch.ones_like(level.a)
            following = Level(all_of_it, none) if self.walk.leap else following
            xt = ddim_mean(self.predicts, followed, xt, level=level, following=following, deviation=none)
        reward = self.reward(xt, part.prompts)
        loss = -(onto(part.weights, device) * reward).sum()
        evaluations = len(first) * (self.walk.steps * (1 if chain.guidance == 1 else 2) + int(base is not None))
        return losses.Terms(loss, anchor, evaluations, {"reward": reward.detach().sum()})


def _state(part: Part[Any], at: Int[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
    """Of each row's path the state at this place, on the model's device."""
    there = onto(at, part.held.device)
    return onto(part.held[torch.arange(len(there), device=there.device), there], part.captions.device)


def _level(level: Level, device: torch.device) -> Level:
    return Level(onto(level.a, device), onto(level.s, device))


def _base(anchor: float, networks: losses.Networks, xt: Tensor, timesteps: Tensor, part: Part[Any]) -> Tensor | None:
    """What the base says for the caption, held fixed; None where nothing is anchored to it."""
    with torch.no_grad():
        return networks.base(xt, timesteps, part.captions) if anchor > 0 else None


def _pull(anchor: float, toward: Tensor, base: Tensor | None) -> Float[Tensor, ""]:
    """The anchor's term: the squared distance to what the base says, summed over the rows."""
    return torch.zeros((), device=toward.device) if base is None else anchor * row_mean((toward - base) ** 2).sum()


def _predicted(
    network: losses.Predict, xt: Tensor, timesteps: Tensor, part: Part[Any], chain: Chain
) -> tuple[Tensor, Tensor]:
    """The prediction for the caption, and the guided one that the sampler follows."""
    if chain.guidance == 1:
        toward = network(xt, timesteps, part.captions)
        return toward, toward
    assert part.against is not None
    both = network(xt.repeat(2, 1, 1, 1), timesteps.repeat(2), Texts.cat([part.against, part.captions]))
    away, toward = both.chunk(2)
    return toward, guided(away, toward, torch.full((len(xt),), chain.guidance, device=xt.device), chain.rescale)
