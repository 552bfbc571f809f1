"""Sizes of pictures in one run: which there are, which one a prompt or a picture has, and batches of one size.

Sizes are (height, width) in pixels, the main one first. A picture that was there before is scaled until it covers its
size, and what is longer is cut off at both ends alike.

Others do likewise: kohya's sd-scripts (``BucketManager``, ``make_bucket_resolutions``), OneTrainer (mgds,
``AspectBucketing``) and diffusers (``training_utils.find_nearest_bucket``). Departures: the nearest shape is that of
which most is kept, by the ratio of the two aspects and not by their difference, so that wide and high pictures are
treated alike; and what does not fill a batch is kept for the next time that its size comes, so that every step has as
many pictures as it would have of one size.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

from pydantic import Field

from raftdiff.seeds import fold

Size: TypeAlias = tuple[int, int]
T = TypeVar("T")
LONGEST = 16384
"""Pixels along a side. More is a slip of the pen, and would fill a machine's memory before anything is said."""
Side: TypeAlias = Annotated[int, Field(ge=8, le=LONGEST)]
WIDEST = 2.0
"""Longer over shorter side of the widest bucket."""
STEPS = 16
"""The sides of buckets are multiples of the main side over this: of 64 pixels at 1024."""


class Fit(NamedTuple):
    """How a picture comes to its size."""

    scale: float
    """Above 1 it is enlarged."""
    kept: float
    """Share of its area that is left."""
    top: int
    left: int
    """Cut off there, in pixels of the scaled picture."""


def buckets(main: Size, multiple: int) -> tuple[Size, ...]:
    """Shapes from 1:2 to 2:1 with at most as many pixels as ``main``, which comes first, and nearly as many; sides are
    multiples of ``multiple``. Of 1024 x 1024 they are among those that SDXL was trained at (arXiv:2307.01952,
    appendix I).

    >>> buckets((1024, 1024), 32)[:5]
    ((1024, 1024), (960, 1088), (1088, 960), (896, 1152), (1152, 896))
    >>> len(buckets((1024, 1024), 32)), buckets((512, 512), 64)[1:]
    (13, ((448, 576), (576, 448), (384, 640), (640, 384)))
    """
    area, side = main[0] * main[1], math.isqrt(main[0] * main[1])
    step = multiple * math.ceil(side / STEPS / multiple)
    found = {main: None}
    for long in range(step * math.ceil(side / step), 2 * side, step):
        short = area // long // step * step
        if long <= WIDEST * short:
            found |= {(short, long): None, (long, short): None}
    return tuple(found)


def size_of_prompt(sizes: Sequence[Size], prompt: str, round: int) -> Size:
    """In which a prompt's candidates are drawn in a round: by its id and the round alone, so that all of them are
    alike, whatever else is asked, and over the rounds a prompt comes in every size."""
    return sizes[fold("size", round, prompt) % len(sizes)]


def fit(picture: Size, size: Size) -> Fit:
    """
    >>> fit((1000, 2000), (512, 512))
    Fit(scale=0.512, kept=0.5, top=0, left=256)
    """
    scale = max(of / there for of, there in zip(size, picture, strict=True))
    top, left = (int((there * scale - of) / 2) for of, there in zip(size, picture, strict=True))
    return Fit(scale, math.prod(size) / (math.prod(picture) * scale**2), top, left)


def nearest(sizes: Sequence[Size], pictures: Sequence[Size]) -> Size:
    """The size of which most is left of these pictures together: of one the nearest in shape. Of sizes of one shape
    the largest that enlarges none, else the smallest.

    >>> nearest([(64, 64), (32, 64), (128, 128)], [(100, 110)])
    (64, 64)
    """

    def worth(size: Size) -> tuple[float, bool, int]:
        lost = sum(abs(math.log((high * size[1]) / (wide * size[0]))) for high, wide in pictures)
        larger = any(fit(picture, size).scale > 1 for picture in pictures)
        return (round(-lost, 9), not larger, -math.prod(size) if larger else math.prod(size))

    return max(sizes, key=worth)


def told(size: Size) -> str:
    """As people write it, width first."""
    return f"{size[1]}x{size[0]}"


def cut(jobs: Sequence[T], size: Callable[[T], Size], count: int) -> list[tuple[Size, list[T]]]:
    """The jobs in batches of one size and at most ``count``, in their order within a size."""
    held: dict[Size, list[T]] = {}
    for job in jobs:
        held.setdefault(size(job), []).append(job)
    return [(one, of[start : start + count]) for one, of in held.items() for start in range(0, len(of), count)]


def filled(order: Sequence[int], kinds: Sequence[Hashable], count: int) -> list[int]:
    """The same items, so that each ``count`` on end are of one kind: as they come, each kind waiting until it has so
    many. What is left over of every kind follows at the end. Where all are of one kind the order stays.

    >>> filled([0, 1, 2, 3, 4, 5], ["a", "b", "b", "a", "b", "a"], 2)
    [1, 2, 0, 3, 5, 4]
    """
    waiting: dict[Hashable, list[int]] = {}
    full: list[int] = []
    for item in order:
        held = waiting.setdefault(kinds[item], [])
        held.append(item)
        if len(held) == count:
            full += held
            held.clear()
    return full + [item for held in waiting.values() for item in held]


def alike(items: Iterable[int], kinds: Sequence[Hashable]) -> Iterator[list[int]]:
    """The items kind by kind."""
    found: dict[Hashable, list[int]] = {}
    for item in items:
        found.setdefault(kinds[item], []).append(item)
    yield from found.values()
