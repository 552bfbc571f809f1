"""Replies kept on disk as they come, so that work that failed half-way asks only for the rest."""

import contextlib
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import final

MOST = 2**17
"""Replies that are held in memory."""


@final
class KeptReplies:
    """A file of JSON lines, ``mark`` of the question and ``reply``. Several threads may use it."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        if path.is_symlink():  # a link that came with somebody's run is not written through
            path.unlink()
        self._found: dict[str, str] = {}
        for line in path.read_bytes().split(b"\n") if path.is_file() else ():
            with contextlib.suppress(ValueError, RecursionError, KeyError, TypeError):  # a kill may have cut one short
                row = json.loads(line)
                self._found[str(row["mark"])] = str(row["reply"])

    def get(self, mark: str) -> str | None:
        return self._found.get(mark)

    def add(self, mark: str, reply: str) -> None:
        with self._lock, self._path.open("ab") as file:
            self._found[mark] = reply
            start = b"\n" if file.tell() else b""  # ends what was cut short
            file.write(start + json.dumps({"mark": mark, "reply": reply}).encode())


@final
class Remembered:
    """Replies by the marks of their questions: the latest in memory, from ``keep`` on all of them in a file too.
    Several threads may use it."""

    def __init__(self, most: int = MOST) -> None:
        self._most, self._lock = most, threading.Lock()
        self._said: OrderedDict[str, str] = OrderedDict()
        self._kept: KeptReplies | None = None

    def keep(self, file: Path) -> None:
        """Keep replies in ``file`` from now on, and know those that are there."""
        self._kept = KeptReplies(file)

    def get(self, mark: str) -> str | None:
        with self._lock:
            if mark in self._said:
                self._said.move_to_end(mark)
                return self._said[mark]
        return self._kept.get(mark) if self._kept else None

    def add(self, mark: str, reply: str) -> None:
        with self._lock:
            self._said[mark] = reply
            while len(self._said) > self._most:
                self._said.popitem(last=False)
        if self._kept:
            self._kept.add(mark, reply)
