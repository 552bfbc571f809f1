"""Where figures come from: commit, packages, hardware. A figure without them means nothing."""

import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch

from raftdiff.recipes.config import flat

WEIGHTS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
MODELS, RUN = ("base", "model", "vae", "head"), "run"
"""How the recipe keys end that name weights, or another run."""
Flat: TypeAlias = Mapping[str, Any]
"""A recipe's leaves by dotted key."""
ENDS = 1 << 20
"""Bytes read at either end of a file."""
PACKAGES = ("raftdiff", "torch", "diffusers", "transformers", "peft", "accelerate", "open_clip_torch", "numpy")


def provenance() -> dict[str, Any]:
    """What a run, an evaluation or a benchmark was made with, as JSON."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "hardware": hardware(),
    }


def fingerprint(path: Path, called: str | None = None) -> str:
    """A mark of the weights in a folder or file: it changes when they are trained again or replaced.

    Of names, sizes and both ends of each file, so that gigabytes take no time; a change in the middle alone is missed.
    ``called`` is the name that the folder or file had when its mark was taken, where that is another now.
    """
    mark = hashlib.blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
    for file in files:
        size = file.stat().st_size
        mark.update(f"{Path(called or path.name) / file.relative_to(path)} {size} ".encode())
        with file.open("rb") as held:
            mark.update(held.read(ENDS))
            held.seek(max(0, size - ENDS))
            mark.update(held.read(ENDS))
    return mark.hexdigest()


def fingerprints(recipe: Mapping[str, Any], resolve: Callable[[str], str]) -> dict[str, str]:
    """A fingerprint of every local model and run among those that a recipe names, by that name; ``resolve`` says where
    a name lies. Names of models on a hub are left out."""
    found: dict[str, str] = {}
    for key, name in flat(recipe).items():
        *above, kind = key.split(".")
        if kind in (*MODELS, RUN) and isinstance(name, str) and name and "prompts" not in above:
            path = Path(resolve(name)).expanduser()
            mark = run_mark(path) if kind == RUN else fingerprint(path) if path.exists() else None
            found |= {name: mark} if mark else {}
    return found


def moves(old: Flat, new: Flat, marks: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Where a new recipe, flat, names another place of the same thing: key -> the old place and the new.

    It is the same by its mark among ``marks``, those of the old recipe's names, or by the checksum that both recipes
    hold beside it.
    """
    found = {}
    for key, was in old.items():
        now = new.get(key)
        if isinstance(was, str) and isinstance(now, str) and was != now:
            beside = f"{key.rpartition('.')[0]}.sha256"
            sealed = old.get(beside) is not None and old[beside] == new.get(beside)
            if sealed or (was in marks and mark_at(now, key, was) == marks[was]):
                found[key] = (was, now)
    return found


def told(keys: Sequence[str], old: Flat, new: Flat, marks: Mapping[str, str]) -> str:
    """``keys`` at which two recipes differ, with the fingerprints of models that are others."""
    said = []
    for key in keys:
        was, now = old.get(key), new.get(key)
        mark = mark_at(now, key, was) if isinstance(now, str) and isinstance(was, str) and was in marks else None
        said.append(f"{key} ('{now}' holds {mark}, and '{was}' held {marks[str(was)]})" if mark else key)
    return ", ".join(said)


def lying(recipe: Flat, moved: Mapping[str, str]) -> dict[str, Any]:
    """A recipe, flat, with everything that moved where it lies now."""
    found = dict(recipe)
    for _ in moved:
        found = {key: moved.get(value, value) if isinstance(value, str) else value for key, value in found.items()}
    return found


def mark_at(place: str, key: str, was: str) -> str | None:
    """The mark of what a recipe names under ``key`` and lies in ``place`` now, for comparison with one that was taken
    when it was called ``was``; None where nothing is."""
    path = Path(place).expanduser()
    if key.rpartition(".")[2] == RUN:
        return run_mark(path)
    return fingerprint(path, Path(was).expanduser().name) if path.exists() else None


def run_mark(path: Path) -> str | None:
    """A mark of a run's beginning, which it keeps while it goes on; None where no run is."""
    try:
        facts = json.loads((path / "run.json").read_bytes())
        told = [facts["digest"], facts["seed"], facts["date"], facts["parent"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=8).hexdigest()


def hardware() -> str:
    """The machine in words, for figures that would mean nothing without it."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPU cores"
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
        name = models[0] if models else name
    return f"{os.cpu_count()} CPU cores ({name}), no GPU"


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that raftdiff is imported from; nothing when it is installed."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(here), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
