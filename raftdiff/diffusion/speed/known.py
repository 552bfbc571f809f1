"""What ``raftdiff bench`` found, kept for plans: one small file in the user's cache folder."""

import time
import warnings
from dataclasses import asdict
from math import inf
from typing import NamedTuple

import torch

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
from raftdiff.diffusion.models import measured
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.probe import Probe
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.records.provenance import hardware

FILE = "speed.json"
HELD = ("attention", "channels_last", "compile", "offload", "quantise", "vae_tiling")
"""Settings of a model that change how long it takes, or what memory."""
SAMPLER = ("type", "steps", "prune", "guidance_rescale")
TUNER = (
    *("type", "learning_rate", "lr_schedule", "warmup_steps", "steps", "exposures", "max_grad_norm", "betas"),
    *("weight_decay", "min_snr_gamma", "ema", "offset_noise", "pure_noise_steps", "timesteps", "caption_dropout"),
)
"""Settings that do not change how long an evaluation, or a picture that is tuned on, takes."""


class Known(NamedTuple):
    probe: Probe
    date: str
    """When it was measured."""
    faster: str = ""
    """How the network had better be held, in words; empty where nothing was found."""


def key(sampler: DiffusionSampler, tuner: DiffusionFineTuner, model: ModelConfig) -> str:
    """A digest of all that the speed depends on: the machine, the model's shape and how it is held, the pictures' size,
    dtypes, batches and what is trained; weights may differ."""
    parts = sampler.parts
    modules = [parts.modules[name] for name in parts.family.components]
    shapes = [[name, list(it.shape)] for one in modules for name, it in one.named_parameters()]
    said = {
        "machine": [hardware(), torch.get_num_threads(), str(torch.__version__)],
        "model": [type(parts.denoiser).__name__, shapes, str(parts.dtype), str(tuner.precision), str(parts.device)],
        "held": {name: getattr(model, name) for name in HELD} | {"channels_last": parts.channels_last},
        "sizes": [list(size) for size in sampler.sizes],
        "sampler": sampler.config.model_dump(mode="json", exclude=set(SAMPLER)),
        "finetuner": tuner.config.model_dump(mode="json", exclude=set(TUNER)),
    }
    return measured.key(said)


def find(key: str) -> Known | None:
    """What was found under a key; None for nothing, and for a file that is damaged, which is told."""
    entry = measured.entry(FILE, key)
    try:
        if entry is None:
            return None
        probe = Probe(**entry["probe"])
        date, faster = entry["date"], entry.get("faster", "")
        measured_ones = all(type(one) in (int, float) and 0 <= one < inf for one in asdict(probe).values())
        if measured_ones and all(isinstance(one, str) and one.isprintable() for one in (date, faster)):
            return Known(probe, date, faster)
        raise TypeError
    except (TypeError, KeyError):
        where = measured.place(FILE)
        warnings.warn(
            f"{where}: what is kept here is of another version; 'raftdiff bench' makes it anew.", stacklevel=2
        )
        return None


def keep(key: str, probe: Probe, faster: str = "") -> None:
    """A folder that cannot be written is told, and nothing is lost by it."""
    entry = {"probe": asdict(probe), "date": time.strftime("%Y-%m-%d"), "hardware": hardware(), "faster": faster}
    try:
        measured.keep(FILE, key, entry)
    except OSError as error:
        where = measured.place(FILE)
        warnings.warn(f"{where}: the speeds for plans cannot be kept here ({error}).", stacklevel=2)
