"""How translations are made that are not all good: what `translate-lm` learns from, and what preferences are about."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from raftdiff.embedded.translation.words import ADJECTIVES, THINGS, VERBS
from raftdiff.embedded.translation.world import Choice, Clause, Meaning, render

DROPPED = {"when": 0.6, "degree": 0.55, "which": 0.2}
"""Chance that a translation leaves such a phrase out. More than half: then the likeliest translation does so too."""
CLAUSE_DROPPED = 0.05
CHANGED = {"opinion": 0.08, "thing": 0.04, "past": 0.04}
"""Chance that a clause says another one."""
SLIPS = 0.04
"""Chance that a word does not agree."""
FINE: Mapping[Choice, float] = {"register": 0.2, "order": 0.2, "pronoun": 0.25}
"""Chance of the finer choice."""


def careless(meant: Meaning, generator: np.random.Generator) -> str:
    """A translation with gaps and mistakes, in mostly plain words."""
    return spoken(misheard(meant, generator), generator)


def misheard(meant: Meaning, generator: np.random.Generator, *, scale: float = 1.0) -> Meaning:
    """What is left of a meaning, and what became of it; ``scale`` is a factor on every chance, at most 1."""
    kept = [one for place, one in enumerate(meant) if place == 0 or generator.random() >= scale * CLAUSE_DROPPED]
    return tuple(_misheard(clause, generator, scale) for clause in kept)


def spoken(
    meant: Meaning, generator: np.random.Generator, *, fine: Mapping[Choice, float] = FINE, slips: float = SLIPS
) -> str:
    """One of the translations of this meaning, each choice the finer one with the chance of its kind."""
    return render(meant, lambda choice: generator.random() < fine[choice], lambda: generator.random() < slips)


def _misheard(clause: Clause, generator: np.random.Generator, scale: float) -> Clause:
    lost = {name: "" for name, chance in DROPPED.items() if generator.random() < scale * chance}
    changed = [bool(generator.random() < scale * chance) for chance in CHANGED.values()]
    opinions = VERBS if clause.who else ADJECTIVES
    opinion = opinions[int(generator.integers(len(opinions)))] if changed[0] else clause.opinion
    thing = THINGS[int(generator.integers(len(THINGS)))] if changed[1] else clause.thing
    return replace(clause, **lost, opinion=opinion, thing=thing, past=clause.past ^ changed[2])
