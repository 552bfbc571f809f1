"""Train the transformer and the text encoders of emoji-flow, jointly and from scratch, on the latents of scene-sd.

    python -m raftdiff.embedded.scenes.training.flow --minutes 600

A rectified flow as Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206): levels of noise are logit-normal,
and shifted. The autoencoder is scene-sd's, trained by ``vae.py``; ``latents.py`` holds what is shared with the U-Net's
program.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.scenes.flow import FILES, SHIFT, build, say
from raftdiff.embedded.scenes.training.latents import Learner, options, spread, train
from raftdiff.embedded.scenes.training.timing import Clock


def loss(modules: Mapping[str, Any], tokens: Tensor, x0: Tensor) -> Tensor:
    """Mean squared error of the velocity from picture to noise, at levels s that are spread over their distribution."""
    even = torch.special.ndtri(spread(len(x0), x0.device).clamp(1e-6, 1 - 1e-6)).sigmoid()
    s = SHIFT * even / (1 + (SHIFT - 1) * even)
    noise, level = torch.randn_like(x0), s[:, None, None, None]
    told, pooled = say(modules, tokens)
    predicted = modules["transformer"](
        (1 - level) * x0 + level * noise,
        encoder_hidden_states=told,
        pooled_projections=pooled,
        timestep=1000 * s,
        return_dict=False,
    )[0]
    error: Tensor = predicted.float() - (noise - x0)
    return error.square().mean()


LEARNER = Learner("transformer", build, FILES, loss)


def main() -> None:
    given = options(__doc__).parse_args()
    train(given, Clock(given), LEARNER)


if __name__ == "__main__":
    main()
