"""What a reward model learnt, as one page that opens without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raftdiff.llm.reward_runs.evaluation import NEIGHBOURS, Looked, both, words
from raftdiff.llm.reward_runs.page import Plot, Section, span, tenth, to_read, write_page
from raftdiff.llm.reward_runs.training import BINS
from raftdiff.measures.calibration import principal, reliability
from raftdiff.reports import plots
from raftdiff.reports.plots import Bar

SHOWN = 4
"""Pairs to read of each kind."""
SURE = 0.03
"""A mean difference of confidence and accuracy from which on it is told."""


class Side(NamedTuple):
    """One model of the page; ``evaluation`` is ``evaluation.evaluation`` of what it looked at."""

    name: str
    looked: Looked
    evaluation: Mapping[str, Any]


def write_evaluation(path: Path, title: str, sides: Sequence[Side], *, trained_on: int = 0) -> Path:
    """Write the page of one model, or of two on the same pairs (before, after), to ``path`` and return it;
    ``trained_on`` of the pairs were trained on by the last of them."""
    model = sides[-1]
    sections = [
        Section(
            "table",
            "What was measured",
            "Arrows say which direction is better; intervals are 95%.",
            head=["", *(side.name for side in sides)],
            rows=table([side.evaluation for side in sides]),
            note="Accuracy is the share of pairs whose chosen answer has the higher reward. ECE, the expected "
            "calibration error, is how far the probability that the model gives lies from how often it is right. "
            f"Overlap is how often an answer's {NEIGHBOURS} nearest neighbours, by cosine of the last hidden state, "
            "are of the other kind, over what chance gives: 1 is fully mixed, 0 is apart.",
        ),
        _calibration(sides),
        _rewards(sides),
        _lengths(model),
        _by_strength(sides),
        _features(sides),
        _worth_reading(model),
    ]
    return write_page(
        path,
        title=title,
        headline=headline(sides),
        remarks=remarks(model.evaluation),
        facts=f"{len(model.looked.pairs)} pairs, {trained_on or 'none'} of which {model.name} was trained on.",
        sections=sections,
    )


def headline(sides: Sequence[Side]) -> str:
    """What came of it, in one sentence with figures."""
    found = sides[-1].evaluation
    right = f"right in {found['accuracy']:.0%} of {found['pairs']} pairs ({span(found['ci95'])})"
    before = "".join(f"; {side.name} in {side.evaluation['accuracy']:.0%}" for side in sides[:-1])
    return f"{sides[-1].name} is {right}{before}."


def remarks(found: Mapping[str, Any]) -> list[str]:
    """What else a reader should know before looking: length, and confidence."""
    told, length = [], found["length"]
    if length["longer_wins"] and length["prefers_longer"]:
        told.append(
            f"Choosing the longer answer would be right in {length['longer_wins']['mean']:.0%} of the pairs; where the "
            f"lengths differ, the model prefers the longer one in {length['prefers_longer']['mean']:.0%}."
        )
    count = sum(one["n"] for one in found["reliability"])
    excess = sum(one["n"] * (one["confidence"] - one["accuracy"]) for one in found["reliability"]) / max(1, count)
    if abs(excess) > SURE:
        told.append(
            f"It is {'surer' if excess > 0 else 'less sure'} than it is right, by {abs(excess):.0%} on average."
        )
    return told


def table(found: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The lines of the page's table and the terminal's: a name with its direction, and a cell for each model."""
    lines: list[tuple[str, list[str]]] = [
        ("accuracy ↑", [f"{one['accuracy']:.1%} ({span(one['ci95'])})" for one in found]),
        ("accuracy against the truth ↑", [_share(one["truth"]) for one in found]),
        ("loss (nats; 0.693 is chance) ↓", [f"{one['loss']:.3f}" for one in found]),
        ("ECE ↓", [f"{one['ece']:.3f}" for one in found]),
        ("reward of the chosen", [_spread(one["rewards"]["chosen"]) for one in found]),
        ("reward of the rejected", [_spread(one["rewards"]["rejected"]) for one in found]),
        ("the longer answer was chosen", [_share(one["length"]["longer_wins"]) for one in found]),
        ("the model prefers the longer", [_share(one["length"]["prefers_longer"]) for one in found]),
        ("accuracy where the longer was chosen ↑", [_share(one["length"]["right_if_longer"]) for one in found]),
        ("accuracy where the shorter was chosen ↑", [_share(one["length"]["right_if_shorter"]) for one in found]),
        ("overlap of chosen and rejected", [f"{one['features']['mixing']:.2f}" for one in found]),
    ]
    return [[name, *cells] for name, cells in lines if any(cells)]


def _calibration(sides: Sequence[Side]) -> Section:
    shown = [
        Plot(
            side.name,
            plots.reliability(reliability(side.looked.differences, BINS)),
            f"ECE {side.evaluation['ece']:.3f}",
        )
        for side in sides
    ]
    return Section(
        "calibration",
        "Is it as sure as it is right?",
        "On the dashed line it is right as often as it says; below the line it is too sure. A point's area is the "
        "number of its pairs.",
        plots=shown,
    )


def _rewards(sides: Sequence[Side]) -> Section:
    shown = []
    for side in sides:
        groups = {"chosen": side.looked.chosen.rewards, "rejected": side.looked.rejected.rewards}
        shown.append(Plot(side.name, plots.histogram(groups, x="reward (logits)", count="answers")))
        apart = plots.histogram(
            {"difference": side.looked.differences}, x="reward of the chosen less the rejected", zero="0: undecided"
        )
        shown.append(Plot(f"{side.name}, within a pair", apart, "Right of the line, the model agrees with the label."))
    text = "Only differences within a prompt mean anything: a reward has no zero of its own."
    return Section("rewards", "Rewards of the chosen and the rejected", text, plots=shown)


def _lengths(side: Side) -> Section:
    chosen, rejected = words(side.looked.pairs)
    shown = [
        Plot(
            "How long they are", plots.histogram({"chosen": chosen, "rejected": rejected}, x="words", count="answers")
        ),
        Plot(
            "What was chosen, and what the model prefers",
            plots.bars(
                [
                    _bar(name, side.evaluation["length"][key])
                    for name, key in (
                        ("the longer\nwas chosen", "longer_wins"),
                        ("the longer\nis preferred", "prefers_longer"),
                        ("right, longer\nwas chosen", "right_if_longer"),
                        ("right, shorter\nwas chosen", "right_if_shorter"),
                    )
                    if side.evaluation["length"][key]
                ],
                x="",
                y="share of the pairs",
                level=0.5,
                top=1.0,
            ),
            "Labels and model, then accuracy by whether the longer answer was chosen. The dashed line is no bias at "
            "all; whiskers are 95% intervals.",
        ),
    ]
    return Section(
        "length", "Does it go by length?", "Whatever the longer answer wins by alone is no insight.", plots=shown
    )


def _by_strength(sides: Sequence[Side]) -> Section:
    shown = [
        Plot(
            side.name,
            plots.bars(
                [Bar(tenth(one), one["accuracy"]) for one in side.evaluation["deciles"]],
                x="tenths of the pairs, by strength mu: from, to",
                y="accuracy",
                level=0.5,
                top=1.0,
            ),
        )
        for side in sides
    ]
    return Section(
        "strength",
        "By the strength of the preference",
        "How often the model agrees with the label, from the weakest tenth of the pairs to the strongest.",
        plots=shown,
    )


def _features(sides: Sequence[Side]) -> Section:
    shown = []
    for side in sides:
        found = principal(both(side.looked))
        if found.projection.shape[1] < 2:
            continue
        half = len(side.looked.pairs)
        groups = {"chosen": found.projection[:half], "rejected": found.projection[half:]}
        first, second = found.share[:2]
        drawn = plots.scatter(
            groups, x=f"first principal direction ({first:.0%} of the variance)", y=f"second ({second:.0%})"
        )
        shown.append(Plot(side.name, drawn, f"Overlap {side.evaluation['features']['mixing']:.2f} (1 mixed, 0 apart)."))
    return Section(
        "features",
        "How it sees them",
        "The last hidden state of every answer, in the plane that shows most of their variance.",
        plots=shown,
    )


def _worth_reading(side: Side) -> Section:
    d = side.looked.differences
    order = np.argsort(d, kind="stable").tolist()
    rewards = list(zip(side.looked.chosen.rewards.tolist(), side.looked.rejected.rewards.tolist(), strict=True))
    wrong = [place for place in order[:SHOWN] if d[place] < 0]
    least = np.argsort(np.abs(d), kind="stable").tolist()[:SHOWN]
    groups = [
        to_read("Surest, and against the label", side.looked.pairs, wrong, rewards),
        to_read("Surest, and with the label", side.looked.pairs, order[::-1][:SHOWN], rewards),
        to_read("Undecided", side.looked.pairs, least, rewards),
    ]
    text = "Either the model or the label is wrong in the first ones: reading them tells which."
    return Section("read", "Worth reading", text, examples=[group for group in groups if group["pairs"]])


def _bar(name: str, found: Mapping[str, Any]) -> Bar:
    return Bar(name, found["mean"], *found["ci95"])


def _share(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{found['mean']:.1%} ({span(found['ci95'])})"


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.2f} ± {found['std']:.2f}".replace("-", "−")
