"""What was measured on this machine, kept for later runs: small files in the user's cache folder, an entry a key."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raftdiff.diffusion.models import kept
from raftdiff.errors import UserError
from raftdiff.records.disk import read_json, write_text

MOST = 64
"""Entries of a file; the oldest go first."""


def place(name: str) -> Path:
    """``$RAFTDIFF_CACHE/NAME``, or in the user's own folder for such things: beside the texts that were read."""
    return kept.place().with_name(name)


def key(facts: Mapping[str, Any]) -> str:
    """A digest of all that a measurement depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def entry(name: str, key: str) -> Mapping[str, Any] | None:
    """What is kept under a key; None for nothing, and where the file cannot be read or is damaged, which is told."""
    found = _entries(name).get(key)
    return found if isinstance(found, dict) else None


def keep(name: str, key: str, entry: Mapping[str, Any]) -> None:
    """As the latest; what else the file holds stays, as far as it is not too much.

    Raises:
        OSError: the disk refuses.
    """
    others = {known: held for known, held in _entries(name).items() if known != key}
    place(name).parent.mkdir(parents=True, exist_ok=True)
    _write(name, {**others, key: entry})


def forget(name: str, key: str) -> None:
    """So that it is measured anew; where the disk refuses, nothing happens."""
    others = _entries(name)
    if others.pop(key, None) is not None:
        with contextlib.suppress(OSError):
            _write(name, others)


def _write(name: str, entries: Mapping[str, Any]) -> None:
    write_text(place(name), json.dumps(dict([*entries.items()][-MOST:]), indent=2, default=str) + "\n")


def _entries(name: str) -> dict[str, Any]:
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return read_json(place(name))
    except OSError as error:
        warnings.warn(f"{place(name)}: what was measured cannot be read here ({error}).", stacklevel=2)
    except UserError:
        warnings.warn(
            f"{place(name)}: this file is damaged and not read; what measures next ('raftdiff bench', or batch_size: "
            "auto) writes it anew.",
            stacklevel=2,
        )
    return {}
