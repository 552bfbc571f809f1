"""What people chose: blind A/B answers and vetoes, a file a rater, each act on disk as soon as it is made.

``labels/<rater>.jsonl`` in the run directory holds one act a line, in the order in which they were made:

    {"time": "...", "act": "choice", "left": "rounds/000/samples/cat-001.png", "right": "...", "chosen": "left"}
    {"time": "...", "act": "veto", "picture": "rounds/000/samples/cat-002.png"}
    {"time": "...", "act": "undo"}                                             takes back the last act that stands

A picture is named by its path within the run. ``chosen`` is ``left``, ``right`` or ``tie``; which picture stood on
which side was shuffled, and nothing on the page told them apart. Nothing is ever rewritten, so a kill loses nothing.
"""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np

from raftdiff import statistics
from raftdiff.disk import read_json_lines
from raftdiff.errors import UserError
from raftdiff.runs import Run
from raftdiff.seeds import fold

Side = Literal["left", "right", "tie"]
RATER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")


@final
@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one caption, as they are shown.

    Example: ``Pair("a cartoon of a cat", "eval/before/cat-000.png", "eval/after/cat-000.png")``.
    """

    caption: str
    left: str
    right: str

    @property
    def pictures(self) -> frozenset[str]:
        return frozenset({self.left, self.right})


class Choice(NamedTuple):
    """One answer that stands."""

    rater: str
    left: str
    right: str
    chosen: Side

    @property
    def better(self) -> str | None:
        """The picture that won; None for a tie."""
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

    def veto(self, picture: str) -> None:
        """This picture must never be learnt from, whatever it scores."""
        self._append({"act": "veto", "picture": picture})

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
        """The acts, less those that were taken back. A last line that was cut short does not count."""
        standing: list[dict[str, Any]] = []
        for act in read_json_lines(self.path):
            if act["act"] != "undo":
                standing.append(act)
            elif standing:
                standing.pop()
        return standing

    def _append(self, act: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(exist_ok=True)
        torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **act})
            file.write(("\n" if torn and self.path.stat().st_size else "") + line + "\n")
            file.flush()
            os.fsync(file.fileno())


def ballots(run: Run) -> list[Ballot]:
    """Those of every rater so far, by name."""
    return [Ballot(run, file.stem) for file in sorted((run.path / "labels").glob("*.jsonl"))]


def candidate_pairs(run: Run, round: int, *, per_prompt: int, seed: int) -> list[Pair]:
    """Pairs of candidates of one prompt in a finished round, drawn at random, sides shuffled.

    ``per_prompt`` pairs of each prompt at most; a prompt's second pair comes when every prompt has had its first. The
    same seed gives the same pairs in the same order.
    """
    folder = run.round(round)
    names: dict[str, list[str]] = {}
    captions: dict[str, str] = {}
    for row in folder.rows():
        names.setdefault(row["prompt_id"], []).append(f"rounds/{round:03d}/samples/{row['file_name']}")
        captions[row["prompt_id"]] = row["caption"]
    drawn = {}
    for prompt, pictures in names.items():
        every = list(combinations(pictures, 2))
        order = np.random.default_rng(fold(seed, round, "pairs", prompt)).permutation(len(every))
        drawn[prompt] = [every[place] for place in order[:per_prompt]]
    turns = [(turn, prompt) for turn in range(per_prompt) for prompt in drawn if turn < len(drawn[prompt])]
    return [_shuffled(captions[prompt], drawn[prompt][turn], seed) for turn, prompt in turns]


def evaluation_pairs(run: Run, name: str | None, *, seed: int) -> list[Pair]:
    """Before and after of an evaluation, the same prompt and seed, in shuffled order with shuffled sides.

    Raises:
        UserError: there is no such evaluation.
    """
    folder = f"eval/{name}" if name else "eval"
    asked = run.path / folder / "pictures.json"
    if not asked.is_file():
        raise UserError(f"{run.path / folder}: no evaluation to label is here; run: raftdiff eval {run.path}")
    captions: dict[str, str] = json.loads(asked.read_text(encoding="utf-8"))
    both = [
        _shuffled(caption, (f"{folder}/before/{file}", f"{folder}/after/{file}"), seed)
        for file, caption in captions.items()
    ]
    return [both[place] for place in np.random.default_rng(fold(seed, "pairs", folder)).permutation(len(both))]


def unanswered(pairs: Sequence[Pair], choices: Sequence[Choice]) -> Iterator[Pair]:
    """The pairs that are still to be asked, whichever side their pictures stood on before."""
    answered = {frozenset({choice.left, choice.right}) for choice in choices}
    return (pair for pair in pairs if pair.pictures not in answered)


def points(run: Run, rater: str | None = None) -> tuple[dict[str, float], set[str]]:
    """Wins less losses of every picture that was compared, and the pictures that anybody vetoed."""
    held = [ballot for ballot in ballots(run) if rater in (None, ballot.rater)]
    scores: dict[str, float] = {}
    for choice in (choice for ballot in held for choice in ballot.choices()):
        for picture in (choice.left, choice.right):
            scores.setdefault(picture, 0.0)
        if choice.better is not None and choice.worse is not None:
            scores[choice.better] += 1
            scores[choice.worse] -= 1
    return scores, {picture for ballot in held for picture in ballot.vetoes()}


def preferences(run: Run) -> list[dict[str, str]]:
    """What was preferred, for training a reward: ``rater``, ``caption``, ``chosen``, ``rejected``; ties are left out.

    Example of a line: ``{"rater": "ada", "caption": "a cartoon of a cat", "chosen": "rounds/000/samples/cat-001.png",
    "rejected": "rounds/000/samples/cat-004.png"}``.
    """
    captions = _captions(run)
    return [
        {"rater": c.rater, "caption": captions.get(c.left, ""), "chosen": c.better, "rejected": c.worse}
        for ballot in ballots(run)
        for c in ballot.choices()
        if c.better is not None and c.worse is not None
    ]


class Tally(NamedTuple):
    """What some raters said of one kind of pair."""

    choices: int
    """Answers, ties included."""
    ties: int
    vetoes: int
    after_wins: statistics.Estimate | None
    """How often after beat before, a tie counting half, in 0..1; None where no such pair was answered."""
    agreement: statistics.Estimate | None
    """How often the candidate that people chose had the higher total reward, ties left out; None likewise."""

    @property
    def lines(self) -> list[str]:
        """The same in sentences."""
        said = [f"{self.choices} answers, {self.ties} of them ties; {self.vetoes} pictures vetoed."]
        if self.after_wins is not None:
            said.append(f"After beats before in {_share(self.after_wins)} of {self.after_wins.n} pairs.")
        if self.agreement is not None:
            said.append(f"The reward agrees with people in {_share(self.agreement)} of {self.agreement.n} choices.")
        return said


def tally(run: Run, raters: Sequence[Ballot]) -> Tally:
    """The sums over these raters. Intervals are bootstrap intervals over prompts."""
    choices = [choice for ballot in raters for choice in ballot.choices()]
    totals = _totals(run, choices)
    wins: dict[str, list[float]] = {}
    agreed: dict[str, list[float]] = {}
    for choice in choices:
        prompt = _prompt(choice.left)
        if choice.left.startswith("eval/"):
            won = 0.5 if choice.better is None else float(_side(choice.better) == "after")
            wins.setdefault(prompt, []).append(won)
        elif choice.better is not None and choice.worse is not None and {choice.better, choice.worse} <= totals.keys():
            agreed.setdefault(prompt, []).append(float(totals[choice.better] > totals[choice.worse]))
    ties = sum(choice.chosen == "tie" for choice in choices)
    vetoes = len({picture for ballot in raters for picture in ballot.vetoes()})
    return Tally(len(choices), ties, vetoes, _estimate(wins), _estimate(agreed))


def _shuffled(caption: str, pictures: tuple[str, str], seed: int) -> Pair:
    flip = fold(seed, "side", *sorted(pictures)) % 2
    return Pair(caption, pictures[flip], pictures[1 - flip])


def _share(found: statistics.Estimate) -> str:
    return f"{found.mean:.0%} (95% interval {found.ci95[0]:.0%} to {found.ci95[1]:.0%})"


def _estimate(by_prompt: Mapping[str, list[float]]) -> statistics.Estimate | None:
    if not by_prompt:
        return None
    width = max(map(len, by_prompt.values()))
    table = np.array([answers + [np.nan] * (width - len(answers)) for answers in by_prompt.values()])
    return statistics.mean_std_ci(table)


def _captions(run: Run) -> dict[str, str]:
    """Path of every picture that can be labelled -> its caption."""
    found: dict[str, str] = {}
    for t in range(run.rounds_done()):
        found |= {f"rounds/{t:03d}/samples/{row['file_name']}": row["caption"] for row in run.round(t).rows()}
    for file in sorted((run.path / "eval").rglob("pictures.json")):
        folder = file.parent.relative_to(run.path).as_posix()
        for name, caption in json.loads(file.read_text(encoding="utf-8")).items():
            found |= {f"{folder}/{side}/{name}": caption for side in ("before", "after")}
    return found


def _totals(run: Run, choices: Sequence[Choice]) -> dict[str, float]:
    """The total reward of every candidate in the rounds that were labelled; discarded ones are left out."""
    rounds = {int(choice.left.split("/")[1]) for choice in choices if choice.left.startswith("rounds/")}
    return {
        f"rounds/{t:03d}/samples/{row['file_name']}": row["total"]
        for t in rounds
        for row in run.round(t).rows()
        if row.get("total") is not None
    }


def _prompt(picture: str) -> str:
    """The prompt id within a picture's name."""
    return Path(picture).stem.rpartition("-")[0]


def _side(picture: str) -> str:
    return Path(picture).parent.name
