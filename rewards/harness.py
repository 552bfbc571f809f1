"""A script: run a program and its tests, and write down how far it came. Standard library only.

It is started by ``raftdiff.rewards.sandbox`` inside the sandbox, with the task as JSON on standard input. Each line of
the report on standard output begins with the task's secret mark, so that a program that prints "passed" passes nothing.
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


def main() -> None:
    task = json.loads(sys.stdin.read())
    report = _take_over_streams(task["mark"])
    report("started")
    try:
        code = compile_code(task["program"], "answer.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return report("uncompilable")
    report("compiled")
    tests = task["tests"]
    if not tests:
        return report("passed" if _ends_well(lambda: _run(code, "__main__")) else "failed")
    asserting = [test for test in tests if isinstance(test, str)]
    module = _module("answer")
    ready = bool(asserting) and _ends_well(lambda: run_code(code, module.__dict__))
    for test in tests:
        passed = (ready and _holds(test, module)) if isinstance(test, str) else _answers(code, test)
        report("passed" if passed else "failed")


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


def _holds(test: str, module: types.ModuleType) -> bool:
    try:
        run_code(compile_code(test, "test.py", "exec"), module.__dict__)
    except BaseException:  # leaving early passes no test either
        return False
    return True


def _answers(code: types.CodeType, test: Mapping[str, Any]) -> bool:
    """Run as a script on the input; its output is the wanted one but for spaces at the ends of lines."""
    said = io.StringIO()
    sys.stdin, sys.stdout = io.StringIO(test["input"]), said
    try:
        ended = _ends_well(lambda: _run(code, "__main__"))
    finally:
        sys.stdin, sys.stdout = sys.__stdin__, sys.__stdout__
    return ended and _trimmed(said.getvalue()) == _trimmed(test["output"])


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


if __name__ == "__main__":
    main()
    os._exit(0)  # without waiting for threads that the program left behind
