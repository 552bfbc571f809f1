"""What a person sees while a run goes on: bars with the time left, a line a round."""

import os
import sys
from time import monotonic
from typing import Any, final

from tqdm import tqdm

from raftdiff.reports.words import dropped, duration
from raftdiff.types import Report, Round

LINE_EVERY = 30.0
"""Seconds between two lines of a stage in a log file."""
WIDTH = 80
"""Of a bar, in characters, where the terminal does not say how wide it is."""


@final
class Bars:
    """How far each stage is, on standard error, with the time left: a bar in a terminal, in a log file a line now and
    then. Rounds are counted from 0, as everywhere; ``rounds`` is None where the work has none, and ``word`` is what
    else they are called: the parts of a reward model's training."""

    def __init__(self, rounds: int | None = None, word: str = "round") -> None:
        self._word = word
        self._last = None if rounds is None else rounds - 1
        self._stage: _Bar | _Lines | None = None

    def stage(self, round: int, stage: str) -> Report:
        self.close()
        unit = {"sample": "candidate", "tune": "step"}.get(stage, "item")
        told = stage if self._last is None else f"{self._word} {round}/{self._last} {stage}"
        self._stage = _Bar(told, unit) if sys.stderr.isatty() else _Lines(told, unit)
        return self._stage.report

    def close(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None


@final
class _Bar:
    """A stage in a terminal."""

    def __init__(self, told: str, unit: str) -> None:
        width = None if _tells_its_width() else WIDTH
        self._bar: tqdm[Any] = tqdm(
            desc=told,
            unit=f" {unit}",
            file=sys.stderr,
            leave=False,
            ncols=width,
            nrows=None if width is None else 24,
            dynamic_ncols=width is None,
            mininterval=0.5,
        )

    def report(self, done: int, total: int) -> None:
        if self._bar.total != total:
            # What an earlier process did counts as done, but not into the speed; nor does what comes first, of which
            # nobody knows how much that is: items may come a batch at a time.
            self._bar.reset(total=total)
            self._bar.initial = self._bar.last_print_n = self._bar.n = done
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _tells_its_width() -> bool:
    """Some terminals say that they have 0 columns, serial lines and those of some containers, which is room for no bar
    at all."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (OSError, ValueError):
        return True


@final
class _Lines:
    """A stage in a log file: nothing where it is short, whole lines where it is long. Where items come a batch at a
    time, the first of a batch says nothing of the speed: the time left goes by the report before. The first
    report may count what an earlier process did; how much of it is new goes by what the second one adds."""

    def __init__(self, told: str, unit: str) -> None:
        self._told, self._unit = told, unit
        self._began = self._latest = monotonic()
        self._earlier: int | None = None
        self._before: tuple[int, float] | None = None

    def report(self, done: int, total: int) -> None:
        now = monotonic()
        before, self._before = self._before, (done, now)
        if self._earlier is None and before is not None:
            self._earlier = max(0, 2 * before[0] - done)
        if now - self._latest < LINE_EVERY or done >= total:
            return
        self._latest = now
        told = f"{self._told}: {done} of {total} {self._unit}s"
        if before is not None and self._earlier is not None:
            known, then = before
            left = (then - self._began) / max(1, known - self._earlier) * (total - known) - (now - then)
            told += f", about {duration(left)} left" if left > 0 else ""  # it took longer than foretold
        print(told, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


def round_line(finished: Round, rounds: int, seconds_left: float) -> str:
    """One line a round: what the policy gives, what was selected, the held-out reward, the time spent and left."""
    metrics = finished.metrics
    all_drawn = f"{_figure(metrics['first_sample_mean'])} first, {_figure(metrics['mean'])} all"
    parts = [
        f"round {finished.index}/{rounds - 1}",
        f"reward {_figure(metrics['mean'])} drawn to the end" if metrics.get("pruned") else f"reward {all_drawn}",
        f"{metrics['selected']} selected {_figure(metrics['selected_mean'])}",
    ]
    if metrics.get("held_out") is not None:
        parts.append(f"held-out {_figure(metrics['held_out'])}")
    if metrics["discard_rate"]:
        unfit = [f"{metrics[name]} {name.replace('_', ' ')}" for name in ("blank", "too_long") if metrics.get(name)]
        parts.append(f"{metrics['discard_rate']:.0%} discarded" + (f" ({unfit[0]})" if unfit else ""))
    if told := dropped(metrics):
        parts.append(told.partition(":")[0])
    if undecided := metrics.get("undecided"):
        parts.append(f"nothing told apart for {undecided} of {metrics['prompts']} prompts")
    if metrics["left_out"]:
        parts.append(f"left out: {', '.join(metrics['left_out'][:3])}{' ...' if len(metrics['left_out']) > 3 else ''}")
    parts.append(f"{duration(sum(metrics['seconds'].values()))}")
    if finished.index + 1 < rounds:
        parts.append(f"about {duration(seconds_left)} left")
    return " | ".join(parts)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
