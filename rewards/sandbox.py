"""Run a Python program and its tests where it can do no harm: limits, no network, a folder of its own."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal, final

from raftdiff.errors import UserError

Test = str | Mapping[str, str]
"""Python statements that raise unless the program is right, or {"input", "output"} of it as a script."""
Network = Literal["none", "allow"]

HERE = Path(__file__).parent
LONGEST_REPORT = 2**20
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Sets in one order every time; and numpy takes address space for each thread."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a program came. Example: ``Outcome(compiled=True, passed=2, tests=3, timed_out=False)``."""

    compiled: bool
    passed: int
    tests: int
    """How many there were; a program without any counts as one test, of running to its end."""
    timed_out: bool
    """It was still running at the end of the wall-clock time. One that used up its CPU time is just ended."""


@final
@dataclass(frozen=True, slots=True)
class Sandbox:
    """A process for each program: see ``isolation.py`` for what is shut. It keeps a program from doing harm, not from
    cheating: one that looks for it can find the marks of its own tests, or answer with an object that equals anything.

    With ``network="none"`` all of that is required. With ``"allow"`` the program can send away what it can read; and
    where the namespaces cannot be had, as in many containers, only the limits and the filter hold, and it can write
    wherever its user can. That is for a container that is thrown away.
    """

    seconds: int = 5
    """CPU seconds of the program and its tests together; three times as many by the clock, and 2 more."""
    memory_mb: int = 512
    """Address space, MiB, of which Python itself takes about 30."""
    folder_mb: int = 16
    """Its folder, and each file: MiB."""
    network: Network = "none"

    def check(self) -> None:
        """
        Raises:
            UserError: this machine cannot shut a program in, and why.
        """
        if os.name != "posix":
            raise UserError(
                "The reward 'code' runs programs of a model, which needs Linux, or macOS at one's own risk."
            )
        if self.network == "none" and (reason := _missing()):
            raise UserError(
                f"The reward 'code' cannot shut programs of a model in on this machine ({reason}). Start a container "
                "that allows user namespaces, or, where nothing can be lost, set network: allow."
            )

    def run(self, program: str, tests: Sequence[Test] = ()) -> Outcome:
        """Compile the ``program``, run it, run the ``tests`` on it in order. It never raises for what the program does.

        Tests after one that ends the process, such as an endless loop, count as failed. Statements see the program's
        names, as if they stood below it, and run one after the other in one process.

        Raises:
            UserError: the sandbox itself failed.
        """
        mark = secrets.token_hex(16)
        events, timed_out = self._events({"program": program, "tests": list(tests), "mark": mark}, mark)
        return Outcome(
            compiled="compiled" in events,
            passed=min(events.count("passed"), max(1, len(tests))),
            tests=max(1, len(tests)),
            timed_out=timed_out,
        )

    def _events(self, task: Mapping[str, Any], mark: str) -> tuple[list[str], bool]:
        isolate = sys.platform == "linux" and (self.network == "none" or not _missing())
        for _ in range(2):  # a crowded machine may fail to start a process; nothing of the program has run then
            with suppress(UserError):
                return _report(self, task, mark, isolate=isolate)
        return _report(self, task, mark, isolate=isolate)

    @property
    def limits(self) -> dict[str, int]:
        mb = 2**20
        return {
            "CPU": self.seconds,
            "AS": self.memory_mb * mb,
            "FSIZE": self.folder_mb * mb,
            "NOFILE": 64,
            "CORE": 0,
        }


def _report(sandbox: Sandbox, task: Mapping[str, Any], mark: str, *, isolate: bool) -> tuple[list[str], bool]:
    settings = {
        "isolate": isolate,
        "network": sandbox.network == "allow",
        "folder_mb": sandbox.folder_mb,
        "limits": sandbox.limits,
        "environment": ENVIRONMENT,
    }
    # As with -I, but for -E: the environment holds our own variables alone.
    python = [sys.executable, "-s", "-P", "-B"]
    command = [sys.executable, "-I", "-S", "-B", str(HERE / "isolation.py"), json.dumps(settings), *python]
    # Files without a name: what the program could write to them is bounded, and no path leads to them.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said, tempfile.TemporaryDirectory() as folder:
        given.write(json.dumps(task).encode())
        given.seek(0)
        process = subprocess.Popen(
            [*command, str(HERE / "harness.py")],
            stdin=given,
            stdout=said,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        timed_out = _wait(process, 3 * sandbox.seconds + 2)
        return _read(said, mark, timed_out), timed_out


def _wait(process: subprocess.Popen[bytes], seconds: int) -> bool:
    """True if it had to be ended. The first process takes everything inside with it."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return False


def _read(said: IO[bytes], mark: str, timed_out: bool) -> list[str]:
    said.seek(0)
    lines = said.read(LONGEST_REPORT).decode(errors="replace").splitlines()
    events = [line.removeprefix(f"{mark} ") for line in lines if line.startswith(f"{mark} ")]
    if not events:
        reason = next(
            (line[1:] for line in lines if line.startswith("!")), "Python did not start: is memory_mb too low?"
        )
        raise UserError(
            f"The sandbox of the reward 'code' failed: {'it took too long to start' if timed_out else reason}."
        )
    return events


@cache
def _missing() -> str | None:
    """Why programs cannot be isolated on this machine; None where they can."""
    if sys.platform != "linux":
        return "it needs Linux"
    try:
        _report(Sandbox(), {"program": "", "tests": [], "mark": "probe"}, "probe", isolate=True)
    except UserError as error:
        return str(error).partition(" failed: ")[2].rstrip(".")
    return None
