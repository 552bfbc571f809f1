"""Whether a run is what it was when it was written: checksums of finished rounds, and no link that leads out of it."""

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from raftdiff.errors import UserError
from raftdiff.records.disk import append, damaged, read_json, write_text

SUMS = "SHA256SUMS"
"""In each round's folder: a line a file, as ``sha256sum --check`` reads them. The run's run.json holds its own sum."""
ADVICE = (
    "Take it from a copy of the run; or remove this round's folder and those after it, and the same command makes them "
    "again."
)
SHOWN = 5
UNHELD = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
TABLES = ("weights", "moved", "rounds", "rollbacks")
"""Of run.json: what is found there by name."""


def facts(path: Path) -> dict[str, Any]:
    """What run.json holds.

    Raises:
        UserError: it is damaged.
    """
    found = read_json(path)
    if wrong := [name for name in TABLES if not isinstance(found.get(name, {}), dict)]:
        raise damaged(path, f"'{wrong[0]}' is no table of names")
    if not isinstance(found.get("recipe", []), list):
        raise damaged(path, "'recipe' is no list of checksums")
    if not all(_leads_back(after, to) for after, to in found.get("rollbacks", {}).items()):
        raise damaged(path, "'rollbacks' names a round that is not before the one that was gone back from")
    return found


def _leads_back(after: str, to: object) -> bool:
    return after.isdecimal() and (to is None or (isinstance(to, int) and 0 <= to < int(after)))


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums(folder: Path) -> dict[str, str]:
    """The checksum of each file by its path within the round; of a round that is being made, so far as it is drawn."""
    if not (folder / SUMS).is_file():
        return {}
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    found = (re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines)  # a kill may have cut the last one short
    return {match[2]: match[1] for match in found if match}


def note(folder: Path, names: Iterable[str]) -> None:
    """Add the checksums of files that were just written to a round that is being made."""
    append(folder / SUMS, _lines({name: digest(folder / name) for name in names}))


def seal(folder: Path) -> str:
    """Write the checksums of all files of a round that is complete; returns that of the list. A picture's is the one
    from when it was drawn. What a process wrote aside that was killed then is removed: the list would hold what the
    next one, such as the list itself, puts in its place."""
    for left in folder.rglob("*.tmp"):
        if not left.is_dir():
            left.unlink()
    drawn = {name: mark for name, mark in sums(folder).items() if name.startswith("samples/") and name.endswith(".png")}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS]
    names = [path.relative_to(folder).as_posix() for path in files]
    write_text(folder / SUMS, "".join(_lines({name: drawn.get(name) or digest(folder / name) for name in names})))
    return digest(folder / SUMS)


def _lines(marks: Mapping[str, str]) -> Iterator[str]:
    return (f"{mark}  {name}\n" for name, mark in marks.items())


def damage(folder: Path, mark: str, parts: Collection[str] | None = None) -> list[str]:
    """What is no longer as it was in a finished round whose list had the checksum ``mark``, in words.

    ``parts`` are files, by their paths within the round, or the folder ``state``; all of them by default.
    """
    if not (folder / SUMS).is_file() or digest(folder / SUMS) != mark:
        return [f"{SUMS} is not the list that the round was finished with"]
    listed = sums(folder)
    if not (folder / "state").is_dir():  # an old round's may be removed to make room; who needs it says so
        listed = {name: mark for name, mark in listed.items() if not name.startswith("state/")}
    wanted = [name for name in listed if parts is None or name in parts or name.partition("/")[0] in parts]
    wanted += [name for name in parts or () if name != "state"]
    if parts is None or "state" in parts:  # all that is there is loaded
        wanted += [file.relative_to(folder).as_posix() for file in (folder / "state").glob("*.safetensors")]
    found = []
    for name in sorted(set(wanted)):
        if name not in listed and not (folder / name).is_file():
            continue  # never written: a round of a reward model has no samples
        if name not in listed:
            found.append(f"{name} was not there when the round was finished")
        elif not (folder / name).is_file():
            found.append(f"{name} is missing")
        elif digest(folder / name) != listed[name]:
            found.append(f"{name} was changed")
    return found


def demand(folder: Path, mark: str | None, parts: Collection[str] | None = None) -> None:
    """Nothing, where a finished round is as it was; ``mark`` is None of a round that has no checksums.

    Raises:
        UserError: a part that is about to be used was changed, swapped or removed, as ``damage`` tells.
    """
    if mark is not None and (found := damage(folder, mark, parts)):
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(f"{folder}: {'; '.join(found[:SHOWN])}{more}. {ADVICE}")


def refuse_links(folder: Path) -> None:
    """Nothing, where every link in ``folder`` stays within it. Runs come from other people, and what is written through
    a link changes a file elsewhere; what is read from a pipe never comes. What is gone by the time it is looked at, as
    a file that another process puts in its place, is nothing.

    Raises:
        UserError: one leads out, or something is a pipe, a socket or a device.
    """
    home, places = folder.resolve(), [str(folder)]
    while places:
        with contextlib.suppress(FileNotFoundError), os.scandir(places.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    places += _looked_at(entry, home)


def _looked_at(entry: os.DirEntry[str], home: Path) -> list[str]:
    """The folder that this is, to be looked into; none where it is none."""
    kind = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
    if kind == stat.S_IFLNK:
        _refuse(Path(entry.path), home)
    elif kind in UNHELD:
        raise UserError(
            f"{entry.path}: this is neither a file nor a folder but a pipe, a socket or a device, which no run holds. "
            "Remove it."
        )
    return [entry.path] if kind == stat.S_IFDIR else []


def _refuse(link: Path, home: Path) -> None:
    try:
        stays = link.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # it leads in a circle
        stays = False
    if not stays:
        raise UserError(
            f"{link}: this is a link that leads out of the run, and raftdiff would write through it. Remove it, or put "
            f"what it leads to ({link.readlink()}) in its place."
        )
