"""A model for all, and processes that are killed at a certain line, however fast or slow the machine is."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raftdiff.diffusion.models import tiny

Killed = Callable[..., None]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random model for pictures, of a few thousand weights; not to be written to."""
    return tiny.write_folder(tmp_path_factory.mktemp("model") / "sd15", "sd15")


@pytest.fixture
def killed(forked: Callable[..., Any], tmp_path: Path) -> Killed:
    """``killed(patch, *words)``: raftdiff with these words, in a process of its own that ends by SIGKILL where the
    lines of ``patch``, which it runs first, call ``die()``."""

    def run(patch: str, *words: object) -> None:
        process = forked(
            "import signal\n"
            "def die():\n    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"{patch}\n"
            "from raftdiff.cli.main import main\n"
            f"main({[str(word) for word in words]!r})"
        )
        process.join()
        assert process.exitcode == -signal.SIGKILL, (tmp_path / "said.txt").read_text()

    return run


@pytest.fixture
def in_sampling() -> Callable[[int], str]:
    """``in_sampling(count)``: the patch for ``killed`` by which a process ends once it has kept so many samples."""
    return """
import raftdiff.records.rounds as rounds
rounds.FLUSH_SECONDS = 0.0  # every sample counts at once
write, written = rounds.Draft._write, []
def writing(self, sample):
    write(self, sample)
    written.append(sample)
    if len(written) == {}:
        die()
rounds.Draft._write = writing
""".format
