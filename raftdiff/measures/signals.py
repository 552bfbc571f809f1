"""What the pixels of one picture say, without a model: each signal a pure function of an array, one number a picture.

The rewards in ``rewards.signals`` give them to a ranker, and a round's figures tell of them. None sees what is shown.
"""

from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
from jaxtyping import Float32
from PIL import Image

from raftdiff.measures.pictures import on_paper

Pixels = Float32[np.ndarray, "height width 3"]
"""sRGB as it is stored, 0 to 1; a picture of 8 bits divided by 255."""
Greys = Float32[np.ndarray, "height width"]
LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in the grey of a picture; ITU-R BT.601, as Pillow's mode L."""
MIDDLE, WIDTH = 0.5, 0.2
"""The grey that is exposed best, and how fast it falls off to both sides."""
LEVELS = 8
"""Steps of each channel in ``colour_entropy``: 512 colours."""
EDGE = 0.1
"""Of the way from black to white, over one pixel: what counts as an edge."""


def rgb(image: Image.Image) -> Pixels:
    """The pixels of a picture of any mode, transparent parts over white."""
    return np.asarray(on_paper(image), dtype=np.float32) / np.float32(255)


def greys(pixels: Pixels) -> Greys:
    """How light each pixel is, 0 to 1."""
    return pixels @ np.array(LUMA, dtype=np.float32)


def brightness(pixels: Pixels) -> float:
    """The mean grey, 0 (black) to 1 (white).

    >>> round(brightness(np.full((4, 4, 3), 0.5, dtype=np.float32)), 3)
    0.5
    """
    return float(greys(pixels).mean(dtype=np.float64))


def exposure(pixels: Pixels) -> float:
    """How well exposed the pixels are on average, 0.04 (all black or white) to 1 (all middle grey); higher is better.

    exp(-(g - 0.5)^2 / (2 0.2^2)) of each pixel's grey g. Source: Mertens, Kautz & Van Reeth 2007 ("Exposure fusion"),
    who take it of each channel and multiply; of the grey alone, pure colours are not punished beside.
    """
    away = (greys(pixels).astype(np.float64) - MIDDLE) / WIDTH
    return float(np.exp(-np.square(away) / 2).mean())


def saturation(pixels: Pixels) -> float:
    """Mean saturation of HSV, 0 (grey) to 1 (pure colours): (max - min) / max of the channels, 0 for black."""
    channels = (pixels[..., 0], pixels[..., 1], pixels[..., 2])  # one by one this is a quarter of max(axis=2)'s time
    high, low = reduce(np.maximum, channels), reduce(np.minimum, channels)
    return float(((high - low) / np.where(high > 0, high, 1)).mean(dtype=np.float64))


def sharpness(pixels: Pixels) -> float:
    """Standard deviation of the Laplacian of the greys, 0 (flat, or an even gradient) to 1020 (a chequered board of
    single pixels), in greys of 0 to 255; its square is known as the variance of the Laplacian. Higher is sharper.

    The Laplacian is that of four neighbours, without the border: 0 for what is narrower than three pixels. Source:
    Pech-Pacheco et al. 2000 ("Diatom autofocusing in brightfield microscopy").
    """
    grey = greys(pixels) * 255
    if min(grey.shape) < 3:
        return 0.0
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).std(dtype=np.float64))


def edge_density(pixels: Pixels, threshold: float = EDGE) -> float:
    """The share of pixels on an edge, 0 to 1: those whose grey differs from that of their right and lower neighbours by
    more than ``threshold``, as the length of the difference. 0 for what is narrower than two pixels."""
    grey = greys(pixels)
    if min(grey.shape) < 2:
        return 0.0
    steps = np.hypot(grey[:-1, 1:] - grey[:-1, :-1], grey[1:, :-1] - grey[:-1, :-1])
    return float((steps > threshold).mean())


def colour_entropy(pixels: Pixels) -> float:
    """How many colours there are, and how evenly: Shannon's entropy in bits, 0 (one colour) to 9, over 512 colours,
    eight steps of each channel."""
    steps = np.minimum((pixels * LEVELS).astype(np.int64), LEVELS - 1)
    counts = np.bincount((steps @ np.array([LEVELS**2, LEVELS, 1])).ravel(), minlength=LEVELS**3)
    shares = counts[counts > 0] / counts.sum()
    return float(np.abs(-(shares * np.log2(shares)).sum()))  # abs, for the minus of nought


SIGNALS: Mapping[str, Callable[[Pixels], float]] = {
    "brightness": brightness,
    "exposure": exposure,
    "saturation": saturation,
    "sharpness": sharpness,
    "edge_density": edge_density,
    "colour_entropy": colour_entropy,
}


def signals(image: Image.Image) -> dict[str, float]:
    """All of them, of one picture, by name."""
    pixels = rgb(image)
    return {name: signal(pixels) for name, signal in SIGNALS.items()}
