"""A run as one page: what changed, shown and counted. One HTML file that opens without a network."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from raftdiff.measures.alarms import after_going_back
from raftdiff.records.media import Medium
from raftdiff.records.watching import warnings
from raftdiff.reports.curve import curve_svg
from raftdiff.reports.goodhart import SIGNS_HEAD, goodhart, signs, signs_note
from raftdiff.reports.page import picture_uri, template, write_html
from raftdiff.reports.plots import over
from raftdiff.reports.tables import REWARDS_HEAD, Row, best_told, rewards_table, rows, shown
from raftdiff.reports.words import dropped, figure, said

EXACT = "the share of pictures right in everything"
STAGES = {
    "sample": "Sampling candidates",
    "score": "Scoring",
    "select": "Selecting",
    "tune": "Fine-tuning",
    "validate": "Watching held-out prompts",
    "evaluate": "Before and after",
}


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One held-out prompt and seed, drawn or answered by the base and by the tuned model.

    Scores are by name: numbers (the first one is printed under the picture, higher is better) or booleans (what the
    judge says). Pairs of one caption stand together, in the order in which they are given.
    """

    caption: str
    before: Medium
    after: Medium
    before_scores: Mapping[str, float | bool]
    after_scores: Mapping[str, float | bool]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One candidate of a round, and whether it was learnt from. Scores as in ``BeforeAfter``."""

    round: int
    caption: str
    media: Medium
    scores: Mapping[str, float | bool]
    selected: bool


class Picture(NamedTuple):
    """One picture or text as the page shows it."""

    uri: str
    """Empty for a text."""
    text: str
    """Empty for a picture."""
    alt: str
    score: str
    """The first score, as text."""
    mark: str
    """``better`` or ``worse`` than its counterpart, ``kept`` or ``left``, or empty."""
    right: bool
    """The judge finds it right in everything."""


def write_report(
    path: Path,
    *,
    title: str,
    evaluation: Mapping[str, Any],
    rounds: Sequence[Mapping[str, Any]],
    pairs: Sequence[BeforeAfter],
    selected: Sequence[Candidate],
    recipe: str,
    trained_on: bool = False,
    training: Mapping[str, Any] | None = None,
    at: int | None = None,
    gone_back: str | None = None,
) -> Path:
    """Write the page to ``path`` and return it; folders are made, an older page is replaced.

    - `evaluation`: the data of ``eval.json``; `rounds`: each round's ``metrics.json``, in order.
    - `pairs`: what the before/after grid shows; a dozen prompts by a few seeds is plenty.
    - `selected`: candidates of some or all rounds, selected and rejected ones; a few prompts a round are plenty.
    - `recipe`: the resolved recipe, as text; `trained_on`: whether the evaluation is of the training prompts.
    - `training`: another evaluation, of the training prompts, whose headline stands first.
    - `at`: the round whose model was looked at, the last by default; `gone_back`: what the guard went back to.

    Raises:
        UserError: the file cannot be written.
    """
    found, told = rows(evaluation), warnings(rounds if at is None else rounds[: at + 1])
    page = template("raftdiff.reports", "before_after.html.jinja").render(
        title=title,
        headlines=[
            *([("The prompts it was tuned on", headline(training))] if training else []),
            ("Prompts it never saw" if training else "", headline(evaluation)),
        ],
        remarks=remarks(evaluation),
        evaluation=evaluation,
        rows=found,
        shown=lambda *of, **how: _typeset(shown(*of, **how)),
        span=_span,
        cards=_cards(pairs),
        score=next((name for pair in pairs for name in _numbers(pair.before_scores)), None),
        warnings=after_going_back(told) if gone_back else told,
        at=None if at is None or at == len(rounds) - 1 else at,
        gone_back=gone_back,
        curve=Markup(curve_svg(rounds)),
        goodhart=Markup(goodhart(rounds)),
        signs=signs(rounds),
        signs_head=SIGNS_HEAD,
        signs_note=signs_note(rounds),
        decided=rewards_table(rounds[-1]) if rounds else None,
        rewards_head=REWARDS_HEAD,
        guidance=Markup(_over_guidance(evaluation)),
        rounds=[_round(index, it) for index, it in enumerate(rounds)],
        selected=_selected(selected, {it.get("round", index): dropped(it) for index, it in enumerate(rounds)}),
        times=_times(evaluation, rounds),
        network_evaluations=evaluation["network_evaluations"] + sum(map(_evaluations, rounds)),
        recipe=recipe,
        trained_on=trained_on,
        noun="answer" if "text" in evaluation else "picture",
        ticks=any(pair.after_scores.get("exact") is not None for pair in pairs),
    )
    return write_html(path, page)


def _over_guidance(evaluation: Mapping[str, Any]) -> str:
    """A plot of what decides which strength is best; empty where one was drawn."""
    if not (told := evaluation.get("guidance")):
        return ""
    curve = told["curve"]
    decisive, *_ = curve[0]["figures"]
    judged = decisive.startswith("judge.")
    lines = {
        called: [(it["guidance"], (100 if judged else 1) * it["figures"][decisive][side]) for it in curve]
        for side, called in (("before", "base"), ("after", "tuned"))
    }
    return over(lines, x="guidance", y="right in everything, %" if judged else decisive.partition(".")[2])


def headline(evaluation: Mapping[str, Any]) -> str:
    """What changed, in one sentence with figures; a fall is said first and as plainly as a rise.

    It speaks of the judge's ``exact`` where there is one, and of the first reward.
    """
    found = {row.key: row for row in rows(evaluation)}
    reward = next((row for key, row in found.items() if key.startswith("reward.")), None)
    told = [row for row in (found.get("judge.exact"), reward) if row]
    if not told:
        return "Nothing was measured."
    told.sort(key=lambda row: row.verdict != "worse")
    mixed = {row.verdict for row in told} == {"better", "worse"}
    sentence = (", but " if mixed else ", and ").join(map(_clause, told))
    return f"{sentence[0].upper()}{sentence[1:]}."


def remarks(evaluation: Mapping[str, Any]) -> list[str]:
    """What else a reader should know before looking: what got worse, and what became of diversity."""
    found = rows(evaluation)
    worse = [f"{row.label} ({shown(row, row.difference, change=True)})" for row in found if row.verdict == "worse"]
    measured = [row for row in found if row.ci95]
    said = [f"Got worse: {', '.join(worse)}."] if worse else []
    if measured and not worse:
        said.append("Nothing that has an interval got worse.")
    if "text" in evaluation:
        pair = evaluation["text"]["distinct_2"]
        said.append(f"Two-word phrases: {pair['before']:.0%} different before, {pair['after']:.0%} after.")
    ratio = (evaluation["diversity"] or {}).get("ratio", {})
    if told := best_told(evaluation):
        said.append(told)
    share = ratio.get("pairwise_distance") or ratio.get("vendi")
    if share is not None:
        what = "Pictures of one prompt differ" if ratio.get("pairwise_distance") else "Pictures differ"
        said.append(f"{what} {share:.0%} as much as the base's.")
    return [_typeset(text) for text in said]


def _clause(row: Row) -> str:
    before, after = shown(row, row.before or 0.0), shown(row, row.after)
    what = EXACT if row.key == "judge.exact" else f"the reward {row.label}"
    if row.verdict == "unclear":
        return _typeset(f"{what} did not change clearly ({before} before, {after} after)")
    change = shown(row, row.difference, change=True)
    return _typeset(f"{what} {'rose' if row.difference > 0 else 'fell'} from {before} to {after} ({change})")


def _typeset(text: str) -> str:
    """With a minus sign for a hyphen before digits, and no line break before a unit."""
    return re.sub(r"(?<![\w.])-(?=\d)", "−", text).replace(" pt", "\N{NO-BREAK SPACE}pt")


def _span(row: Row) -> tuple[float, float] | None:
    """Where the interval of a difference lies, in percent of a bar whose middle is zero: left edge and width."""
    if row.ci95 is None:
        return None
    low, high = row.ci95
    reach = max(abs(low), abs(high)) or 1.0
    return 50 + 46 * low / reach, max(1.5, 46 * (high - low) / reach)


def _cards(pairs: Sequence[BeforeAfter]) -> list[dict[str, Any]]:
    by_caption: dict[str, list[BeforeAfter]] = {}
    for pair in pairs:
        by_caption.setdefault(pair.caption, []).append(pair)
    return [
        {
            "caption": caption,
            "before": [_picture(it.before, f"{caption}, before", it.before_scores) for it in held],
            "after": [
                _picture(it.after, f"{caption}, after", it.after_scores, _compared(it.before_scores, it.after_scores))
                for it in held
            ],
        }
        for caption, held in by_caption.items()
    ]


def _compared(before: Mapping[str, float | bool], after: Mapping[str, float | bool]) -> str:
    """Whether the first number rose or fell."""
    name = next(iter(_numbers(before)), None)
    if name is None or name not in after or before[name] == after[name]:
        return ""
    return "better" if after[name] > before[name] else "worse"


def _selected(candidates: Sequence[Candidate], missing: Mapping[int, str]) -> list[dict[str, Any]]:
    """By round, then by caption; within a caption the selected first, then from the best score down. ``missing`` says
    of each round who was not drawn."""
    order = {caption: place for place, caption in enumerate(dict.fromkeys(it.caption for it in candidates))}
    ranked = sorted(candidates, key=lambda it: (it.round, order[it.caption], not it.selected, -_first(it.scores)))
    return [
        {
            "round": number,
            "dropped": missing.get(number, ""),
            "prompts": [
                {
                    "caption": caption,
                    "pictures": [
                        _picture(it.media, f"{caption}, {word}", it.scores, mark)
                        for it in shelf
                        for word, mark in [("selected", "kept") if it.selected else ("rejected", "left")]
                    ],
                }
                for caption, shelf in groupby(held, key=lambda it: it.caption)
            ],
        }
        for number, held in groupby(ranked, key=lambda it: it.round)
    ]


def _picture(media: Medium, what: str, scores: Mapping[str, float | bool], mark: str = "") -> Picture:
    score = next((figure(value) for value in _numbers(scores).values()), "")
    uri, text = ("", media or " ") if isinstance(media, str) else (picture_uri(media), "")
    alt = ": ".join(filter(None, [what, said(scores)]))
    return Picture(uri, text, alt, score, mark, scores.get("exact") is True)


def _numbers(scores: Mapping[str, float | bool]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if not isinstance(value, bool)}


def _first(scores: Mapping[str, float | bool]) -> float:
    value = next(iter(_numbers(scores).values()), 0.0)
    return float("-inf") if math.isnan(value) else value


def _round(index: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table of rounds; None where a round does not say."""
    names = ("first_sample_mean", "mean", "random_mean", "selected_mean", "best_of_k", "held_out", "discard_rate")
    return {
        "index": metrics.get("round", index),
        **{name: metrics.get(name) for name in names},
        "diversity_all": _diversity(metrics.get("diversity_all")),
        "diversity_selected": _diversity(metrics.get("diversity_selected")),
        "seconds": float(sum(metrics.get("seconds", {}).values())),
    }


def _diversity(diversity: Any) -> float | None:
    """The Vendi score of pictures, distinct-2 of texts."""
    value = diversity.get("vendi", diversity.get("distinct_2")) if isinstance(diversity, Mapping) else diversity
    return value if isinstance(value, float) and math.isfinite(value) else None


def _evaluations(metrics: Mapping[str, Any]) -> int:
    return sum(metrics.get("network_evaluations", {}).values())


def _times(evaluation: Mapping[str, Any], rounds: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Seconds of every stage over all rounds, and of the evaluation, longest first."""
    spent: dict[str, float] = {}
    for metrics in rounds:
        for stage, seconds in metrics.get("seconds", {}).items():
            spent[stage] = spent.get(stage, 0.0) + seconds
    spent["evaluate"] = evaluation["seconds"]
    total = sum(spent.values()) or 1.0
    ordered = sorted(spent.items(), key=lambda item: -item[1])
    return [{"stage": STAGES.get(stage, stage), "seconds": it, "share": it / total} for stage, it in ordered]
