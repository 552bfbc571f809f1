"""Instructions with known answers: fourteen kinds of twelve each, and which of them are held out.

"What is the capital of Italy?", "Name two fruits.", "Write a sentence with the word 'river'." What is held out follows
from the alphabet: of the kinds every fourth is held out entirely (nobody trains on one of it), and of every kind each
third of its subjects. Imports neither torch nor transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import NamedTuple

KINDS_APART, SUBJECTS_APART = 4, 3
"""Every so many-th kind, and every so many-th subject of a kind, is held out."""


@dataclass(frozen=True, slots=True)
class Instruction:
    text: str
    kind: str
    right: frozenset[str]
    """Words of which the answer is made, in lower case."""
    wrong: frozenset[str]
    """Words that would be answers to others of the kind."""
    written: str
    """An answer that is right, as a person might write it."""
    count: int = 1
    """How many different right words are asked for."""
    needs: str = ""
    """A word that has to be said besides; empty for none."""
    held_out: bool = False


def instructions() -> Sequence[Instruction]:
    """All of them, by kind and subject in the order of the alphabet."""
    return tuple(_known().values())


def training_prompts() -> list[str]:
    """What may be trained on."""
    known, apart = instructions(), kinds_held_out()
    return [one.text for one in known if not one.held_out and one.kind not in apart]


def held_out_prompts() -> list[str]:
    """Held-out subjects of all kinds, those of kinds that nobody trains on included."""
    return [one.text for one in instructions() if one.held_out]


def kinds_held_out() -> frozenset[str]:
    """Kinds that training knows nothing of."""
    return frozenset(sorted(_KINDS)[KINDS_APART - 1 :: KINDS_APART])


def parsed(text: str) -> Instruction | None:
    """The instruction that a prompt is; None where it is none of these."""
    return _known().get(" ".join(text.split()))


@cache
def _known() -> Mapping[str, Instruction]:
    found: dict[str, Instruction] = {}
    for kind in sorted(_KINDS):
        every = frozenset(word for said in _KINDS[kind].answers.values() for word in said.lower().split("|"))
        for place, subject in enumerate(sorted(_KINDS[kind].answers)):
            one = _made(kind, subject, every, held_out=place % SUBJECTS_APART == SUBJECTS_APART - 1)
            found[one.text] = one
    return found


def _made(kind: str, subject: str, every: frozenset[str], *, held_out: bool) -> Instruction:
    """The instruction; ``every``: the words that are answers to any of the kind."""
    ask, say, answers = _KINDS[kind]
    text, (first, *others) = ask.format(subject), answers[subject].split("|")
    right, written = frozenset(one.lower() for one in (first, *others)), say.format(subject, first)
    wrong, count, needs = every - right - {subject.lower()}, 1, ""
    match kind:
        case "bigger":  # both are named in the question: the one that is said first is the answer
            large, small = sorted(subject.split(" or "), key=lambda one: not one.endswith(first))
            wrong, written = frozenset({small.split()[1]}), f"{large} is bigger than {small}."
        case "legs" | "sum":
            wrong = _NUMBERS - right - frozenset(each for word in subject.split() for each in _number(word))
        case "list":
            said, of = subject.split()
            count, members = _COUNTS.index(said), _MEMBERS[of]
            right, wrong = frozenset(members), frozenset()
            written = f"{subject} are {', '.join(members[: count - 1])} and {members[count - 1]}."
        case "polite":
            right, wrong, needs = frozenset(_POLITE), frozenset(), first
        case "sentence":
            wrong = frozenset()
    return Instruction(text, kind, right, wrong, written[0].upper() + written[1:], count, needs, held_out)


def _number(word: str) -> tuple[str, ...]:
    """In figures and in letters; of another word nothing."""
    return (word, _COUNTS[int(word)]) if word.isdigit() else ()


def _numbers(of: Mapping[str, int]) -> dict[str, str]:
    return {subject: f"{_COUNTS[number]}|{number}" for subject, number in of.items()}


_COUNTS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NUMBERS = frozenset(_COUNTS) | {str(number) for number in range(60)}
_POLITE = ("please", "could", "would", "may", "kindly", "appreciate", "mind")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July")
_MEMBERS: Mapping[str, Sequence[str]] = {
    name: said.split()
    for name, said in {
        "animals": "dog cat horse cow lion tiger elephant bear wolf fox sheep goat pig rabbit mouse monkey giraffe "
        "dogs cats horses cows lions tigers elephants bears wolves foxes rabbits birds fish snake whale dolphin",
        "birds": "eagle owl sparrow robin crow parrot penguin swan duck goose hawk falcon pigeon ostrich eagles owls "
        "sparrows robins crows parrots penguins swans ducks hawks falcons pigeons hummingbird cardinal",
        "cities": "paris london rome berlin madrid tokyo york chicago boston sydney moscow beijing cairo athens "
        "angeles francisco toronto delhi mumbai dubai",
        "clothes": "shirt hat coat dress skirt jacket trousers pants socks shoes gloves scarf sweater jeans shirts "
        "hats coats dresses skirts jackets shorts blouse",
        "colours": "red blue green yellow black white orange purple brown pink grey gray violet",
        "countries": "france italy spain germany japan china india canada brazil mexico egypt greece russia australia "
        "portugal norway sweden america states kingdom",
        "drinks": "water tea coffee milk juice wine beer lemonade soda cocoa",
        "fruits": "apple banana pear orange lemon cherry peach grape mango melon apples bananas pears oranges lemons "
        "cherries peaches grapes mangoes strawberries strawberry blueberries pineapple kiwi plum",
        "instruments": "piano violin guitar flute drum trumpet harp cello clarinet drums saxophone guitars organ",
        "metals": "iron gold silver copper tin lead zinc aluminum aluminium nickel steel platinum mercury titanium",
        "sports": "football tennis basketball baseball soccer hockey golf swimming rugby volleyball running cricket",
        "vegetables": "carrot potato onion tomato cabbage spinach broccoli lettuce carrots potatoes onions tomatoes "
        "peas beans peppers cucumber cucumbers kale cauliflower celery",
    }.items()
}
_AFTER = {before: after for row in (_DAYS, _MONTHS) for before, after in pairwise(row)}
_LISTED = zip(("two", "three") * 6, _MEMBERS, strict=True)


class _Kind(NamedTuple):
    ask: str
    """With a place for the subject."""
    say: str
    """With places for the subject and for the first of its right words."""
    answers: Mapping[str, str]
    """Subject -> its right words, with | between them."""


_KINDS: Mapping[str, _Kind] = {
    "after": _Kind("What comes after {}?", "After {} comes {}.", _AFTER),
    "bigger": _Kind(
        "Which is bigger, {}?",
        "{}",
        {
            "a mouse or an elephant": "elephant",
            "a horse or a cat": "horse",
            "an ant or a dog": "dog",
            "a whale or a salmon": "whale",
            "a village or a city": "city",
            "a bus or a bicycle": "bus",
            "a house or a castle": "castle",
            "a planet or a star": "star",
            "an ocean or a lake": "ocean",
            "a tree or a flower": "tree",
            "a spoon or a table": "table",
            "a hill or a mountain": "mountain",
        },
    ),
    "capital": _Kind(
        "What is the capital of {}?",
        "The capital of {} is {}.",
        {
            "Austria": "Vienna",
            "China": "Beijing",
            "Egypt": "Cairo",
            "France": "Paris",
            "Germany": "Berlin",
            "Greece": "Athens",
            "Italy": "Rome",
            "Japan": "Tokyo",
            "Norway": "Oslo",
            "Portugal": "Lisbon",
            "Russia": "Moscow",
            "Spain": "Madrid",
        },
    ),
    "colour": _Kind(
        "What colour is {}?",
        "The colour of {} is {}.",
        {
            "a carrot": "orange",
            "a lemon": "yellow",
            "a polar bear": "white",
            "a ripe banana": "yellow",
            "a ruby": "red",
            "a sapphire": "blue",
            "an emerald": "green",
            "blood": "red",
            "coal": "black",
            "grass": "green",
            "snow": "white",
            "the clear sky": "blue",
        },
    ),
    "continent": _Kind(
        "On which continent is {}?",
        "{} is in {}.",
        {
            "Argentina": "South America",
            "Brazil": "South America",
            "Canada": "North America",
            "China": "Asia",
            "Egypt": "Africa",
            "France": "Europe",
            "India": "Asia",
            "Kenya": "Africa",
            "Mexico": "North America",
            "Nigeria": "Africa",
            "Poland": "Europe",
            "Spain": "Europe",
        },
    ),
    "legs": _Kind(
        "How many legs does {} have?",
        "{} has {} legs.",
        _numbers(
            {
                "a bee": 6,
                "a beetle": 6,
                "a bird": 2,
                "a butterfly": 6,
                "a cat": 4,
                "a cow": 4,
                "a dog": 4,
                "a horse": 4,
                "a person": 2,
                "a spider": 8,
                "an ant": 6,
                "an elephant": 4,
            }
        ),
    ),
    "list": _Kind("Name {}.", "{}", {f"{count} {name}": name for count, name in _LISTED}),
    "opposite": _Kind(
        "What is the opposite of '{}'?",
        "The opposite of '{}' is '{}'.",
        {
            "big": "small|little|tiny",
            "dry": "wet",
            "early": "late",
            "fast": "slow",
            "full": "empty",
            "happy": "sad|unhappy",
            "heavy": "light",
            "hot": "cold",
            "open": "closed|close|shut",
            "rich": "poor",
            "strong": "weak",
            "up": "down",
        },
    ),
    "past": _Kind(
        "What is the past tense of '{}'?",
        "The past tense of '{}' is '{}'.",
        {
            "buy": "bought",
            "drink": "drank",
            "eat": "ate",
            "give": "gave",
            "go": "went",
            "run": "ran",
            "see": "saw",
            "sing": "sang",
            "swim": "swam",
            "take": "took",
            "think": "thought",
            "write": "wrote",
        },
    ),
    "plural": _Kind(
        "What is the plural of '{}'?",
        "The plural of '{}' is '{}'.",
        {
            "baby": "babies",
            "box": "boxes",
            "child": "children",
            "city": "cities",
            "foot": "feet",
            "goose": "geese",
            "knife": "knives",
            "leaf": "leaves",
            "man": "men",
            "mouse": "mice",
            "tooth": "teeth",
            "woman": "women",
        },
    ),
    "polite": _Kind(
        "Ask politely for {}.",
        "Could I have {}, please?",
        {
            f"a {name}": name
            for name in (
                *("book", "chair", "cup", "key", "lamp", "map", "pen", "spoon", "stamp", "ticket", "towel", "blanket"),
            )
        },
    ),
    "sentence": _Kind(
        "Write a sentence with the word '{}'.",
        "I saw the {} from my window this morning.",
        {
            name: f"{name}|{name}s"
            for name in (
                *("bridge", "castle", "cloud", "dog", "farm", "forest", "garden", "house", "mountain", "river"),
                *("ship", "train"),
            )
        },
    ),
    "sum": _Kind(
        "What is {}?",
        "{} is {}.",
        _numbers(
            {
                f"{a} plus {b}": a + b
                for a, b in (
                    *((2, 3), (3, 6), (4, 4), (5, 2), (6, 5), (7, 5), (8, 3), (9, 9), (10, 4), (11, 2), (12, 6)),
                    (13, 7),
                )
            }
        ),
    ),
    "young": _Kind(
        "What is a young {} called?",
        "A young {} is called a {}.",
        {
            "bear": "cub",
            "cat": "kitten",
            "cow": "calf",
            "deer": "fawn",
            "dog": "puppy|pup",
            "duck": "duckling",
            "frog": "tadpole",
            "goat": "kid",
            "goose": "gosling",
            "horse": "foal",
            "kangaroo": "joey",
            "sheep": "lamb",
        },
    ),
}
