"""The table of a benchmark: for a terminal, and for papers in Markdown and LaTeX. One source for all, the JSON."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

TEX = {"\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}", "^": r"\^{}"}
RULE = [""]
"""Stands for a line across the table."""
COMMONEST = 3
"""Reasons of a category that are shown; the JSON has all."""


def rows(outcome: Mapping[str, Any]) -> list[list[str]]:
    """The cells, the heading first; ``RULE`` between parts. Categories are lines, and the benchmark's own figure is the
    last of a reward. An interval is of 95%, that of the difference where there are two sides."""
    sides: Sequence[str] = outcome["sides"]
    paired = len(sides) == 2
    ends = ["difference", "95% interval", "win rate"] if paired else ["95% interval"]
    found = [["", "prompts", *sides, *ends]]
    for name, reward in outcome["rewards"].items():
        found += [RULE, [name]]
        for column, grouping in reward["by"].items():
            several = len(reward["by"]) > 1
            found += [
                [f"{column}: {category}" if several else category, *_line(line, sides)]
                for category, line in grouping["categories"].items()
            ]
        mean = next((it["mean"] for it in reward["by"].values()), None)
        over = "mean of categories" if mean is not None and reward["overall"] == mean else "all prompts"
        if over != "all prompts":
            found.append(["all pictures", *_line(reward["pictures"], sides)])
        if reward["any"] is not None and outcome["samples"] > 1:
            found.append(["prompts with any right", *_line(reward["any"], sides)])
        found.append([f"overall ({over})", *_line(reward["overall"], sides)])
    return found


def _line(line: Mapping[str, Any], sides: Sequence[str]) -> list[str]:
    scores = [line["scores"][side] for side in sides]
    most = max((abs(it["mean"]) for it in scores if it), default=0.0)
    digits = 3 if most < 10 else 2
    cells = [f"{line['prompts']:,}", *(f"{it['mean']:.{digits}f}" if it else "" for it in scores)]
    if len(sides) == 1:
        return [*cells, _interval(scores[0], f".{digits}f")]
    change = line["difference"]
    told = f"{change['mean']:+.{digits}f}" if change else ""
    won = "" if line["win_rate"] is None else f"{line['win_rate']:.0%}"
    return [*cells, told, _interval(change, f"+.{digits}f"), won]


def _interval(figure: Mapping[str, Any] | None, how: str) -> str:
    if not figure or figure["ci95"] is None:
        return ""
    low, high = figure["ci95"]
    return f"{low:{how}} .. {high:{how}}"


def caption(outcome: Mapping[str, Any]) -> str:
    """What was measured, in a sentence."""
    drawn = f"{outcome['prompts']:,} prompts x {outcome['samples']}"
    both = ", the same prompts and seeds before and after" if len(outcome["sides"]) == 2 else ""
    return f"{outcome['title']}, {outcome['model']}: {drawn}{both}; higher is better; 95% intervals over prompts."


def reasons(outcome: Mapping[str, Any]) -> list[list[str]]:
    """What is most often wrong with the pictures of each category, as cells like those of ``rows``: the share of its
    pictures with such a reason, of which one may have several. Nothing where no reward gives reasons."""
    sides: Sequence[str] = outcome["sides"]
    found = [["what is wrong", "pictures", *(sides if len(sides) > 1 else ["share"])]]
    for name, told in outcome["reasons"].items():
        found += [RULE, [name]]
        shown: Counter[str] = Counter()
        for why in told:
            shown[why["category"]] += 1
            if shown[why["category"]] <= COMMONEST:
                label = f"{why['category']}: {why['kind']}" if why["category"] else why["kind"]
                shares = [f"{why['wrong'][side] / max(why['pictures'][side], 1):.1%}" for side in sides]
                found.append([label, f"{max(why['pictures'].values()):,}", *shares])
        if not told:
            found.append(["nothing", *[""] * (1 + len(sides))])
    return found if len(found) > 1 else []


def plain(outcome: Mapping[str, Any]) -> str:
    """For a terminal."""
    parts = [_aligned(rows(outcome)), caption(outcome)]
    if wrong := reasons(outcome):
        parts.append(_aligned(wrong))
    return "\n\n".join(parts)


def _aligned(table: Sequence[list[str]]) -> str:
    width = [max(len(row[place]) for row in table if place < len(row)) for place in range(len(table[0]))]
    lines = [
        "" if row == RULE else "  ".join([row[0].ljust(width[0]), *map(str.rjust, row[1:], width[1:])]) for row in table
    ]
    return "\n".join(line.rstrip() for line in lines)


def markdown(outcome: Mapping[str, Any]) -> str:
    """As GitHub reads it."""
    parts = [_piped(rows(outcome)), caption(outcome)]
    if wrong := reasons(outcome):
        parts.append(_piped(wrong))
    return "\n\n".join(parts) + "\n"


def _piped(table: Sequence[list[str]]) -> str:
    head, *body = table
    lines = [_pipes(head), "|---|" + "--:|" * (len(head) - 1)]
    for row in body:
        if row != RULE:
            lines.append(_pipes([f"**{row[0]}**"] + [""] * (len(head) - 1) if len(row) == 1 else row))
    return "\n".join(lines)


def _pipes(row: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def latex(outcome: Mapping[str, Any]) -> str:
    """With the package booktabs."""
    head, *body = rows(outcome)
    lines = [
        r"% \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
    ]
    lines += [r"\toprule", _ampersands(head)]
    for row in body:
        if row == RULE:
            lines.append(r"\midrule")
        elif len(row) == 1:
            lines.append(rf"\multicolumn{{{len(head)}}}{{l}}{{\textbf{{{escaped(row[0])}}}}} \\")
        else:
            lines.append(_ampersands(row))
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{escaped(caption(outcome))}}}", r"\end{table}", ""]
    return "\n".join(lines)


def _ampersands(row: Sequence[str]) -> str:
    label, *cells = (escaped(cell) for cell in row)
    numbers = [re.sub(r"[-+][\d.]+", r"$\g<0>$", cell.replace(" .. ", " to ")) for cell in cells]
    return " & ".join([label, *numbers]) + r" \\"


def escaped(text: str) -> str:
    r"""A text as LaTeX sets it.

    >>> escaped("50% of a_b & c")
    '50\\% of a\\_b \\& c'
    """
    return "".join(TEX.get(letter, letter) for letter in text)
