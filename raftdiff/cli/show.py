"""What a person sees while a run goes on: bars with the time left, a line a round."""

import sys
from typing import Any, final

from tqdm import tqdm

from raftdiff.reports.words import duration
from raftdiff.types import Report, Round


@final
class Bars:
    """A progress bar for each stage, on standard error, with the time left. Without a terminal, a quiet one."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._bar: tqdm[Any] | None = None

    def stage(self, round: int, stage: str) -> Report:
        self.close()
        units = {"sample": "candidate", "tune": "step"}
        self._bar = tqdm(
            desc=f"round {round + 1}/{self._rounds} {stage}",
            unit=f" {units.get(stage, 'item')}",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
        )
        return self._report

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _report(self, done: int, total: int) -> None:
        if self._bar is None:
            return
        if self._bar.total != total:
            # What an earlier process did counts as done, but not into the speed.
            self._bar.reset(total=total)
            self._bar.initial = self._bar.n = done - 1
        self._bar.update(done - self._bar.n)


def round_line(finished: Round, rounds: int, seconds_left: float) -> str:
    """One line a round: what the policy gives, what was selected, the held-out reward, the time spent and left."""
    metrics = finished.metrics
    parts = [
        f"round {finished.index + 1}/{rounds}",
        f"reward {_figure(metrics['first_sample_mean'])} first, {_figure(metrics['mean'])} all",
        f"{metrics['selected']} selected {_figure(metrics['selected_mean'])}",
    ]
    if metrics.get("held_out") is not None:
        parts.append(f"held-out {_figure(metrics['held_out'])}")
    if metrics["discard_rate"]:
        parts.append(f"{metrics['discard_rate']:.0%} discarded")
    if metrics["left_out"]:
        parts.append(f"left out: {', '.join(metrics['left_out'][:3])}{' ...' if len(metrics['left_out']) > 3 else ''}")
    parts.append(f"{duration(sum(metrics['seconds'].values()))}")
    if finished.index + 1 < rounds:
        parts.append(f"about {duration(seconds_left)} left")
    return " | ".join(parts)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
