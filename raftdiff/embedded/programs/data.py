"""The tasks of the world of programs as files: python -m raftdiff.embedded.programs.data FOLDER

``programs_train.jsonl`` for the loop, with the reward's tests; ``programs_held_out.jsonl`` with tasks that hold pairs
which no training task has, and beside the reward's tests hidden ones, on other lists; ``programs_ptx.jsonl``, what
code-lm was trained on, right and wrong alike, for the PTX loss.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from raftdiff.embedded.programs import world

TRAINING, HELD_OUT, PTX = 192, 64, 256
TESTS, HIDDEN = 8, 16


def training() -> Iterator[Mapping[str, Any]]:
    """{"prompt", "tests"} of each task."""
    for task in world.tasks(TRAINING, seed=0, out=False):
        yield {"prompt": world.prompt(task), "tests": world.tests(task, TESTS, seed=0)}


def held_out() -> Iterator[Mapping[str, Any]]:
    """{"prompt", "tests", "hidden"} of each task; no list is among both."""
    for task in world.tasks(HELD_OUT, seed=1, out=True):
        tests = world.tests(task, TESTS, seed=0)
        hidden = [test for test in world.tests(task, TESTS + HIDDEN, seed=1) if test not in tests][:HIDDEN]
        yield {"prompt": world.prompt(task), "tests": tests, "hidden": hidden}


def ptx() -> Iterator[Mapping[str, str]]:
    """{"prompt", "response"}, as the base model has seen them."""
    generator = Random(2)
    for task in world.tasks(PTX, seed=2, out=False):
        yield {"prompt": world.prompt(task), "response": world.beginner(task, generator)}


if __name__ == "__main__":
    for name, rows in (("train", training()), ("held_out", held_out()), ("ptx", ptx())):
        path = Path(sys.argv[1]) / f"programs_{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
