"""Evaluations as tables: rows for people, plain text for a terminal, markdown over several training seeds."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np

from raftdiff.errors import UserError, counted
from raftdiff.measures.statistics import t_interval
from raftdiff.reports.words import percent

REWARDS_HEAD = ("reward", "role", "of the choice", "chosen lie", "nothing told", "turned down")
AGREEMENTS = 6
"""So many agreements are listed, the least first."""


class Row(NamedTuple):
    """One line of a table: a metric before and after, in the unit that it is shown in (rates as percent)."""

    key: str
    """Stable, e.g. ``reward.clip``, ``judge.exact``, ``diversity.vendi``."""
    label: str
    before: float | None
    after: float
    difference: float
    ci95: tuple[float, float] | None
    """Of the difference."""
    win_rate: float | None
    better: int
    """1 where higher is better, -1 where lower is."""
    unit: str
    """``%`` for rates, else empty."""

    @property
    def verdict(self) -> str:
        """``better`` or ``worse`` where the interval leaves zero out, ``unclear`` where it does not, else empty."""
        if self.ci95 is None:
            return ""
        low, high = (end * self.better for end in self.ci95)
        return "better" if min(low, high) > 0 else "worse" if max(low, high) < 0 else "unclear"


JUDGE_LABELS = {
    "object": "object right",
    "count": "count right",
    "relation": "relation right",
    "size": "size right",
    "style": "style right",
    "colour": "colour right",
    "ground": "background right",
    "exact": "everything right",
    "fluent": "fluent",
    "positive": "positive",
}
TEXT_ROWS: Mapping[str, tuple[str, int]] = {
    "true_perplexity": ("true perplexity", -1),
    "perplexity": ("perplexity, to the base", -1),
    "data_perplexity": ("perplexity of the data", -1),
    "distinct_1": ("distinct-1", 1),
    "distinct_2": ("distinct-2", 1),
    "unique_1": ("unique-1", 1),
    "unique_2": ("unique-2", 1),
    "msttr_100": ("MSTTR-100", 1),
    "length": ("length (words)", 1),
}
"""Figures of answers -> label, and which direction is thought better; a longer answer is not, in itself."""
DRIFT_LABELS = {"kl": "KL to the base (nats)"}
DIVERSITY_LABELS = {
    "vendi": "diversity (Vendi)",
    "vendi_within": "diversity in a prompt (Vendi)",
    "pairwise_distance": "distance in a prompt",
}


def rows(evaluation: Mapping[str, Any]) -> list[Row]:
    """The lines of every table of one evaluation: rewards, judge, diversity, drift."""
    found = [
        _row(
            f"reward.{name}", name, it["before"]["mean"], it["after"]["mean"], it["difference"], win_rate=it["win_rate"]
        )
        for name, it in evaluation["rewards"].items()
    ]
    found += [
        _row(f"judge.{name}", JUDGE_LABELS.get(name, name), it["before"], it["after"], it["difference"], unit="%")
        for name, it in evaluation["judge"].items()
    ]
    for name, pair in (evaluation["diversity"] or {}).items():
        if name in DIVERSITY_LABELS and pair["before"] is not None:
            found.append(_row(f"diversity.{name}", DIVERSITY_LABELS[name], pair["before"], pair["after"]))
    for name, pair in evaluation.get("text", {}).items():
        if name in TEXT_ROWS and pair["before"] is not None and pair["after"] is not None:
            label, better = TEXT_ROWS[name]
            found.append(_row(f"text.{name}", label, pair["before"], pair["after"], better=better))
    for name, value in evaluation["drift"].items():
        if value is not None:
            label = DRIFT_LABELS.get(name, f"drift from base ({name})")
            found.append(Row(f"drift.{name}", label, None, value, value, None, None, -1, ""))
    return found


def table(evaluation: Mapping[str, Any]) -> str:
    """Plain text for a terminal, at most 100 columns. The arrow says which direction is better."""
    lines = [("", "before", "after", "difference", "95% interval", "win rate")]
    for row in rows(evaluation):
        lines.append(
            (
                f"{_arrow(row)} {row.label if len(row.label) <= 30 else row.label[:29] + '…'}",
                shown(row, row.before) if row.before is not None else "",
                shown(row, row.after),
                shown(row, row.difference, change=True) if row.before is not None else "",
                " .. ".join(shown(row, end, change=True).removesuffix(" pt") for end in row.ci95) if row.ci95 else "",
                f"{row.win_rate:.0%}" if row.win_rate is not None else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    body = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines)
    asked, drawn = counted(evaluation["prompts"], "prompt"), counted(evaluation["samples_per_prompt"], "sample")
    pictures = f"{asked} x {drawn}"
    return "\n".join([*body, "", f"{pictures}, the same prompts and seeds before and after."])


def guidance_table(evaluation: Mapping[str, Any]) -> str:
    """Before and after over guidance, for a terminal; empty where one strength was drawn. A star marks the best."""
    if not (over := evaluation.get("guidance")):
        return ""
    curve, best = over["curve"], over["best"]
    decisive, *_ = names = list(curve[0]["figures"])
    lines = [["guidance", "evaluations", *(f"{_named(name)}, {side}" for name in names for side in best)]]
    for it in curve:
        cells = [
            ("*" if name == decisive and it["guidance"] == best[side] else "") + _told(name, it["figures"][name][side])
            for name in names
            for side in best
        ]
        lines.append([f"{it['guidance']:g}", str(it["evaluations"]), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(["  ".join(map(str.rjust, line, widths)) for line in lines] + ["", best_told(evaluation)])


def _named(key: str) -> str:
    kind, _, name = key.partition(".")
    return {"judge": "right", "diversity": "Vendi"}.get(kind, name)


def _told(key: str, value: float | None) -> str:
    return "" if value is None else f"{value:.1%}" if key.startswith("judge.") else f"{value:.2f}"


def best_told(evaluation: Mapping[str, Any]) -> str:
    """At what guidance each side was drawn, where that was chosen for each; else empty."""
    if not (over := evaluation.get("guidance")):
        return ""
    best = over["best"]
    cost = {it["guidance"]: it["evaluations"] for it in over["curve"]}
    return (
        f"Each model is shown at the guidance at which it is best: the base at {best['before']:g} "
        f"({cost[best['before']]} network evaluations a picture), the tuned model at {best['after']:g} "
        f"({cost[best['after']]})."
    )


def side_by_side(prompt: str, before: str, after: str, width: int = 100) -> str:
    """Two answers to a prompt in two columns, for a terminal of ``width`` columns.

    >>> print(side_by_side("How are you?", "I am a program.", "Well, and you?", width=30))
    How are you?
      before       | after
      I am a       | Well, and
      program.     | you?
    """
    column = max(10, (width - 5) // 2)
    columns = [
        ["before", *(line for part in before.split("\n") for line in textwrap.wrap(part, column) or [""])],
        ["after", *(line for part in after.split("\n") for line in textwrap.wrap(part, column) or [""])],
    ]
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join([prompt, *(f"  {left:{column}} | {right}".rstrip() for left, right in rows)])


def shown(row: "Row | Across", value: float, *, change: bool = False) -> str:
    """A figure of a row as text: rates with one decimal, their changes in points, others at the row's precision."""
    if row.unit == "%":
        return f"{value:+.1f} pt" if change else f"{value:.1f}%"
    return f"{value:{'+' if change else ''}.{digits(row)}f}"


def digits(row: "Row | Across") -> int:
    """Decimals that suit a row's size, the same for all of its figures: three or four that say something."""
    if row.unit == "%":
        return 1
    sides = [side.mean if isinstance(side, Mean) else side for side in (row.before, row.after) if side is not None]
    return decimals(max(map(abs, sides)))


def decimals(size: float) -> int:
    """So many that figures up to this size say something in three or four digits.

    >>> [decimals(size) for size in (250.0, 70.0, 0.5, 0.004, 0.0)]
    [1, 2, 3, 5, 3]
    """
    return 1 if size >= 100 else 2 if size >= 1 else min(6, 2 - math.floor(math.log10(size))) if size else 3


class Mean(NamedTuple):
    """A figure over training seeds."""

    mean: float
    ci95: tuple[float, float] | None
    """Student's t over the seeds; None with one seed."""


class Across(NamedTuple):
    """One metric over several training seeds, in the unit that it is shown in."""

    key: str
    label: str
    before: Mean | None
    after: Mean
    difference: Mean
    better: int
    unit: str


def aggregate(evaluations: Sequence[Mapping[str, Any]]) -> list[Across]:
    """Mean and interval of every figure over training seeds, one evaluation each.

    The interval says how sure the mean is over *trainings* (n = seeds), not over pictures: with three seeds it is
    wide, and honest. Where the base's pictures are the same in every evaluation, its interval has no width.

    Raises:
        UserError: no evaluation, or they do not measure the same things.
    """
    if not evaluations:
        raise UserError("There is no evaluation to aggregate.")
    columns = [{row.key: row for row in rows(evaluation)} for evaluation in evaluations]
    odd = sorted({key for column in columns for key in column if not all(key in other for other in columns)})
    if odd:
        raise UserError(f"These evaluations do not measure the same things; some lack: {', '.join(odd)}.")
    return [_across([column[key] for column in columns]) for key in columns[0]]


def markdown(columns: Mapping[str, Sequence[Across]]) -> str:
    """A table like the paper's: a line per metric, and base, tuned, difference for each heading in ``columns``.

    ``markdown({"in domain": aggregate(...), "out of domain": aggregate(...)})``
    """
    heads = [f"{head}: {what}" for head in columns for what in ("base", "tuned", "difference")]
    lines = ["| metric | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    found = {head: {row.key: row for row in column} for head, column in columns.items()}
    labels = {row.key: f"{row.label} {_arrow(row)}" for column in columns.values() for row in column}
    for key, label in labels.items():
        cells = [cell for column in found.values() for cell in _cells(column.get(key))]
        lines.append(f"| {label.replace('|', chr(92) + '|')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _across(runs: Sequence[Row]) -> Across:
    first = runs[0]
    before = [row.before for row in runs if row.before is not None]
    return Across(
        first.key,
        first.label,
        before=_mean(before) if before else None,
        after=_mean([row.after for row in runs]),
        difference=_mean([row.difference for row in runs]),
        better=first.better,
        unit=first.unit,
    )


def _mean(values: Sequence[float]) -> Mean:
    return Mean(float(np.mean(values)), t_interval(np.array(values)) if len(values) > 1 else None)


def _cells(row: Across | None) -> tuple[str, str, str]:
    if row is None:
        return ("", "", "")
    if row.before is None:
        return ("", _plus_minus(row, row.after), "")
    return (_plus_minus(row, row.before), _plus_minus(row, row.after), _plus_minus(row, row.difference, change=True))


def _plus_minus(row: Across, figure: Mean, *, change: bool = False) -> str:
    """The mean, and half of the interval's width."""
    text = shown(row, figure.mean, change=change)
    return f"{text} ± {(figure.ci95[1] - figure.ci95[0]) / 2:.{digits(row)}f}" if figure.ci95 else text


def _arrow(row: Row | Across) -> str:
    return "↑" if row.better > 0 else "↓"


def _row(
    key: str, label: str, before: float, after: float, difference: Mapping[str, Any] | None = None, **other: Any
) -> Row:
    """A row in percent for ``unit="%"``; without a paired difference it has no interval, nor where that has none."""
    unit: str = other.get("unit", "")
    scale = 100.0 if unit == "%" else 1.0
    known = difference["ci95"] if difference and difference.get("n", 2) > 1 else None  # earlier versions' of one pair
    ci95 = (scale * known[0], scale * known[1]) if known else None
    change = difference["mean"] if difference else after - before
    win_rate, better = other.get("win_rate"), other.get("better", 1)
    return Row(key, label, scale * before, scale * after, scale * change, ci95, win_rate, better, unit)


def rewards_told(metrics: Mapping[str, Any]) -> list[str]:
    """A table of a round's rewards and lines on how often they agree, from its ``metrics.json``. Nothing where there is
    one reward alone, or the round is of an earlier version, which did not write it down."""
    if not (told := rewards_table(metrics)):
        return []
    rows = [REWARDS_HEAD, *told.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [told.title]
    for row in rows:
        cells = [
            cell.rjust(width) if at > 1 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(cells)}")
    return [*lines, *(f"  {line}" for line in told.agreeing)]


class RewardsTable(NamedTuple):
    """Who decided in a round, in words."""

    title: str
    rows: list[tuple[str, ...]]
    """Under ``REWARDS_HEAD``, a reward each."""
    agreeing: list[str]
    """How often two rewards agree, those that agree least first."""


def rewards_table(metrics: Mapping[str, Any]) -> RewardsTable | None:
    """A round's rewards beside each other; None where ``rewards_told`` has nothing."""
    told = metrics.get("mixing")
    if not told or len(told["roles"]) < 2:
        return None
    title = f"rewards in round {metrics['round']}, mix: {told['mix']}"
    return RewardsTable(title, [_reward_row(told, name) for name in told["roles"]], _agreeing(told))


def _reward_row(told: Mapping[str, Any], name: str) -> tuple[str, ...]:
    share, above = told["contribution"].get(name), told["chosen_above"].get(name)
    return (
        name,
        told["roles"][name],
        "-" if share is None else percent(share),
        "-" if above is None else f"{above:+.2f} sd",
        percent(told["told_nothing"][name]),
        str(told["vetoed"].get(name, "-")),
    )


def _agreeing(told: Mapping[str, Any]) -> list[str]:
    """A line for every two rewards, those that agree least first."""
    held = [(share, one, other) for one, others in told["agreement"].items() for other, share in others.items()]
    known = sorted(it for it in held if it[0] is not None)
    lines = [f"{one} and {other} order {percent(share)} of the pairs alike" for share, one, other in known[:AGREEMENTS]]
    if len(known) > AGREEMENTS:
        lines.append(f"and {len(known) - AGREEMENTS} more, {percent(known[AGREEMENTS][0])} or above")
    return lines
