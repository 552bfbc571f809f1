"""What a picture must show to be right, given what a detector found in it: rules as GenEval's (arXiv:2310.11513).

Pure functions of findings and captions. A verdict is None where the caption does not ask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from raftdiff.embedded.scenes.layout import MIDDLE
from raftdiff.embedded.scenes.world import Part, Scene

FACTORS = ("object", "count", "relation", "size", "style", "colour", "ground")


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that a detector saw."""

    object: str
    look: str
    """``cartoon``, or the colour of a sketch."""
    x: float
    y: float
    size: float
    """Pixels, as ``x`` and ``y``."""
    score: float


def verdicts(scene: Scene, found: Sequence[Found], ground: str | None) -> dict[str, bool | None]:
    """A verdict for each of `FACTORS`, and ``exact``: all that the caption asks for, and nothing besides.

    ``object``: each named thing is there, and no other. ``count``: each as often as asked. ``size``, ``style`` and
    ``colour``: every specimen is as asked. ``relation``: of the most certain specimen of each.
    """
    by_part = [[thing for thing in found if thing.object == part.object] for part in scene.parts]
    named = {part.object for part in scene.parts}
    right: dict[str, bool | None] = {
        "object": all(by_part) and all(thing.object in named for thing in found),
        "count": all(len(things) == part.count for part, things in zip(scene.parts, by_part, strict=True)),
        "relation": _related(scene.relation, by_part) if scene.relation else None,
        "size": _all(scene.parts, by_part, "size"),
        "style": _all(scene.parts, by_part, "style"),
        "colour": _all(scene.parts, by_part, "colour"),
        "ground": ground == scene.ground if scene.ground else None,
    }
    return {**right, "exact": all(value is not False for value in right.values())}


def _related(relation: str, by_part: Sequence[Sequence[Found]]) -> bool:
    if not all(by_part):
        return False
    first, second = (max(things, key=lambda thing: thing.score) for things in by_part)
    right, down = second.x - first.x, second.y - first.y
    along = {"left of": right, "right of": -right, "above": down, "below": -down}[relation]
    across = abs(down if relation in ("left of", "right of") else right)
    return along > across


def _all(parts: Sequence[Part], by_part: Sequence[Sequence[Found]], word: str) -> bool | None:
    asked = [(getattr(part, word), things) for part, things in zip(parts, by_part, strict=True) if getattr(part, word)]
    if not asked:
        return None
    return all(bool(things) and all(_is(thing, wanted) for thing in things) for wanted, things in asked)


def _is(thing: Found, wanted: str) -> bool:
    if wanted in ("small", "large"):
        return (thing.size < MIDDLE) == (wanted == "small")
    if wanted in ("cartoon", "sketched"):
        return (thing.look == "cartoon") == (wanted == "cartoon")
    return thing.look == wanted
