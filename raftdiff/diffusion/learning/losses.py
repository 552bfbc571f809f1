"""What one optimizer step minimises.

    x0, noise, t  ->  xt = a x0 + s noise                                    process.add_noise
    c = network(xt, t, caption)                                              with gradient
    p = c,  or  u + w (c - u)  with  u = network(xt, t, "") held fixed       loss_on: conditional | guided
    item loss =  the rule's, of p and of what its reference says             rules; sft: weight * mean (p - target)^2
    anchor    =  lambda * mean (c - c_base)^2                                a row
    loss      =  sum of the items' losses / items of the whole step, and the mean anchor of its rows

**The guided loss.** Selected pictures were sampled *with* guidance w. If c alone learns them, guiding again by w
sharpens a second time, and spread and saturation compound over the rounds. So the guided prediction, which is what the
sampler follows, is made to match the selected pictures: at its optimum sampling at w reproduces them. u is the current
model's own, because that is the u that the sampler will use beside c, and is held fixed, because with a gradient it
would be pushed away from the target by the factor (1 - w). It is for the empty caption: negative prompts are a matter
of sampling. The gradient through c is w times that of a plain loss at
the same error; Adam does not mind, the norm that clipping sees does. Rows whose caption was dropped have c = u and
w = 1.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from raftdiff.diffusion import process as diffusion
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.learning.resident import onto
from raftdiff.diffusion.learning.rules import Rows, Rule, row_mean
from raftdiff.diffusion.process import Process

Predict = Callable[
    [Float[Tensor, "batch channels height width"], Shaped[Tensor, " batch"], Texts],
    Float[Tensor, "batch channels height width"],
]
"""(xt, timesteps, texts) -> what the network predicts, float32."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Everything random about some rows of a step; drawn on the CPU, so that no device changes it."""

    noise: Float[Tensor, "batch channels height width"]
    """Standard normal, offset already added."""
    places: Int[Tensor, " batch"]
    """Of the timesteps, in the model's process."""
    dropped: Bool[Tensor, " batch"]
    """Rows that see the empty caption in place of their own."""

    def rows(self, chosen: Int[Tensor, " some"]) -> "Draws":
        return Draws(self.noise[chosen], self.places[chosen], self.dropped[chosen])

    def to(self, device: torch.device) -> "Draws":
        return Draws(onto(self.noise, device), onto(self.places, device), onto(self.dropped, device))


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of a step, on the model's device, float32."""

    x0: Float[Tensor, "batch channels height width"]
    captions: Texts
    empty: Texts | None
    """The empty caption's embedding, one per row; None where no row is shown it."""
    weights: Float[Tensor, " batch"]
    """The items' own; rows of one item stand together."""
    draws: Draws


@dataclass(frozen=True, slots=True)
class Objective:
    """The choices that say what is minimised; see the module's docstring."""

    guidance: float
    """w; 1 is the plain conditional loss."""
    min_snr_gamma: float | None
    pure_noise_steps: int
    """At this many of the last timesteps the network sees pure noise."""
    anchor: float
    """lambda."""
    rule: Rule


@dataclass(frozen=True, slots=True)
class Networks:
    """The model as it is tuned, as it was before any tuning, and as it was before this round's."""

    policy: Predict
    base: Predict
    old: Predict


@dataclass(frozen=True, slots=True)
class Terms:
    """Sums over the rows given, float32: to be divided by the rows of the whole step."""

    loss: Float[Tensor, ""]
    anchor: Float[Tensor, ""]
    evaluations: int
    """Rows through the network, with gradient or without."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """What else is to be told of the rows, without gradient."""


def step_loss(batch: Batch, process: Process, objective: Objective, networks: Networks) -> Terms:
    """The loss of some rows of a step, whole items."""
    x0, draws, empty = batch.x0, batch.draws, batch.empty
    count, level, timesteps = len(x0), process.level[draws.places], process.timesteps[draws.places]
    pure = draws.places >= len(process) - objective.pure_noise_steps
    noise = diffusion.pure_noise(draws.noise, x0, level, pure)
    xt = diffusion.add_noise(x0, noise, level)
    target = diffusion.target(process.predicts, x0, noise, level)
    shown = batch.captions if empty is None else empty.where(draws.dropped, batch.captions)
    evaluations = count
    scale = torch.where(draws.dropped, 1.0, objective.guidance)

    # what is held fixed first: switching weights off and on again must not fall between a forward and its backward
    wanted = {"base" if objective.anchor > 0 else "none", objective.rule.reference}
    fixed = {}
    for name, network in (("base", networks.base), ("old", networks.old)):
        if name in wanted:
            with torch.no_grad():
                fixed[name] = network(xt, timesteps, shown)
            evaluations += count
    prediction = conditional = networks.policy(xt, timesteps, shown)
    if objective.guidance != 1.0:
        assert empty is not None
        with torch.no_grad():
            unconditional = networks.policy(xt, timesteps, empty)
        prediction = diffusion.guided(unconditional, conditional, scale)
        evaluations += count

    weight = batch.weights
    if objective.min_snr_gamma is not None:
        weight = weight * diffusion.min_snr_weight(process.predicts, level, objective.min_snr_gamma)
    reference = fixed.get(objective.rule.reference)
    loss = objective.rule.loss(Rows(prediction, reference, target, x0, xt, level, process.predicts, weight))
    anchor = torch.zeros((), device=x0.device)
    if objective.anchor > 0:
        anchor = objective.anchor * row_mean((conditional - fixed["base"]) ** 2).sum()
    return Terms(loss.sum(), anchor, evaluations)


def draw(
    shape: tuple[int, int, int, int],
    timesteps: int,
    generator: torch.Generator,
    *,
    kind: str,
    offset: float,
    dropout: float,
) -> Draws:
    """The draws of a whole step, before it is cut into batches and processes: neither changes what is learned."""
    count, channels = shape[:2]
    places = diffusion.draw_places(kind, count, timesteps, generator)
    noise = torch.randn(shape, generator=generator)
    if offset > 0:
        noise = diffusion.offset_noise(noise, torch.randn(count, channels, generator=generator), offset)
    return Draws(noise, places, torch.rand(count, generator=generator) < dropout)
