"""How much the weights of rewards take, for those whose sizes are published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

CLIP = {
    "ViT-B-32": 151_277_313,
    "ViT-B-16": 149_620_737,
    "ViT-L-14": 427_616_513,
    "ViT-H-14": 986_109_441,
    "ViT-bigG-14": 2_539_567_362,
}
"""Numbers in both towers, by open_clip's names."""
OTHERS = {"pickscore": CLIP["ViT-H-14"], "hps": CLIP["ViT-H-14"], "image_reward": 447_500_000, "hpsv3": 8_290_000_000}
"""PickScore and HPS are such a ViT-H; ImageReward by the size of its file; HPSv3 a Qwen2-VL of 7B."""
WITHOUT = ("jpeg", "sharpness", "exposure", "saturation", "edge_density", "colour_entropy", "given", "remote")
"""Rewards that have no model here."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def reward_bytes(config: Any, resolve: Callable[[str], str] = str) -> int | None:
    """Of a reward's weights; None where nothing here says how many they are."""
    if config.type in WITHOUT:
        return 0
    numbers = OTHERS.get(config.type)
    if config.type in ("clip", "aesthetic"):
        numbers = CLIP.get(config.model.removesuffix("-quickgelu")) or _in_folder(resolve(config.model))
    return None if numbers is None else numbers * BYTES[getattr(config, "dtype", "float32")]


def _in_folder(model: str) -> int | None:
    """Numbers in the files of a folder, taken to be float32."""
    folder = Path(model.partition(":")[2] or model).expanduser()
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) // 4 or None
