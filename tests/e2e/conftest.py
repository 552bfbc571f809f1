"""Processes that are killed at a certain line, however fast or slow the machine is."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

Killed = Callable[..., None]


@pytest.fixture
def killed() -> Killed:
    """``killed(patch, *words)``: raftdiff with these words, in a process of its own that ends by SIGKILL where the
    lines of ``patch``, which it runs first, call ``die()``."""

    def run(patch: str, *words: object) -> None:
        program = (
            "import os, signal, sys\n"
            "def die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"{patch}\n"
            "from raftdiff.cli.main import main\n"
            "main(sys.argv[1:])"
        )
        command = [sys.executable, "-c", program, *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    return run


@pytest.fixture
def in_sampling() -> Callable[[int], str]:
    """``in_sampling(count)``: the patch for ``killed`` by which a process ends once it has kept so many samples."""
    return """
import raftdiff.records.rounds as rounds
rounds.FLUSH_SECONDS = 0.0  # every sample counts at once
add, added = rounds.Draft.add, []
def adding(self, sample):
    add(self, sample)
    added.append(sample)
    if len(added) == {}:
        die()
rounds.Draft.add = adding
""".format
