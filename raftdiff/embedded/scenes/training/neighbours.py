"""Captions that differ from a scene's in one thing, such that no picture shows both: what a reward must tell apart."""

import random
from collections.abc import Iterator
from dataclasses import replace

from raftdiff.embedded.scenes.world import COLOURS, GROUNDS, MOST, OBJECTS, RELATIONS, SIZES, STYLES, Part, Scene, parse

GROUP = 4
"""A scene and three neighbours."""


def group(rng: random.Random, scene: Scene) -> tuple[Scene, ...]:
    """``scene`` and different neighbours of it, `GROUP` in all, of as many kinds as there are."""
    kinds = _kinds(scene)
    rng.shuffle(kinds)
    chosen: dict[Scene, None] = {scene: None}
    while len(chosen) < GROUP:
        for found in kinds:
            if len(chosen) < GROUP:
                chosen.setdefault(rng.choice(found))
    return tuple(chosen)


def neighbours(scene: Scene) -> tuple[Scene, ...]:
    """All of them, each once."""
    return tuple(dict.fromkeys(one for found in _kinds(scene) for one in found))


def _kinds(scene: Scene) -> list[list[Scene]]:
    """By what differs, where anything can."""
    return [found for kind in (_count, _object, _relation, _swapped, _words, _ground) if (found := kind(scene))]


def _count(scene: Scene) -> list[Scene]:
    """One more or one fewer of a thing; or the numbers exchanged."""
    if scene.relation:
        return []
    changed = [_with(scene, index, count=part.count + by) for index, part in enumerate(scene.parts) for by in (-1, 1)]
    if len(scene.parts) == 2:
        first, second = scene.parts
        changed.append(replace(scene, parts=(replace(first, count=second.count), replace(second, count=first.count))))
    return _sound(scene, (one for one in changed if one.total <= MOST and all(part.count for part in one.parts)))


def _object(scene: Scene) -> list[Scene]:
    named = {part.object for part in scene.parts}
    others = [name for name in OBJECTS if name not in named]
    return [_with(scene, index, object=name) for index in range(len(scene.parts)) for name in others]


def _relation(scene: Scene) -> list[Scene]:
    """Another relation; the contrary twice as likely."""
    if not scene.relation:
        return []
    contrary = RELATIONS[RELATIONS.index(scene.relation) ^ 1]
    return [replace(scene, relation=name) for name in (*RELATIONS, contrary) if name != scene.relation]


def _swapped(scene: Scene) -> list[Scene]:
    """What is said of the two things exchanged, where it contradicts."""
    if len(scene.parts) < 2:
        return []
    first, second = scene.parts
    if not any(_contradict(getattr(first, word), getattr(second, word)) for word in ("size", "style", "colour")):
        return []
    exchanged = (_described(first, second), _described(second, first))
    return _sound(scene, [replace(scene, parts=exchanged)])


def _words(scene: Scene) -> list[Scene]:
    """Another size, style or colour where one is said."""
    changed: list[Scene] = []
    for index, part in enumerate(scene.parts):
        changed += [_with(scene, index, size=size) for size in SIZES if _contradict(size, part.size)]
        changed += [_with(scene, index, colour=colour) for colour in COLOURS if _contradict(colour, part.colour)]
        changed += [_with(scene, index, style=style, colour="") for style in STYLES if _contradict(style, part.style)]
    return changed


def _ground(scene: Scene) -> list[Scene]:
    return [replace(scene, ground=name) for name in GROUNDS if _contradict(name, scene.ground)]


def _with(scene: Scene, index: int, **changes: object) -> Scene:
    parts = list(scene.parts)
    parts[index] = replace(parts[index], **changes)  # type: ignore[arg-type]
    return replace(scene, parts=tuple(parts))


def _described(part: Part, other: Part) -> Part:
    return replace(part, size=other.size, style=other.style, colour=other.colour)


def _contradict(one: str, other: str) -> bool:
    return bool(one) and bool(other) and one != other


def _sound(scene: Scene, changed: "Iterator[Scene] | list[Scene]") -> list[Scene]:
    return [one for one in changed if one != scene and parse(one.caption) == one]
