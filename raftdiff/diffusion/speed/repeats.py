"""Several things timed in turn, so that a machine that is slower for a while is so to all of them."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import NamedTuple, final

from raftdiff.errors import UserError
from raftdiff.training.fitting import attempted


class Call(NamedTuple):
    """What one call took."""

    seconds: float
    parts: Mapping[str, float] = MappingProxyType({})
    """Seconds of what it is made of, by any names."""


class Way(NamedTuple):
    """One thing to be timed."""

    table: str
    """With what it is compared."""
    name: str
    unit: str
    """Of what it does."""
    amount: float
    """So much of it in one call."""
    call: Callable[[], Call]
    """Does it once. Its own clock counts, so that what is made ready first does not."""


class Timed(NamedTuple):
    """A call that was made."""

    place: int
    """Of its way."""
    warm: bool
    """Whether the way had been called before."""
    took: Call | None
    """None where it failed."""
    left: float
    """Seconds of all calls that are still to be made, as far as is known."""
    failed: str = ""
    """Why it could not be done, for people: memory does not suffice, or this machine lacks something."""


@final
@dataclass(frozen=True, slots=True)
class Figure:
    """What the calls of one way came to."""

    table: str
    name: str
    unit: str
    amount: float
    seconds: tuple[float, ...]
    """Of each call."""
    parts: Mapping[str, float]
    """Medians of the calls' parts."""

    @property
    def rate(self) -> float:
        """Amount a second, by the median."""
        return self.amount / median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the greatest rate."""
        return self.amount / max(self.seconds), self.amount / min(self.seconds)


def in_turn(
    ways: Sequence[Way], *, repeats: int, budget: float = math.inf, clock: Callable[[], float] = time.monotonic
) -> Iterator[Timed]:
    """Call every way once to warm up, then all of them again ``repeats`` times, each call told when it is made.

    It ends where the next call would not be over within ``budget`` seconds from the start, by what it took before;
    what was never called has no part in that, but for the budget being used up. What fails is told, and not called
    again.
    """
    began, took, failed = clock(), dict[int, float](), set[int]()
    for turn in range(repeats + 1):
        for place, way in enumerate(ways):
            if place in failed:
                continue
            spent = clock() - began
            if spent + took.get(place, 0.0) > budget:
                return
            call, why = _tried(way)
            if call is None:
                failed.add(place)
            took[place] = 0.0 if call is None else clock() - began - spent
            known = sum(took.values()) / max(1, len(took) - len(failed))
            later = [took.get(it, known) for it in range(len(ways))]
            left = sum(later[place + 1 :]) + (repeats - turn) * sum(later)
            yield Timed(place, turn > 0, call, max(0.0, min(left, budget - (clock() - began))), why)


def _tried(way: Way) -> tuple[Call | None, str]:
    """What a call took, or why it could not be made."""
    try:
        made = attempted(way.call)
    except UserError as error:
        return None, f"{error}"
    return (None, "memory does not suffice") if made is None else (made[0], "")


def figures(ways: Sequence[Way], calls: Sequence[Timed]) -> list[Figure]:
    """Of every way that was called and did not fail, without its first call where there are others."""
    found = []
    for place, way in enumerate(ways):
        own = [(it.warm, it.took) for it in calls if it.place == place]
        made = [(warm, call) for warm, call in own if call is not None]
        counting = [call for warm, call in made if warm] or [call for _, call in made]
        if counting and len(made) == len(own):
            parts = {name: median(it.parts.get(name, 0.0) for it in counting) for name in counting[0].parts}
            seconds = tuple(it.seconds for it in counting)
            found.append(Figure(way.table, way.name, way.unit, way.amount, seconds, parts))
    return found
