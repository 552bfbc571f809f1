"""What a picture itself says, without a model: its colours, and features by which alike pictures are close."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

PAPER = (255, 255, 255)


def on_paper(image: Image.Image) -> Image.Image:
    """As RGB, transparent parts over white."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    sheet = Image.new("RGBA", layer.size, (*PAPER, 255))
    return Image.alpha_composite(sheet, layer).convert("RGB")


def is_flat(image: Image.Image) -> bool:
    """Whether the picture is of one colour all over, and so shows nothing."""
    extrema: tuple[tuple[int, int], ...] = on_paper(image).getextrema()  # type: ignore[assignment]
    return all(low == high for low, high in extrema)


def coarse(image: Image.Image, side: int = 16) -> Float[np.ndarray, " values"]:
    """The picture at ``side`` pixels, less its own mean, at unit length: alike pictures have a cosine near 1."""
    small = on_paper(image).resize((side, side), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).reshape(-1) / 255
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-6), dtype=np.float32)


def mean_saturation(images: Sequence[Image.Image]) -> float:
    """Mean HSV saturation, 0 (grey) to 1 (pure colours); NaN for no pictures. A rise over the rounds warns of
    over-guided training."""
    found = [float(np.asarray(on_paper(image).convert("HSV"))[..., 1].mean()) / 255 for image in images]
    return float(np.mean(found)) if found else float("nan")
