"""Where figures come from: commit, packages, hardware. A figure without them means nothing."""

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import constants

from raftdiff.recipes.config import flat

WEIGHTS = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"}
NOTHING = hashlib.blake2b(digest_size=8).hexdigest()
"""What earlier versions put down for a folder without weights, such as one of GGUF files: no mark of anything."""
FILE, RUN = "pretrained", "run"
MODELS = ("base", "model", "vae", "head", "checkpoint", "detector", FILE)
"""How the recipe keys end that name weights, ``RUN`` another run. ``FILE`` names a file, or weights by a tag, which a
folder that happens to be called so has nothing to do with."""
CONFIG = re.compile(r"(^|\.)model\.config$")
"""The key that names what a single file lacks."""
STARTS = re.compile(r"(^|\.)(loras|embeddings)\.\d+\.path$")
"""Keys that name what a model of pictures starts from."""
HUB = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*/[A-Za-z0-9_.-]+")
"""A model's name on a hub."""
PLACED = re.compile("^(local-dir|transformers):")
"""Before the folder of a CLIP model, whose it is."""
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


def fingerprint(path: Path, called: str | None = None) -> str | None:
    """A mark of the weights in a folder or file: it changes when they are trained again or replaced. None for a folder
    without any; GGUF files have marks of their own (``fingerprints``), for a folder may hold several models in them.

    Of names, sizes and both ends of each file, so that gigabytes take no time; a change in the middle alone is missed.
    ``called`` is the name that the folder or file had when its mark was taken, where that is another now.
    """
    mark = hashlib.blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in WEIGHTS)
    if not files:
        return None
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
    a name lies. Names of models on a hub are left out. What a model is read from besides, a GGUF file or the base of a
    LoRA, has its own, by the name of the model and not by where it lies."""
    found: dict[str, str] = {}
    leaves = flat(recipe)
    for key, name in leaves.items():
        *above, kind = key.split(".")
        named = kind in (*MODELS, RUN) or STARTS.search(key) or CONFIG.search(key)
        if named and isinstance(name, str) and name and "prompts" not in above:
            found |= marks_at(resolve(name), key, name, leaves)
    return found


def revisions(recipe: Mapping[str, Any]) -> dict[str, str]:
    """The commits of the models on a hub that a recipe names, by that name: which the cache here holds as the latest
    that was fetched, and so is read. The network is not asked."""
    found = {}
    for key, name in flat(recipe).items():
        *above, kind = key.split(".")
        named = kind in MODELS or STARTS.search(key) or CONFIG.search(key)
        on_hub = named and isinstance(name, str) and HUB.fullmatch(name) and "prompts" not in above
        if on_hub and (commit := _cached(name)):
            found[name] = commit
    return found


def put_back(names: Sequence[str], marks: Mapping[str, str]) -> str:
    """What to do so that these models have their ``marks`` again, as the beginning of a sentence's end. Of one on a hub
    an older commit is read only where the cache holds it as the latest, and the hub is not asked."""
    told = [
        f"hf download {name} --revision {marks[name]} && echo {marks[name]} > {shlex.quote(str(_latest(name)))}"
        for name in names
        if HUB.fullmatch(name) and _cached(name)
    ]
    return f"put them back ({'; '.join(told)}; and from then on HF_HUB_OFFLINE=1)" if told else "put them back"


def _cached(name: str) -> str | None:
    latest = _latest(name)
    return latest.read_text(encoding="utf-8").strip() if latest.is_file() and not Path(name).exists() else None


def _latest(name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs" / "main"


def marks_at(place: str, key: str, name: str, recipe: Flat, called: str | None = None) -> dict[str, str]:
    """The marks of what lies in ``place`` and is named under ``key`` of a recipe, by ``name`` and, of what belongs to
    it, by names made of that. ``called`` as of ``fingerprint``."""
    path, kind = _path(place), key.rpartition(".")[2]
    marks: dict[str, str | None]
    if kind == RUN:
        marks = {name: run_mark(path)}
    elif not path.exists() or (kind == FILE and path.is_dir()):
        return {}
    else:
        marks = {name: fingerprint(path, called)}
        if STARTS.search(key):  # PEFT's settings belong to the weights, and its base is not read
            settings = sorted(path.rglob("adapter_config.json")) if path.is_dir() else []
            return _known(marks | {f"{name}/{file.relative_to(path)}": fingerprint(file) for file in settings})
        chosen = recipe.get(f"{key.rpartition('.')[0]}.gguf_file")
        base = _lora_base(path) if path.is_dir() else None
        if base is not None:
            marks[_base_of(name)] = base if isinstance(base, str) else _whole(base, chosen)
        elif path.is_dir():
            marks |= {f"{name}/{file.relative_to(path)}": fingerprint(file) for file in _gguf(path, chosen)}
    return _known(marks)


def _known(marks: Mapping[str, str | None]) -> dict[str, str]:
    return {one: mark for one, mark in marks.items() if mark is not None}


def _path(place: str) -> Path:
    return Path(PLACED.sub("", place)).expanduser()


def _base_of(name: str) -> str:
    return f"the base of {name}"


def _whole(root: Path, chosen: Any) -> str:
    """A mark of a whole model, wherever it lies."""
    marks = [fingerprint(root, "base"), *(fingerprint(file) for file in _gguf(root, chosen))]
    return " ".join(mark for mark in marks if mark)


def _gguf(folder: Path, chosen: Any) -> list[Path]:
    """The GGUF files that a model is read from: the one that the recipe names, or those of a folder without others."""
    if isinstance(chosen, str) and chosen:
        return [folder / chosen] if (folder / chosen).is_file() else []
    held = sorted(folder.glob("*.gguf"))
    return held if held and fingerprint(folder) is None else []


def _lora_base(folder: Path) -> Path | str | None:
    """Where the base of the LoRA in a folder lies, or its name on a hub; None where there is no LoRA alone."""
    if (folder / "config.json").is_file():
        return None
    try:
        named = json.loads((folder / "adapter_config.json").read_bytes())["base_model_name_or_path"]
        places = [Path(named).expanduser(), folder / named, folder.parent / named]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    return next((place for place in places if place.is_dir()), str(named))


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
            if sealed or _same(was, now, key, new, marks):
                found[key] = (was, now)
    return found


def _same(was: str, now: str, key: str, new: Flat, marks: Mapping[str, str]) -> bool:
    """Whether all that ``was`` was read from lies at ``now`` too."""
    here = marks_at(now, key, was, new, _path(was).name)
    gguf = new.get(key.rpartition(".")[0] + ".gguf_file")
    names = {*here, was, _base_of(was), f"{was}/{gguf}"}
    wanted = {name: marks[name] for name in names if marks.get(name, NOTHING) != NOTHING}
    return bool(wanted) and all(here.get(name) == mark for name, mark in wanted.items())


def told(keys: Sequence[str], old: Flat, new: Flat, marks: Mapping[str, str]) -> str:
    """``keys`` at which two recipes differ, with the fingerprints of models that are others."""
    said = []
    for key in keys:
        was, now = old.get(key), new.get(key)
        mark = (
            marks_at(now, key, was, new, _path(was).name).get(was)
            if isinstance(now, str) and isinstance(was, str)
            else None
        )
        mark = mark if marks.get(str(was), NOTHING) not in (NOTHING, mark) else None
        said.append(f"{key} ('{now}' holds {mark}, and '{was}' held {marks[str(was)]})" if mark else key)
    return ", ".join(said)


def lying(recipe: Flat, moved: Mapping[str, str]) -> dict[str, Any]:
    """A recipe, flat, with everything that moved where it lies now."""
    found = dict(recipe)
    for _ in moved:
        found = {key: moved.get(value, value) if isinstance(value, str) else value for key, value in found.items()}
    return found


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
