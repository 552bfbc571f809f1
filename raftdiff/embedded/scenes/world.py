"""The world of scenes: what a caption asks for, as one to four emoji on a ground, so that every claim can be checked.

A caption reads ``"three foxes on a white background"`` or ``"a small red sketched crown left of a cartoon crab"``. What
it does not say is free: places, turns, sizes, and any style, colour or ground that it leaves out. Some pairs, counts,
styles and colours never occur in the training data of the base model, on purpose. This module knows captions only; it
imports neither torch nor PIL.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = [
    "COLOURS",
    "GROUNDS",
    "HIGH_QUALITY",
    "LOW_QUALITY",
    "MOST",
    "OBJECTS",
    "RELATIONS",
    "SIZES",
    "STYLES",
    "Part",
    "Scene",
    "draw",
    "held_out_colours",
    "held_out_counts",
    "held_out_pair",
    "held_out_styles",
    "is_held_out",
    "parse",
    "random_scene",
    "without_quality",
]

# The order decides the hold-outs: append, never insert.
OBJECTS: tuple[str, ...] = (
    *("cat", "frog", "penguin", "elephant", "crab", "butterfly", "ladybug", "fox"),
    *("cactus", "sunflower", "mushroom", "pineapple", "watermelon", "cherry", "pizza", "doughnut"),
    *("house", "rocket", "sailboat", "umbrella", "crown", "guitar", "star", "gift"),
)
PLURALS: Mapping[str, str] = {"butterfly": "butterflies", "fox": "foxes", "cactus": "cactuses", "cherry": "cherries"}
"""Those that do not just take an s."""
STYLES: tuple[str, ...] = ("cartoon", "sketched")
# sRGB, 0..255. Sketches are drawn in these; cartoons have colours of their own.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "black": (24, 24, 28),
    "red": (212, 32, 40),
    "blue": (32, 72, 216),
    "green": (16, 124, 56),
}
# Pale, so that all art stands out.
GROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "pink": (255, 190, 212),
    "blue": (166, 214, 255),
    "green": (176, 236, 182),
    "purple": (208, 184, 255),
}
SIZES: tuple[str, ...] = ("small", "large")
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")
NUMBERS: tuple[str, ...] = ("two", "three", "four")
MOST = 4
"""Objects in a scene."""
HIGH_QUALITY = ", high quality"
LOW_QUALITY = ", low quality"

_NOUNS = {name: name for name in OBJECTS} | {PLURALS.get(name, name + "s"): name for name in OBJECTS}
_PART = (
    rf"(an?|{'|'.join(NUMBERS)})(?: ({'|'.join(SIZES)}))?(?: ({'|'.join(COLOURS)}))?"
    rf"(?: ({'|'.join(STYLES)}))? ({'|'.join(sorted(_NOUNS, key=len, reverse=True))})"
)
_CAPTION = re.compile(rf"{_PART}(?: (and|{'|'.join(RELATIONS)}) {_PART})?(?: on an? ({'|'.join(GROUNDS)}) background)?")


@dataclass(frozen=True, slots=True)
class Part:
    """Some objects of one kind; an empty word leaves the thing open.

    Example: ``Part("crown", style="sketched", colour="red").words == "a red sketched crown"``.
    """

    object: str
    """One of `OBJECTS`."""
    count: int = 1
    size: str = ""
    """One of `SIZES`, or open."""
    style: str = ""
    """One of `STYLES`, or open."""
    colour: str = ""
    """One of `COLOURS`, or open; only a sketch has one."""

    @property
    def words(self) -> str:
        noun = self.object if self.count == 1 else PLURALS.get(self.object, self.object + "s")
        described = [word for word in (self.size, self.colour, self.style, noun) if word]
        article = "an" if described[0][0] in "aeiou" else "a"
        return " ".join([article if self.count == 1 else NUMBERS[self.count - 2], *described])


@dataclass(frozen=True, slots=True)
class Scene:
    """What a caption asks for.

    Example: ``Scene((Part("cat"), Part("fox")), "left of", "white").caption`` is ``"a cat left of a fox on a white
    background"``.
    """

    parts: tuple[Part, ...]
    """One, or two of different objects; at most `MOST` objects together."""
    relation: str = ""
    """One of `RELATIONS` between two single objects, or none."""
    ground: str = ""
    """One of `GROUNDS`, or open."""

    @property
    def caption(self) -> str:
        """The plain caption, without any word on quality."""
        where = f" on a {self.ground} background" if self.ground else ""
        return f" {self.relation or 'and'} ".join(part.words for part in self.parts) + where

    @property
    def total(self) -> int:
        return sum(part.count for part in self.parts)

    @property
    def kind(self) -> str:
        """``single``, ``count``, ``relation`` or ``pair``."""
        if len(self.parts) == 1:
            return "single" if self.total == 1 else "count"
        return "relation" if self.relation else "pair"


def without_quality(caption: str) -> str:
    """`caption` in lower case, without a trailing remark on quality."""
    return caption.strip().lower().removesuffix(HIGH_QUALITY).removesuffix(LOW_QUALITY)


def parse(caption: str) -> Scene | None:
    """The scene that `caption` asks for, or None if it is no caption of this world; quality remarks are ignored."""
    plain = without_quality(caption)
    match = _CAPTION.fullmatch(plain)
    if match is None:
        return None
    found = match.groups()
    parts = [_part(found[start : start + 5]) for start in (0, 6) if found[start] is not None]
    joined, ground = found[5] or "", found[11] or ""
    scene = Scene(tuple(parts), "" if joined == "and" else joined, ground)
    return scene if _sound(scene) and scene.caption == plain else None


def _part(words: tuple[str | None, ...]) -> Part:
    number, size, colour, style, noun = (word or "" for word in words)
    return Part(_NOUNS[noun], NUMBERS.index(number) + 2 if number in NUMBERS else 1, size, style, colour)


def _sound(scene: Scene) -> bool:
    """Whether the words go together: a caption that fails here is grammatical, but not of this world."""
    one_of_each = len({part.object for part in scene.parts}) == len(scene.parts)
    related = not scene.relation or scene.total == 2
    coloured = all(part.style == "sketched" for part in scene.parts if part.colour)
    sized = scene.total <= 2 or not any(part.size for part in scene.parts)
    return one_of_each and related and coloured and sized and scene.total <= MOST


def held_out_pair(one: str, other: str) -> bool:
    """Whether the base model never saw the two objects in one picture: about one pair in six."""
    first, second = sorted((OBJECTS.index(one), OBJECTS.index(other)))
    return first != second and (first + 2 * second) % 6 == 0


def held_out_counts(object: str) -> frozenset[int]:
    """The numbers (none or one) in which the base model never saw `object`: one, for three objects of four."""
    return frozenset(({3}, {2}, {4}, set())[OBJECTS.index(object) % 4])


def held_out_styles(object: str) -> frozenset[str]:
    """The styles (none or one) in which the base model never saw `object`: every eighth was never sketched."""
    return frozenset({"sketched"}) if OBJECTS.index(object) % 8 == 5 else frozenset()


def held_out_colours(object: str) -> frozenset[str]:
    """The colour in which the base model never saw `object` sketched."""
    return frozenset({tuple(COLOURS)[OBJECTS.index(object) * 3 % len(COLOURS)]})


def is_held_out(scene: Scene) -> bool:
    """Whether the base model never saw what `scene` asks for: a pair, a count, a style or a colour is left out."""
    if len(scene.parts) == 2 and held_out_pair(scene.parts[0].object, scene.parts[1].object):
        return True
    return any(
        part.count in held_out_counts(part.object)
        or part.style in held_out_styles(part.object)
        or part.colour in held_out_colours(part.object)
        for part in scene.parts
    )


KINDS = ("single", "count", "relation", "pair")
_SHARES = (0.2, 0.3, 0.3, 0.2)
_PAIRS = ((1, 1), (1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2))


def random_scene(rng: random.Random, kind: str | None = None, *, held_out: bool | None = None) -> Scene:
    """A scene of `kind` (any by default), of the training data, of the hold-outs, or of both."""
    while True:
        scene = _any_scene(rng, kind or rng.choices(KINDS, _SHARES)[0])
        if held_out is None or is_held_out(scene) == held_out:
            return scene


def _any_scene(rng: random.Random, kind: str) -> Scene:
    ground = rng.choice(tuple(GROUNDS)) if rng.random() < 0.85 else ""
    if kind in ("single", "count"):
        count = 1 if kind == "single" else rng.choice((2, 3, 4))
        return Scene((_any_part(rng, rng.choice(OBJECTS), count, count),), "", ground)
    counts = (1, 1) if kind == "relation" else rng.choice(_PAIRS)
    names = rng.sample(OBJECTS, 2)
    parts = tuple(_any_part(rng, name, count, sum(counts)) for name, count in zip(names, counts, strict=True))
    return Scene(parts, rng.choice(RELATIONS) if kind == "relation" else "", ground)


def _any_part(rng: random.Random, name: str, count: int, total: int) -> Part:
    size = rng.choice(SIZES) if total <= 2 and rng.random() < 0.25 else ""
    style = rng.choice(STYLES) if rng.random() < 0.6 else ""
    colour = rng.choice(tuple(COLOURS)) if style == "sketched" and rng.random() < 0.75 else ""
    return Part(name, count, size, style, colour)


def draw(count: int, *, seed: int, held_out: bool | None = False) -> tuple[Scene, ...]:
    """`count` different scenes, the kinds in turn, the same on every machine; of the training data by default."""
    rng = random.Random(seed)
    found: dict[Scene, None] = {}
    turns = _forever(KINDS)
    while len(found) < count:
        kind = next(turns)
        if held_out and kind == "single":  # held out are few: a style or a colour that must be said
            kind = rng.choice(KINDS)
        found.setdefault(random_scene(rng, kind, held_out=held_out))
    return tuple(found)


def _forever(kinds: tuple[str, ...]) -> Iterator[str]:
    while True:
        yield from kinds
