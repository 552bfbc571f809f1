"""Where figures come from: commit, packages, hardware. A figure without them means nothing."""

import contextlib
import hashlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

WEIGHTS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
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


def fingerprint(path: Path) -> str:
    """A mark of the weights in a folder or file: it changes when they are trained again or replaced.

    Of names, sizes and both ends of each file, so that gigabytes take no time; a change in the middle alone is missed.
    """
    mark = hashlib.blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
    for file in files:
        size = file.stat().st_size
        mark.update(f"{file.relative_to(path.parent)} {size} ".encode())
        with file.open("rb") as held:
            mark.update(held.read(ENDS))
            held.seek(max(0, size - ENDS))
            mark.update(held.read(ENDS))
    return mark.hexdigest()


def fingerprints(models: Iterable[object], resolve: Callable[[str], str]) -> dict[str, str]:
    """A fingerprint of every local model among those that a recipe names, by that name; ``resolve`` says where a name
    lies. Names of models on a hub, and what is no name, are left out."""
    local = {name: Path(resolve(name)).expanduser() for name in models if isinstance(name, str)}
    return {name: fingerprint(path) for name, path in local.items() if path.exists()}


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
