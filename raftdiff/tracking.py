"""Round metrics and a few of the best samples to any tracker that accelerate knows: TensorBoard by default.

What a tracker is told lies in the run directory too, so a tracker that is missing or fails ends nothing: one sentence,
and the run goes on without it.
"""

import json
import re
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
from pydantic import Field

from raftdiff.errors import Need, UserError, nearest
from raftdiff.recipes.config import Config, flat
from raftdiff.records.disk import FULL, read_json, write_text
from raftdiff.records.media import opened
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run
from raftdiff.training.weights import first_line
from raftdiff.types import Round


class LoggingConfig(Config):
    """Where figures go besides the run directory. No part of a run's identity."""

    tracker: str | None = "tensorboard"
    """The name of an accelerate tracker (tensorboard, wandb, trackio, mlflow, ...), or null for none."""
    project: str = Field(default="raftdiff", min_length=1)
    """What the tracker files the run under, where it has projects (mlflow: experiments)."""
    entity: str | None = None
    """The user or team at wandb; the account's own by default."""
    tags: list[str] = Field(default_factory=list)
    """Words by which wandb finds the run."""
    pictures: int = Field(default=4, ge=0)
    """How many of a round's best pictures, or answers, are shown there with their captions, at most one for each
    prompt: tensorboard, wandb, trackio."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """A tracker that there is not. One that is merely not installed is done without."""
        if self.tracker is not None and self.tracker not in (known := _known()):
            yield Need("tracker", f"'{self.tracker}' is not a tracker. {nearest(self.tracker, known)}")


BY_PROMPT = re.compile(r"each\.\d+$")
"""Metrics of single prompts, which would be a curve each."""
KEPT = Path("logs") / "tracker.json"
"""In the run: under which name and id each tracker knows it, also when the folder is moved or renamed."""


@final
class Tracker:
    """Sends a run's recipe and each finished round to an accelerate tracker; does nothing for None.

    Raises:
        UserError: accelerate knows no such tracker.
    """

    def __init__(self, logging: LoggingConfig, run: Run, recipe: Mapping[str, Any]) -> None:
        self._logging, self._run = logging, run
        self._tracker: Any = None
        self._deaf, self._hook = False, threading.excepthook
        if logging.tracker is None:
            return
        if logging.tracker not in (known := _known()):
            raise UserError(f"logging.tracker: '{logging.tracker}' is not a tracker. {nearest(logging.tracker, known)}")
        if logging.tracker not in _installed():
            sys.stderr.write(
                f"raftdiff: logging.tracker: the package '{logging.tracker}' is not installed, so the run goes on "
                f"without it; its figures are in {run.path / 'rounds'} all the same. Install it, or write "
                "tracker: null.\n"
            )
            return
        threading.excepthook = self._in_a_thread
        self._attempt(lambda: self._start(logging.tracker or "", recipe))

    def log(self, finished: Round) -> None:
        if self._tracker is not None:
            self._attempt(lambda: self._log(finished))

    def close(self) -> None:
        if self._tracker is not None:
            self._attempt(self._tracker.finish)
        if threading.excepthook == self._in_a_thread:
            threading.excepthook = self._hook

    def _attempt(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:  # other people's programs, networks and disks
            self._failed(error)

    def _in_a_thread(self, failed: threading.ExceptHookArgs) -> None:
        """TensorBoard writes from a thread of its own, which would end in a traceback on a full disk."""
        if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in FULL:
            self._failed(failed.exc_value)
        else:
            self._hook(failed)

    def _failed(self, error: Exception) -> None:
        if not self._deaf:
            self._deaf, self._tracker = True, None
            sys.stderr.write(
                f"raftdiff: logging.tracker: {self._logging.tracker} failed and hears no more of this run, which goes "
                f"on without it; its figures are in {self._run.path / 'rounds'} all the same. It said: "
                f"{first_line(error)}\n"
            )

    def _start(self, name: str, recipe: Mapping[str, Any]) -> None:
        from accelerate import PartialState  # noqa: PLC0415

        PartialState()  # accelerate's own log, to which some trackers write as they start, asks for it
        before, mark = _mark(self._run, name)
        kind = _known()[name]
        folder = {"logging_dir": str(self._run.path / "logs")} if kind.requires_logging_directory else {}
        tracker = kind(**_options(name, self._logging, mark, before), **folder)
        if hasattr(tracker, "start"):
            tracker.start()
        self._tracker = tracker
        if name != "tensorboard" or not before:  # it would be a second line in its table
            tracker.store_init_configuration(
                {key: value for key, value in flat(recipe).items() if isinstance(value, int | float | str | bool)}
            )

    def _log(self, finished: Round) -> None:
        told = {key: value for key, value in flat(finished.metrics).items() if not BY_PROMPT.search(key)}
        numbers = {key: value for key, value in told.items() if isinstance(value, int | float)}
        self._tracker.log(numbers, step=finished.index)
        show = SHOWN.get(self._logging.tracker or "")
        folder = self._run.round(finished.index)
        if show and (rows := best(folder, self._logging.pictures)):
            show(self._tracker.tracker, rows, folder.path / "samples", finished.index)


def best(folder: RoundFolder, count: int) -> list[dict[str, Any]]:
    """The lines of the ``count`` best samples of a round, the best first, at most one for each prompt."""
    scored = [row for row in folder.rows() if row.get("total") is not None] if count else []
    first: dict[str, dict[str, Any]] = {}
    for row in sorted(scored, key=lambda row: row["total"], reverse=True):
        first.setdefault(row["prompt_id"], row)
    return list(first.values())[:count]


def _installed() -> set[str]:
    from accelerate.tracking import get_available_trackers  # noqa: PLC0415

    return {str(kind) for kind in get_available_trackers()}


def _known() -> dict[str, Any]:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # noqa: PLC0415

    return {str(kind): tracker for kind, tracker in LOGGER_TYPE_TO_CLASS.items()}


def _mark(run: Run, name: str) -> tuple[bool, dict[str, str]]:
    """Whether the tracker has heard of the run before, and the name and id by which it knows it."""
    file = run.path / KEPT
    kept = read_json(file) if file.is_file() else {}
    if name in kept:
        return True, kept[name]
    mark = {"name": run.path.resolve().name, "id": uuid.uuid4().hex[:12]}
    file.parent.mkdir(exist_ok=True)
    write_text(file, json.dumps({**kept, name: mark}))
    return False, mark


def _options(name: str, logging: LoggingConfig, mark: Mapping[str, str], before: bool) -> dict[str, Any]:
    """What a tracker is begun with: the run in its project, the same one where it goes on."""
    project, called = logging.project, mark["name"]
    goes_on = {"id": mark["id"], "resume": "allow"}
    options: dict[str, dict[str, Any]] = {
        "wandb": {"run_name": project, "name": called, "entity": logging.entity, "tags": logging.tags, **goes_on},
        # by its name, which may be that of another run too
        "trackio": {"run_name": project, "name": called, "resume": "allow" if before else "never"},
        "swanlab": {"run_name": project, "experiment_name": called, **goes_on},
        "mlflow": {"experiment_name": project, "run_name": called},
        "clearml": {"run_name": called, "project_name": project, "task_name": called},
        "comet_ml": {"run_name": project},  # what accelerate calls a run is a project there
    }
    return options.get(name, {"run_name": called})


def _caption(row: Mapping[str, Any]) -> str:
    return f"{row['caption']} ({row['total']:.3g})"


def _to_tensorboard(writer: Any, rows: Sequence[Mapping[str, Any]], samples: Path, step: int) -> None:
    for place, row in enumerate(rows):
        if "text" not in row:
            picture = np.asarray(opened(samples, row).convert("RGB"))
            writer.add_image(f"best/{place}", picture, step, dataformats="HWC")
    told = [_caption(row) + "".join(f"\n\n    {line}" for line in row.get("text", "").splitlines()) for row in rows]
    writer.add_text("best", "\n\n".join(told), step)
    writer.flush()


def _to_wandb(run: Any, rows: Sequence[Mapping[str, Any]], samples: Path, step: int) -> None:
    import wandb  # noqa: PLC0415

    if "text" in rows[0]:
        run.log({"best": wandb.Table(**_table(rows))}, step=step)
    else:
        pictures = [wandb.Image(str(samples / row["file_name"]), caption=_caption(row)) for row in rows]
        run.log({"best": pictures}, step=step)


def _to_trackio(run: Any, rows: Sequence[Mapping[str, Any]], samples: Path, step: int) -> None:
    import trackio  # noqa: PLC0415

    if "text" in rows[0]:
        run.log({"best": trackio.Table(**_table(rows))}, step=step)
    else:  # it takes no lists of pictures
        pictures = [trackio.Image(str(samples / row["file_name"]), caption=_caption(row)) for row in rows]
        run.log({f"best/{place}": picture for place, picture in enumerate(pictures)}, step=step)


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    data = [[row["caption"], row["text"], row["total"]] for row in rows]
    return {"columns": ["prompt", "answer", "reward"], "data": data}


SHOWN: Mapping[str, Callable[[Any, Sequence[Mapping[str, Any]], Path, int], None]] = {
    "tensorboard": _to_tensorboard,
    "wandb": _to_wandb,
    "trackio": _to_trackio,
}
"""How the best samples are shown, by tracker; the others have no way in common."""
