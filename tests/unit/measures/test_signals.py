"""Signals against numbers worked by hand: a flat picture, a gradient, a chequered board, a step."""

import numpy as np
import pytest
from PIL import Image

from raftdiff.measures import signals
from raftdiff.measures.signals import (
    SIGNALS,
    Pixels,
    brightness,
    colour_entropy,
    edge_density,
    exposure,
    rgb,
    saturation,
    sharpness,
)

MIDDLE = 0.5


def grey(values: np.ndarray) -> Pixels:
    return np.repeat(np.asarray(values, dtype=np.float32)[..., None], 3, axis=2)


FLAT = grey(np.full((16, 16), MIDDLE))
GRADIENT = grey(np.broadcast_to(np.arange(256) / 255, (256, 256)))
"""All 256 greys from left to right."""
BOARD = grey(np.indices((16, 16)).sum(axis=0) % 2)
"""Single pixels of black and white in turn."""
STEP = grey(np.broadcast_to(np.arange(16) >= 8, (16, 16)))
"""Black to the left, white to the right."""


@pytest.mark.parametrize(
    ("picture", "bright", "sharp", "edges", "bits"),
    [
        (FLAT, 0.5, 0, 0, 0),
        (GRADIENT, 0.5, 0, 0, 3),  # steps of 1/255; eight of the eight greys, each as often
        (BOARD, 0.5, 1020, 1, 1),  # four neighbours of the other colour: 4 x 255 either way, in equal parts
        (STEP, 0.5, 255 * np.sqrt(2 / 14), 1 / 15, 1),  # two of fourteen columns at 255 and -255; one of fifteen steps
    ],
    ids=["flat", "gradient", "board", "step"],
)
def test_worked_numbers(picture: Pixels, bright: float, sharp: float, edges: float, bits: float) -> None:
    found = brightness(picture), sharpness(picture), edge_density(picture), colour_entropy(picture)
    assert found == pytest.approx((bright, sharp, edges, bits), abs=1e-3)
    assert saturation(picture) == 0


def test_exposure_is_best_in_the_middle_and_alike_at_both_ends() -> None:
    assert exposure(FLAT) == pytest.approx(1)
    assert exposure(BOARD) == pytest.approx(np.exp(-(2.5**2) / 2))
    near = grey(np.full((4, 4), 0.7))
    assert exposure(near) == pytest.approx(np.exp(-0.5), rel=1e-5), "one width away"


def test_saturation_is_of_the_largest_channel_and_none_in_black() -> None:
    colours = np.array([[[1, 0, 0], [0.5, 0.25, 0.25], [0, 0, 0], [1, 1, 1]]], dtype=np.float32)
    assert saturation(colours) == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_sharpness_is_the_root_of_the_variance_of_the_laplacian() -> None:
    noise = np.random.default_rng(0).random((9, 11)).astype(np.float32)
    values = 255 * noise.astype(np.float64)
    kernel = {(0, 0): -4.0, (0, 1): 1.0, (0, -1): 1.0, (1, 0): 1.0, (-1, 0): 1.0}
    laplacian = [
        sum(weight * values[y + dy, x + dx] for (dy, dx), weight in kernel.items())
        for y in range(1, 8)
        for x in range(1, 10)
    ]
    assert sharpness(grey(noise)) == pytest.approx(np.sqrt(np.var(laplacian)), rel=1e-4)


def test_an_edge_is_a_step_above_the_threshold_however_it_runs() -> None:
    soft = grey(np.broadcast_to(np.where(np.arange(16) >= 8, 0.6, 0.45), (16, 16)))
    assert edge_density(soft) == pytest.approx(1 / 15)
    assert edge_density(soft, threshold=0.2) == 0
    assert edge_density(np.ascontiguousarray(STEP.transpose(1, 0, 2))) == edge_density(STEP)


def test_entropy_counts_colours_and_not_where_they_are() -> None:
    cube = np.stack(np.meshgrid(*[np.arange(8) / 7] * 3), axis=-1).reshape(16, 32, 3).astype(np.float32)
    assert colour_entropy(cube) == pytest.approx(9), "all 512 colours, each once"
    shuffled = np.random.default_rng(0).permutation(cube.reshape(-1, 3)).reshape(32, 16, 3)
    assert colour_entropy(shuffled) == pytest.approx(9)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
def test_the_smallest_pictures_have_a_number_too(size: tuple[int, int]) -> None:
    found = signals.signals(Image.new("RGB", size, (255, 0, 0)))
    assert set(found) == set(SIGNALS)
    assert np.isfinite(list(found.values())).all()
    assert (found["sharpness"], found["edge_density"], found["saturation"]) == (0, 0, 1)


def test_pixels_are_those_that_are_seen() -> None:
    assert rgb(Image.new("L", (3, 2), 51)).shape == (2, 3, 3)
    assert float(rgb(Image.new("L", (1, 1), 51))[0, 0, 0]) == pytest.approx(0.2)
    assert (rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0))) == 1).all(), "what is clear is white paper"


def test_blur_and_noise_move_sharpness_the_way_they_should() -> None:
    picture = Image.fromarray((255 * np.random.default_rng(1).random((32, 32, 3))).astype(np.uint8))
    halved = picture.resize((16, 16), Image.Resampling.BOX).resize((32, 32), Image.Resampling.BILINEAR)
    assert sharpness(rgb(halved)) < sharpness(rgb(picture)) / 2
