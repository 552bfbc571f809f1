"""Runs on file systems without locks, and one process in the environment of a launcher's job."""

import errno
import fcntl
import os

import pytest

from raftdiff.cli.main import main
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records.run import Run


class Toy(Config):
    name: str = "toy"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with Run.create(tmp_path / "run", Toy(), seed=0).locked():
        pass
    assert "this file system locks no files" in capsys.readouterr().err


def test_a_lock_that_another_holds_is_that(tmp_path):
    run = Run.create(tmp_path / "run", Toy(), seed=0)
    with run.locked(), pytest.raises(UserError, match="another raftdiff process"), run.locked():
        pass


@pytest.mark.parametrize("left", [{"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "8"}])
def test_what_a_launcher_left_behind_is_dropped(monkeypatch, capsys, left):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, left.get(name, ""))
    assert main(["recipes"]) == 0
    assert not {"RANK", "WORLD_SIZE"} & set(os.environ)


def test_processes_on_several_machines_are_refused(monkeypatch, capsys):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "there"}.items():
        monkeypatch.setenv(name, value)
    assert main(["recipes"]) == 2
    assert "for several machines: raftdiff sample RUN --shard 1/2" in capsys.readouterr().err
