"""What a round's held-out figures say against those of the base: does anything move as where a reward is hacked?

Pure functions of two rounds' figures of the same prompts and seeds. ``records.watching`` joins them to its warnings,
and ``loop.guard`` acts on them.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Float

from raftdiff.measures.statistics import t_quantile

SURE = 0.01
"""How often chance alone may raise an alarm in one round, shared among the figures that are looked at (Bonferroni).
Below the aim of 5% a run, as each round is another look; rounds of one run, and figures of one picture, are much
alike."""
MOVED = 1.0
"""Of the base's standard deviation between pictures: a signal that moved less is no alarm. Beyond it the mean picture
lies where one in six of the base's did. The few runs of demo and scene_align that were looked at moved by 0.7 at
most."""
FELL = 0.1
"""Of the base's standard deviation between prompts: a reward that fell less is no alarm, however sure that is with many
prompts."""
KEPT = 0.75
"""Of the base's Vendi score less 1, which is that of equal pictures: less is an alarm. The same runs kept 0.92."""
ALIKE = 0.2
"""A share of near-duplicates so much higher than the base's is an alarm: a fifth of the held-out pictures say nothing
of their own."""
WRITTEN = 0.2
"""A share of pictures with text so much higher than the base's is an alarm, where its standard deviation is less."""
BACK = re.compile(r"go back to an earlier round \(loop\.guard: rollback\), (or )?")
"""What alarms advise first."""
LEFT = 1.0
"""Of the distance between two of the base's pictures of a prompt: held-out pictures that lie further from the base's of
the same prompt and seed are an alarm. At 1 a picture has no more of its counterpart than one of another seed had.
Honest runs stayed below 0.7, seen by a CLIP tower."""

Each = Float[np.ndarray, " prompts"]
Changes = Float[np.ndarray, " changes"]


class Alarm(NamedTuple):
    """Something moved as where a reward is hacked."""

    what: str
    """Which figure, for whoever asks whether it is a new alarm."""
    told: str


class Drift(NamedTuple):
    """What ``measures.diversity.HeldOutDrift`` says of a round's pictures."""

    each: Each
    """How far each prompt's pictures lie from the base's of the same seeds."""
    apart: Each
    """How far the base's own lie from each other; NaN for one picture a prompt."""

    @property
    def share(self) -> float | None:
        """Of the yardstick; None where there is none."""
        known = ~np.isnan(self.apart)
        whole = float(self.apart[known].mean()) if known.any() else 0.0
        return float(self.each[known].mean()) / whole if whole > 0 else None


class Signal(NamedTuple):
    """What ``measures.signals`` says of some pictures."""

    mean: float
    std: float
    """Between pictures."""
    each: Each
    """The mean of each prompt's pictures."""


@final
@dataclass(frozen=True, slots=True)
class HeldOut:
    """What a round measured on the held-out prompts; what it did not is missing."""

    total: float | None = None
    rewards: Mapping[str, Each] = field(default_factory=dict)
    """The mean of each prompt's samples, NaN where a reward discards all."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of the rewards in the total; 0 of the others."""
    signals: Mapping[str, Signal] = field(default_factory=dict)
    vendi: float | None = None
    near_duplicates: float | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    """What the rewards are for; of rounds of an earlier version, one of weight 0 looks on."""
    text: Signal | None = None
    """The share of pictures that show text which nobody asked for; None where nothing could read it."""
    drift: Drift | None = None
    """From the base; None of the base itself, and of answers."""

    @staticmethod
    def of(metrics: Mapping[str, Any], name: str) -> "HeldOut":
        """From a round's ``metrics.json``, where ``name`` is ``held_out`` or ``held_out_base``."""
        figures, moved = metrics.get(f"{name}_figures") or {}, metrics.get(f"{name}_drift")
        return HeldOut(
            metrics.get(name),
            {reward: _floats(each) for reward, each in (metrics.get(f"{name}_rewards_each") or {}).items()},
            metrics.get(f"{name}_weights") or {},
            {
                signal: Signal(it["mean"], it["std"], _floats(it["each"]))
                for signal, it in (figures.get("signals") or {}).items()
            },
            figures.get("vendi"),
            figures.get("near_duplicates"),
            metrics.get(f"{name}_roles") or {},
            Signal(read["mean"], read["std"], _floats(read["each"])) if (read := figures.get("text")) else None,
            Drift(_floats(moved["each"]), _floats(moved["apart"])) if moved else None,
        )

    def role(self, reward: str) -> str:
        """What a reward is for."""
        return self.roles.get(reward) or ("train" if self.weights.get(reward, 0.0) else "hold_out")

    @property
    def onlookers(self) -> list[str]:
        """The rewards that look on: they have no part in what is chosen, and so are witnesses of what is done to it."""
        return [name for name in self.rewards if self.role(name) == "hold_out"]


def alarms(base: HeldOut, now: HeldOut) -> list[Alarm]:
    """Every figure that moved away from the base's as where a reward is hacked.

    A reward that fell, by more than chance from prompt to prompt and by ``FELL``; a signal that moved either way, by
    more than chance and by ``MOVED``, unless it is itself what is trained for; Vendi and the share of near-duplicates
    by ``KEPT`` and ``ALIKE``; the share of pictures with text that rose by more than chance and ``WRITTEN``; pictures
    that left those of the base by more than chance and ``LEFT``. Fewer than two prompts tell nothing from chance.
    """
    trained = {name for name in now.weights if now.role(name) != "hold_out"}
    rewards = [name for name in base.rewards if name in now.rewards]
    signals = [name for name in base.signals if name in now.signals and name not in trained]
    level = SURE / max(1, len(rewards) + len(signals) + (now.drift is not None) + (now.text is not None))
    found = [_fall(name, base, now, level) for name in rewards]
    found += [_move(name, base.signals[name], now.signals[name], level) for name in signals]
    found += [
        _sameness(base, now),
        _repeated(base, now),
        _lettered(base.text, now.text, level),
        _departed(now.drift, level),
    ]
    return [alarm for alarm in found if alarm]


def gain(base: HeldOut, now: HeldOut) -> float | None:
    """How much better than the base a round is on the held-out prompts; None where it does not tell.

    Of the rewards that only look on, where there are any, the mean change in units of the base's standard deviation
    between prompts: what is trained for is no witness of its own hacking. Else the change of the total.
    """
    onlookers = [name for name in now.onlookers if name in base.rewards]
    changes = [changed(base.rewards[name], now.rewards[name]) for name in onlookers]
    told = [it.mean() / spread for it, spread in changes if len(it) and spread > 0]
    if told:
        return float(np.mean(told))
    return None if base.total is None or now.total is None else now.total - base.total


def best(gains: Sequence[float | None], alarmed: Collection[int]) -> int | None:
    """The round to go back to: of those that did not alarm the one with the highest ``gain``, the earlier of equals;
    None for the base, which gained 0.

    >>> best([0.2, 0.5, 0.9], {2}), best([-0.1, 0.9], {1}), best([None, 0.1], ())
    (1, None, 1)
    """
    held = {t: it for t, it in enumerate(gains) if it is not None and it > 0 and t not in alarmed}
    return max(held, key=lambda t: held[t]) if held else None


def after_going_back(told: Sequence[str]) -> list[str]:
    """Sentences of alarms, without the advice to go back, where that has just been done.

    >>> after_going_back(["It fell. Look; go back to an earlier round (loop.guard: rollback), or use more prompts."])
    ['It fell. Look; use more prompts.']
    """
    return [BACK.sub("", sentence) for sentence in told]


def half_width(changes: Changes, level: float) -> float:
    """Half the interval of the mean of paired changes, by Student's t, that misses it with probability ``level``;
    infinite for fewer than two. Changes that are all equal leave no doubt.

    >>> round(half_width(np.array([1.0, 2.0, 3.0]), 0.05), 2)  # 4.303 / sqrt(3)
    2.48
    """
    if len(changes) < 2:
        return float("inf")
    return float(t_quantile(len(changes) - 1, 1 - level / 2) * changes.std(ddof=1) / np.sqrt(len(changes)))


def changed(before: Each, after: Each) -> tuple[Changes, float]:
    """After less before of each prompt that has both, and the standard deviation of before; nothing of two sets that
    are not of one length, as where the prompts are others."""
    if len(before) != len(after):
        return np.empty(0), 0.0
    both = ~np.isnan(before) & ~np.isnan(after)
    return after[both] - before[both], float(before[both].std(ddof=1)) if both.sum() > 1 else 0.0


def _fall(name: str, base: HeldOut, now: HeldOut, level: float) -> Alarm | None:
    """A reward, in the direction that is wanted of it: below 0 of a weight the fall is a rise."""
    before, after, weight = base.rewards[name], now.rewards[name], now.weights.get(name, 0.0)
    changes, spread = changed(before, after)
    wanted = -1.0 if weight < 0 else 1.0
    if not len(changes) or wanted * changes.mean() + half_width(changes, level) >= 0:
        return None
    if wanted * changes.mean() > -FELL * spread:
        return None
    both = ~np.isnan(before) & ~np.isnan(after)
    bounds = {"veto": "it vetoes", "constraint": "it constrains"}
    role = f"weight {weight:g}" if weight else bounds.get(now.role(name), "it only looks on")
    return Alarm(
        f"reward {name}",
        f"The held-out reward '{name}' ({role}) {'fell' if wanted > 0 else 'rose'} from {before[both].mean():.4g} to "
        f"{after[both].mean():.4g}, {_spreads(changes.mean(), spread)} between prompts, which is more than chance: the "
        "model pays with it for what it is trained for. Look at the samples; go back to an earlier round (loop.guard: "
        "rollback), give this reward a weight, or use a smaller learning rate.",
    )


def _move(name: str, before: Signal, after: Signal, level: float) -> Alarm | None:
    changes, _ = changed(before.each, after.each)
    if not len(changes) or abs(changes.mean()) <= max(MOVED * before.std, half_width(changes, level)):
        return None
    direction = "rose" if after.mean > before.mean else "fell"
    word = name.replace("_", " ")
    return Alarm(
        f"signal {name}",
        f"The {word} of the held-out pictures {direction} from {before.mean:.3g} to {after.mean:.3g}, "
        f"{_spreads(changes.mean(), before.std)} between pictures: where nobody asked for that, the reward is hacked. "
        f"Look at the pictures; go back to an earlier round (loop.guard: rollback), keep it in bounds with a reward "
        f"(type: {name}, with a target), or use a smaller learning rate.",
    )


def _sameness(base: HeldOut, now: HeldOut) -> Alarm | None:
    if base.vendi is None or now.vendi is None or now.vendi - 1 >= KEPT * (base.vendi - 1):
        return None
    return Alarm(
        "vendi",
        f"The held-out pictures are as different as {now.vendi:.3g} pictures that have nothing in common (Vendi), "
        f"those of the base model as {base.vendi:.3g}: diversity is lost. Look at them; go back to an earlier round "
        "(loop.guard: rollback), or use a smaller learning rate, fewer exposures, or an anchor.",
    )


def _repeated(base: HeldOut, now: HeldOut) -> Alarm | None:
    if base.near_duplicates is None or now.near_duplicates is None:
        return None
    if now.near_duplicates < base.near_duplicates + ALIKE:
        return None
    return Alarm(
        "near-duplicates",
        f"{now.near_duplicates:.0%} of the held-out pictures repeat another nearly to the pixel, of the base model's "
        f"{base.near_duplicates:.0%}: the model draws one thing for many prompts. Look at them; go back to an earlier "
        "round (loop.guard: rollback), or use more prompts and a smaller learning rate.",
    )


def _lettered(before: Signal | None, after: Signal | None, level: float) -> Alarm | None:
    if before is None or after is None:
        return None
    changes, _ = changed(before.each, after.each)
    if not len(changes) or changes.mean() <= max(MOVED * before.std, WRITTEN, half_width(changes, level)):
        return None
    return Alarm(
        "text",
        f"{after.mean:.0%} of the held-out pictures show letters that nobody asked for, of the base model's "
        f"{before.mean:.0%}: text drawn into a picture is how a reward that reads it is hacked. Look at the pictures; "
        "go back to an earlier round (loop.guard: rollback), veto such pictures, or use a smaller learning rate.",
    )


def _departed(drift: Drift | None, level: float) -> Alarm | None:
    if drift is None or (share := drift.share) is None:
        return None
    beyond, _ = changed(LEFT * drift.apart, drift.each)
    if beyond.mean() - half_width(beyond, level) <= 0:
        return None
    return Alarm(
        "drift",
        f"The held-out pictures lie {share:.2g} times as far from the base's of the same prompt and seed as its own "
        "pictures of one prompt lie from each other: little of what the base drew is left. Look at the pictures; go "
        "back to an earlier round (loop.guard: rollback), or use a smaller learning rate, fewer exposures, or an "
        "anchor.",
    )


def _spreads(change: float, spread: float) -> str:
    """A change in units of the base's standard deviation.

    >>> _spreads(-0.3, 0.2), _spreads(0.3, 0.0)
    ("1.5 of the base's standard deviations", 'where the base had no difference')
    """
    if spread <= 0:
        return "where the base had no difference"
    return f"{abs(change) / spread:.1f} of the base's standard deviations"


def _floats(values: Sequence[float | None]) -> Each:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
