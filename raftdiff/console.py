"""What the place that a command is started from brings and takes: words that may be no text, letters that it cannot
show, warnings for people, what a launcher left."""

import errno
import io
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from raftdiff.errors import UserError

PLENTY = 1000
"""MB: with more than this free, that a disk is full wants a reason."""


def show_all() -> None:
    """What a terminal's encoding lacks is shown as its number: a prompt in Chinese ends no command in a console."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


def out_of_memory(error: Exception) -> str | None:
    """That memory does not suffice, whose, and what takes less; None where an error says something else. PyTorch has no
    type of its own for what the machine lacks, nor for a GPU in its older versions.

    >>> out_of_memory(ValueError("no")) is None
    True
    """
    said = str(error)
    main = isinstance(error, MemoryError) or "DefaultCPUAllocator" in said
    if not main and "out of memory" not in said:
        return None
    whose = "this machine's" if main else "the GPU's"
    asked = re.search(r"tried to allocate (\d[\d.]* \w+)", said, flags=re.IGNORECASE)
    wanted = f" ({asked[1]} more were asked for)" if asked else ""
    return (
        f"{whose} memory does not suffice{wanted}. Lower batch sizes or the size of pictures; 'raftdiff plan RECIPE "
        "--card 12GB' names settings that fit."
    )


def full(place: str | None, number: int = errno.ENOSPC) -> str:
    """That a disk is full, and which: of several on a machine it is seldom the one that a person thinks of. ``number``
    is the error's: a quota that is used up, or a disk with room for bytes and not for more files, is said as such."""
    quota = number == errno.EDQUOT
    if place is None:
        return "your quota of the disk is used up." if quota else "the disk is full."
    at = next(one for one in (Path(place).absolute(), *Path(place).absolute().parents) if one.exists())
    disk = next(one for one in (at, *at.parents) if os.path.ismount(one) or one == one.parent)
    if quota:
        return f"{place}: your quota on this disk ({disk}) is used up, whatever else is free on it."
    free = shutil.disk_usage(disk).free / 1e6
    if _takes_no_files(disk):
        return f"{place}: the disk takes no more files ({disk}: its inodes are used up; {free:.1f} MB are free)."
    why = "; what did not fit is removed again, or a quota of this folder is used up" if free > PLENTY else ""
    return f"{place}: the disk is full ({disk}: {free:.1f} MB are free{why})."


def _takes_no_files(disk: Path) -> bool:
    if not hasattr(os, "statvfs"):  # Windows
        return False
    told = os.statvfs(disk)
    return told.f_files > 0 and told.f_favail == 0  # some file systems make inodes as they need them, and say 0 of both


def decoded(words: Sequence[str]) -> list[str]:
    """The words of the command line, also where the locale (LC_ALL=C) does not say that they are UTF-8.

    Raises:
        UserError: one is no UTF-8, and could be written into no recipe.
    """
    found = []
    for word in words:
        try:
            found.append(word if word.isprintable() else os.fsencode(word).decode("utf-8"))
        except UnicodeError:
            shown = word.encode("utf-8", "backslashreplace").decode()
            raise UserError(
                f"'{shown}' is not UTF-8; set the terminal to UTF-8, or write it into a file and save that as UTF-8."
            ) from None
    return found


def sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning of ours as a sentence; those of libraries with the place that they come from."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parent):
        return f"raftdiff: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def launched() -> tuple[int, int] | None:
    """Which of how many processes that were launched together this is, from 0; None where it is the only one. What a
    launcher's job or an allocation left in the environment is dropped: who reads it would wait for others.

    Raises:
        UserError: they were launched on several machines.
    """
    told = {name: os.environ.pop(name, "").strip() for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    count = told["WORLD_SIZE"]
    if count in ("", "0", "1") or not told["RANK"] or not os.environ.get("MASTER_ADDR"):
        return None
    if told["LOCAL_WORLD_SIZE"] not in ("", count):
        raise UserError(
            "raftdiff shares its work among the processes of one machine; for several machines: raftdiff sample RUN "
            "--shard 1/2, and so on."
        )
    return int(told["RANK"]), int(count)


def caught() -> None:
    """An interrupt was dealt with, so that the status of the command is its own to choose. One that comes while Python
    runs a text as code, as libraries do when they are imported, is remembered as unhandled whoever catches it, and the
    process ends by the signal; the next text that runs takes that back."""
    exec("")
