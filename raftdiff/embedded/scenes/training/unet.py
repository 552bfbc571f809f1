"""Train the U-Net and the text encoder of scene-sd, jointly and from scratch, on the latents of its autoencoder.

    python -m raftdiff.embedded.scenes.training.unet --minutes 600

Zero terminal SNR, v-prediction and trailing spacing (Lin et al. 2023, arXiv:2305.08891). ``latents.py`` holds what it
shares with the other program that trains what draws scenes.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from raftdiff.embedded.scenes.networks import SCHEDULE, TEXT, UNET, build_text_encoder, build_unet
from raftdiff.embedded.scenes.training.latents import Learner, options, spread, train
from raftdiff.embedded.scenes.training.timing import Clock, adamw


def build(tokenizer: Any) -> dict[str, Any]:
    return {"unet": build_unet(), "text": build_text_encoder(tokenizer)}


def loss(modules: Mapping[str, Any], lessons: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of the velocity at timesteps spread evenly over the schedule. All on one device."""
    x0 = lessons["x0"]
    context, abar = modules["text"](lessons["tokens"]).last_hidden_state, kept(x0.device)
    timesteps = (spread(len(x0), x0.device) * len(abar)).long().clamp(max=len(abar) - 1)
    noise = torch.randn_like(x0)
    a = abar[timesteps].sqrt()[:, None, None, None]
    s = (1 - abar[timesteps]).sqrt()[:, None, None, None]
    noisy = (a * x0 + s * noise).contiguous(memory_format=torch.channels_last)
    predicted = modules["unet"](noisy, timesteps, encoder_hidden_states=context, return_dict=False)[0]
    error: Tensor = predicted.float() - (a * noise - s * x0)
    return error.square().mean()


@cache
def kept(device: torch.device) -> Tensor:
    """Of each timestep, the share of the picture's variance that is left."""
    from diffusers import DDPMScheduler

    found: Tensor = DDPMScheduler(**SCHEDULE).alphas_cumprod.to(device)
    return found


LEARNER = Learner("unet", build, {"unet": UNET, "text": TEXT}, loss, adamw)


def main() -> None:
    given = options(__doc__).parse_args()
    train(given, Clock(given), LEARNER)


if __name__ == "__main__":
    main()
