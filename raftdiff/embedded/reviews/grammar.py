"""The grammar of the text world: words, valences, rules. `raftdiff.embedded.reviews.world` says what it is for."""

from collections.abc import Mapping
from functools import cache

from raftdiff.embedded.reviews.pcfg import Grammar, read

# The order decides the hold-outs (see `reviews.held_out_prompts`): append, never insert.
GENRES: Mapping[str, tuple[str, str]] = {
    "comedy": ("timing", "jokes"),
    "drama": ("sorrow", "quarrels"),
    "thriller": ("suspense", "chases"),
    "western": ("landscape", "duels"),
    "musical": ("choreography", "songs"),
    "mystery": ("puzzle", "clues"),
    "romance": ("chemistry", "kisses"),
    "documentary": ("research", "interviews"),
    "cartoon": ("animation", "drawings"),
    "fantasy": ("magic", "creatures"),
}
"""Each genre with the two things, one and many, that only its reviews speak of."""

_TOPICS = """
pirates, robots, ghosts, dragons, spies, detectives, sailors, farmers, teachers, dancers, soldiers, wizards,
astronauts, vampires, chefs, twins, wolves, horses, lawyers, doctors, thieves, painters, boxers, miners
"""
TOPICS: tuple[str, ...] = tuple(_TOPICS.replace(",", " ").split())
COUNTS: Mapping[int, float] = {2: 0.15, 3: 0.35, 4: 0.35, 5: 0.15}
"""Sentences of a review -> probability."""

# Valence -> words, for each kind of opinion word. Equally many of each sign, so that the mean reward is exactly 0.
_OPINIONS: Mapping[str, Mapping[float, str]] = {
    "Adjective": {
        1.0: "superb brilliant wonderful stunning thrilling dazzling masterful unforgettable magnificent gripping "
        "radiant spectacular sublime flawless",
        0.5: "good nice pleasant solid likable decent charming fresh clever warm lively tender amusing honest",
        -0.5: "bland slow uneven thin flat weak clumsy stale dull messy tired shallow tedious lazy",
        -1.0: "awful terrible dreadful horrible unbearable atrocious miserable dismal appalling pathetic "
        "ghastly hideous abysmal wretched",
    },
    "Felt": {
        1.0: "loved adored treasured",
        0.5: "liked enjoyed appreciated",
        -0.5: "disliked endured tolerated",
        -1.0: "hated loathed despised",
    },
    "Feel": {
        1.0: "love adore treasure",
        0.5: "like enjoy appreciate",
        -0.5: "dislike endure tolerate",
        -1.0: "hate loathe despise",
    },
    "Verdict": {
        1.0: "masterpiece triumph gem marvel",
        0.5: "treat success pleasure delight",
        -0.5: "letdown muddle misfire bore",
        -1.0: "disaster disgrace catastrophe fiasco",
    },
}
AGREEMENT = 0.85
"""Share of the opinion words that agree with the mood."""
_STRENGTH: Mapping[float, float] = {1.0: 34 / 85, 0.5: 51 / 85, -0.5: 11 / 15, -1.0: 4 / 15}
"""Valence times mood -> share of the words of this sign: a strong word is rarer than a mild one."""
VALENCES: Mapping[str, float] = {
    word: valence
    for by_valence in _OPINIONS.values()
    for valence, words in by_valence.items()
    for word in words.split()
}
"""Opinion word -> valence, in {-1, -0.5, 0.5, 1}."""
DEGREES: Mapping[str, float] = {
    **dict.fromkeys(("very", "truly", "really", "utterly", "real", "total"), 1.5),
    **dict.fromkeys(("fairly", "rather", "somewhat", "slightly", "minor", "small"), 0.5),
}
"""Word before an opinion word -> factor on its valence; the product is kept within [-1, 1]."""
NEGATIONS: Mapping[str, float] = {"not": -0.5, "never": -0.5, "hardly": -0.5}
"""Word before an opinion word (or before its degree) -> factor: "not awful" is no praise."""

_RULES = """
Opening: 28 this <genre> With <topic> Is Phrase End | 20 Viewer Felts this <genre> With <topic> End
    | 18 another Adjectives <genre> With <topic> End | 14 the <topic> in this <genre> Are Phrase End
    | 20 Who <topic> Action in this Adjectives <genre> End
Middle: 27 Clause End | 10 When , Clause End | 10 ContraryClause , but Clause End | 11 Clause and Clause End
    | 16 Viewer Felts the AnyThing End | 14 the <topic> Are Phrase End | 12 Neutral .
Closing: 24 Summing , this <genre> Is2 a Verdicts End | 14 what a Verdicts ! | 22 Audience Will Feels it End
    | 20 Viewer Felts every Moment End | 20 it Is Phrase Throughout End
Clause: 55 the Thing Is Phrase | 45 the Things Are Phrase
ContraryClause: 55 the Thing Is ContraryPhrase | 45 the Things Are ContraryPhrase
Phrase: 42 Adjective | 34 Degree Adjective | 10 Negation ContraryAdjective | 14 Adjective and Adjective
ContraryPhrase: 60 ContraryAdjective | 40 Degree ContraryAdjective
Adjectives: 65 Adjective | 35 Degree Adjective
Felts: 70 Felt | 30 Manner Felt
Feels: 70 Feel | 30 Manner Feel
Verdicts: 65 Verdict | 35 Size Verdict
Degree: very | truly | really | utterly | fairly | rather | somewhat | slightly
Manner: truly | really | rather | somewhat
Size: real | total | minor | small
Negation: not | never | hardly
With: 60 about | 40 with
Viewer: 40 i | 24 we | 12 my brother | 12 my sister | 12 my friends
Is: 30 is | 22 was | 12 feels | 12 seems | 12 remains | 12 looks
Is2: 60 is | 40 was
Are: 30 are | 22 were | 12 feel | 12 seem | 12 remain | 12 look
Will: 50 will | 25 might | 25 should
End: 84 . | 16 !
AnyThing: 55 Thing | 45 Things
Thing: 60 SomeThing | 40 Which SomeThing
Things: 60 SomeThings | 40 Which SomeThings
SomeThing: 26 <thing> | 74 CommonThing
SomeThings: 26 <things> | 74 CommonThings
CommonThing: plot | acting | script | ending | pacing | dialogue | music | camera | story | cast | editing | lighting
    | narrator | finale | mood | humor
CommonThings: scenes | characters | costumes | effects | performances | twists | sets | visuals | lines | speeches
    | fights | dreams | dances | crowds
Which: final | early | main | other | loud | quiet | strange | famous | modern | dark
When: at first | at times | after a while | in the second half
Who: two | three | four | several | many | young | old | lonely
Action: search for gold | learn to dance | cross the desert | run a hotel | hide a secret | plan a robbery
    | find a letter | build a bridge | return home | leave the city | start a war | steal a car
Neutral: it takes place in Place | the <topic> Action | it lasts Number hours | Maker made it in Place
Number: two | three | four
Maker: a young director | an old director | a new studio | two friends
Place: paris | rome | a village | a castle | the desert | the mountains | space | winter | a hotel | the city
Summing: overall | in short | all in all | so
Audience: you | everyone | children | parents | critics | most people | fans of <topic> | your friends
Moment: minute | second | moment | frame | word | hour
Throughout: from start to finish | to the end | for two hours | in every way
"""
_FIXED = (":", "about")
"""The words of every prompt beside its genre and topic."""


@cache
def grammar(mood: int, agreement: float = AGREEMENT) -> Grammar:
    """The rules of a mood (1 or -1). ``<genre>``, ``<topic>``, ``<thing>``, ``<things>`` stand for the prompt's words.

    Sentences are ``Opening``, ``Middle`` and ``Closing``. ``Adjective``, ``Felt``, ``Feel`` and ``Verdict`` are mixed
    as the mood bids; ``ContraryAdjective`` as the other mood would: after a negation, and before "but".
    """
    rules = read(_RULES)
    for kind, by_valence in _OPINIONS.items():
        for name, sign in ((kind, mood), (f"Contrary{kind}", -mood)):
            rules[name] = tuple(
                (
                    _STRENGTH[valence * sign] * (agreement if valence * sign > 0 else 1 - agreement),
                    (f"{name}{valence}",),
                )
                for valence in by_valence
            )
            for valence, words in by_valence.items():
                rules |= read(f"{name}{valence}: {' | '.join(words.split())}")
    return Grammar(rules)


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word of prompts and reviews, sorted."""
    found = grammar(1).words()
    placed = {*GENRES, *TOPICS, *(thing for things in GENRES.values() for thing in things), *_FIXED}
    return tuple(sorted({word for word in found if not word.startswith("<")} | placed))
