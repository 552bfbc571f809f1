"""The world of translation: how a meaning may be said, and how good a translation is, exactly.

A prompt reads ``"at first , the final script was truly superb , but my sister hated the scenes :"``: one to three
clauses of the text world's words (``sources``). The target language puts the verb last and adjectives after their
noun; its words agree. Of one source it has several right translations: plain words or fine ones, the time before the
sentence (as the source has it) or, finer, before the verb, a subject said again or, finer, a pronoun. So three things
are known exactly of every text: whether it says what the source says (adequacy, and a graded one), whether it is
grammatical, and how elegant it is. Imports neither torch nor transformers.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Literal, NamedTuple, TypeAlias

from raftdiff.embedded.translation.sources import Clause, Meaning, check, draw, held_out, meaning, source
from raftdiff.embedded.translation.words import TARGET, Role, Word, vocabulary, written

__all__ = [
    "Clause",
    "Meaning",
    "adequate",
    "check",
    "draw",
    "elegance",
    "faithfulness",
    "fluent",
    "heard",
    "held_out",
    "meaning",
    "quality",
    "references",
    "render",
    "source",
    "vocabulary",
]

Choice: TypeAlias = Literal["register", "order", "pronoun"]


def render(meant: Meaning, fine: Callable[[Choice], bool], slip: Callable[[], bool] = lambda: False) -> str:
    """A translation of what is meant: ``fine`` is asked wherever there is a choice, ``slip`` of every word that should
    agree whether it does not. With ``lambda _: True`` it is the most elegant one, with ``lambda _: False`` the
    plainest.
    """
    said: list[Word] = []
    for place, clause in enumerate(meant):
        again = place > 0 and clause.subject == meant[place - 1].subject
        said += _clause_words(clause, again, fine, slip)
    return " ".join(map(written, said))


def _clause_words(clause: Clause, again: bool, fine: Callable[[Choice], bool], slip: Callable[[], bool]) -> list[Word]:
    noun = TARGET[_thing(clause.thing)]
    thing = [
        noun,
        *([_slipped(Word("which", clause.which, False, noun.form, noun.many), slip)] if clause.which else []),
    ]
    subject = [Word("who", clause.who, many=clause.many)] if clause.who else thing
    if again and fine("pronoun"):
        subject = [_slipped(Word("pronoun", "", many=clause.many), slip)]
    degree = [Word("degree", clause.degree, fine("register"))] if clause.degree else []
    if clause.who:
        middle = [*thing, *degree]
        verb = Word("verb", clause.opinion, fine("register"), "", clause.many, clause.past)
    else:
        middle = [*degree, _slipped(Word("adjective", clause.opinion, fine("register"), noun.form, noun.many), slip)]
        verb = Word("is", "", False, "", clause.many, clause.past)
    when = [Word("when", clause.when)] if clause.when else []
    late = bool(when) and fine("order")
    front, back = ([], when) if late else (when, [])
    link = [Word("link", clause.link)] if clause.link else []
    return [*link, *front, *subject, *middle, *back, _slipped(verb, slip)]


def _thing(thing: str) -> str:
    return _THINGS[thing]


_THINGS = {word.says: text for text, word in TARGET.items() if word.role == "thing"}


def _slipped(word: Word, slip: Callable[[], bool]) -> Word:
    """The word in another number, where it slips."""
    return replace(word, many=not word.many) if slip() else word


class Heard(NamedTuple):
    """A clause of a translation."""

    clause: Clause
    agrees: bool
    choices: list[bool]
    """Of each choice that it had, whether it took the finer."""


_ROLES = {
    "thing": "t",
    "which": "w",
    "degree": "d",
    "adjective": "a",
    "verb": "v",
    "is": "c",
    "who": "p",
    "pronoun": "q",
    "when": "n",
    "link": "l",
}
_CLAUSE = re.compile(r"l?(n?)(?:(?:tw?|q)d?a(n?)c|(?:p|q)tw?d?(n?)v)")


@lru_cache(maxsize=1 << 14)
def heard(text: str) -> tuple[Heard | None, ...]:
    """The clauses of a translation, cut before each link; None for a piece that is no clause, whatever its words mean.

    Agreement is not asked here but told.
    """
    pieces: list[list[Word | None]] = [[]]
    for word in (TARGET.get(one) for one in text.split()):
        if word is not None and word.role == "link" and pieces[-1]:
            pieces.append([])
        pieces[-1].append(word)
    found: list[Heard | None] = []
    for place, piece in enumerate(pieces):
        found.append(_heard(piece, found[-1] if found else None, linked=place > 0))
    return tuple(found)


def _heard(piece: Sequence[Word | None], before: Heard | None, *, linked: bool) -> Heard | None:
    words = [word for word in piece if word is not None]
    match = _CLAUSE.fullmatch("".join(_ROLES[word.role] for word in words))
    if match is None or len(words) < len(piece) or (words[0].role == "link") is not linked:
        return None
    early, late = match[1], match[2] or match[3]
    by_role = {word.role: word for word in words}
    if early and late:
        return None
    said = {role: word.says for role, word in by_role.items()}
    last, pronoun = words[-1], by_role.get("pronoun")
    clause = Clause(
        said.get("thing", ""),
        said.get("adjective") or said.get("verb", ""),
        last.past,
        said.get("link", ""),
        said.get("who", ""),
        said.get("which", ""),
        said.get("degree", ""),
        said.get("when", ""),
    )
    if pronoun:
        feels = last.role == "verb"
        if before is None or bool(before.clause.who) is not feels:
            return None
        spoken = before.clause
        clause = replace(clause, who=spoken.who) if feels else replace(clause, thing=spoken.thing, which=spoken.which)
    agrees = _agrees(by_role, clause)
    choices = [word.fine for word in words if word.role in ("degree", "adjective", "verb")]
    choices += [bool(late)] if "when" in by_role else []
    choices += [pronoun is not None] if before and before.clause.subject == clause.subject else []
    return Heard(clause, agrees, choices)


_LIKE_NOUN: tuple[Role, ...] = ("which", "adjective")
_LIKE_SUBJECT: tuple[Role, ...] = ("verb", "is", "pronoun")


def _agrees(by_role: Mapping[Role, Word], clause: Clause) -> bool:
    noun = TARGET[_THINGS[clause.thing]]
    like_noun = all(
        (by_role[role].form, by_role[role].many) == (noun.form, noun.many) for role in _LIKE_NOUN if role in by_role
    )
    like_subject = all(by_role[role].many is clause.many for role in _LIKE_SUBJECT if role in by_role)
    return like_noun and like_subject


# --- how good they are


def adequate(prompt: str, text: str) -> bool:
    """Whether the translation says all that the source says, and nothing else, whatever its agreement and its style."""
    return tuple(one.clause if one else None for one in heard(text)) == meaning(prompt)


def faithfulness(prompt: str, text: str) -> float:
    """How much of what is said is said by both, 0 to 1 (F1 over facts); 1 where it is adequate, and only there nearly.

    Facts are a thing with its opinion, who felt so, which thing, to what degree, when, in which tense, and the link. A
    piece that is no clause is one wrong fact.
    """
    wanted = Counter(fact for clause in meaning(prompt) for fact in _facts(clause))
    given = Counter(fact for one in heard(text) for fact in (_facts(one.clause) if one else _NOTHING))
    return 2 * (wanted & given).total() / (wanted.total() + given.total())


_NOTHING: list[tuple[str, ...]] = [("broken",)]


def _facts(clause: Clause) -> list[tuple[str, ...]]:
    facts: list[tuple[str, ...]] = [
        ("opinion", clause.thing, clause.opinion),
        ("tense", clause.opinion, str(clause.past)),
    ]
    optional = ("link", "who", "degree", "when")
    facts += [(name, clause.opinion, told) for name in optional if (told := getattr(clause, name))]
    return facts + ([("which", clause.thing, clause.which)] if clause.which else [])


def fluent(text: str) -> bool:
    """Whether the target's grammar can say it, agreement included."""
    return all(one is not None and one.agrees for one in heard(text))


def elegance(text: str) -> float:
    """Share of a text's choices in which it took the finer, 0 to 1: fine words, the time before the verb, pronouns.

    0 for what is not fluent.
    """
    if not fluent(text):
        return 0.0
    choices = [choice for one in heard(text) if one for choice in one.choices]
    return math.fsum(choices) / len(choices)


def quality(prompt: str, text: str) -> float:
    """One figure of all three: 0 unless adequate and fluent, else from 0.5, the plainest, to 1, the most elegant."""
    return (1 + elegance(text)) / 2 if adequate(prompt, text) and fluent(text) else 0.0


def references(prompt: str) -> list[str]:
    """The most elegant right translation and the plainest."""
    return [render(meaning(prompt), lambda _: True), render(meaning(prompt), lambda _: False)]
