"""What people chose: blind A/B answers and vetoes, a file a rater, each act on disk as soon as it is made.

``labels/<rater>.jsonl`` in the run directory holds one act a line, in the order in which they were made:

    {"time": "...", "act": "choice", "left": "rounds/000/samples/cat-001.png", "right": "...", "chosen": "left"}
    {"time": "...", "act": "veto", "picture": "rounds/000/samples/cat-002.png"}
    {"time": "...", "act": "undo"}                                             takes back the last act that stands

A picture is named by its path within the run, an answer in the same way; see ``entries``. ``chosen`` is ``left``,
``right`` or ``tie``; what stood on which side was shuffled, and nothing on the page told them apart. Nothing is ever
rewritten, so a kill loses nothing.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple, final, get_args

import numpy as np

from raftdiff.chat.dialogue import context
from raftdiff.errors import UserError, counted
from raftdiff.measures import statistics
from raftdiff.records.disk import append, damaged, read_appended
from raftdiff.records.entries import Entry, changed, found, of_evaluation, of_round
from raftdiff.records.integrity import ADVICE
from raftdiff.records.media import prompt_of
from raftdiff.records.run import Run
from raftdiff.seeds import fold

Side = Literal["left", "right", "tie"]
RATER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one caption, or answers to one prompt, by their names and as they are shown.

    Example: ``Pair("a cartoon of a cat", "eval/before/cat-000.png", "eval/after/cat-000.png")``.
    """

    caption: str
    left: str
    right: str

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.left, self.right})


class Choice(NamedTuple):
    """One answer that stands."""

    rater: str
    left: str
    right: str
    chosen: Side

    @property
    def better(self) -> str | None:
        """The name of the one that won; None for a tie."""
        return {"left": self.left, "right": self.right, "tie": None}[self.chosen]

    @property
    def worse(self) -> str | None:
        return {"left": self.right, "right": self.left, "tie": None}[self.chosen]


@final
class Ballot:
    """One rater's acts, kept in a file. Every act is on the disk when its method returns."""

    def __init__(self, run: Run, rater: str) -> None:
        """
        Raises:
            UserError: the name cannot be the name of a file.
        """
        if not RATER.fullmatch(rater):
            raise UserError(f"rater '{rater}': use letters, digits, '_' and '-', at most 64; it names a file.")
        self.rater = rater
        self.path = run.path / "labels" / f"{rater}.jsonl"

    def choose(self, pair: Pair, chosen: Side) -> None:
        self._append({"act": "choice", "left": pair.left, "right": pair.right, "chosen": chosen})

    def veto(self, name: str) -> None:
        """This picture or answer must never be learnt from, whatever it scores."""
        self._append({"act": "veto", "picture": name})

    def undo(self) -> bool:
        """Take back the last act that stands; False where there is none."""
        if not self._standing():
            return False
        self._append({"act": "undo"})
        return True

    def choices(self) -> list[Choice]:
        acts = [act for act in self._standing() if act["act"] == "choice"]
        return [Choice(self.rater, act["left"], act["right"], act["chosen"]) for act in acts]

    def vetoes(self) -> set[str]:
        return {act["picture"] for act in self._standing() if act["act"] == "veto"}

    def _standing(self) -> list[dict[str, Any]]:
        """The acts, less those that were taken back. A last line that was cut short does not count.

        Raises:
            UserError: a line is no act, as after an edit by hand.
        """
        standing: list[dict[str, Any]] = []
        for act in read_appended(self.path):
            if not _is_act(act):
                raise damaged(self.path, f"a line that is no choice, veto or undo: {str(act)[:200]}")
            if act["act"] != "undo":
                standing.append(act)
            elif standing:
                standing.pop()
        return standing

    def _append(self, act: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        append(self.path, [json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **act}) + "\n"])


def ballots(run: Run) -> list[Ballot]:
    """Those of every rater so far, by name."""
    return [Ballot(run, file.stem) for file in sorted((run.path / "labels").glob("*.jsonl"))]


def candidate_pairs(run: Run, round: int, *, per_prompt: int, seed: int) -> list[Pair]:
    """Pairs of candidates of one prompt in a finished round, drawn at random, sides shuffled.

    ``per_prompt`` pairs of each prompt at most; a prompt's second pair comes when every prompt has had its first. Two
    answers in the same words are no pair. The same seed gives the same pairs in the same order.
    """
    entries: dict[str, list[Entry]] = {}
    for entry in of_round(run.round(round)):
        entries.setdefault(entry.prompt.id, []).append(entry)
    drawn = {}
    for prompt, held in entries.items():
        every = [both for both in combinations(held, 2) if not _alike(*both)]
        order = np.random.default_rng(fold(seed, round, "pairs", prompt)).permutation(len(every))
        drawn[prompt] = [every[place] for place in order[:per_prompt]]
    turns = [(turn, prompt) for turn in range(per_prompt) for prompt in drawn if turn < len(drawn[prompt])]
    return [_shuffled(drawn[prompt][turn], seed) for turn, prompt in turns]


def evaluation_pairs(run: Run, name: str | None, *, seed: int) -> list[Pair]:
    """Before and after of an evaluation, the same prompt and seed, in shuffled order with shuffled sides.

    Raises:
        UserError: there is no such evaluation, or its answers do not name their prompts.
    """
    folder = f"eval/{name}" if name else "eval"
    both = [_shuffled(sides, seed) for sides in of_evaluation(run, folder)]
    return [both[place] for place in np.random.default_rng(fold(seed, "pairs", folder)).permutation(len(both))]


def unanswered(pairs: Sequence[Pair], choices: Sequence[Choice]) -> Iterator[Pair]:
    """The pairs that are still to be asked, whichever side they stood on before."""
    answered = {frozenset({choice.left, choice.right}) for choice in choices}
    return (pair for pair in pairs if pair.names not in answered)


def points(run: Run, rater: str | None = None) -> tuple[dict[str, float], set[str]]:
    """Wins less losses of all that was compared, by name, and the names that anybody vetoed."""
    held = [ballot for ballot in ballots(run) if rater in (None, ballot.rater)]
    scores: dict[str, float] = {}
    for choice in (choice for ballot in held for choice in ballot.choices()):
        for name in (choice.left, choice.right):
            scores.setdefault(name, 0.0)
        if choice.better is not None and choice.worse is not None:
            scores[choice.better] += 1
            scores[choice.worse] -= 1
    return scores, {name for ballot in held for name in ballot.vetoes()}


def acts(run: Run, rater: str | None = None) -> set[str]:
    """The names of all that was compared or vetoed, by one rater or anybody, and stands."""
    scores, vetoes = points(run, rater)
    return scores.keys() | vetoes


def preferences(run: Run) -> list[dict[str, Any]]:
    """What was preferred, for training a reward; ties are left out.

    Of pictures ``rater``, ``caption``, ``chosen_file_name``, ``rejected_file_name``, paths within the run:
    ``{"rater": "ada", "caption": "a cartoon of a cat", "chosen_file_name": "rounds/000/samples/cat-001.png", ...}``.
    Under ``chosen`` and ``rejected`` a trainer of language models would learn the paths as if they were answers.

    Of texts ``rater``, ``prompt``, ``chosen``, ``rejected`` with the texts themselves, and ``system`` and ``history``
    where the prompt has them: the columns of the data format ``pairs``. That format has no room for an answer that is
    empty, or for two in the same words, and such choices are left out.
    """
    decided = [
        (ballot.rater, choice.better, choice.worse)
        for ballot in ballots(run)
        for choice in ballot.choices()
        if choice.better is not None and choice.worse is not None
    ]
    held = found(run, {name for _, *names in decided for name in names})
    if altered := [name for name, entry in held.items() if changed(run, entry)]:
        raise UserError(f"{run.path / altered[0]}: this picture is not what people chose. {ADVICE}")
    there = [(rater, held[one], held[other]) for rater, one, other in decided if {one, other} <= held.keys()]
    return [
        _preference(rater, better, worse)
        for rater, better, worse in there
        if _words(better) and _words(worse) and not _alike(better, worse)
    ]


class Tally(NamedTuple):
    """What some raters said of one kind of pair."""

    choices: int
    """Ties included."""
    ties: int
    vetoes: int
    after_wins: statistics.Estimate | None
    """How often after beat before, a tie counting half, in 0..1; None where no such pair was answered."""
    agreement: statistics.Estimate | None
    """How often the candidate that people chose had the higher total reward, ties left out; None likewise."""

    @property
    def lines(self) -> list[str]:
        """The same in sentences."""
        said = [f"{counted(self.choices, 'choice')}, of them {counted(self.ties, 'tie')}; {self.vetoes} vetoed."]
        if (wins := self.after_wins) is not None:
            said.append(f"After beats before in {_share(wins)} of {counted(wins.n, 'pair')}.")
        if (agreed := self.agreement) is not None:
            said.append(f"The reward agrees with people in {_share(agreed)} of {counted(agreed.n, 'choice')}.")
        return said


def tally(run: Run, raters: Sequence[Ballot]) -> Tally:
    """The sums over these raters. Shares and their intervals are ``statistics.share``."""
    choices = [choice for ballot in raters for choice in ballot.choices()]
    candidates = {name for it in choices for name in (it.left, it.right) if name.startswith("rounds/")}
    totals = {name: it.total for name, it in found(run, candidates).items() if it.total is not None}
    wins: dict[str, list[float]] = {}
    agreed: dict[str, list[float]] = {}
    for choice in choices:
        prompt = prompt_of(choice.left)
        if choice.left.startswith("eval/"):
            won = 0.5 if choice.better is None else float(_side(choice.better) == "after")
            wins.setdefault(prompt, []).append(won)
        elif choice.better is not None and choice.worse is not None and {choice.better, choice.worse} <= totals.keys():
            agreed.setdefault(prompt, []).append(float(totals[choice.better] > totals[choice.worse]))
    ties = sum(choice.chosen == "tie" for choice in choices)
    vetoes = len({name for ballot in raters for name in ballot.vetoes()})
    return Tally(len(choices), ties, vetoes, _estimate(wins), _estimate(agreed))


def _is_act(act: Mapping[str, Any]) -> bool:
    named = {"choice": ("left", "right"), "veto": ("picture",), "undo": ()}.get(str(act.get("act")))
    if named is None or any(not isinstance(act.get(name), str) for name in named):
        return False
    return act["act"] != "choice" or act.get("chosen") in get_args(Side)


def _shuffled(both: tuple[Entry, Entry], seed: int) -> Pair:
    names = [entry.name for entry in both]
    flip = fold(seed, "side", *sorted(names)) % 2
    return Pair(both[0].prompt.caption, names[flip], names[1 - flip])


def _words(entry: Entry) -> str:
    """The answer without the white space around it; of a picture its path."""
    return str(entry.media).strip()


def _alike(one: Entry, other: Entry) -> bool:
    return _words(one) == _words(other)


def _preference(rater: str, better: Entry, worse: Entry) -> dict[str, Any]:
    prompt = better.prompt
    if isinstance(better.media, str):
        asked = {"prompt": prompt.caption, **context(prompt)}
        return {"rater": rater, **asked, "chosen": better.media, "rejected": worse.media}
    return {
        "rater": rater,
        "caption": prompt.caption,
        "chosen_file_name": better.name,
        "rejected_file_name": worse.name,
    }


def _share(found: statistics.Estimate) -> str:
    return f"{found.mean:.0%} (95% interval {found.ci95[0]:.0%} to {found.ci95[1]:.0%})"


def _estimate(by_prompt: Mapping[str, list[float]]) -> statistics.Estimate | None:
    if not by_prompt:
        return None
    width = max(map(len, by_prompt.values()))
    table = np.array([answers + [np.nan] * (width - len(answers)) for answers in by_prompt.values()])
    return statistics.share(table)


def _side(name: str) -> str:
    return name.split("/")[-2]
