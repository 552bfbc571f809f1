"""Figures as people read them: durations, and scores under a picture."""

import math
from collections.abc import Mapping
from typing import Any

ASPECTS = {"exact": "everything", "ground": "background"}
"""What tables call an aspect of the judge's, where that is another word."""


def said(scores: Mapping[str, float | bool]) -> str:
    """Scores in words, for alternative texts: ``clip 72.1, everything right``."""
    return ", ".join(f"{ASPECTS.get(name, name)} {figure(value)}" for name, value in scores.items())


def figure(value: float | bool | None) -> str:
    """A score as it stands under a picture; None and NaN are candidates that a reward discarded.

    >>> figure(72.149), figure(0.5), figure(float("nan")), figure(True)
    ('72.1', '0.50', 'discarded', 'right')
    """
    if isinstance(value, bool):
        return "right" if value else "wrong"
    if value is None or math.isnan(value):
        return "discarded"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """
    >>> percent(0.614), percent(-0.001)
    ('61%', '0%')
    """
    return f"{round(share, 2) + 0.0:.0%}"


def duration(seconds: float) -> str:
    """As people say it.

    >>> duration(0.4), duration(42.0), duration(119.7), duration(4000.0)
    ('0.4 s', '42 s', '2 min 0 s', '1 h 6 min')
    """
    whole = round(seconds)
    if whole < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def dropped(metrics: Mapping[str, Any]) -> str:
    """How many of a round's candidates were dropped before they were drawn, and when; nothing where none were.

    >>> dropped({"pruned": [{"step": 3, "seen": 48, "kept": 24}, {"step": 5, "seen": 24, "kept": 12}]})
    '36 of 48 candidates dropped on the way: 24 after step 3, 12 after step 5'
    >>> dropped({"pruned": [{"step": 3, "seen": 4, "kept": 2, "total": None}]})
    '2 of 4 candidates dropped on the way, after step 3 by their order, for no preview had a value: 2 after step 3'
    """
    looks = metrics.get("pruned") or []
    each = [f"{it['seen'] - it['kept']} after step {it['step']}" for it in looks]
    whole = f"{looks[0]['seen'] - looks[-1]['kept']} of {looks[0]['seen']} candidates" if looks else ""
    blind = " and ".join(str(it["step"]) for it in looks if it.get("total", 0) is None)
    by_order = f", after step {blind} by their order, for no preview had a value" if blind else ""
    return f"{whole} dropped on the way{by_order}: {', '.join(each)}" if looks else ""
