"""Writing so that nothing finished is ever lost: aside, flushed, renamed."""

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def read_json(path: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON value a line; none where there is no file. A line that was cut short, as by a kill, is left out."""
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def write_text(path: Path, text: str) -> None:
    """Aside, flushed, renamed: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    aside = path.with_name(path.name + ".tmp")
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
    except SafetensorError as error:  # it wraps what the disk said
        aside.unlink(missing_ok=True)
        if any(f"os error {code}" in str(error) for code in (errno.ENOSPC, errno.EDQUOT)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
    with aside.open("rb") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def sync_all(folder: Path) -> None:
    """Everything written so far to the disk, so that the rename that follows never names half a folder."""
    if hasattr(os, "sync"):
        os.sync()
        return
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
