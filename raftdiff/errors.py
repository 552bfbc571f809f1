"""The one exception that is meant to be read by the person who caused it."""

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class UserError(Exception):
    """What is wrong, where, and what to do about it, in a sentence. The command line prints it without a traceback."""


class BusyError(UserError):
    """Another process holds what this one wants to write to; it may let go of it soon."""


class Need(NamedTuple):
    """One thing that a recipe needs and this machine lacks; see ``recipes.needs``."""

    key: str
    """The field, in the part's own recipe keys."""
    sentence: str
    """What is missing, and where to get it."""
    fetched: bool = False
    """Whether it will be fetched from a hub when the recipe runs."""


def counted(number: int, what: str) -> str:
    """A number of things, in the singular where it is one.

    >>> counted(1, "round"), counted(1200, "pair"), counted(0, "loss")
    ('1 round', '1,200 pairs', '0 losses')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}{'es' if what.endswith('s') else 's'}"


def printable(text: str) -> str:
    """What a stranger wrote, for a sentence: what a terminal would obey and not show is told by its number.

    >>> printable("rosé \\x1b[31m\\u202e")
    'rosé \\\\x1b[31m\\\\u202e'
    """
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def command(*words: object) -> str:
    """A command line of ours that a person can paste into a shell of this platform.

    >>> command("train", "my-runs/a", "loop.rounds=4")
    'raftdiff train my-runs/a loop.rounds=4'
    """
    return " ".join(["raftdiff", *(quoted(str(word), windows=os.name == "nt") for word in words)])


def quoted(word: str, *, windows: bool) -> str:
    """One word of a command line, as a POSIX shell has it; on Windows in double quotes, with backslashes doubled
    where a quote follows, as programs there read them. cmd still fills in ``%NAME%``, and PowerShell ``$name`` and
    backticks: no one spelling serves both.

    >>> quoted("my runs/a", windows=False), quoted("my runs/a", windows=True)
    ("'my runs/a'", '"my runs/a"')
    """
    if not windows:
        return shlex.quote(word)
    if re.fullmatch(r"[\w.:/\\=+-]+", word):
        return word
    return '"' + re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + ('\\"' if end[2] else ""), word) + '"'


GONE: Mapping[str, str] = {
    "emoji-sd": "scene-sd",
    "emoji-clip": "scene-clip",
    "emoji-judge": "scene-judge",
    "emoji_align": "scene_align",
    "emoji_small": "scene_small",
    "scene_demo": "demo",
}
"""Names of models and recipes that shipped before 0.1, and what takes their place."""


def gone(name: str) -> str:
    """What became of a model or a recipe that shipped once; empty for any other name.

    >>> gone("emoji-sd")
    "'emoji-sd' is gone since 0.1; 'scene-sd' takes its place."
    """
    return f"'{name}' is gone since 0.1; '{GONE[name]}' takes its place." if name in GONE else ""


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """``Did you mean 'x'? Known: a, b, x.`` for a misspelt name; without the question where nothing is near."""
    names = sorted(set(valid))
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f"Did you mean '{close[0]}'? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
