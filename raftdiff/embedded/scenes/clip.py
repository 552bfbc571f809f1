"""The reward of scenes, untrained, and its files: a small CLIP in open_clip's format, apart from the judge in all."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from raftdiff.embedded.scenes.networks import write
from raftdiff.embedded.scenes.tokens import LENGTH, build_tokenizer
from raftdiff.errors import UserError

WEIGHTS = "scene-clip.safetensors"
NAME = "scene-clip"
SIZE = 96
"""Pixels a side that the image tower reads; pictures are scaled to it."""
WIDTH = 256
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def model_config(vocabulary: int) -> dict[str, Any]:
    """open_clip's ``model_cfg``."""
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": SIZE, "layers": [1, 2, 2, 1], "width": 24, "head_width": 48},
        "text_cfg": {
            "context_length": LENGTH,
            "vocab_size": vocabulary,
            "width": 192,
            "heads": 6,
            "layers": 4,
            "hf_tokenizer_name": NAME,
        },
    }


def build_clip(vocabulary: int) -> Any:
    import open_clip

    return open_clip.CLIP(**model_config(vocabulary))


def take_apart(folder: Path, results: Path) -> None:
    """The weights of such a folder as the file that the training script goes on from; `assemble` turned back."""
    write(results / WEIGHTS, load_file(folder / "open_clip_model.safetensors"), finished="yes")


def assemble(results: Path, folder: Path) -> Path:
    """The weights of ``results`` as a folder that open_clip and raftdiff load, in float16.

    Raises:
        UserError: there are none.
    """
    if not (results / WEIGHTS).is_file():
        raise UserError(f"{results / WEIGHTS} is missing: train that part first, or copy its file there.")
    tokenizer = build_tokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    described = {"model_cfg": model_config(len(tokenizer)), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    save_file(load_file(results / WEIGHTS), folder / "open_clip_model.safetensors")
    tokenizer.save_pretrained(folder)
    return folder
