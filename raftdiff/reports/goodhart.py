"""Whether the reward is hacked, for people: the trained reward against what it stands for, whose curve then turns
(Goodhart), and everything that the guard looks at, beside the base's."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from raftdiff.measures.alarms import Drift, HeldOut, alarms, changed, gain
from raftdiff.records.changes import alike
from raftdiff.reports.plots import path
from raftdiff.reports.words import percent

Rounds = Sequence[Mapping[str, Any]]
Points = list[tuple[str, float, float]]


class Sign(NamedTuple):
    """One figure of the held-out samples as the guard sees it, in words; empty where there is none."""

    what: str
    base: str
    now: str
    moved: str
    """From the base, with the base's spread as yardstick: sd are its standard deviations."""
    alarm: bool = False


SIGNS_HEAD = ("held-out prompts", "base", "now", "moved")
SIGNS_NOTE = (
    "sd: the base's standard deviations, of a reward between prompts, of a signal between pictures. Drift has for its "
    "yardstick how far two of the base's pictures of one prompt lie apart; that of predictions has none."
)


def signs(rounds: Rounds) -> list[Sign]:
    """What the guard looks at, of the last round beside the base; nothing where either was not looked at, or with other
    rewards."""
    same = alike(rounds)
    if not same or same[0].get("held_out_base") is None or same[-1].get("held_out") is None:
        return []
    base, now = HeldOut.of(same[0], "held_out_base"), HeldOut.of(same[-1], "held_out")
    found = [_reward(name, base, now) for name in base.rewards if name in now.rewards]
    for name, one in now.signals.items():
        if before := base.signals.get(name):
            moved = _in_spreads(one.mean - before.mean, before.std)
            found.append(Sign(f"signal {name}", f"{before.mean:.3g}", f"{one.mean:.3g}", moved))
    if base.vendi is not None and now.vendi is not None:
        share = f"{percent(now.vendi / base.vendi)} of it"
        found.append(Sign("vendi", f"{base.vendi:.3g}", f"{now.vendi:.3g}", share))
    if base.near_duplicates is not None and now.near_duplicates is not None:
        shares = (base.near_duplicates, now.near_duplicates)
        found.append(Sign("near-duplicates", percent(shares[0]), percent(shares[1]), _points(*shares)))
    if base.text and now.text:
        shares = (base.text.mean, now.text.mean)
        found.append(Sign("text", percent(shares[0]), percent(shares[1]), _points(*shares)))
    found += [_drift(now.drift)] if now.drift else []
    if (predictions := (same[-1].get("tune") or {}).get("prediction_drift")) is not None:
        found.append(Sign("drift of predictions", "", f"{predictions:.3g}", ""))
    told = {alarm.what for alarm in alarms(base, now)}
    return [it._replace(what=it.what.removeprefix("signal ").replace("_", " "), alarm=it.what in told) for it in found]


def signs_note(rounds: Rounds) -> str:
    """How ``signs`` are to be read, and what was not looked at."""
    return " ".join(filter(None, [SIGNS_NOTE, _unread(rounds)]))


def _unread(rounds: Rounds) -> str:
    """A sentence where text was not looked for in what ``signs`` compares."""
    if not (same := alike(rounds)):
        return ""
    if "text" in ((same[-1].get("held_out_figures") or {}).get("not_looked_at") or ()):
        return "Text in the pictures was not looked for: no OCR is at hand (pip install 'raftdiff[rewards]')."
    if "text" in ((same[0].get("held_out_base_figures") or {}).get("not_looked_at") or ()):
        return "Text in the base's pictures was not looked for, so that there is nothing to compare with."
    return ""


def signs_told(rounds: Rounds) -> list[str]:
    """``signs`` as a table for a terminal; an alarm is marked, and what was not looked at is said."""
    if not (found := signs(rounds)):
        return []
    lines = [SIGNS_HEAD, *((it.what, it.base, it.now, it.moved) for it in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    marks = ["", *("  !" if it.alarm else "" for it in found)]
    table = [
        f"  {line[0]:<{widths[0]}}  {line[1]:>{widths[1]}}  {line[2]:>{widths[2]}}  {line[3]:>{widths[3]}}{mark}"
        for line, mark in zip(lines, marks, strict=True)
    ]
    return [*table, *([f"  {unread}"] if (unread := _unread(rounds)) else [])]


def _reward(name: str, base: HeldOut, now: HeldOut) -> Sign:
    changes, spread = changed(base.rewards[name], now.rewards[name])
    before, after = (
        f"{np.nanmean(it):.4g}" if not np.isnan(it).all() else "" for it in (base.rewards[name], now.rewards[name])
    )
    moved = _in_spreads(float(changes.mean()), spread) if len(changes) else ""
    return Sign(f"reward {name}", before, after, moved)


def _drift(drift: Drift) -> Sign:
    moved = "" if drift.share is None else f"{drift.share:.2f} of two seeds'"
    return Sign("drift", "", f"{drift.each.mean():.3f}", moved)


def _in_spreads(change: float, spread: float) -> str:
    return f"{change / spread:+.1f} sd" if spread > 0 else ""


def _points(before: float, after: float) -> str:
    return f"{100 * (after - before):+.0f} pt"


def goodhart(rounds: Rounds) -> str:
    """One SVG: the base, then each round, by its number. Empty where no round has held-out figures.

    Where rewards only look on, both axes are of the held-out prompts, as changes from the base in units of its standard
    deviation between prompts; else the reward on the held-out prompts stands against that on the training prompts.
    Rounds that other rewards scored are left out.
    """
    same = alike(rounds)
    if watched := _watched(same):
        return path(
            watched, x="trained reward, held-out prompts", y="rewards that only look on; both in base's spreads"
        )
    return path(_unseen(same), x="reward on the training prompts", y="reward on the held-out prompts")


def _watched(rounds: Rounds) -> Points:
    """Change of the total, and of the rewards that only look on; nothing where there are none."""
    if not rounds or rounds[0].get("held_out_base") is None:
        return []
    base = HeldOut.of(rounds[0], "held_out_base")
    each = [it for it in rounds[0].get("held_out_base_each") or () if it is not None]
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else 0.0
    found: Points = [("base", 0.0, 0.0)]
    for place, metrics in enumerate(rounds):
        now = HeldOut.of(metrics, "held_out")
        change = gain(base, now)
        if not now.onlookers or now.total is None or base.total is None or change is None or spread <= 0:
            return []
        found.append((str(metrics.get("round", place)), (now.total - base.total) / spread, change))
    return found


def _unseen(rounds: Rounds) -> Points:
    """Mean of a round's candidates, which its beginning drew, and of the held-out prompts before it was tuned."""
    found: Points = []
    for place, metrics in enumerate(rounds):
        before = rounds[place - 1].get("held_out") if place else metrics.get("held_out_base")
        if before is not None and metrics.get("mean") is not None:
            name = str(metrics.get("round", place) - 1) if metrics.get("round", place) else "base"
            found.append((name, metrics["mean"], before))
    return found
