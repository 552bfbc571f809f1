"""Figures as people read them: durations, and scores under a picture."""

import math
from collections.abc import Mapping

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
