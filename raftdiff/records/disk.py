"""Writing so that nothing finished is ever lost: aside, flushed, renamed."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raftdiff.errors import UserError
from raftdiff.recipes.source import values

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FULL = (errno.ENOSPC, errno.EDQUOT)
OF_DISKS = (*FULL, errno.EFBIG, errno.EIO, errno.EROFS)
"""What only a disk says, so that it is known whose word it is where no file is named."""
WRITING = ".writing-"
"""How the names of folders begin that ``together`` is not done with."""


def read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file is damaged: no JSON object.
    """
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(data, dict):
        raise damaged(path, f"it holds {type(data).__name__}, not an object")
    return data


def read_yaml(path: Path) -> dict[str, Any]:
    """
    Raises:
        UserError: the file is missing, or damaged: no keys and values.
    """
    try:
        data = values(path.read_text(encoding="utf-8"))
        json.dumps(data, default=str)  # a part that holds itself, which YAML can write, is read by nobody
    except FileNotFoundError:
        raise damaged(path, "it is missing") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise damaged(path, error) from None
    if not isinstance(data, dict):
        raise damaged(path, f"it holds {type(data).__name__}, not keys and values")
    return data


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object a line, of a file that was written in one piece; none where there is no file.

    Raises:
        UserError: a line is none: the file was cut short or changed.
    """
    found = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise damaged(path, f"line {number}: {error}") from None
        if not isinstance(row, dict):
            raise damaged(path, f"line {number} holds {type(row).__name__}, not an object")
        found.append(row)
    return found


def read_appended(path: Path) -> list[dict[str, Any]]:
    """The same of a file that grows line by line: one that was cut short, as by a kill, is left out."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else ():
        with contextlib.suppress(ValueError, RecursionError):
            found.append(json.loads(line))
    return [row for row in found if isinstance(row, dict)]


@contextlib.contextmanager
def naming(path: Path, aside: Path | None = None) -> Iterator[None]:
    """What the disk refuses within is told of ``path``, which a person asked for. Libraries name nothing, or the file
    ``aside`` (or one in that folder) that they were given; safetensors wraps what the disk said.

    Raises:
        OSError: with ``path`` as its file name.
    """
    try:
        yield
    except SafetensorError as error:
        if told := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error
        raise
    except OSError as error:
        place = error.filename2 or error.filename  # of a copy, where it goes
        ours = _within(Path(os.fsdecode(place)), aside or path) if place is not None else error.errno in OF_DISKS
        if error.errno is None or not ours:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _within(place: Path, path: Path) -> bool:
    """Whether this is the file or folder itself, what it is written to first, or in it."""
    return place == path.with_name(path.name + ".tmp") or place.is_relative_to(path)


@contextlib.contextmanager
def written(what: str, path: Path) -> Iterator[None]:
    """
    Raises:
        UserError: ``what`` cannot be written to ``path``.
        OSError: the disk is full, which is no mistake of the person's, and is told of every command in one way.
    """
    try:
        with naming(path):
            yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise UserError(f"{path}: {what} cannot be written: {getattr(error, 'strerror', None) or error}.") from error


def append(path: Path, lines: Iterable[str]) -> None:
    """Lines at the end of a file, on the disk when it returns. One that a kill or a full disk cut short is ended first,
    so that it spoils none that follow.

    Raises:
        OSError: the disk refuses, with ``path`` as its file name.
    """
    with naming(path), path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def damaged(path: Path, why: object) -> UserError:
    """The sentence for a file of ours that cannot be read, as after a power loss or a bad copy."""
    said = " ".join(str(why).split()).rstrip(".")
    return UserError(
        f"{path}: this file is damaged ({said}); take it from a copy. 'raftdiff check RUN' tells what else is."
    )


def fresh(path: Path) -> Path:
    """``path``, with nothing there: a link in its place is removed, not written through."""
    path.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """A file to write instead of ``path``, whose place it takes then; nothing stays of one that was not finished."""
    with naming(path):
        aside = fresh(path.with_name(path.name + ".tmp"))
        try:
            yield aside
            aside.replace(path)
        finally:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Aside, flushed, renamed: a reader sees the old file or the new one, never half of one.

    Raises:
        OSError: the disk refuses, with ``path`` as its file name.
    """
    with _aside(path) as aside, aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def together(folder: Path) -> Iterator[Path]:
    """A folder to write into. When all is written, what it holds takes the place of what has the same names in
    ``folder``; where anything is raised before, as by a full disk, nothing of it stays and nothing else has changed.
    What a killed process was writing is removed first; what it had written and was moving is moved.

    Raises:
        OSError: nothing can be written into ``folder``, or a file lies there where a folder would, or a folder where a
            file would.
    """
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _clear(folder)
    try:
        aside = Path(tempfile.mkdtemp(prefix=WRITING, dir=folder))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from None
    try:
        with _in_use(aside), naming(folder, aside):
            (written_to := aside / "new").mkdir()
            yield written_to
            _put(aside, folder)
        new = False
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        if not _moving(aside):
            shutil.rmtree(aside, ignore_errors=True)
        if new:
            with contextlib.suppress(OSError):
                folder.rmdir()


def demand_place(folder: Path) -> None:
    """As ``demand_writable``, of a folder that may be there and is not to be made yet.

    Raises:
        UserError: a file stands there, or above.
        OSError: nothing can be written into it, or into the folder that it would be made in.
    """
    if not os.access(above := _nearest(folder), os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(above))


def vacant(folder: Path) -> bool:
    """Whether nothing lies in a folder but what ``together`` has not finished there. What a process was moving into it
    when it was killed is moved first: refused as something else's, it would stay half there."""
    _clear(folder)
    return all(one.name.startswith(WRITING) for one in folder.iterdir())


def _moving(aside: Path) -> bool:
    """Whether all was written there, and the move of it had begun; then the next writer brings it to its end."""
    return (aside / "old").is_dir()


def _put(aside: Path, folder: Path) -> None:
    """Move all of ``aside/new`` into ``folder``; the folders that it replaces go to ``aside/old``."""
    places = {one: folder / one.name for one in sorted((aside / "new").iterdir())}
    for one, place in places.items():  # all of them before any is moved
        if one.is_dir() and (place.is_symlink() or (place.exists() and not place.is_dir())):
            raise NotADirectoryError(errno.ENOTDIR, f"'{place}' is a file, and a folder goes there", str(place))
        if not one.is_dir() and place.is_dir() and not place.is_symlink():
            raise IsADirectoryError(errno.EISDIR, f"'{place}' is a folder, and a file goes there", str(place))
    (replaced := aside / "old").mkdir(exist_ok=True)
    for one, place in places.items():
        if place.is_dir() and not place.is_symlink():
            place.replace(replaced / one.name)
        one.replace(place)


@contextlib.contextmanager
def _in_use(aside: Path) -> Iterator[None]:
    """Hold a lock on a folder as long as this process writes into it; the system lets go of it when the process dies.
    Where folders cannot be locked (Windows, some network file systems) it is held without."""
    with contextlib.ExitStack() as held:
        if fcntl is not None:
            file = os.open(aside, os.O_RDONLY)
            held.callback(os.close, file)
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _clear(folder: Path) -> None:
    """Remove what processes that are dead were writing, and end the move of what they had written; where that cannot
    be told, it stays."""
    for left in folder.glob(f"{WRITING}*"):
        if fcntl is None or left.is_symlink() or not left.is_dir():
            continue
        with contextlib.suppress(OSError):
            file = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _moving(left):
                    _put(left, folder)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(file)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder in which work goes on: two processes would take each other's files from under their hands. Where
    folders cannot be locked it is held without.

    Raises:
        UserError: another process holds it.
    """
    with contextlib.ExitStack() as held:
        if fcntl is not None:
            file = os.open(folder, os.O_RDONLY)
            held.callback(os.close, file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise UserError(f"{folder}: another raftdiff process is working in this folder.") from None
            except OSError:
                pass  # no locks here, as on some network file systems
        yield


def demand_writable(folder: Path) -> None:
    """Before hours of work whose result goes there.

    Raises:
        UserError: a file stands there, or above.
        OSError: nothing can be written into ``folder``, which it names.
    """
    _nearest(folder)
    with together(folder):
        pass


def _nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there.

    Raises:
        UserError: it is a file.
    """
    above = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    if not above.is_dir():
        raise UserError(f"{above} is a file, and a folder goes there; give another name.")
    return above


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    Raises:
        UserError: the file is damaged: no safetensors, or cut short.
    """
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise damaged(path, error) from None


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, by choice with ``metadata`` in its head, as ``write_text`` writes.

    Raises:
        OSError: the disk refuses, with ``path`` as its file name.
    """
    with _aside(path) as aside:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, aside, dict(metadata) if metadata else None)
        with aside.open("rb") as file:
            os.fsync(file.fileno())


def copy_files(source: Path, target: Path) -> None:
    """All files of a folder into a new one.

    Raises:
        OSError: what the disk refuses, of the file that it is about; ``shutil.copytree`` goes on and raises a list of
            texts.
    """
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)


def sync_all(folder: Path) -> None:
    """Everything written so far to the disk, so that the rename that follows never names half a folder."""
    if hasattr(os, "sync"):
        os.sync()
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
