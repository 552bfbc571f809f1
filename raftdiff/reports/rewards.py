"""How the rewards of a round went together, as lines of text: who ranks, who decided, who agrees with whom."""

from collections.abc import Mapping
from typing import Any

HEAD = ("reward", "role", "of the choice", "chosen lie", "nothing told", "turned down")
SHOWN = 6
"""So many agreements are listed, the least first."""


def rewards_told(metrics: Mapping[str, Any]) -> list[str]:
    """A table of a round's rewards and lines on how often they agree, from its ``metrics.json``. Nothing where there is
    one reward alone, or the round is of an earlier version, which did not write it down."""
    told = metrics.get("mixing")
    if not told or len(told["roles"]) < 2:
        return []
    rows = [HEAD, *(_row(told, name) for name in told["roles"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"rewards in round {metrics['round']}, mix: {told['mix']}"]
    for row in rows:
        cells = [
            cell.rjust(width) if at > 1 else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"  {'  '.join(cells)}")
    return [*lines, *_agreeing(told)]


def _row(told: Mapping[str, Any], name: str) -> tuple[str, ...]:
    share, above = told["contribution"].get(name), told["chosen_above"].get(name)
    return (
        name,
        told["roles"][name],
        "-" if share is None else _percent(share),
        "-" if above is None else f"{above:+.2f} sd",
        _percent(told["told_nothing"][name]),
        str(told["vetoed"].get(name, "-")),
    )


def _agreeing(told: Mapping[str, Any]) -> list[str]:
    """A line for every two rewards, those that agree least first."""
    known = sorted((share, one, other) for one, other, share in told["agreement"] if share is not None)
    lines = [f"  {one} and {other} order {_percent(share)} of the pairs alike" for share, one, other in known[:SHOWN]]
    if len(known) > SHOWN:
        lines.append(f"  and {len(known) - SHOWN} more, {_percent(known[SHOWN][0])} or above")
    return lines


def _percent(share: float) -> str:
    """
    >>> _percent(0.614), _percent(-0.001)
    ('61%', '0%')
    """
    return f"{round(share, 2) + 0.0:.0%}"
