"""The words of both languages: the source's are those of the text world, the target's are made by rule.

A word of the target has a stem of its own and an ending. Nouns have a class (a or o) and a number, which their
adjectives share; verbs have tense and the number of their subject. Opinions and degrees are said in a plain register
or, with another stem, in a fine one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, final

from raftdiff.embedded.reviews.grammar import grammar

Role = Literal["thing", "which", "degree", "adjective", "verb", "is", "who", "pronoun", "when", "link"]


def _listed(*symbols: str, most: int | None = None) -> tuple[str, ...]:
    """The texts that these symbols of the text world become, the first ``most`` of each."""
    rules = grammar(1).rules
    return tuple(" ".join(words) for symbol in symbols for _, words in rules[symbol][:most])


# The order decides the hold-outs and the target's words: append, never insert.
ONE: tuple[str, ...] = _listed("CommonThing")
MANY: tuple[str, ...] = _listed("CommonThings")
THINGS = (*ONE, *MANY)
WHICH: tuple[str, ...] = _listed("Which")
DEGREES: tuple[str, ...] = _listed("Manner")
WHEN: tuple[str, ...] = _listed("When")
ADJECTIVES: tuple[str, ...] = _listed("Adjective1.0", "Adjective0.5", "Adjective-0.5", "Adjective-1.0", most=5)
VERBS: tuple[str, ...] = _listed("Feel1.0", "Feel0.5", "Feel-0.5", "Feel-1.0", most=2)
FELT: Mapping[str, str] = dict(zip(VERBS, _listed("Felt1.0", "Felt0.5", "Felt-0.5", "Felt-1.0", most=2), strict=True))
"""Verb -> its past."""
WHO: Mapping[str, bool] = {
    "i": False,
    "my brother": False,
    "my sister": False,
    "everyone": False,
    "we": True,
    "my friends": True,
    "critics": True,
    "children": True,
}
"""Who feels -> whether it is many."""
LINKS = ("and", "but")


@final
@dataclass(frozen=True, slots=True)
class Word:
    """What a word of the target means, and how it agrees."""

    role: Role
    says: str
    """The source's word or phrase; of a verb its present, of a pronoun and of "is" nothing."""
    fine: bool = False
    """Of opinions and degrees: the register."""
    form: str = ""
    """Class of nouns and of what agrees with them, "a" or "o"."""
    many: bool = False
    past: bool = False


_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


def _stems() -> Iterator[str]:
    """Stems of three letters, none twice, in an order that has no order to the eye."""
    size = len(_CONSONANTS) ** 2 * len(_VOWELS)
    for place in range(size):
        rest, last = divmod((place * 1117 + 13) % size, len(_CONSONANTS))
        first, vowel = divmod(rest, len(_VOWELS))
        yield _CONSONANTS[first] + _VOWELS[vowel] + _CONSONANTS[last]


def _agreeing(stem: str, role: Role, says: str, *, fine: bool = False) -> Iterator[tuple[str, Word]]:
    for form in "ao":
        for many, ending in ((False, ""), (True, "i")):
            yield f"{stem}{form}{ending}", Word(role, says, fine, form, many)


def _conjugated(stem: str, role: Role, says: str, *, fine: bool = False) -> Iterator[tuple[str, Word]]:
    for past, vowel in ((False, "a"), (True, "i")):
        for many, ending in ((False, "r"), (True, "rn")):
            yield f"{stem}{vowel}{ending}", Word(role, says, fine, "", many, past)


def _all() -> Iterator[tuple[str, Word]]:
    stems = _stems()
    for place, thing in enumerate(THINGS):
        form, many = "ao"[place % 2], thing in MANY
        yield f"{next(stems)}{form}{'i' if many else ''}", Word("thing", thing, form=form, many=many)
    for which in WHICH:
        yield from _agreeing(next(stems), "which", which)
    for adjective in ADJECTIVES:
        yield from _agreeing(next(stems), "adjective", adjective)
        yield from _agreeing(f"{next(stems)}ur", "adjective", adjective, fine=True)
    for verb in VERBS:
        yield from _conjugated(next(stems), "verb", verb)
        yield from _conjugated(f"{next(stems)}ur", "verb", verb, fine=True)
    for degree in DEGREES:
        yield f"{next(stems)}e", Word("degree", degree)
        yield f"{next(stems)}ure", Word("degree", degree, fine=True)
    for when in WHEN:
        yield f"{next(stems)}eto", Word("when", when)
    for who, many in WHO.items():
        yield f"{next(stems)}{'usi' if many else 'us'}", Word("who", who, many=many)
    yield from _conjugated("es", "is", "")
    yield "li", Word("pronoun", "")
    yield "lin", Word("pronoun", "", many=True)
    yield "ke", Word("link", "and")
    yield "omo", Word("link", "but")


TARGET: Mapping[str, Word] = dict(_all())
"""Every word of the target language, and what it is."""
_BY_MEANING: Mapping[Word, str] = {word: text for text, word in TARGET.items()}


def written(word: Word) -> str:
    """The target's text for a word; the inverse of ``TARGET``."""
    return _BY_MEANING[word]


def present(verb: str, who: str) -> str:
    """The source's verb as this subject has it: i love, my brother loves."""
    return verb if WHO[who] or who == "i" else f"{verb}s"


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of prompts and translations, sorted."""
    phrases = (*THINGS, *WHICH, *DEGREES, *WHEN, *ADJECTIVES, *VERBS, *FELT.values(), *WHO, *LINKS)
    source = {word for phrase in phrases for word in phrase.split()} | {f"{verb}s" for verb in VERBS}
    return tuple(sorted(source | {"the", "is", "are", "was", "were", ",", ":"} | set(TARGET)))
