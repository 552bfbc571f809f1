"""Two processes, as under accelerate launch, draw and learn what one does, and neither outlives the other."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from raftdiff.cli.main import main

RECIPE = {
    "name": "tiny",
    "model": {"base": "MODEL", "device": "cpu"},
    "prompts": {"captions": ["a cat", "a dog", "a red car"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 4},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 3, "batch_size": 2},
    "loop": {"rounds": 2, "candidates": 3},
    "evaluation": {"prompts": {"captions": ["a bus"]}, "every_round": 1},
    "logging": {"tracker": None},
}
DYING = """
import signal
from raftdiff.diffusion.learning.finetuner import DiffusionFineTuner
fit, rounds = DiffusionFineTuner.fit, []
def fitting(self, *words, **named):
    rounds.append(self)
    if len(rounds) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return fit(self, *words, **named)
DiffusionFineTuner.fit = fitting
"""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def two(forked: Callable[..., Any], patch: str, *words: str) -> list[Any]:
    """raftdiff with these words as two processes, of which ``patch`` is run first in the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    began = [
        forked(
            f"{begin}\nfrom raftdiff.cli.main import main\nsys.exit(main({list(words)!r}))",
            f"said{rank}.txt",
            **told,
            RANK=rank,
            LOCAL_RANK=rank,
            OMP_NUM_THREADS="1",
        )
        for rank, begin in (("0", ""), ("1", patch))
    ]
    for process in began:
        process.join(timeout=120)
    return [process.exitcode for process in began]


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_and_go_on_where_one_was_killed(
    tmp_path: Path, model: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(model)))
    assert main(["train", "tiny.yaml", "--out", "alone", "loop.rounds=1"]) == 0
    assert two(forked, DYING, "train", "tiny.yaml", "--out", "both") == [1, -9]
    assert "one of the 2 processes has ended" in Path("said0.txt").read_text()
    assert two(forked, "", "train", "both") == [0, 0], Path("said0.txt").read_text()
    assert Path("said1.txt").read_text() == ""
    alone, both = Path("alone/rounds"), Path("both/rounds")
    assert sorted(path.name for path in both.iterdir()) == ["000", "001"]
    pictures = [path.relative_to(alone) for path in alone.glob("000/samples/*.png")]
    assert len(pictures) == 9
    assert all((both / path).read_bytes() == (alone / path).read_bytes() for path in pictures)
    for name, tensor in load_file(alone / "000/state/adapter.safetensors").items():
        torch.testing.assert_close(
            load_file(both / "000/state/adapter.safetensors")[name], tensor, atol=1e-5, rtol=1e-3
        )
    ours, theirs = (json.loads((path / "000/metrics.json").read_text()) for path in (both, alone))
    assert ours["network_evaluations"] == theirs["network_evaluations"]
    assert ours["tune"] == pytest.approx(theirs["tune"], rel=1e-4)
    assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=1e-2)
