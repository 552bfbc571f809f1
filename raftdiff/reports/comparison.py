"""An evaluation as a folder: its figures, what was drawn on both sides, and the page, all of it or nothing."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raftdiff.errors import UserError
from raftdiff.measures.evaluation import finite, to_json
from raftdiff.records.disk import read_json, together, write_text
from raftdiff.records.run import Run, finished
from raftdiff.records.watching import went_back
from raftdiff.reports.before_after import BeforeAfter, write_report
from raftdiff.reports.candidates import candidates


def write_comparison(
    folder: Path,
    run: Run,
    *,
    name: str,
    evaluation: Mapping[str, Any],
    drawn: Mapping[str, Any],
    media: Callable[[Path], object],
    pairs: Sequence[BeforeAfter],
    trained_on: bool = False,
    training: Mapping[str, Any] | None = None,
    round: int | None = None,
) -> Path:
    """eval.json, what ``media`` writes of both sides, and report.html into ``folder``; returns the page's path.

    ``name`` is the recipe's, and ``pairs`` are what the page shows. ``drawn`` says how both sides were drawn: it is
    kept, and an evaluation that was drawn otherwise is told where this one takes its place. ``trained_on`` says that
    the prompts are those of the training, so that the page does not call them held out; ``training`` is the evaluation
    of those beside this one. ``round`` is the one whose model was looked at, by default as ``records.run.finished``.

    A drift that is no number is written as null, with a warning: what was drawn is worth keeping without it.

    Raises:
        UserError: another figure is no number, or a round is not as it was.
        OSError: the disk refuses; what lay in ``folder`` stays as it was then.
    """
    drift: Mapping[str, float | None] = evaluation["drift"]
    at = finished(run, round).index
    evaluation = {"round": at, "drawn": dict(drawn), **evaluation, "drift": finite(drift)}
    for figure, value in drift.items():
        if value is not None and evaluation["drift"][figure] is None:
            warnings.warn(
                f"drift.{figure} is {value}, which is no number, and is written as null: the tuned model gives odds or "
                "predictions beyond all bounds. Look at an earlier round too, with --round.",
                stacklevel=2,
            )
    _tell_what_goes(folder, drawn)
    with together(folder) as aside:
        media(aside)
        write_text(aside / "eval.json", to_json(evaluation))
        page = write_report(
            aside / "report.html",
            title=f"{name}: before and after",
            evaluation=evaluation,
            rounds=run.metrics(),
            pairs=pairs,
            selected=candidates(run),
            trained_on=trained_on,
            training=training,
            at=at,
            gone_back=went_back(run),
            recipe=(run.path / "recipe.yaml").read_text(encoding="utf-8"),
        )
    return folder / page.name


def _tell_what_goes(folder: Path, drawn: Mapping[str, Any]) -> None:
    """A warning where ``folder`` holds an evaluation that was drawn otherwise."""
    try:
        before = read_json(folder / "eval.json")["drawn"]
        changed = [f"{name} {before[name]} (now {value})" for name, value in drawn.items() if before[name] != value]
    except (OSError, UserError, KeyError, TypeError):  # none, or none that says how it was drawn
        return
    if changed:
        warnings.warn(
            f"{folder} held an evaluation that was drawn with {', '.join(changed)}; this one takes its place. "
            "With --name both are kept.",
            stacklevel=3,
        )
