"""What ``raftdiff bench`` found, kept for plans: one small file in the user's cache folder."""

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
from raftdiff.diffusion.models import kept
from raftdiff.diffusion.models.loading import ModelConfig
from raftdiff.diffusion.probe import Probe
from raftdiff.diffusion.sampler import DiffusionSampler
from raftdiff.errors import UserError
from raftdiff.records.disk import read_json, write_text
from raftdiff.records.provenance import hardware

MOST = 64
"""Entries; the oldest go first."""
HELD = ("attention", "channels_last", "compile", "offload", "quantise", "vae_tiling")
"""Settings of a model that change how long it takes, or what memory."""
SAMPLER = ("type", "steps", "prune")
TUNER = (
    *("type", "learning_rate", "lr_schedule", "warmup_steps", "steps", "exposures", "max_grad_norm", "betas"),
    *("weight_decay", "min_snr_gamma", "ema", "offset_noise", "pure_noise_steps", "timesteps", "caption_dropout"),
)
"""Settings that do not change how long an evaluation, or a picture that is tuned on, takes."""


class Known(NamedTuple):
    probe: Probe
    date: str
    """When it was measured."""


def place() -> Path:
    """``$RAFTDIFF_CACHE/speed.json``, or in the user's own folder for such things."""
    return kept.place().parent / "speed.json"


def key(sampler: DiffusionSampler, tuner: DiffusionFineTuner, model: ModelConfig) -> str:
    """A digest of all that the speed depends on: the machine, the model's shape and how it is held, the pictures' size,
    dtypes, batches and what is trained; weights may differ."""
    parts = sampler.parts
    modules = [parts.modules[name] for name in parts.family.components]
    shapes = [[name, list(it.shape)] for one in modules for name, it in one.named_parameters()]
    said = {
        "machine": [hardware(), torch.get_num_threads(), str(torch.__version__)],
        "model": [type(parts.denoiser).__name__, shapes, str(parts.dtype), str(tuner.precision), str(parts.device)],
        "held": {name: getattr(model, name) for name in HELD},
        "sizes": [list(size) for size in sampler.sizes],
        "sampler": sampler.config.model_dump(mode="json", exclude=set(SAMPLER)),
        "finetuner": tuner.config.model_dump(mode="json", exclude=set(TUNER)),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def find(key: str) -> Known | None:
    """What was found under a key; None for nothing, and for a file that is damaged, which is told."""
    entry = _entries().get(key)
    try:
        if not entry:
            return None
        probe = Probe(**entry["probe"])
        if all(isinstance(one, int | float) for one in asdict(probe).values()):
            return Known(probe, str(entry["date"]))
        raise TypeError
    except (TypeError, KeyError):
        warnings.warn(
            f"{place()}: what is kept here is of another version; 'raftdiff bench' makes it anew.", stacklevel=2
        )
        return None


def keep(key: str, probe: Probe) -> None:
    """A folder that cannot be written is told, and nothing is lost by it."""
    entries = {**_entries(), key: {"probe": asdict(probe), "date": time.strftime("%Y-%m-%d"), "hardware": hardware()}}
    entries = dict(list(entries.items())[-MOST:])
    try:
        place().parent.mkdir(parents=True, exist_ok=True)
        write_text(place(), json.dumps(entries, indent=2) + "\n")
    except OSError as error:
        warnings.warn(f"{place()}: the speeds for plans cannot be kept here ({error}).", stacklevel=2)


def _entries() -> Mapping[str, Any]:
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_json(place())
    except OSError as error:
        warnings.warn(f"{place()}: what bench found cannot be read here ({error}).", stacklevel=2)
    except UserError:
        warnings.warn(f"{place()}: this file is damaged and not read; 'raftdiff bench' writes it anew.", stacklevel=2)
    return {}
