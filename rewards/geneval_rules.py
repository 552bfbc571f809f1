"""GenEval's rules: whether the objects that were found in a picture are those that its prompt asks for.

Pure functions over detections; what finds the objects is ``detection``, and who asks both is ``geneval``.

Source: Ghosh, Hajishirzi & Schmidt 2023, "GenEval", arXiv:2310.11513; what their evaluation/evaluate_images.py computes
(github.com/djghosh13/geneval, MIT). No departures: the published thresholds are the defaults.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Bool

from raftdiff.errors import UserError
from raftdiff.types import Reason

MISSING, TOO_FEW, TOO_MANY = "missing", "too few", "too many"
COLOUR, PLACE, NO_TARGET = "another colour", "another place", "no target"
"""The kinds of reasons."""
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
MARGIN = 0.1
"""Of the two objects' sizes together: how far apart their middles must be along an axis, before it counts."""
DIAGONAL = 0.5
"""Of the distance: what must lie along an axis for the word of that axis to hold."""
MOST = 16
"""Objects of a class that are looked at."""
TINY = 1e-3

Edge = float | int
Box = tuple[Edge, Edge, Edge, Edge]
"""Left, top, right and bottom edge, in pixels from the upper left corner of the picture."""


@final
@dataclass(frozen=True, slots=True)
class Detection:
    """One object that was found."""

    label: str
    """Its class, as the prompt file calls it."""
    score: float
    """How sure the detector is, 0 to 1."""
    box: Box
    mask: Bool[np.ndarray, "height width"] | None = None
    """Which of the picture's pixels it covers, where the detector says so."""


@final
@dataclass(frozen=True, slots=True)
class Clause:
    """What a prompt says of one class of objects."""

    label: str
    count: int
    colour: str | None = None
    position: tuple[str, int] | None = None
    """One of ``RELATIONS``, and the place among the clauses of what it stands there relative to."""


class Wanted(NamedTuple):
    """What a prompt asks for: each of ``include``, and none of ``exclude``."""

    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that must be looked for, each once."""
        return tuple(dict.fromkeys(clause.label for clause in (*self.include, *self.exclude)))


class Verdict(NamedTuple):
    right: bool
    reasons: tuple[Reason, ...] = ()
    """What is wrong, one of a clause, in the published words."""


def wanted(meta: Mapping[str, Any], where: str) -> Wanted:
    """What a row of GenEval's prompt file asks for, from its columns ``tag``, ``include`` and ``exclude``.

    Raises:
        UserError: a column is missing or of another form; ``where`` says in the sentence whose it is.
    """
    known = "a row of GenEval's evaluation_metadata.jsonl has tag, include and prompt"
    if not isinstance(meta.get("include"), list) or not meta["include"] or not isinstance(meta.get("tag"), str):
        raise UserError(f"{where}: there is no 'include' and 'tag' that say what the picture should show; {known}.")
    excluded = meta.get("exclude") or []
    if not isinstance(excluded, list):
        raise UserError(f"{where}: 'exclude' is {type(excluded).__name__} and no list; {known}.")
    include: list[Clause] = []
    for row in meta["include"]:
        clause = _clause(row, where)
        if clause.position is not None and not 0 <= clause.position[1] < len(include):
            raise UserError(
                f"{where}: '{clause.label}' stands {clause.position[0]} object {clause.position[1]} of 'include', and "
                f"before it there {'is' if len(include) == 1 else 'are'} {len(include)}."
            )
        include.append(clause)
    return Wanted(meta["tag"], tuple(include), tuple(_clause(row, where) for row in excluded))


def _clause(row: Any, where: str) -> Clause:
    match row:
        case {"class": str(label), "count": int(count)} if count > 0:
            colour, position = row.get("color"), row.get("position")
        case _:
            raise UserError(f"{where}: {row!r} is no object with a 'class' and a 'count' from 1.")
    if colour is not None and colour not in COLOURS:
        raise UserError(f"{where}: '{colour}' is no colour that GenEval knows: {', '.join(COLOURS)}.")
    match position:
        case None:
            return Clause(label, count, colour)
        case [str(relation), int(target)] if relation in RELATIONS:
            return Clause(label, count, colour, (relation, target))
        case _:
            raise UserError(
                f"{where}: the position {position!r} is not one of {', '.join(RELATIONS)} with the number of an object."
            )


def kept(detections: Sequence[Detection], threshold: float, most: int = MOST) -> dict[str, list[Detection]]:
    """By class, the detections that are surer than the threshold, the surest first, at most so many of a class."""
    found: dict[str, list[Detection]] = {}
    for one in sorted(detections, key=lambda it: -it.score):
        if one.score > threshold and len(held := found.setdefault(one.label, [])) < most:
            held.append(one)
    return {label: held for label, held in found.items() if held}


def relations(one: Box, other: Box) -> frozenset[str]:
    """Where ``one`` stands relative to ``other``: none of ``RELATIONS``, one, or two of a diagonal.

    From the offset of the middles ``MARGIN`` of both widths (heights) is taken off; what is left must be more than
    ``DIAGONAL`` of the whole distance. So of objects that are near each other, as seen by their size, nothing is said.

    >>> sorted(relations((0, 0, 10, 10), (50, 0, 60, 10))), sorted(relations((0, 0, 10, 10), (1, 0, 11, 10)))
    (['left of'], [])
    """
    boxes = np.array([one, other], dtype=np.float64).reshape(2, 2, 2)
    (middle, other_middle), sizes = boxes.mean(axis=1), np.abs(boxes[:, 1] - boxes[:, 0]).sum(axis=0)
    offset = middle - other_middle
    beyond = np.maximum(np.abs(offset) - MARGIN * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < TINY).all():
        return frozenset()
    x, y = beyond / np.linalg.norm(offset)
    told = {"left of": x < -DIAGONAL, "right of": x > DIAGONAL, "above": y < -DIAGONAL, "below": y > DIAGONAL}
    return frozenset(name for name, holds in told.items() if holds)


def judge(
    asked: Wanted,
    found: Mapping[str, Sequence[Detection]],
    colours: Callable[[Sequence[Detection], str], Sequence[str]],
) -> Verdict:
    """Whether a picture shows all that its prompt asks for.

    Of each class in ``include`` its ``count`` must be there, and only the surest so many are looked at: they must have
    the colour, and each must stand as asked relative to each of those that the target's clause matched. More than asked
    is wrong only where ``exclude`` says so, as GenEval's counting prompts do.

    Args:
        found: ``kept`` detections by class, the surest first.
        colours: names the colour of each of some objects of a class; it is asked only where a clause names one.
    """
    wrong: list[Reason] = []
    matched: list[Sequence[Detection]] = []  # empty where the clause does not hold: nothing can stand relative to it
    for clause in asked.include:
        objects = list(found.get(clause.label, ()))[: clause.count]
        reason = _lacks(clause, objects, matched, colours)
        matched.append(() if reason else objects)
        wrong += [reason] if reason else []
    for clause in asked.exclude:
        if (there := len(found.get(clause.label, ()))) >= clause.count:
            wrong.append(Reason(TOO_MANY, f"expected {clause.label}<{clause.count}, found {there}"))
    return Verdict(not wrong, tuple(wrong))


def _lacks(
    clause: Clause,
    objects: Sequence[Detection],
    matched: Sequence[Sequence[Detection]],
    colours: Callable[[Sequence[Detection], str], Sequence[str]],
) -> Reason | None:
    """Why a clause does not hold; None where it does."""
    if len(objects) < clause.count:
        kind = TOO_FEW if objects else MISSING
        return Reason(kind, f"expected {clause.label}>={clause.count}, found {len(objects)}")
    if clause.colour is not None:
        seen = list(colours(objects, clause.label))
        if seen.count(clause.colour) < clause.count:
            told = f"expected {clause.colour} {clause.label}>={clause.count}, found {', '.join(seen)}"
            return Reason(COLOUR, told)
    if clause.position is not None:
        relation, target = clause.position
        if not matched[target]:
            return Reason(NO_TARGET, f"no target for {clause.label} to be {relation}")
        for one in objects:
            for other in matched[target]:
                if relation not in (true := relations(one.box, other.box)):
                    where = " and ".join(sorted(true)) or "neither"
                    return Reason(PLACE, f"expected {clause.label} {relation} target, found {where}")
    return None
