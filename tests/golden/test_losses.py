"""The losses of a few optimizer steps, as they were: a change of the mathematics shows as a change of these numbers.

`make golden` rewrites losses.json; look at the difference before committing it. Measured on Linux x86-64 with PyTorch
2.14; the tolerance is for other builds of PyTorch, which add up in another order.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.types import Item, Prompt, Sample, Selection, silent

GOLDEN = Path(__file__).parent / "losses.json"
KINDS: tuple[tiny.Kind, ...] = ("sd15", "sd21", "sd21_zero_snr")
CHANGES: dict[str, dict[str, object]] = {
    "lora": {},
    "full": {"adapter": "full", "learning_rate": 1e-3},
    "guided": {"loss_on": "guided", "anchor": 0.1, "ema": 0.9},
    "min_snr": {"min_snr_gamma": 5.0, "caption_dropout": 0.5, "offset_noise": 0.1, "pure_noise_steps": 20},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tiny.Kind, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny.write_folder(root / kind, kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHANGES)
def test_losses_are_what_they_were(kind: tiny.Kind, name: str, folders: dict[tiny.Kind, Path]) -> None:
    parts = load(ModelConfig(base=str(folders[kind]), device="cpu"))
    options = {"learning_rate": 3e-3, "steps": 1, "batch_size": 4, "exposures": None, **CHANGES[name]}
    tuner = DiffusionFineTunerConfig(**options).build(parts, total_rounds=4, guidance=2.0, seed=0)
    generator = torch.Generator().manual_seed(0)
    asked = [Prompt(word, f"a {word}", f"a {word}", f"a {word}") for word in ("cat", "dog", "owl", "bus")]
    samples = {
        one.key: one
        for one in (
            Sample(
                0,
                prompt,
                0,
                0,
                "policy",
                Image.new("RGB", (1, 1)),
                {"latent": torch.randn(4, 8, 8, generator=generator)},
            )
            for prompt in asked
        )
    }
    selection = Selection("weighted", tuple(Item((key,)) for key in samples))
    losses = [tuner.fit(selection, samples, seed=seed, report=silent)["loss"] for seed in range(4)]
    held = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("RAFTDIFF_GOLDEN") == "rewrite":
        held[f"{kind} {name}"] = losses
        GOLDEN.write_text(json.dumps(dict(sorted(held.items())), indent=1) + "\n")
    assert losses == pytest.approx(held[f"{kind} {name}"], rel=2e-4)
