"""The world of programs: tasks in plain words, each with a program that solves it and tests computed from that.

A task reads ``"if the first is even , the largest plus two ; else the sum :"``, its program

    def f(xs):
        if xs[0] % 2 == 0:
            return max(xs) + 2
        return sum(xs)

on lists of two to seven whole numbers. A task has one case or two. Some of the things that can be asked for are
easy, the others are hard: a beginner mostly has those wrong (``beginner``), in the same way each time. Some pairs of a
condition and what is returned under it, and of a value and its change where a task has one case, are held out of all
training.
Imports neither torch nor transformers.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from random import Random
from typing import Any, NamedTuple, final

from raftdiff.embedded.programs.grammar import (
    ALWAYS,
    BRANCHES,
    CHANGE_KNOWN,
    CHANGES,
    CONDITIONS,
    FEW,
    NUMBERS,
    SLIPS,
    STRANGE,
    VALUES,
    Part,
)
from raftdiff.errors import UserError
from raftdiff.seeds import fold

STRIPES = 6
LENGTHS = (2, 7)
LARGEST = 9


@final
class Case(NamedTuple):
    """What is returned, and when. Example: ``Case("the first is even", 0, "the largest", "plus", 2)``."""

    condition: str
    """A key of ``CONDITIONS``; empty for the last case, which is all that is left."""
    bound: int
    """The number in the condition; 0 where it has none."""
    value: str
    """A key of ``VALUES``."""
    change: str
    """A key of ``CHANGES``, or empty."""
    number: int
    """By how much it is changed; 0 without a change."""


Task = tuple[Case, ...]
"""Its cases in order; the first whose condition holds counts, and the last has none."""


def draw(generator: Random) -> Task:
    """Any task of the world, held out or not; no value occurs twice in it, nor a condition."""
    (count,) = generator.choices(list(BRANCHES), list(BRANCHES.values()))
    values = generator.sample(list(VALUES), count)
    conditions = [*generator.sample(list(CONDITIONS), count - 1), ""]
    cases = []
    for condition, value in zip(conditions, values, strict=True):
        bound = generator.choice(FEW) if "{k}" in condition else 0
        (change,) = generator.choices(["", *CHANGES], [0.4, 0.2, 0.2, 0.2])
        number = generator.choice(list(NUMBERS)) if change else 0
        cases.append(Case(condition, bound, value, change, number))
    return tuple(cases)


def held_out(task: Task) -> bool:
    """Whether it holds a pair that no training task has: a condition and its value, or a lone value and its change."""
    return any(_stripe(case, alone=len(task) == 1) == 0 for case in task)


def _stripe(case: Case, *, alone: bool) -> int:
    value = list(VALUES).index(case.value)
    if case.condition:
        return (value - list(CONDITIONS).index(case.condition)) % STRIPES
    return (value - ["", *CHANGES].index(case.change)) % STRIPES if alone else 1


def tasks(count: int, *, seed: int, out: bool) -> list[Task]:
    """Different tasks, all held out or none of them."""
    generator, found = Random(seed), dict[Task, None]()
    while len(found) < count:
        found[drawn(generator, out=out)] = None
    return list(found)


def drawn(generator: Random, *, out: bool) -> Task:
    """A task that is held out, or one that is not."""
    while held_out(task := draw(generator)) != out:
        pass
    return task


def prompt(task: Task) -> str:
    """The task in words.

    >>> prompt((Case("the first is even", 0, "the largest", "plus", 2), Case("", 0, "the sum", "", 0)))
    'if the first is even , the largest plus two ; else the sum :'
    """
    said = []
    for case in task:
        value = " ".join([case.value, case.change, NUMBERS.get(case.number, "")]).rstrip()
        condition = case.condition.replace("{k}", NUMBERS.get(case.bound, ""))
        said.append(f"if {condition} , {value}" if condition else f"else {value}" if len(task) > 1 else value)
    return " ; ".join(said) + " :"


def check(prompts: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of them is none of this world.
    """
    for one in prompts:
        if not _words().fullmatch(one):
            raise UserError(
                f"'{one}' is no task in the world of programs; one is "
                "'if the first is even , the largest plus two ; else the sum :'."
            )


@lru_cache(maxsize=1)
def _words() -> re.Pattern[str]:
    """What ``prompt`` says, of any task."""
    number = "|".join(NUMBERS.values())
    conditions = "|".join(re.escape(one).replace(re.escape("{k}"), f"({number})") for one in CONDITIONS)
    value = f"({'|'.join(map(re.escape, VALUES))})( ({'|'.join(map(re.escape, CHANGES))}) ({number}))?"
    return re.compile(f"((if ({conditions}) , {value} ; )+else )?{value} :")


def solution(task: Task) -> str:
    """The program that is right."""
    return _program([(_bounded(_condition(c).code, c), _changed(VALUES[c.value].code, c)) for c in task])


def beginner(task: Task, generator: Random) -> str:
    """A program as the base model has seen them: each part right as often as it is ``known``, and now and then torn."""
    asked = drawn(generator, out=False) if generator.random() < STRANGE else task
    program = _program([_attempt(case, generator) for case in asked])
    slip = generator.random()
    if slip < SLIPS["torn"]:
        return _torn(program, generator)
    if slip < SLIPS["torn"] + SLIPS["unnamed"]:
        places = [match.start() for match in re.finditer(r"\bxs\b", program)][1:]
        place = generator.choice(places)
        return f"{program[:place]}ys{program[place + 2 :]}"
    return program


def _attempt(case: Case, generator: Random) -> tuple[str, str]:
    value = _taken(VALUES[case.value], generator)
    if case.change and generator.random() > CHANGE_KNOWN:
        others = [None, *(sign for sign in CHANGES if sign != case.change)]
        other = generator.choice(others)
        case = case._replace(change=other or "", number=case.number if other else 0)
    return _bounded(_taken(_condition(case), generator), case), _changed(value, case)


def _condition(case: Case) -> Part:
    return CONDITIONS.get(case.condition, ALWAYS)


def _taken(part: Part, generator: Random) -> str:
    """The part's code, or what it is mistaken for: the first of them two times in three."""
    if generator.random() < part.known:
        return part.code
    return part.mistaken[int(generator.random() < 1 / 3)] if part.mistaken else part.code


def _torn(program: str, generator: Random) -> str:
    places = [match.span() for match in re.finditer(r"[)\[\]:]|\n +", program)]
    start, end = generator.choice(places)
    return program[:start] + program[start:end].strip(" )[]:") + program[end:]


def _bounded(code: str, case: Case) -> str:
    return code.replace("{k}", str(case.bound))


def _changed(code: str, case: Case) -> str:
    if not case.change:
        return code
    whole = f"({code})" if " - " in code and case.change == "times" else code
    return f"{whole} {CHANGES[case.change]} {case.number}"


def _program(cases: Sequence[tuple[str, str]]) -> str:
    lines = ["def f(xs):"]
    for condition, value in cases:
        lines += [f"    if {condition}:", f"        return {value}"] if condition else [f"    return {value}"]
    return "\n".join(lines)


def tests(task: Task, count: int, *, seed: int) -> list[str]:
    """Statements that the right program passes: ``count`` different lists, as many for each case as can be.

    Of the ``seed`` depends which lists: those of another seed are others, but for chance.
    """
    generator, solve = Random(fold(seed, prompt(task))), _function(solution(task))
    wanted = [count // len(task) + (place < count % len(task)) for place in range(len(task))]
    found: dict[str, None] = {}
    while any(wanted):
        xs = _numbers(generator)
        place = next(i for i, case in enumerate(task) if not case.condition or _holds(case)(xs))
        test = f"assert f({xs}) == {solve(xs)}"
        if wanted[place] and test not in found:
            found[test] = None
            wanted[place] -= 1
    return list(found)


def _numbers(generator: Random) -> list[int]:
    """A list, every other one of a kind that is rare by chance: rising, positive, with a zero."""
    xs = [generator.randint(-LARGEST, LARGEST) for _ in range(generator.randint(*LENGTHS))]
    match generator.randrange(6):
        case 0:
            return sorted(xs)
        case 1:
            return [abs(x) or 1 for x in xs]
        case 2:
            return [*xs[:-1], 0][:: 1 if generator.random() < 0.5 else -1]
        case _:
            return xs


@lru_cache(maxsize=1024)
def _holds(case: Case) -> Callable[[list[int]], bool]:
    return _function(f"def f(xs):\n    return {_bounded(CONDITIONS[case.condition].code, case)}")


def _function(program: str) -> Callable[[list[int]], Any]:
    """Of a program of ours; a model's is run in the sandbox alone."""
    names: dict[str, Any] = {}
    exec(program, names)
    found: Callable[[list[int]], Any] = names["f"]
    return found
