"""Run a Python program and its tests where it can do no harm: limits, no network, a folder of its own."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

from raftdiff.errors import UserError

Test = str | Mapping[str, str]
"""Python statements that raise unless the program is right, or {"input", "output"} of it as a script."""
Network = Literal["none", "allow"]

HERE = Path(__file__).parent
LONGEST_REPORT = 2**20
LONGEST_PROGRAM = 2**20
START_SECONDS = 30
"""Of Python, on a crowded machine."""
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store", "/etc/ld.so.cache", "/etc/localtime")
SYSTEM_NETWORK = ("/etc/hosts", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/ssl", "/etc/pki")
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Sets in one order every time; and numpy takes address space for each thread."""


@final
@dataclass(frozen=True, slots=True)
class Outcome:
    """How far a program came. Example: ``Outcome(compiled=True, ran=True, passed=2, tests=3, timed_out=False)``."""

    compiled: bool
    ran: bool
    """To its end, and through each test without another error than the test's own assertion: wrong at the worst."""
    passed: int
    tests: int
    """How many there were; a program without any counts as one test, of running to its end."""
    timed_out: bool
    """It was still running at the end of the wall-clock time. One that used up its CPU time is just ended."""


class Told(NamedTuple):
    """What a report says."""

    events: Sequence[str]
    timed_out: bool


@final
@dataclass(frozen=True, slots=True)
class Sandbox:
    """A process for each program, copied from one Python for many: see ``isolation.py`` for what is shut. It keeps a
    program from doing harm, to another program too, and not from cheating: tests that are statements run in its own
    process, so one that looks for it can find the mark that makes a line of its report count, or answer with an object
    that equals anything.

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
        """As ``run_all``, of one program."""
        return self.run_all([(program, tests)])[0]

    def run_all(self, tasks: Sequence[tuple[str, Sequence[Test]]]) -> list[Outcome]:
        """Compile each program, run it, run its tests on it in order. It never raises for what a program does.

        Tests after one that ends the process, such as an endless loop, count as failed. Statements see the program's
        names, as if they stood below it, and run one after the other in one process. Programs know nothing of each
        other.

        Raises:
            UserError: the sandbox itself failed.
        """
        marks = [secrets.token_hex(16) for _ in tasks]
        given = [
            {"program": program, "tests": list(tests), "mark": mark}
            for (program, tests), mark in zip(tasks, marks, strict=True)
            if len(program) <= LONGEST_PROGRAM  # reading it could take all the memory that the program has
        ]
        reports = dict(zip([one["mark"] for one in given], self._reports(given), strict=True))
        nothing = Told([], timed_out=False)
        return [_outcome(reports.get(mark, nothing), len(tests)) for mark, (_, tests) in zip(marks, tasks, strict=True)]

    def _reports(self, tasks: Sequence[Mapping[str, Any]]) -> list[Told]:
        if not tasks:
            return []
        isolate = sys.platform == "linux" and (self.network == "none" or not _missing())
        told = _report(self, tasks, isolate=isolate)
        for place, one in enumerate(told):  # a crowded machine may fail to start a process
            if isinstance(one, UserError):
                told[place] = self._again(tasks[place], isolate=isolate)
        return [one for one in told if not isinstance(one, UserError)]

    def _again(self, task: Mapping[str, Any], *, isolate: bool) -> Told:
        """Nothing of the program has run yet."""
        (told,) = _report(self, [task], isolate=isolate)
        if isinstance(told, UserError):
            (told,) = _report(self, [task], isolate=isolate)
        if isinstance(told, UserError):
            raise told
        return told

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


def _outcome(told: Told, tests: int) -> Outcome:
    passed, failed = told.events.count("passed"), told.events.count("failed")
    return Outcome(
        compiled="compiled" in told.events,
        ran=passed + failed >= max(1, tests),
        passed=min(passed, max(1, tests)),
        tests=max(1, tests),
        timed_out=told.timed_out,
    )


def _report(sandbox: Sandbox, tasks: Sequence[Mapping[str, Any]], *, isolate: bool) -> list[Told | UserError]:
    """What was reported of each task; an error where the sandbox failed, which is then every task's that it left."""
    written = [json.dumps(task).encode() for task in tasks]
    starts = accumulate(map(len, written), initial=0)
    wall = 3 * sandbox.seconds + 2
    settings = {
        "isolate": isolate,
        "network": sandbox.network == "allow",
        "files": _files(network=sandbox.network == "allow"),
        "folder_mb": sandbox.folder_mb,
        "limits": sandbox.limits,
        "harness": str(HERE / "harness.py"),
        "tasks": [(start, len(task)) for start, task in zip(starts, written, strict=False)],
        "seconds": wall,
        "longest": LONGEST_REPORT,
    }
    # As with -I, but for -E: the environment holds our own variables alone.
    command = [sys.executable, "-s", "-P", "-B", str(HERE / "isolation.py"), json.dumps(settings)]
    with tempfile.TemporaryFile() as given, tempfile.TemporaryDirectory() as folder:
        given.write(b"".join(written))
        given.flush()
        process = subprocess.Popen(
            command,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        said = _listen(process, START_SECONDS + len(tasks) * (wall + 1))
    lines = [json.loads(line) for line in said.splitlines()]
    lines += [{"said": "", "timed_out": False}] * (len(tasks) - len(lines))
    return [_told(line["said"], task["mark"], line["timed_out"]) for line, task in zip(lines, tasks, strict=True)]


def _listen(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """What the process says until it ends, or has to be ended."""
    with process:
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = process.communicate()[0]
            return said[: said.rfind(b"\n") + 1]
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _told(said: str, mark: str, timed_out: bool) -> Told | UserError:
    """The report's lines. Its first is written before the program begins, so whether the sandbox failed, and why, is
    never the program's to say."""
    lines = said.splitlines()
    if lines[:1] != [f"{mark} started"]:
        why = "it took too long to start" if timed_out else "Python did not start: is memory_mb too low?"
        if lines and lines[0].startswith("!"):
            why = lines[0][1:]
        return UserError(f"The sandbox of the reward 'code' failed: {why}.")
    return Told([line.removeprefix(f"{mark} ") for line in lines if line.startswith(f"{mark} ")], timed_out)


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
    (told,) = _report(Sandbox(), [{"program": "", "tests": [], "mark": "probe"}], isolate=True)
    return str(told).partition(" failed: ")[2].rstrip(".") if isinstance(told, UserError) else None
