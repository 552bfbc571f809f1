"""What is written together is there whole or not at all."""

import errno
import json
import tempfile
from contextlib import nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from raftdiff.diffusion.before_after import sidebyside
from raftdiff.diffusion.before_after.comparison import Drawn
from raftdiff.diffusion.before_after.sidebyside import Settings
from raftdiff.errors import UserError
from raftdiff.records.disk import demand_place, demand_writable, together, vacant
from raftdiff.types import Prompt, Sample


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_is_written_takes_the_place_of_its_names_alone(tmp_path: Path) -> None:
    for name in ("before/old.png", "other/kept.json", "eval.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    with together(tmp_path) as aside:
        (aside / "before").mkdir()
        (aside / "before" / "new.png").write_text("new")
        (aside / "eval.json").write_text("new")
    assert tree(tmp_path) == {"before/new.png": "new", "other/kept.json": "old", "eval.json": "new"}


@pytest.mark.parametrize("moves", range(1, 4))
def test_a_move_that_is_interrupted_loses_nothing_and_is_ended_by_the_next_writer(
    moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics/old.png").write_text("old")
    (tmp_path / "a.json").write_text("old")
    replace, done = Path.replace, []

    def dying(path: Path, target: Path) -> Path:
        if len(done) == moves - 1:
            raise KeyboardInterrupt
        done.append(path)
        return replace(path, target)

    def write() -> None:
        with monkeypatch.context() as patch, together(tmp_path) as aside:
            (aside / "a.json").write_text("new")
            (aside / "pics").mkdir()
            (aside / "pics/new.png").write_text("new")
            patch.setattr(Path, "replace", dying)

    with pytest.raises(KeyboardInterrupt):
        write()
    demand_writable(tmp_path)
    assert tree(tmp_path) == {"a.json": "new", "pics/new.png": "new"}


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_all_as_it_was(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    if there:
        folder.mkdir()
        (folder / "a.json").write_text("old")

    def write() -> None:
        with together(folder) as aside:
            (aside / "a.json").write_text("new")
            full()

    with pytest.raises(OSError, match="No space left"):
        write()
    assert tree(tmp_path) == ({"out/a.json": "old"} if there else {})
    assert folder.exists() == there


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demand_writable(tmp_path / "eval")
    assert tree(tmp_path) == {}
    (tmp_path / "file").touch()
    for demand, place in product((demand_writable, demand_place), (tmp_path / "file", tmp_path / "file" / "eval")):
        with pytest.raises(UserError, match=r"/file is a file, and a folder goes there; give another name"):
            demand(place)
    (tmp_path / "file").unlink()

    def read_only(prefix: str, dir: Path) -> str:
        raise OSError(errno.EROFS, "Read-only file system", str(dir / prefix))

    monkeypatch.setattr(tempfile, "mkdtemp", read_only)
    with pytest.raises(OSError, match="Read-only file system") as told:
        demand_writable(tmp_path / "eval")
    assert told.value.filename == str(tmp_path / "eval")


def test_a_drawing_on_a_full_disk_adds_nothing_to_what_was_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drawn(index: int, picture: Any = None) -> Drawn:
        prompt = Prompt("a-cat", "a cat", "a cat", "a cat")
        return Drawn(Sample(0, prompt, index, 7, "policy", picture or Image.new("RGB", (8, 8)), {}), {"clip": 1.0}, {})

    folder = sidebyside.export(tmp_path / "drawn", {"before": [drawn(0)], "after": [drawn(0)]})
    was = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        sidebyside.export(folder, {"before": [drawn(1)], "after": [drawn(1)]})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == was
    monkeypatch.undo()
    sidebyside.export(folder, {"before": [drawn(1)], "after": [drawn(1)]})
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert sorted(row["file_name"] for row in rows) == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.png")
    )
    assert len(rows) == 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"guidance": float("nan")}, "guidance: nan is no number from 0 to 100."),
        ({"guidance": float("inf")}, "guidance: inf is no number"),
        ({"guidance": -1.0}, "guidance: -1.0 is no number"),
        ({"steps": 0}, "steps: 0 is no number from 1 to 1000."),
        ({"steps": 1001}, "steps: 1001 is no number"),
        ({"per_prompt": 0}, "per_prompt: 0 is no number from 1 to 256."),
        ({"per_prompt": 257}, "257 pictures a side"),
    ],
)
def test_settings_that_draw_nothing_sensible_are_told_before_a_model_is_loaded(
    change: dict[str, Any], sentence: str
) -> None:
    settings = Settings(**{"seed": -3, "per_prompt": 1, "steps": 2, "guidance": 1.0, **change})
    no_models = SimpleNamespace(
        _one_at_a_time=nullcontext(), _assembly=lambda checkpoint: 1 / 0, _known={}, _most=sidebyside.MOST_PICTURES
    )
    no_models._asked = partial(sidebyside.SideBySide._asked, no_models)
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")):
        sidebyside.SideBySide.notes(no_models, 0, ["a cat"], settings)  # type: ignore[arg-type]


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    left = tmp_path / ".writing-abcd1234"
    (left / "new").mkdir(parents=True)
    (left / "new" / "model.safetensors").write_text("gigabytes")
    assert vacant(tmp_path)
    with together(tmp_path) as first:
        assert not left.exists()
        (first / "a.json").write_text("first")
        with together(tmp_path) as second:
            (second / "b.json").write_text("second")
        assert not vacant(tmp_path)
    assert tree(tmp_path) == {"a.json": "first", "b.json": "second"}


def test_what_a_killed_process_was_moving_is_whole_for_whoever_asks_whether_something_is_there(tmp_path: Path) -> None:
    left = tmp_path / ".writing-abcd1234"
    (left / "new").mkdir(parents=True)
    (left / "old").mkdir()
    (left / "new" / "ranking.json").write_text("second half")
    (tmp_path / "ranking.csv").write_text("first half")
    assert not vacant(tmp_path)
    assert tree(tmp_path) == {"ranking.csv": "first half", "ranking.json": "second half"}


@pytest.mark.parametrize(("lying", "written"), [("a", "a/new.json"), ("a/old.json", "a")])
def test_a_file_where_a_folder_would_go_or_the_reverse_is_told_before_anything_is_moved(
    lying: str, written: str, tmp_path: Path
) -> None:
    def put(folder: Path, name: str) -> None:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(str(folder == tmp_path))

    def write() -> None:
        with together(tmp_path) as aside:
            put(aside, "0")
            put(aside, written)

    put(tmp_path, lying)
    with pytest.raises(OSError, match=f"'{tmp_path / 'a'}' is a"):
        write()
    assert tree(tmp_path) == {lying: "True"}
