"""``raftdiff rank``, killed at its end: nothing half-written passes for whole."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raftdiff.cli.main import main

MOVING = """
import raftdiff.records.disk as disk
replace = disk.Path.replace
def replacing(self, to):
    replace(self, to)
    if self.parent.name == "new" and to.parent.name == "killed":
        die()
disk.Path.replace = replacing
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two dozen pictures with captions."""
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    rows = []
    for k in range(24):
        noise = np.random.default_rng(k).integers(0, 10 * k + 10, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(noise).save(f"pictures/p{k:02d}.png")
        rows.append(json.dumps({"file_name": f"p{k:02d}.png", "text": f"{k} foxes"}) + "\n")
    Path("pictures/metadata.jsonl").write_text("".join(rows))
    return Path("pictures")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*") if one.is_file()}


def test_a_ranking_that_is_killed_while_it_is_moved_ends_whole(folder: Path, killed: Callable[..., None]) -> None:
    words = ["rank", str(folder), "--reward", "jpeg", "--top", "5", "--out"]
    assert main([*words, "whole"]) == 0
    killed(MOVING, *words, "killed")
    assert not Path("killed/sheet.png").exists(), "the kill came before the end"
    assert main([*words, "killed"]) == 2, "nothing is overwritten, and what was half there is whole"
    assert tree(Path("killed")) == tree(Path("whole"))
