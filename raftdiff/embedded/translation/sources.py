"""Sources: what they mean, which of them are held out, and how the source language says it.

Sources whose pairs of thing and opinion lie in one stripe are held out. Imports neither torch nor transformers.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, final

import numpy as np

from raftdiff.embedded.translation.words import (
    ADJECTIVES,
    DEGREES,
    FELT,
    LINKS,
    MANY,
    THINGS,
    VERBS,
    WHEN,
    WHICH,
    WHO,
    present,
)
from raftdiff.errors import UserError

COUNTS = {1: 0.35, 2: 0.5, 3: 0.15}
"""Clauses of a source -> probability."""
_SHARES = {"feeling": 0.4, "which": 0.35, "degree": 0.4, "when": 0.3, "past": 0.6, "and": 0.6, "same": 0.35}
STRIPE = 6


@final
@dataclass(frozen=True, slots=True)
class Clause:
    """What one clause says; "" where it does not say such a thing."""

    thing: str
    opinion: str
    """An adjective; with ``who`` a verb."""
    past: bool = False
    link: str = ""
    """How it goes on from the clause before; of the first nothing."""
    who: str = ""
    """Who feels; nobody where the thing is or was so."""
    which: str = ""
    degree: str = ""
    when: str = ""

    @property
    def subject(self) -> tuple[str, ...]:
        return (self.who,) if self.who else (self.thing, self.which)

    @property
    def many(self) -> bool:
        """Whether its subject is."""
        return WHO[self.who] if self.who else self.thing in MANY


Meaning: TypeAlias = tuple[Clause, ...]


def held_out(clause: Clause) -> bool:
    """Whether its pair of thing and opinion was kept from the model's training."""
    return (THINGS.index(clause.thing) + (*ADJECTIVES, *VERBS).index(clause.opinion)) % STRIPE == 0


def draw(generator: np.random.Generator, *, apart: bool = False, most: int = max(COUNTS)) -> Meaning:
    """What a random source of at most so many clauses means: none of them is held out, or with ``apart`` every one."""
    found: list[Clause] = []
    count = min(most, int(generator.choice(list(COUNTS), p=list(COUNTS.values()))))
    while len(found) < count:
        clause = _clause(generator, found[-1] if found else None)
        if held_out(clause) is apart and all(clause.opinion != one.opinion for one in found):
            found.append(clause)
    return tuple(found)


def _clause(generator: np.random.Generator, before: Clause | None) -> Clause:
    def perhaps(share: str, texts: Sequence[str]) -> str:
        return pick(texts) if generator.random() < _SHARES[share] else ""

    def pick(texts: Sequence[str]) -> str:
        return texts[int(generator.integers(len(texts)))]

    who, thing, which = perhaps("feeling", tuple(WHO)), pick(THINGS), perhaps("which", WHICH)
    if before is not None and generator.random() < _SHARES["same"]:
        who = before.who
        thing, which = (thing, which) if who else (before.thing, before.which)
    return Clause(
        thing,
        pick(VERBS if who else ADJECTIVES),
        past=bool(generator.random() < _SHARES["past"]),
        link="" if before is None else LINKS[generator.random() >= _SHARES["and"]],
        who=who,
        which=which,
        degree=perhaps("degree", DEGREES),
        when=perhaps("when", WHEN),
    )


def source(meant: Meaning) -> str:
    """The prompt that means this, its colon included."""
    parts = []
    for clause in meant:
        link = {"": [], "and": ["and"], "but": [",", "but"]}[clause.link]
        when = [clause.when, ","] if clause.when else []
        thing, degree = ["the", clause.which, clause.thing], clause.degree
        if clause.who:
            verb = FELT[clause.opinion] if clause.past else present(clause.opinion, clause.who)
            said = [clause.who, degree, verb, *thing]
        else:
            verb = {False: ("is", "are"), True: ("was", "were")}[clause.past][clause.many]
            said = [*thing, verb, degree, clause.opinion]
        parts += [*link, *when, *said]
    return " ".join([*filter(None, parts), ":"])


_SOURCE = re.compile(
    rf"(?:(?P<when>{'|'.join(WHEN)}) , )?(?:(?P<who>{'|'.join(WHO)}) (?P<manner>(?:{'|'.join(DEGREES)}) )?"
    rf"(?P<verb>{'|'.join([*FELT.values(), *(f'{verb}s?' for verb in VERBS)])}) )?"
    rf"the (?P<which>(?:{'|'.join(WHICH)}) )?(?P<thing>{'|'.join(THINGS)})"
    rf"(?: (?P<is>is|are|was|were) (?P<degree>(?:{'|'.join(DEGREES)}) )?(?P<adjective>{'|'.join(ADJECTIVES)}))?"
)


@lru_cache(maxsize=1 << 14)
def meaning(prompt: str) -> Meaning:
    """What a source means.

    Raises:
        UserError: the prompt is none of this world (all functions that take one).
    """
    text = prompt.strip()
    pieces = re.split(r" (and|, but) ", text.removesuffix(" :"))
    links = ["", *(piece.removeprefix(", ") for piece in pieces[1::2])]
    clauses = [_read(link, piece) for link, piece in zip(links, pieces[::2], strict=True)]
    found = tuple(clause for clause in clauses if clause is not None)
    if len(found) < len(clauses) or source(found) != text:
        raise UserError(
            f"'{prompt}' is no source of the world of translation; write one like 'the final script was truly superb , "
            "but my sister hated the scenes :'."
        )
    return found


def _read(link: str, piece: str) -> Clause | None:
    match = _SOURCE.fullmatch(piece)
    if match is None or bool(match["verb"]) == bool(match["adjective"]):
        return None
    felt = {past: verb for verb, past in FELT.items()}
    verb = match["verb"] or ""
    opinion = felt.get(verb) or (verb if verb in VERBS else verb.removesuffix("s")) or match["adjective"]
    past = verb in felt or match["is"] in ("was", "were")
    degree = (match["manner"] or match["degree"] or "").strip()
    which, when = (match["which"] or "").strip(), match["when"] or ""
    return Clause(match["thing"], opinion, past, link, match["who"] or "", which, degree, when)


def check(prompts: Iterable[str]) -> None:
    """
    Raises:
        UserError: one of them is none of this world.
    """
    for prompt in prompts:
        meaning(prompt)
