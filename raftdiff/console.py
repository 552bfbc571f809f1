"""What a terminal brings and takes: words that may be no text, letters that it cannot show, warnings for people."""

import io
import os
import sys
from collections.abc import Sequence

from raftdiff.errors import UserError


def show_all() -> None:
    """What a terminal's encoding lacks is shown as its number: a prompt in Chinese ends no command in a console."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


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
