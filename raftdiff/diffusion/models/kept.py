"""What large text encoders said of texts, kept on disk by content: a run that asks nothing new loads none of them."""

import contextlib
import hashlib
import json
import os
import platform
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open

from raftdiff.diffusion import families
from raftdiff.diffusion.families.texts import Texts
from raftdiff.diffusion.models.checkpoints import Layout, variant
from raftdiff.records.disk import save_tensors

PLACE = "RAFTDIFF_CACHE"
"""The environment's word for another folder."""
LARGE = 2**30
"""Bytes of weights from which text encoders are worth it: CLIP's are read in a second or two."""
CAPACITY = 8 * 2**30
"""Bytes that the folder may hold; what was asked for longest ago goes first."""


def place() -> Path:
    """Where all runs keep them: ``$RAFTDIFF_CACHE/texts``, or the user's own folder for such things."""
    named = os.environ.get(PLACE)
    if named:
        return Path(named).expanduser() / "texts"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raftdiff" / "texts"


def keeping(layout: Layout, dtype: torch.dtype, device: torch.device) -> "Kept | None":
    """Where what this model's text encoders say is kept, if they are large.

    Args:
        dtype, device: in which they read.
    """
    files = [file for name in encoders(layout) for file in _weights(layout, name)]
    if sum(file.stat().st_size for file in files) < LARGE:
        return None
    return Kept(place(), key(layout, dtype, device))


def encoders(layout: Layout) -> list[str]:
    """The text encoders, by the names of their folders."""
    return [encoder for encoder, _ in layout.family.tokenizers.values()]


def key(layout: Layout, dtype: torch.dtype, device: torch.device) -> str:
    """A digest of all that an embedding depends on beside its text: every byte of the text encoders, tokenizers and the
    index, raftdiff's code that asks them, the libraries that compute, and what computes. Reading the bytes takes
    seconds, holds no memory, and can take no model for another."""
    folders = [*encoders(layout), *layout.family.tokenizers]
    files = [layout.path / "model_index.json"]
    for name in folders:
        inside = [
            it for it in sorted((layout.path / name).iterdir()) if it.suffix in (".json", ".txt", ".jinja", ".model")
        ]
        files += [*inside, *(_weights(layout, name) if name in encoders(layout) else ())]
    code = sorted(Path(families.__file__).parent.rglob("*.py"))
    said = {
        "files": [[str(file.relative_to(layout.path)), _digest(file)] for file in files],
        "code": [[file.name, _digest(file)] for file in code],
        "with": {name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")},
        "dtype": str(dtype),
        "on": machine(device),
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def filling(
    modules: Mapping[str, Any], later: Mapping[str, Callable[[], Any]], put: Callable[[str], None]
) -> Callable[[], None]:
    """What reads those ``modules`` that have no numbers yet, and puts them in their places; nothing the second time.
    ``later`` says how each is read: it becomes what is read, so that whoever holds it need not be told."""
    waiting = dict(later)

    def fill() -> None:
        for name in list(waiting):
            modules[name].__dict__ = waiting.pop(name)().__dict__
            put(name)

    return fill


@final
class Kept:
    """Embeddings in a folder, a file each. Several processes may read and write at once."""

    def __init__(self, folder: Path, key: str, capacity: int = CAPACITY) -> None:
        """``key``: of the model, and of all else that an embedding depends on beside its text."""
        self.folder, self._key, self._capacity = folder, key, capacity
        self._refused = False

    def read(self, text: str) -> Texts | None:
        """What was said of a text, on the CPU; None where nothing is kept, or what is kept is broken, which is told."""
        path = self._path(text)
        try:
            with safe_open(path, "pt") as file:
                told, found = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if "tokens" in found and told.get("content") == _content(path.stem, found):
                with contextlib.suppress(OSError):
                    os.utime(path)
                return Texts(found["tokens"], found.get("pooled"), found.get("mask"))
            why = "it is not what was written"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            why = " ".join(str(error).split()).rstrip(".")
        warnings.warn(f"{path}: this kept embedding is broken ({why}), and is made anew.", stacklevel=2)
        return None

    def holds(self, texts: Iterable[str]) -> int:
        """Of how many of these texts something is kept."""
        return sum(self._path(text).is_file() for text in set(texts))

    def write(self, text: str, said: Texts) -> None:
        """Keep what was said of a text. A disk that refuses is told once, and nothing is lost by it."""
        parts = {"tokens": said.tokens, "pooled": said.pooled, "mask": said.mask}
        tensors = {name: part.detach().cpu().contiguous() for name, part in parts.items() if part is not None}
        path = self._path(text)
        aside = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.safetensors")  # two may write the same text
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors(aside, tensors, {"content": _content(path.stem, tensors)})
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            if not self._refused:
                warnings.warn(f"{self.folder}: embeddings of texts cannot be kept here ({error}).", stacklevel=2)
            self._refused = True

    def trim(self) -> None:
        """Remove what was asked for longest ago, until no more is held than may be."""
        found = []
        with contextlib.suppress(OSError):
            for file in self.folder.iterdir():
                with contextlib.suppress(OSError):  # another process removes too
                    found.append((file.stat().st_mtime, file.stat().st_size, file))
        held = sum(size for _, size, _ in found)
        for _, size, file in sorted(found):
            if held <= self._capacity:
                return
            with contextlib.suppress(OSError):
                file.unlink()
            held -= size

    def _path(self, text: str) -> Path:
        name = hashlib.sha256(json.dumps([self._key, text]).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"


def _weights(layout: Layout, name: str) -> Sequence[Path]:
    """The files that a text encoder is read from."""
    folder = layout.path / name
    half = variant(folder, layout.family.components[name].stem, f"{layout.path}: {name}/") == "fp16"
    return [file for file in sorted(folder.glob("*.safetensors")) if (".fp16" in file.name) == half]


def _digest(file: Path) -> str:
    with file.open("rb") as held:
        return hashlib.file_digest(held, "sha256").hexdigest()


def _content(name: str, tensors: dict[str, torch.Tensor]) -> str:
    """A checksum of what a file of this name holds."""
    mark = hashlib.sha256(name.encode())
    for part, tensor in sorted(tensors.items()):
        mark.update(f"{part} {tensor.dtype} {list(tensor.shape)} ".encode())
        mark.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return mark.hexdigest()


def machine(device: torch.device) -> list[Any]:
    """What computes: two of which this is the same compute alike, as far as is known."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.version.cuda]
    return [platform.machine(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()]
