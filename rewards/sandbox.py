"""Run a Python program and its tests where it can do no harm: limits, no network, a folder of its own."""

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, final

from raftdiff.errors import UserError

Test = str | Mapping[str, str]
"""Python statements that raise unless the program is right, or {"input", "output"} of it as a script."""
Network = Literal["none", "allow"]

HERE = Path(__file__).parent
LONGEST_REPORT = 2**20
LONGEST_PROGRAM = 2**20
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/localtime")
SYSTEM_NETWORK = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/ssl", "/etc/pki")
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
    cheating: tests that are statements run in its own process, so one that looks for it can find the mark that makes a
    line of the report count, or answer with an object that equals anything.

    With ``network="none"`` all of that is required. With ``"allow"`` the program can send away what it can read; and
    where the namespaces cannot be had, as in many containers, only the limits and the filter hold: it can read and
    write wherever its user can. That is for a container that is thrown away.
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
        if len(program) > LONGEST_PROGRAM:  # reading it could take all the memory that the program has
            return Outcome(compiled=False, passed=0, tests=max(1, len(tests)), timed_out=False)
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
        "files": _files(network=sandbox.network == "allow"),
        "folder_mb": sandbox.folder_mb,
        "limits": sandbox.limits,
        "environment": ENVIRONMENT,
    }
    # As with -I, but for -E: the environment holds our own variables alone.
    python = [sys.executable, "-s", "-P", "-B"]
    command = [sys.executable, "-I", "-S", "-B", str(HERE / "isolation.py"), json.dumps(settings), *python]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryDirectory() as folder:
        given.write(json.dumps(task).encode())
        given.seek(0)
        process = subprocess.Popen(
            [*command, str(HERE / "harness.py")],
            stdin=given,
            stdout=subprocess.PIPE,  # what was said in a pipe cannot be taken back
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        said, timed_out = _listen(process, 3 * sandbox.seconds + 2)
        return _events_of(said, mark, timed_out), timed_out


def _listen(process: subprocess.Popen[bytes], seconds: int) -> tuple[bytes, bool]:
    """What the process says until it ends, and True if it had to be ended. It takes everything inside with it."""
    deadline, said = time.monotonic() + seconds, b""
    try:
        with process, selectors.DefaultSelector() as selector:
            assert process.stdout is not None
            try:
                selector.register(process.stdout, selectors.EVENT_READ)
                while len(said) < LONGEST_REPORT and selector.select(max(0.0, deadline - time.monotonic())):
                    if not (more := os.read(process.stdout.fileno(), 2**16)):
                        break
                    said += more
                if len(said) < LONGEST_REPORT:  # else it only floods
                    process.wait(max(0.0, deadline - time.monotonic()))
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    except subprocess.TimeoutExpired:
        return said, True
    return said, False


def _events_of(said: bytes, mark: str, timed_out: bool) -> list[str]:
    """The report's lines. Its first is written before the program begins, so whether the sandbox failed, and why, is
    never the program's to say."""
    lines = said.decode(errors="replace").splitlines()
    if lines[:1] != [f"{mark} started"]:
        why = "it took too long to start" if timed_out else "Python did not start: is memory_mb too low?"
        if lines and lines[0].startswith("!"):
            why = lines[0][1:]
        raise UserError(f"The sandbox of the reward 'code' failed: {why}.")
    return [line.removeprefix(f"{mark} ") for line in lines if line.startswith(f"{mark} ")]


def _files(*, network: bool) -> list[str]:
    """The files and folders that Python starts from: its own, and the system's libraries."""
    executable = Path(sys.executable)
    chain = [executable]
    while chain[-1].is_symlink():
        chain.append(chain[-1].parent / chain[-1].readlink())
    prefixes = {Path(sys.prefix), Path(sys.base_prefix), executable.resolve().parent.parent}
    prefixes |= {prefix.resolve() for prefix in prefixes}
    own = [prefix / name for prefix in prefixes for name in ("bin", "lib", "lib64", "pyvenv.cfg")]
    return [*SYSTEM, *(SYSTEM_NETWORK if network else ()), str(HERE / "harness.py"), *map(str, [*chain, *own])]


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
