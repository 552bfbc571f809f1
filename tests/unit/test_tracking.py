"""What trackers are told of a run, and that none of them can end it."""

import errno
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import needs
from raftdiff.records.run import Run
from raftdiff.tracking import LoggingConfig, Tracker, best
from raftdiff.types import Prompt, Round, Sample, Scores


class Toy(Config):
    name: str = "toy"
    logging: LoggingConfig = LoggingConfig()


class Heard:
    """A module as wandb and trackio are, that keeps what it is told."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.finished = 0
        self.fails: Exception | None = None
        self.config = SimpleNamespace(update=lambda values, allow_val_change: self.begun[-1].update(config=values))

    def init(self, **options: Any) -> "Heard":
        self.begun.append(options)
        return self

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.fails:
            raise self.fails
        self.told.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    @staticmethod
    def Image(path: str, caption: str) -> tuple[str, str]:
        return Path(path).name, caption

    @staticmethod
    def Table(columns: list[str], data: list[list[Any]]) -> list[dict[str, Any]]:
        return [dict(zip(columns, row, strict=True)) for row in data]


@pytest.fixture(params=["wandb", "trackio"])
def heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Heard:
    module = Heard()
    monkeypatch.setitem(sys.modules, request.param, module)  # type: ignore[arg-type]
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["tensorboard", request.param])
    return module


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["heard"])


def begun(path: Path) -> Run:
    return Run.create(path, Toy(), seed=3)


def finish(run: Run, *, texts: bool = False) -> Round:
    draft = run.draft(run.rounds_done())
    for prompt in ("b", "a"):
        for index in range(2):
            media: Any = f"{prompt} says {index}" if texts else Image.new("RGB", (8, 6), (100 * index, 0, 0))
            one = Prompt(prompt, f"a {prompt}", f"a {prompt}", f"a {prompt}")
            draft.add(Sample(draft.index, one, index, 7, "policy", media, {"latent": torch.zeros(1)}))
    draft.flush()
    total = np.array([[1.0, 2.0], [np.nan, 3.0]])
    draft.write_scores(Scores(draft.index, ("b", "a"), total, {"clip": total}))
    draft.note(mean=2.0, rewards={"clip": 2.0})
    metrics = draft.metrics()
    return Round(draft.index, draft.commit({}), metrics)


def test_the_best_are_one_a_prompt_and_the_highest_first(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    finish(run)
    assert [(row["prompt_id"], row["index"]) for row in best(run.round(0), 4)] == [("a", 1), ("b", 1)]
    assert [row["prompt_id"] for row in best(run.round(0), 1)] == ["a"]
    assert best(run.round(0), 0) == []


def test_a_run_is_one_of_a_project_with_figures_and_its_best_pictures(heard: Heard, name: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "mine")
    tracker = Tracker(LoggingConfig(tracker=name, entity="us", tags=["x"], pictures=2), run, {"loop": {"rounds": 2}})
    tracker.log(finish(run))
    tracker.close()
    options = heard.begun[0]
    assert (options["project"], options["name"], options["config"]) == ("raftdiff", "mine", {"loop.rounds": 2})
    assert (options.get("entity"), options.get("tags")) == (("us", ["x"]) if name == "wandb" else (None, None))
    figures, pictures = (values for _, values in heard.told)
    assert (figures["mean"], figures["rewards.clip"]) == (2.0, 2.0)
    shown = pictures["best"] if name == "wandb" else [pictures["best/0"], pictures["best/1"]]
    assert shown == [("a-001.png", "a a (3)"), ("b-001.png", "a b (2)")]
    assert heard.finished == 1


def test_answers_are_a_table(heard: Heard, name: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "mine")
    Tracker(LoggingConfig(tracker=name, pictures=1), run, {}).log(finish(run, texts=True))
    assert heard.told[1] == (0, {"best": [{"prompt": "a a", "answer": "a says 1", "reward": 3.0}]})


def test_a_run_that_goes_on_elsewhere_goes_on_in_the_same_tracker_run(heard: Heard, name: str, tmp_path: Path) -> None:
    Tracker(LoggingConfig(tracker=name), begun(tmp_path / "mine"), {}).close()
    (tmp_path / "mine").rename(tmp_path / "moved")
    Tracker(LoggingConfig(tracker=name, project="other"), Run(tmp_path / "moved"), {}).close()
    Tracker(LoggingConfig(tracker=name), begun(tmp_path / "mine"), {}).close()
    first, again, another = heard.begun
    assert (again["name"], again["project"]) == ("mine", "other")
    if name == "wandb":
        assert first["id"] == again["id"] != another["id"]
        assert {one["resume"] for one in heard.begun} == {"allow"}
    else:
        assert [one["resume"] for one in heard.begun] == ["never", "allow", "never"]


def test_a_tracker_that_fails_is_told_once_and_ends_nothing(
    heard: Heard, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(tmp_path / "mine")
    tracker = Tracker(LoggingConfig(tracker=name), run, {})
    heard.fails = OSError(errno.ENOSPC, "No space left on device")
    tracker.log(finish(run))
    tracker.log(finish(run))
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"logging.tracker: {name} failed" in said
    assert "No space left" in said


def test_a_full_disk_in_a_trackers_own_thread_is_told_once_and_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others: list[object] = []
    monkeypatch.setattr(threading, "excepthook", others.append)

    def fail(error: Exception) -> None:
        def work() -> None:
            raise error

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    tracker = Tracker(LoggingConfig(tracker="tensorboard"), begun(tmp_path / "mine"), {})
    fail(OSError(errno.ENOSPC, "No space left on device"))
    fail(OSError(errno.ENOSPC, "No space left on device"))
    fail(ValueError("of somebody else"))
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "logging.tracker: tensorboard failed and hears no more" in said
    assert len(others) == 1
    assert threading.excepthook == others.append


def test_a_tracker_that_is_not_installed_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = begun(tmp_path / "mine")
    tracker = Tracker(LoggingConfig(tracker="aim"), run, {})
    tracker.log(finish(run))
    tracker.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the package 'aim' is not installed" in said
    assert "failed" not in said, "nothing did"


def test_no_tracker_of_that_name_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    wrong = LoggingConfig(tracker="tensorbored")
    (need,) = needs(Toy(logging=wrong))
    assert need.key == "logging.tracker"
    assert "Did you mean 'tensorboard'?" in need.sentence
    with pytest.raises(UserError, match="'tensorbored' is not a tracker"):
        Tracker(wrong, begun(tmp_path / "mine"), {})


@pytest.mark.parametrize("texts", [False, True])
def test_tensorboard_goes_on_in_its_folder_with_pictures_and_answers(texts: bool, tmp_path: Path) -> None:
    for path in (tmp_path / "mine", tmp_path / "moved"):
        if path.name == "moved":
            (tmp_path / "mine").rename(path)
        run = begun(path) if path.name == "mine" else Run(path)
        tracker = Tracker(LoggingConfig(), run, {"rate": 0.1})
        tracker.log(finish(run, texts=texts))
        tracker.close()
    assert json.loads((run.path / "logs" / "tracker.json").read_text())["tensorboard"]["name"] == "mine"
    assert len([path for path in (run.path / "logs" / "mine").iterdir() if path.is_dir()]) == 2, "one recipe"
    events = EventAccumulator(str(run.path / "logs" / "mine"))
    events.Reload()
    # by step: the two files of one second may be read in either order
    assert {one.step: one.value for one in events.Scalars("mean")} == {0: 2.0, 1: 2.0}
    assert events.Tags()["images"] == ([] if texts else ["best/0", "best/1"])
    words = {one.step: one.tensor_proto.string_val[0].decode() for one in events.Tensors("best/text_summary")}
    told = words[1]
    assert told == ("a a (3)\n\n    a says 1\n\na b (2)\n\n    b says 1" if texts else "a a (3)\n\na b (2)")
    if not texts:
        assert [(one.width, one.height) for one in events.Images("best/1")] == [(8, 6), (8, 6)]
