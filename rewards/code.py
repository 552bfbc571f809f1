"""Code: does the Python program in the answer compile, does it run, and does it pass its tests?"""

import ast
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.sandbox import Network, Outcome, Sandbox, Test
from raftdiff.rewards.texts import fenced
from raftdiff.types import Prompt, Sample

COMPILES = 0.25
PARSES, RUNS = 0.1, 0.2
MOST_KEPT = 2**16
"""Outcomes that are remembered."""
BATCH = 64
"""Programs that one sandbox judges, one after the other."""
Grades = Literal["tests", "steps", "all"]
Task = tuple[str, Sequence[Test]]
"""A program and its tests."""


class CodeConfig(RewardConfig):
    type: Literal["code"] = "code"
    name: str = "code"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    tests: list[str | dict[str, str]] = Field(default_factory=list)
    """Tests of every answer, before those of its own prompt: Python statements, or {input, output} of a script.
    Statements that assert and call nothing, such as a definition, are a part of the next statements' test."""
    column: str = "tests"
    """The column of the data file with the prompt's own tests: one, or a list of them."""
    grades: Grades = "tests"
    """tests: 0.25 for a program that compiles, the rest by the share of tests passed. steps: 0.1 for one that compiles,
    0.2 for one that also runs, the rest by the share. all: 1 for one that passes all, else 0."""
    prepend_prompt: bool = False
    """The answer goes on from the prompt, as in a completion of a function's first lines."""
    seconds: int = Field(default=5, ge=1, le=3600)
    """CPU seconds of a program with all its tests; by the clock three times as many, and 2 more."""
    memory_mb: int = Field(default=512, ge=64)
    """Address space of a program, MiB."""
    folder_mb: int = Field(default=16, ge=1)
    """All that a program may write, MiB; in memory, and gone when it ends."""
    network: Network = "none"
    """none shuts it off, or refuses to start. allow leaves it open, and on machines without user namespaces also lets a
    program write wherever you can: for a container that is thrown away."""
    workers: int = Field(default=0, ge=0)
    """Programs at a time; 0 is as many as there are CPUs."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "CodeReward":
        del device, resolve  # no model here
        sandbox = Sandbox(self.seconds, self.memory_mb, self.folder_mb, self.network)
        sandbox.check()
        return CodeReward(
            sandbox,
            tests=_tests(self.tests, "the reward 'code': tests"),
            column=self.column,
            grades=self.grades,
            prepend_prompt=self.prepend_prompt,
            workers=self.workers,
            name=self.name,
        )


@final
class CodeReward:
    """0 to 1, higher is better; see ``points``. Without any test, 1 for a program that runs to its end.

    The program is the answer's first fenced block in Python, or the whole answer. What ends it early (an exception at
    its top, a limit) fails the tests from there on: first the statements' program, then each script test runs anew.
    The time limit counts CPU seconds, so a busy machine changes no score unless a program waits. Equal programs with
    equal tests are run once. No weights.

    Raises:
        UserError: tests of another form, or statements among them that are not Python.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        tests: Sequence[Test] = (),
        column: str = "tests",
        grades: Grades = "tests",
        prepend_prompt: bool = False,
        workers: int = 0,
        name: str = "code",
    ) -> None:
        self.name = name
        self._sandbox, self._tests, self._column = sandbox, tuple(tests), column
        self._prepend, self._workers, self._grades = prepend_prompt, workers or os.cpu_count() or 1, grades
        self._known: dict[str, Outcome] = {}

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Warns of prompts without any test.

        Raises:
            UserError: tests of another form or no Python, or of a prompt such as no program could fail.
        """
        bare = []
        for prompt in prompts:
            written, where = self._written(prompt)
            if not written:
                bare.append(prompt.id)
            elif not _counted(written, where):
                raise UserError(
                    f"{where}: these tests call and assert nothing that a program could fail, so every program that "
                    "runs would pass them. Write assert before what should hold, or add a call such as check(solution)."
                )
        if bare:
            warnings.warn(
                f"The reward '{self.name}': {len(bare)} of {len(prompts)} prompts have no tests under "
                f"'{self._column}', the first '{bare[0]}': there every program that runs to its end is right.",
                stacklevel=2,
            )

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        tasks = [(self._program(sample), self._tests_of(sample.prompt)) for sample in samples]
        outcomes = self._outcomes(tasks)
        found = [points(outcomes[_key(task)] if task[0].strip() else None, self._grades) for task in tasks]
        return torch.tensor(found, dtype=torch.float32)

    def _outcomes(self, tasks: Sequence[Task]) -> dict[str, Outcome]:
        """By ``_key``. Those of programs that the clock ended are not kept: the machine may have been busy."""
        kept = self._known
        new = {key: task for task in tasks if task[0].strip() and (key := _key(task)) not in kept}
        size = min(BATCH, -(-len(new) // self._workers) or 1)
        parts = [list(new.values())[start : start + size] for start in range(0, len(new), size)]
        with ThreadPoolExecutor(self._workers) as pool:
            ran = [outcome for part in pool.map(self._sandbox.run_all, parts) for outcome in part]
        found = {**kept, **dict(zip(new, ran, strict=True))}
        lasting = {key: outcome for key, outcome in found.items() if not outcome.timed_out}
        self._known = dict(list(lasting.items())[-MOST_KEPT:])
        return found

    def _program(self, sample: Sample[str]) -> str:
        block = fenced(sample.media, ["python", "py", "python3"])
        program = sample.media if block is None else block
        return sample.prompt.caption + program if self._prepend else program

    def _tests_of(self, prompt: Prompt) -> list[Test]:
        return _counted(*self._written(prompt))

    def _written(self, prompt: Prompt) -> tuple[list[Test], str]:
        """Every test, those that cannot fail too, and where the prompt's own stand, for sentences."""
        where = f"prompt '{prompt.id}': {self._column}"
        return [*self._tests, *_tests(prompt.meta.get(self._column) or [], where)], where


def points(outcome: Outcome | None, grades: Grades = "tests") -> float:
    """The score of an outcome; None is an answer without a program, 0 as one that does not compile.

    - ``tests``: 0.25 + 0.75 x the share of the tests passed.
    - ``steps``: the same from 0.1 on, or from 0.2 on for a program that runs: to its end, and through each test without
      an error other than the test's own.
    - ``all``: 1 for all tests passed, else 0. Not even compiling counts.

    >>> some = Outcome(compiled=True, ran=True, passed=1, tests=4, timed_out=False)
    >>> [round(points(some, grades), 4) for grades in ("tests", "steps", "all")]
    [0.4375, 0.4, 0.0]
    """
    if outcome is None or not outcome.compiled:
        return 0.0
    if outcome.passed == outcome.tests or grades == "all":
        return float(outcome.passed == outcome.tests)
    begun = COMPILES if grades == "tests" else RUNS if outcome.ran else PARSES
    return begun + (1 - begun) * outcome.passed / outcome.tests


def _key(task: Task) -> str:
    return json.dumps(task)


def _tests(given: Any, where: str) -> list[Test]:
    """
    Raises:
        UserError: a test that no program could pass: of another form, or no Python.
    """
    tests = [given] if isinstance(given, str | Mapping) else given
    if not isinstance(tests, Sequence):
        raise UserError(f"{where}: this is a test or a list of them, not {type(tests).__name__}.")
    for number, test in enumerate(tests):
        if isinstance(test, str):
            _demand_python(test, f"{where}.{number}")
        elif not (
            isinstance(test, Mapping)
            and set(test) == {"input", "output"}
            and all(isinstance(v, str) for v in test.values())
        ):
            raise UserError(
                f"{where}.{number}: a test is Python statements, or a mapping of 'input' and 'output' texts."
            )
    return [test if isinstance(test, str) else dict(test) for test in tests]


def _demand_python(test: str, where: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(test, "test.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise UserError(f"{where}: this test is not Python, so no program could pass it: {error}.") from None


def _counted(tests: Sequence[Test], where: str) -> list[Test]:
    """Those that can fail. A definition or an import is no test by itself: it stands before the next statements, and is
    left out where none follow.

    >>> _counted(["def check(f): assert f(1) == 2", {"input": "1", "output": "2"}, "check(double)", "x = 1"], "tests")
    [{'input': '1', 'output': '2'}, 'def check(f): assert f(1) == 2\\ncheck(double)']
    """
    found: list[Test] = []
    ahead: list[str] = []
    for test in tests:
        if not isinstance(test, str):
            found.append(test)
        elif _is_idle(test):
            ahead.append(test)
        else:
            whole = "\n".join([*ahead, test])
            if ahead:
                _demand_python(whole, where)  # an import of __future__ cannot follow a definition
            found.append(whole)
            ahead = []
    return found


def _is_idle(test: str) -> bool:
    """It defines, imports and says things alone, or compares without an assert: HumanEval's tests, say, without their
    call; or a list in JSON, which is Python too. What a class body, a decorator or a default does is done at once; a
    class that is derived from another, such as unittest's, is a definition all the same.

    Only what stands at the top is looked at, and no further than its form: an assertion that is always true, or one
    whose error is caught, is a test.

    >>> _is_idle("def check(f):\\n    assert f(1) == 2"), _is_idle('["assert f(1) == 2"]'), _is_idle("check(f)")
    (True, True, False)
    >>> _is_idle("class Test:\\n    assert f(1) == 2"), _is_idle("@run\\ndef test():\\n    assert f(1) == 2")
    (False, False)
    """
    return all(map(_does_nothing, ast.parse(test).body))


def _does_nothing(node: ast.stmt) -> bool:
    match node:
        case ast.Pass() | ast.Import() | ast.ImportFrom():
            idle = True
        case ast.FunctionDef(decorator_list=decorators) | ast.AsyncFunctionDef(decorator_list=decorators):
            idle = not decorators and _takes_still(node.args)
        case ast.ClassDef(decorator_list=decorators, body=body):
            idle = not decorators and all(map(_does_nothing, body))
        case ast.Assign(targets=targets, value=value):
            idle = all(isinstance(one, ast.Name) for one in targets) and _is_still(value)
        case ast.AnnAssign(target=target, value=value):
            idle = isinstance(target, ast.Name) and (value is None or _is_still(value))
        case ast.Assert(test=ast.Constant(value=given) | ast.Tuple(elts=given)):
            idle = bool(given)  # a tuple is true whatever it holds: assert (f(1) == 2, "why")
        case ast.If(test=condition, orelse=instead):
            idle = ast.unparse(condition) == "__name__ == '__main__'" and all(map(_does_nothing, instead))
        case ast.Expr(value=ast.Compare() | ast.Call(func=ast.Name(id="print"))):
            idle = True
        case ast.Expr(value=value):
            idle = _is_still(value)
        case _:
            idle = False
    return idle


def _is_still(value: ast.expr) -> bool:
    """Nothing that has a name is looked up, nothing is called."""
    if isinstance(value, ast.Lambda):
        return _takes_still(value.args)
    return not any(isinstance(one, ast.Name | ast.Call) for one in ast.walk(value))


def _takes_still(args: ast.arguments) -> bool:
    return all(map(_is_still, [*args.defaults, *filter(None, args.kw_defaults)]))
