"""Round metrics to any tracker that accelerate knows: TensorBoard by default."""

from collections.abc import Mapping
from typing import Any, final

from raftdiff.errors import UserError, nearest
from raftdiff.recipes.config import Config, flat
from raftdiff.records.run import Run
from raftdiff.types import Round


class LoggingConfig(Config):
    """Where figures go besides the run directory. No part of a run's identity."""

    tracker: str | None = "tensorboard"
    """The name of an accelerate tracker (tensorboard, wandb, mlflow, ...), or null for none."""


PROJECT = "raftdiff"
PROJECTS = ("wandb", "trackio")
"""Trackers that sort runs into projects: all of ours are in one, by the names of their folders."""


@final
class Tracker:
    """Sends a run's recipe and each finished round's figures to an accelerate tracker; does nothing for None.

    Raises:
        UserError: accelerate knows no such tracker, or its package is not installed.
    """

    def __init__(self, name: str | None, run: Run, recipe: Mapping[str, Any]) -> None:
        self._tracker: Any = None
        if name is None:
            return
        from accelerate import PartialState  # noqa: PLC0415
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # noqa: PLC0415

        known = {str(kind): tracker for kind, tracker in LOGGER_TYPE_TO_CLASS.items()}
        if name not in known:
            raise UserError(f"logging.tracker: '{name}' is not a tracker. {nearest(name, known)}")
        if name not in {str(kind) for kind in get_available_trackers()}:
            raise UserError(
                f"logging.tracker: '{name}' is not installed; install its package, or write logging.tracker=null."
            )
        PartialState()  # accelerate's own log, to which some trackers write as they start, asks for it
        named: dict[str, Any] = {"name": run.path.name} if name in PROJECTS else {}
        folder = {"logging_dir": str(run.path / "logs")} if known[name].requires_logging_directory else {}
        self._tracker = known[name](PROJECT if named else run.path.name, **folder, **named)
        if hasattr(self._tracker, "start"):
            self._tracker.start()
        self._tracker.store_init_configuration(
            {key: value for key, value in flat(recipe).items() if isinstance(value, int | float | str | bool)}
        )

    def log(self, finished: Round) -> None:
        if self._tracker is not None:
            numbers = {key: value for key, value in flat(finished.metrics).items() if isinstance(value, int | float)}
            self._tracker.log(numbers, step=finished.index)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.finish()
