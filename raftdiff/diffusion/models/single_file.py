"""The component configs of SD 1.x and 2.x, in code, so that a single-file checkpoint loads without a network.

The values describe the published models (their configs are part of the models' format). The tokenizer's vocabulary is
rebuilt from the byte-pair merges that open_clip installs.
"""

import gzip
import json
from pathlib import Path
from typing import Any

from raftdiff.errors import UserError

MERGES = 49152 - 256 - 2
"""The merges of CLIP's tokenizer: the vocabulary less its bytes (once plain, once word-final) and two markers."""


def write_configs(kind: str, folder: Path, prediction_type: str | None, path: Path) -> Path:
    """A diffusers folder without weights for ``kind`` (sd1 or sd2), written under ``folder``.

    Raises:
        UserError: an SD 2.x checkpoint without a stated prediction type: the file itself does not say, and the wrong
            guess gives noise.
    """
    if kind == "sd2" and prediction_type is None:
        raise UserError(
            f"{path}: an SD 2.x file does not say what its network predicts. Set model.prediction_type: v_prediction "
            "(the 768 px models) or epsilon (the 512 px ones, called base)."
        )
    for name, config in _configs(kind, prediction_type or "epsilon").items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config), encoding="utf-8")
    _write_tokenizer(folder / "tokenizer", pad="!" if kind == "sd2" else "<|endoftext|>")
    return folder


def _configs(kind: str, prediction_type: str) -> dict[str, dict[str, Any]]:
    large = kind == "sd2"
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.36.0",
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "attention_head_dim": [5, 10, 20, 20] if large else 8,
            "block_out_channels": [320, 640, 1280, 1280],
            "cross_attention_dim": 1024 if large else 768,
            "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
            "in_channels": 4,
            "out_channels": 4,
            "layers_per_block": 2,
            "sample_size": 96 if large and prediction_type == "v_prediction" else 64,
            "use_linear_projection": large,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "layers_per_block": 2,
            "sample_size": 512,
            "scaling_factor": 0.18215,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "hidden_act": "gelu" if large else "quick_gelu",
            "hidden_size": 1024 if large else 768,
            "intermediate_size": 4096 if large else 3072,
            "max_position_embeddings": 77,
            "num_attention_heads": 16 if large else 12,
            # SD 2.x reads the last but one of OpenCLIP-H's 24 layers
            "num_hidden_layers": 23 if large else 12,
            "projection_dim": 512 if large else 768,
            "vocab_size": 49408,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 1,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDIMScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000,
            "prediction_type": prediction_type,
            "clip_sample": False,
            "set_alpha_to_one": False,
            "steps_offset": 1,
        },
    }


def _write_tokenizer(folder: Path, pad: str) -> None:
    from transformers import CLIPTokenizer

    merges = _clip_merges()
    symbols = byte_symbols()
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair.split()) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    pairs: Any = [tuple(pair.split()) for pair in merges]
    CLIPTokenizer(vocab=vocabulary, merges=pairs, pad_token=pad, model_max_length=77).save_pretrained(folder)


def _clip_merges() -> list[str]:
    from importlib.util import find_spec

    found = find_spec("open_clip")
    if found is None or found.origin is None:
        raise UserError(
            "A single-file model needs CLIP's vocabulary, which comes with open_clip: pip install open_clip_torch, "
            "or name a diffusers folder that holds the model's configs as model.config."
        )
    with gzip.open(Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz"), "rt", encoding="utf-8") as file:
        return file.read().split("\n")[1 : 1 + MERGES]


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the bytes, in the order of GPT-2's table: printable ones first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + place) for place in range(len(others))]
