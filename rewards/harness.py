"""Run a program and its tests, and write down how far it came. Standard library only.

``isolation.py`` calls it in a process that is shut in, with the task as JSON. Each line of the report on standard
output begins with the task's secret mark, so that a program that prints "passed" passes nothing. A test's line is
``passed``, ``failed`` (another result than is wanted) or ``broke`` (an error, or an early end).
"""

import builtins
import io
import json
import os
import random
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

run_code, compile_code = exec, compile  # before a program puts its own in their place


def judge(given: bytes) -> None:
    """The ``given`` task: its program, tests and mark."""
    task = json.loads(given)
    report = _take_over_streams(task["mark"])
    report("started")
    try:
        code = compile_code(task["program"], "answer.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return report("uncompilable")
    report("compiled")
    tests = task["tests"]
    if not tests:
        return report("passed" if _ends_well(lambda: _run(code, "__main__")) else "broke")
    asserting = [test for test in tests if isinstance(test, str)]
    module = _module("answer")
    ready = bool(asserting) and _ends_well(lambda: run_code(code, module.__dict__))
    for test in tests:
        report(_answers(code, test) if not isinstance(test, str) else _holds(test, module) if ready else "broke")


def _take_over_streams(mark: str) -> Callable[[str], None]:
    """Silence the three streams; returns what writes a line of the report."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    write = os.write
    return lambda event: (write(kept, f"{mark} {event}\n".encode()), None)[1]


def _run(code: types.CodeType, name: str) -> None:
    run_code(code, _module(name).__dict__)


def _module(name: str) -> types.ModuleType:
    """A fresh module that is registered, as dataclasses and pickle expect; random numbers begin anew."""
    random.seed(0)
    module = types.ModuleType(name)
    module.__dict__["__builtins__"] = builtins
    sys.modules[name] = module
    return module


def _ends_well(call: Callable[[], None]) -> bool:
    """It returns, or leaves with exit status 0."""
    try:
        call()
    except SystemExit as leave:
        return leave.code in (None, 0)
    except BaseException:
        return False
    return True


def _holds(test: str, module: types.ModuleType) -> str:
    try:
        run_code(compile_code(test, "test.py", "exec"), module.__dict__)
    except AssertionError:
        return "failed"
    except BaseException:  # leaving early passes no test either
        return "broke"
    return "passed"


def _answers(code: types.CodeType, test: Mapping[str, Any]) -> str:
    """Run as a script on the input; its output is the wanted one but for spaces at the ends of lines."""
    said = io.StringIO()
    sys.stdin, sys.stdout = io.StringIO(test["input"]), said
    try:
        ended = _ends_well(lambda: _run(code, "__main__"))
    finally:
        sys.stdin, sys.stdout = sys.__stdin__, sys.__stdout__
    right = _trimmed(said.getvalue()) == _trimmed(test["output"])
    return "broke" if not ended else "passed" if right else "failed"


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
