"""The parts of the world of programs: what tasks say, what that is in Python, and what a beginner takes it for."""

from collections.abc import Mapping
from typing import NamedTuple, final


@final
class Part(NamedTuple):
    """One thing that a task can ask for. ``{k}`` stands for its number where it has one."""

    code: str
    """What is right."""
    mistaken: tuple[str, ...]
    """What is written in its place."""
    known: float
    """How often it is written right in what the base model learns from, 0 to 1."""


KNOWN, UNKNOWN = 0.72, 0.12
"""Most of the programs have an easy part right and a hard part wrong, so that sampling, not the mode, finds it."""

# The order decides the hold-outs (see `world.held_out`): append, never insert.
VALUES: Mapping[str, Part] = {
    "the sum": Part("sum(xs)", ("len(xs)", "max(xs)"), KNOWN),
    "the spread": Part("max(xs) - min(xs)", ("max(xs)", "xs[-1] - xs[0]"), UNKNOWN),
    "the largest": Part("max(xs)", ("min(xs)", "xs[-1]"), KNOWN),
    "the runner-up": Part("sorted(xs)[-2]", ("sorted(xs)[-1]", "sorted(xs)[1]"), UNKNOWN),
    "the smallest": Part("min(xs)", ("max(xs)", "xs[0]"), KNOWN),
    "the variety": Part("len(set(xs))", ("len(xs)", "set(xs)"), UNKNOWN),
    "the count": Part("len(xs)", ("sum(xs)", "len(xs) - 1"), KNOWN),
    "the floored mean": Part("sum(xs) // len(xs)", ("sum(xs) / len(xs)", "sum(xs) // 2"), UNKNOWN),
    "the first": Part("xs[0]", ("xs[1]", "xs[-1]"), KNOWN),
    "the sum of squares": Part("sum(x * x for x in xs)", ("sum(xs) * sum(xs)", "sum(x * 2 for x in xs)"), UNKNOWN),
    "the last": Part("xs[-1]", ("xs[0]", "xs[-2]"), KNOWN),
    "the number of negatives": Part("sum(x < 0 for x in xs)", ("sum(x > 0 for x in xs)", "len(xs)"), UNKNOWN),
}
CONDITIONS: Mapping[str, Part] = {
    "the first is even": Part("xs[0] % 2 == 0", ("xs[0] % 2 == 1", "xs[1] % 2 == 0"), KNOWN),
    "the numbers rise": Part("xs == sorted(xs)", ("xs[0] < xs[-1]", "xs[0] < xs[1]"), UNKNOWN),
    "the last is negative": Part("xs[-1] < 0", ("xs[-1] > 0", "xs[0] < 0"), KNOWN),
    "there are more than {k}": Part("len(xs) > {k}", ("len(xs) >= {k}", "sum(xs) > {k}"), KNOWN),
    "all are positive": Part("min(xs) > 0", ("max(xs) > 0", "xs[0] > 0"), UNKNOWN),
    "the sum is odd": Part("sum(xs) % 2 == 1", ("sum(xs) % 2 == 0", "len(xs) % 2 == 1"), KNOWN),
    "the first is above {k}": Part("xs[0] > {k}", ("xs[0] >= {k}", "xs[0] < {k}"), KNOWN),
    "some are zero": Part("0 in xs", ("xs[0] == 0", "0 == xs"), UNKNOWN),
}
ALWAYS = Part("", (), 1.0)
"""The condition of the last case."""
CHANGES: Mapping[str, str] = {"plus": "+", "minus": "-", "times": "*"}
CHANGE_KNOWN = 0.88
"""How often a change of the value ("plus two") is written right."""
NUMBERS: Mapping[int, str] = dict(enumerate(("two", "three", "four", "five", "six", "seven", "eight", "nine"), start=2))
FEW = (2, 3, 4, 5)
"""Numbers that a condition compares with."""

BRANCHES: Mapping[int, float] = {1: 1 / 4, 2: 3 / 4}
"""Cases of a task -> share of the tasks."""
STRANGE = 0.04
"""Share of programs that solve some other task."""
SLIPS: Mapping[str, float] = {"torn": 0.1, "unnamed": 0.05}
"""Share of programs with a sign or an indentation lost, so that they do not parse; with a name that nobody gave, so
that they do not run."""
