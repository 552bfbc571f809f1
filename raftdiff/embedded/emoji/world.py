"""The picture world: every caption is an object, a style and a background colour, so every claim can be checked.

A caption reads ``"a line sketch of a cat on a yellow background"``. Some (object, style) and (object, background) pairs
never occur in the training data of the base model, on purpose: they are this world's "Monet style cat", and what the
alignment demo is measured on. This module knows captions only; it imports neither torch nor PIL.
"""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

__all__ = [
    "BACKGROUNDS",
    "HIGH_QUALITY",
    "LOW_QUALITY",
    "OBJECTS",
    "STYLES",
    "Concept",
    "all_concepts",
    "draw",
    "held_out_backgrounds",
    "held_out_concepts",
    "held_out_styles",
    "is_held_out",
    "parse",
    "training_concepts",
    "without_quality",
]

# The order decides the hold-outs (see `held_out_styles`): append, never insert.
_OBJECTS = """
cat, dog, monkey, fox, lion, tiger, cow, pig, mouse, rabbit, panda, frog, elephant, penguin, owl,
turtle, snake, whale, dolphin, octopus, crab, snail, butterfly, bee, ladybug, unicorn, flamingo, dinosaur,
rose, sunflower, tulip, cactus, palm tree, pine tree, maple leaf, mushroom,
apple, banana, watermelon, lemon, pineapple, cherry, strawberry, pear, carrot, avocado, eggplant, croissant, pretzel,
pizza, hamburger, hot dog, doughnut, cake, lollipop, ice cream, beer, coffee, cheese wedge,
house, castle, tent, volcano, bus, taxi, airplane, helicopter, rocket, flying saucer, sailboat,
anchor, hourglass, watch, moon, sun, star, cloud, rainbow, umbrella, lightning bolt, snowflake, snowman,
flame, ringed planet,
christmas tree, balloon, gift, trophy, soccer ball, basketball, tennis ball, bullseye, kite, puzzle piece, teddy bear,
heart, spade, pumpkin,
shirt, backpack, crown, top hat, gem, bell, musical note, guitar, drum, laptop,
camera, candle, light bulb, book, envelope, pencil, padlock, key, hammer, magnet, gear, bomb
"""
OBJECTS: tuple[str, ...] = tuple(re.split(r",\s*", re.sub(r"\s*\n\s*", " ", _OBJECTS).strip().rstrip(",")))
STYLES: tuple[str, ...] = ("3d render", "cartoon", "flat icon", "line sketch")
# sRGB, 0..255. No black: the sketches are drawn in black.
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "gray": (142, 142, 142),
    "red": (232, 60, 52),
    "yellow": (252, 216, 56),
    "green": (62, 180, 76),
    "blue": (64, 128, 236),
    "purple": (158, 84, 206),
    "pink": (255, 152, 204),
}
HIGH_QUALITY = ", high quality"
LOW_QUALITY = ", low quality"

_CAPTION = re.compile(
    rf"an? ({'|'.join(STYLES)}) of an? ({'|'.join(OBJECTS)}) on an? ({'|'.join(BACKGROUNDS)}) background"
)


@dataclass(frozen=True, slots=True)
class Concept:
    """One thing a caption can ask for.

    Example: ``Concept("owl", "cartoon", "blue").caption == "a cartoon of an owl on a blue background"``.
    """

    object: str
    """One of `OBJECTS`."""
    style: str
    """One of `STYLES`."""
    background: str
    """One of `BACKGROUNDS`."""

    @property
    def caption(self) -> str:
        """The plain caption, without any word on quality."""
        return f"a {self.style} of {_with_article(self.object)} on a {self.background} background"


def _with_article(noun: str) -> str:
    vowel = (noun[0] in "aeiou" and not noun.startswith("uni")) or noun.startswith("hour")
    return f"an {noun}" if vowel else f"a {noun}"


def without_quality(caption: str) -> str:
    """`caption` in lower case, without a trailing remark on quality."""
    return caption.strip().lower().removesuffix(HIGH_QUALITY).removesuffix(LOW_QUALITY)


def parse(caption: str) -> Concept | None:
    """The concept that `caption` asks for, or None if it is no caption of this world; quality remarks are ignored."""
    match = _CAPTION.fullmatch(without_quality(caption))
    return None if match is None else Concept(object=match[2], style=match[1], background=match[3])


def held_out_styles(object: str) -> frozenset[str]:
    """The styles (none or one) in which the base model never saw `object`: one style, for every third object."""
    index = OBJECTS.index(object)
    return frozenset({STYLES[index // 3 % len(STYLES)]}) if index % 3 == 2 else frozenset()


def held_out_backgrounds(object: str) -> frozenset[str]:
    """The two background colours on which the base model never saw `object`."""
    names = tuple(BACKGROUNDS)
    first = 3 * OBJECTS.index(object) % len(names)
    return frozenset({names[first], names[(first + 3) % len(names)]})


def is_held_out(concept: Concept) -> bool:
    """Whether the base model never saw `concept`: its style, or its background, is left out for its object."""
    styles, backgrounds = held_out_styles(concept.object), held_out_backgrounds(concept.object)
    return concept.style in styles or concept.background in backgrounds


@cache
def all_concepts() -> tuple[Concept, ...]:
    """Every object in every style on every background, in the order of the lists above."""
    return tuple(Concept(*parts) for parts in product(OBJECTS, STYLES, BACKGROUNDS))


@cache
def training_concepts() -> tuple[Concept, ...]:
    """The concepts that the base model was trained on."""
    return tuple(concept for concept in all_concepts() if not is_held_out(concept))


@cache
def held_out_concepts() -> tuple[Concept, ...]:
    """The concepts that the base model never saw, though it saw their object, style and background in other company."""
    return tuple(concept for concept in all_concepts() if is_held_out(concept))


def draw(concepts: Iterable[Concept], count: int, *, seed: int) -> tuple[Concept, ...]:
    """`count` different concepts, drawn so that every object occurs about equally often.

    Objects take turns in a shuffled order, each giving the concepts it has left in a shuffled order of its own. The
    same arguments give the same list on every machine. Raises ValueError when there are fewer than `count` concepts.
    """
    rng = random.Random(seed)
    by_object: dict[str, list[Concept]] = {}
    for concept in concepts:
        by_object.setdefault(concept.object, []).append(concept)
    queues: list[list[Concept]] = [rng.sample(group, len(group)) for group in by_object.values()]
    available = sum(len(queue) for queue in queues)
    if count > available:
        raise ValueError(f"{count} concepts were asked for, but there are only {available}.")
    rng.shuffle(queues)
    return tuple(_take_turns(queues)[:count])


def _take_turns(queues: Sequence[list[Concept]]) -> list[Concept]:
    longest = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]
