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
from raftdiff.llm.model import tiny

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
WORDS = {
    "media": "text",
    "name": "words",
    "model": {"base": "LM", "device": "cpu"},
    "prompts": {"captions": ["the film", "my dog", "the dog"]},
    "sampler": {"type": "policy", "decoding": {"max_new_tokens": 5}, "batch_size": 4},
    "ranker": {"rewards": [{"type": "length", "direction": "more"}, {"type": "kl"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"adapter": "lora", "rank": 2, "batch_size": 2},
    "loop": {"rounds": 1, "candidates": 4},
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
WORKING = """
from pathlib import Path
from raftdiff.cli import main as door
from raftdiff.training import sharded
command, held, split = door._command, [], sharded.split
def splitting(network, *others):
    held.append((network, sharded.held_bytes(network)))
    split(network, *others)
sharded.split = splitting
door._command = lambda words: max(command(one) for one in {})
status = door.main([])
Path("held{}.txt").write_text(repr([sharded.held_bytes(it) / whole for it, whole in held]))
sys.exit(status)
"""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


def two(forked: Callable[..., Any], patch: str, *commands: list[str]) -> list[Any]:
    """raftdiff with the words of these commands, one after the other, as two processes, of which ``patch`` is run first
    in the second. Each leaves in a file which share of the bytes of each network that was split it held in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    began = [
        forked(
            begin + WORKING.format(list(commands), rank),
            f"said{rank}.txt",
            **told,
            RANK=rank,
            LOCAL_RANK=rank,
            OMP_NUM_THREADS="1",
        )
        for rank, begin in (("0", ""), ("1", patch))
    ]
    for process in began:
        process.join(timeout=120 * len(commands))
    return [process.exitcode for process in began]


@pytest.mark.slow
def test_two_processes_make_the_run_of_one_and_go_on_where_one_was_killed(
    tmp_path: Path, model: Path, forked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(model)))
    tiny.write(tmp_path / "lm", ("the", "film", "my", "dog", "good", "bad"))
    Path("words.yaml").write_text(yaml.safe_dump(WORDS).replace("LM", str(tmp_path / "lm")))
    assert main(["train", "tiny.yaml", "--out", "alone", "loop.rounds=1"]) == 0
    assert main(["train", "words.yaml", "--out", "words-alone"]) == 0
    assert two(forked, DYING, ["train", "tiny.yaml", "--out", "split", "model.sharded=true"]) == [1, -9], said()
    assert "one of the 2 processes has ended" in said()
    first = held(0)
    both = ["train", "tiny.yaml", "--out", "both", "loop.rounds=1"]
    assert two(forked, "", both, ["train", "words.yaml", "--out", "words-split", "model.sharded=true"]) == [0, 0], (
        said()
    )
    assert "raftdiff" not in Path("said1.txt").read_text(), (
        "the first says it; bars are those of libraries imported before"
    )
    assert [len(first), len(held(0)), len(held(1))] == [1, 1, 1]
    assert all(0.5 <= share < 0.65 for share in (*first, *held(0), *held(1))), "half, and a LoRA"
    for alone, other in (("alone", "both"), ("alone", "split"), ("words-alone", "words-split")):
        alike(Path(alone, "rounds/000"), Path(other, "rounds/000"))
    assert main(["train", "split"]) == 0, "one process goes on"
    assert sorted(path.name for path in Path("split/rounds").iterdir()) == ["000", "001"]


def held(rank: int) -> list[float]:
    """The shares of its networks that a process held."""
    shares: list[float] = json.loads(Path(f"held{rank}.txt").read_text())
    return shares


def said() -> str:
    return Path("said0.txt").read_text()


def alike(alone: Path, other: Path) -> None:
    """Whether a round of several processes is that of one."""
    assert sorted(path.name for path in other.rglob("*")) == sorted(path.name for path in alone.rglob("*"))
    assert (other / "samples/metadata.jsonl").read_text() == (alone / "samples/metadata.jsonl").read_text()
    for picture in alone.glob("samples/*.png"):
        assert (other / "samples" / picture.name).read_bytes() == picture.read_bytes()
    for name in ("adapter", "optimizer"):
        theirs, ours = (load_file(path / f"state/{name}.safetensors") for path in (alone, other))
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            torch.testing.assert_close(ours[key], tensor, atol=1e-5, rtol=1e-3)
    ours, theirs = (json.loads((path / "metrics.json").read_text()) for path in (other, alone))
    assert ours["network_evaluations"] == theirs["network_evaluations"]
    assert ours["tune"] == pytest.approx(theirs["tune"], rel=1e-4, abs=1e-9)
    assert (ours.get("held_out") or 0.0) == pytest.approx(theirs.get("held_out") or 0.0, rel=1e-2)
