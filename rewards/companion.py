"""A companion's reply, judged by rules that see what was said to it as well: English, without a network.

The rules stand for somebody who labels: they make the comparisons that a reward model is trained on, and look on when a
policy is tuned against that model.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, final, get_args

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.shared_words import naming, stem, words
from raftdiff.types import Prompt, Sample

Feeling = Literal["low", "glad"]

SAME = (
    "dog cat hamster rabbit pet puppy kitten",
    "mother mum mom",
    "father dad",
    "exam test lesson course class",
    "job work company boss career",
    "home house flat",
    "died dead death passed loss grief grieve grieving mourn",
    "lonely loneliness lonesome",
    "tired exhausted weary rest",
    "scared afraid frightened terrified fear scary nervous anxious",
    "cry cried crying tears",
    "baby child children son daughter",
    "husband wife partner girlfriend boyfriend marriage married wedding",
    "sick ill hospital illness health",
    "won win winning first prize victory",
)
"""Words that speak of one matter."""
GLAD = re.compile(
    r"\b(passed|won|promot\w+|engaged|married|pregnant|healthy|finally|at last|happy|happiest|glad|proud|excited|"
    r"thrilled|delighted|wonderful|lovely|best day|recovered|accepted|finished|in love|laughed|came home|can walk|"
    r"first steps|got the (job|part|place)|said yes|all clear|good news|surprised me|could not stop smiling)\b",
    re.IGNORECASE,
)
LOW = re.compile(
    r"\b(not|no|nobody|never|cannot|can['’]t|lost|died|passed away|alone|lonely|sad|cry|cried|crying|afraid|scared|"
    r"tired|without|failed|worried|miss|except me|wish|hurts?)\b",
    re.IGNORECASE,
)
COMFORT = re.compile(
    r"\b(sorry|oh no|not alone|with you|here for you|by your side|hugs?|tough|hard|difficult|painful|heartbreaking|"
    r"understandable|(it is|it['’]s) (okay|ok|all right|normal|natural)|(completely|perfectly) (okay|normal|natural)|"
    r"i care|you matter|hurts?|sad|gentle|kind to yourself|be proud of yourself|take your time|"
    r"miss (him|her|them|it))\b",
    re.IGNORECASE,
)
JOY = re.compile(
    r"\b(congratulations|congrats|wonderful|amazing|fantastic|great|happy for you|so happy|glad|proud|well done|"
    r"exciting|excited|thrilled|delighted|lovely|awesome|brilliant|hooray|yay|how (nice|sweet|beautiful)|incredible)\b",
    re.IGNORECASE,
)
CHEER = re.compile(
    r"\b(congratulations|congrats|wonderful|amazing|fantastic|great to|it['’]s great|happy to hear|glad to hear|"
    r"i['’]?m (so )?(glad|happy|thrilled|excited)|exciting|awesome|yay|hooray)\b",
    re.IGNORECASE,
)
"""Joy that is out of place where somebody is low."""
PITY = re.compile(r"\b(sorry (to|for|that|about)|your loss|tough time|difficult time|not alone|oh no)\b", re.IGNORECASE)
"""Comfort that is out of place where somebody is glad."""
YES = re.compile(
    r"^\W*(yes|of course|sure|certainly|always|absolutely|"
    r"i (do|am|will|would|can|have|know|think|care|understand)|i['’](m|ll|d|ve))\b",
    re.IGNORECASE,
)
WORN = re.compile(
    r"\b(how|what) (can|may|could|should|do) i (do|help|assist)|\b(assist\w*|can i help|to help you|help you with|"
    r"happy to help|glad to help|here to (help|support|listen|assist)|support you|reach out|hear that|going through|"
    r"rest assured|don['’]t hesitate|as an? (\w+ )?(ai|assistant|language model)|\bai\b|language model|chat ?bot|"
    r"smollm|hugging face|trained|designed|programmed|misunderstanding|more information|provide)\b",
    re.IGNORECASE,
)
"""What is said to anybody about anything, and talk of service and of machines."""
LESSON = re.compile(
    r"\b(grammar|sentence|phrase|idiom\w*|expression|translat\w*|sentiment|refers? to|common (term|saying))\b",
    re.IGNORECASE,
)
OWN_LIFE = re.compile(
    r"\b(i['’]ve (been|lost|seen|had|always)|i (have been|have lost|lost|was|had|used to|went)|"
    r"i['’]m (just )?a |i am (just )?a |i, too|as (a|an) \w+, i|"
    r"my (own|life|past|family|mother|father|brother|sister|friends?|dog|cat|wife|husband|name|team|experience))\b",
    re.IGNORECASE,
)
NAME = re.compile(r"(?<=[a-z,] )(?!I\b)[A-Z][a-z]+")
"""In the middle of a sentence."""
CAPITAL = re.compile(r"\b[A-Z][a-z]+")
LOSS = re.compile(r"\b(your|the|his|her) loss\b|\bloved one", re.IGNORECASE)
LOST = re.compile(
    r"\b(died|dead|death|passed away|lost|loss|missing|without (him|her)|first holiday since)\b", re.IGNORECASE
)
MINE, YOURS = re.compile(r"i|i['’]\w+|me|my|mine"), re.compile(r"you|you['’]\w+|your|yours|yourself")
MARKUP = re.compile(r"[\n#*`_\[\]{}<>()\"“”:;]|[^\x00-\x7f’–—‘]")


class Verdict(NamedTuple):
    """What the rules make of a reply; of each, higher is better."""

    names: float
    """0 to 1.5: words of the prompt's matter that the reply speaks of; 1 for one, 1.5 for more."""
    feels: float
    """-4 to 2: 2 for comfort where somebody is low and for joy where somebody is glad; -2 for the one in the other's
    place, and for sorrow about a loss where nothing was lost."""
    answers: float
    """0 or 1: what was asked of the companion is answered; 0 where nothing was."""
    turned: float
    """0 or 0.5: it speaks to the other, no less of "you" than of "I"."""
    fresh: float
    """-2 to 0: phrases that are said to anybody about anything, talk of service, of machines and of grammar."""
    honest: float
    """-2 to 0: a life of its own is made up; people are named whom nobody mentioned."""
    whole: float
    """-2 to 1.5: an end; less for markup, three words said twice, and an echo of the prompt."""

    @property
    def total(self) -> float:
        """-10 to 6.5."""
        return float(sum(self))


class CompanionConfig(RewardConfig):
    type: Literal["companion"] = "companion"
    name: str = "companion"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "CompanionReward":
        del device, resolve  # no model here
        return CompanionReward(name=self.name)


@final
class CompanionReward:
    """-10 to 6.5, higher is better: the sum of a ``Verdict`` on prompt and answer. English only.

    It is made to compare answers to one prompt. A policy that is ranked by it directly learns its lists of words; a
    reward model that was trained on its comparisons has to see through fewer of them. How somebody feels may stand in
    the data's column ``feeling``: low or glad. No licence, no weights.
    """

    def __init__(self, *, name: str = "companion") -> None:
        self.name = name

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: the data tell of a feeling that the rules do not know.
        """
        for prompt in prompts:
            if (told := _told(prompt)) and told not in get_args(Feeling):
                raise UserError(
                    f"The reward 'companion': prompt '{prompt.id}' has feeling '{told}', and the rules know "
                    f"{' and '.join(get_args(Feeling))} alone; name one of them, or leave it out."
                )

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        found = [verdict(sample.prompt.caption, sample.media, _told(sample.prompt)).total for sample in samples]
        return torch.tensor(found, dtype=torch.float32)


def _told(prompt: Prompt) -> Any:
    """What the data say of the feeling; people write Low and "glad "."""
    told = prompt.meta.get("feeling")
    return told.strip().lower() if isinstance(told, str) else told


def verdict(prompt: str, reply: str, state: Feeling | None = None) -> Verdict:
    """What the rules make of a reply to somebody; ``state`` is how somebody feels, where that is known.

    >>> verdict("My dog died.", "I'm so sorry about your dog.").total
    5.0
    >>> verdict("My dog died.", "I'm so glad to hear that! How can I assist you?").total
    -2.5
    """
    said, shared = words(reply), len(stems(prompt) & stems(reply))
    mine, yours = (sum(bool(one.fullmatch(word)) for word in said) for one in (MINE, YOURS))
    return Verdict(
        names=min(1.5, 0.5 + 0.5 * shared) if shared else 0.0,
        feels=_feels(prompt, reply, state or feeling(prompt)),
        answers=float(bool(asks(prompt) and YES.search(reply))),
        turned=0.5 if yours and yours >= mine else 0.0,
        fresh=-float(min(2, len(WORN.findall(reply)) + 2 * len(LESSON.findall(reply)))),
        honest=-float(bool(OWN_LIFE.search(reply))) - bool(set(NAME.findall(reply)) - set(CAPITAL.findall(prompt))),
        whole=_whole(words(prompt), reply, said),
    )


def feeling(prompt: str) -> Feeling:
    """Whether somebody is glad, or low, which is also what a companion takes somebody for who does not say.

    >>> feeling("I passed the exam!"), feeling("I am happy for her, and alone."), feeling("Can we talk?")
    ('glad', 'low', 'low')
    """
    return "glad" if GLAD.search(prompt) and not LOW.search(prompt) else "low"


def asks(prompt: str) -> bool:
    """Whether something is asked of the companion.

    >>> asks("I feel down. Will you listen?"), asks("Why did she go?")
    (True, False)
    """
    return bool(re.search(r"\b(can|could|will|would|do|are|have) (you|we|i)\b[^.!]*\?", prompt, re.IGNORECASE))


def stems(text: str) -> frozenset[str]:
    """The words that name the matter, without their endings, words of one matter as one.

    >>> sorted(stems("My cat has been missing, and I cried in the car."))
    ['=cry', '=dog', 'car', 'miss']
    """
    return frozenset(ALIKE.get(word) or ALIKE.get(stem(word)) or stem(word) for word in naming(text))


ALIKE: Mapping[str, str] = {word: f"={group.split()[0]}" for group in SAME for word in group.split()}


def _feels(prompt: str, reply: str, state: Feeling) -> float:
    fits, wrong = (JOY, PITY) if state == "glad" else (COMFORT, CHEER)
    lost = bool(LOSS.search(reply)) and not LOST.search(prompt)
    return 2.0 * bool(fits.search(reply)) - 2.0 * bool(wrong.search(reply)) - 2.0 * lost


def _whole(asked: Sequence[str], reply: str, said: Sequence[str]) -> float:
    ended = 1.5 if re.search(r"[.!?]$", reply.strip()) and len(said) >= 5 else 0.0
    runs = [tuple(said[place : place + 3]) for place in range(len(said) - 2)]
    echoed = {tuple(asked[place : place + 5]) for place in range(len(asked) - 4)}
    echoes = any(tuple(said[place : place + 5]) in echoed for place in range(len(said) - 4))
    wrong = [bool(MARKUP.search(reply)), len(set(runs)) < len(runs), echoes]
    return ended - min(2, sum(wrong))
