"""A disk that refuses: the file that was asked for is named, and of a full one which disk it is."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from raftdiff import console
from raftdiff.cli import main as door
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records import disk
from raftdiff.records.beginning import fork
from raftdiff.records.disk import append, naming, save_tensors, together, write_text, written
from raftdiff.records.media import store
from raftdiff.records.run import Run
from raftdiff.types import Prompt, Sample


class Toy(Config):
    name: str = "toy"


def full(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_by_safetensors(*_: object, **__: object) -> NoReturn:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def picture(path: Path) -> None:
    store(path.parent, Sample(0, Prompt("a", "a", "a", "a"), 1, 7, "policy", Image.new("RGB", (8, 8)), {}))


def of_a_library(path: Path) -> None:
    with together(path) as aside:
        raise OSError(errno.ENOSPC, "No space left on device", str(aside / "unet" / "model.safetensors"))


def wrapped(path: Path) -> None:
    with written("the export", path), together(path):
        full_by_safetensors()


WRITERS: dict[str, tuple[Callable[[Path], object], object, str, Callable[..., NoReturn]]] = {
    "metrics.json": (lambda path: write_text(path, "{}"), os, "fsync", full),
    "log.jsonl": (lambda path: append(path, ["{}\n"]), os, "fsync", full),
    "adapter.safetensors": (
        lambda path: save_tensors(path, {"a": torch.zeros(1)}),
        disk,
        "save_file",
        full_by_safetensors,
    ),
    "a-001.png": (picture, Path, "write_bytes", full),
    "eval": (of_a_library, os, "fsync", full),
    "export": (wrapped, os, "fsync", full),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_names_what_was_asked_for(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, module, function, refuse = WRITERS[name]
    monkeypatch.setattr(module, function, refuse)
    with pytest.raises(OSError, match="No space left") as told:
        write(tmp_path / name)
    assert (told.value.errno, told.value.filename) == (errno.ENOSPC, str(tmp_path / name))
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_fork_on_a_full_disk_names_the_new_run_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    for t in range(2):
        draft = run.draft(t)
        draft.note(mean=1.0)
        draft.commit({})

    def copy(source: Path, target: Path) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copy2", copy)
    with pytest.raises(OSError, match="No space left") as told:
        fork(run, Toy(), tmp_path / "new", round=1, seed=0)
    assert told.value.filename == str(tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_what_is_not_of_the_disk_keeps_its_own_words(tmp_path: Path) -> None:
    for other in (
        OSError(errno.ECONNREFUSED, "Connection refused"),
        OSError(errno.EACCES, "Permission denied", "/somewhere/else"),
        OSError("no such model"),
        SafetensorError("invalid header"),
    ):
        with pytest.raises(type(other)) as told, together(tmp_path / "eval"):
            raise other
        assert told.value is other
    with pytest.raises(UserError, match="out: the export cannot be written: Permission denied"):  # noqa: SIM117
        with written("the export", tmp_path / "out"):
            raise OSError(errno.EACCES, "Permission denied", "/somewhere/else")


def test_the_sentence_says_which_disk_and_how_much_of_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run" / "rounds" / "000" / "a.png"  # none of it need be there
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3e6))
    at = console.full(str(place))
    assert at.startswith(f"{place}: the disk is full (/")
    assert at.endswith(": 3.0 MB are free).")
    assert console.full(None) == "the disk is full."

    def copy(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device", "/from/here", None, str(place))

    monkeypatch.setattr(door, "_run", copy)
    assert door.main(["recipes"]) == 3
    assert f"raftdiff: {place}: the disk is full (" in capsys.readouterr().err, "of a copy, where it goes"


def test_a_quota_or_inodes_that_are_used_up_are_no_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=27180.2e6))
    assert "a: your quota on this disk (/" in console.full("a", errno.EDQUOT)
    assert console.full(None, errno.EDQUOT) == "your quota of the disk is used up."
    for files, told in ((9, "takes no more files"), (0, "27180.2 MB are free; what did not fit is removed again, or")):
        monkeypatch.setattr(os, "statvfs", lambda _, files=files: SimpleNamespace(f_files=files, f_favail=0))
        assert told in console.full("a", errno.ENOSPC)


def test_what_the_disk_says_of_a_file_beside_is_not_told_of_this_one(tmp_path: Path) -> None:
    for beside, named in (("eval-prompts.txt", "eval-prompts.txt"), ("eval.tmp", "eval"), ("eval/a.png", "eval")):
        with pytest.raises(FileNotFoundError) as told, naming(tmp_path / "eval"):
            (tmp_path / beside).read_text()
        assert told.value.filename == str(tmp_path / named)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of"),
            "raftdiff: the GPU's memory does not suffice (2.50 GiB more were asked for). Lower batch sizes",
        ),
        (
            RuntimeError(
                "alloc_cpu.cpp:127: DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
            ),
            "raftdiff: this machine's memory does not suffice (9 bytes more were asked for). Lower",
        ),
        (MemoryError(), "raftdiff: this machine's memory does not suffice. Lower"),
    ],
)
def test_memory_that_does_not_suffice_is_told_and_other_errors_stay_what_they_are(
    error: Exception, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(of: Exception) -> None:
        def run(parsed: object) -> NoReturn:
            raise of

        monkeypatch.setattr(door, "_run", run)

    raising(error)
    assert door.main(["recipes"]) == 3
    said = capsys.readouterr().err
    assert said.startswith(told)
    assert said.endswith("What was finished is kept.\n")
    raising(other := RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError) as raised:
        door.main(["recipes"])
    assert raised.value is other
