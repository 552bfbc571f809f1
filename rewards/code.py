"""Code: does the Python program in the answer compile, and does it pass its tests?"""

import ast
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
from raftdiff.types import Sample

COMPILES = 0.25


class CodeConfig(RewardConfig):
    type: Literal["code"] = "code"
    name: str = "code"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    tests: list[str | dict[str, str]] = Field(default_factory=list)
    """Tests of every answer, before those of its own prompt: Python statements, or {input, output} of a script."""
    column: str = "tests"
    """The column of the data file with the prompt's own tests: one, or a list of them."""
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
            prepend_prompt=self.prepend_prompt,
            workers=self.workers,
            name=self.name,
        )


@final
class CodeReward:
    """0 to 1, higher is better.

    0: no program, or it does not compile. 0.25: it compiles, and passes no test. In between, 0.25 + 0.75 x the fraction
    of the tests that it passes. Without any test, 1 for a program that runs to its end.

    The program is the answer's first fenced block in Python, or the whole answer. What ends it early (an exception at
    its top, a limit) fails the tests from there on: first the statements' program, then each script test runs anew.
    The time limit counts CPU seconds, so a busy machine changes no score unless a program waits. No weights.

    Raises:
        UserError: tests of another form, or statements among them that are not Python.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        tests: Sequence[Test] = (),
        column: str = "tests",
        prepend_prompt: bool = False,
        workers: int = 0,
        name: str = "code",
    ) -> None:
        self.name = name
        self._sandbox, self._tests, self._column = sandbox, tuple(tests), column
        self._prepend, self._workers = prepend_prompt, workers or os.cpu_count() or 1

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        tasks = [(self._program(sample), self._tests_of(sample)) for sample in samples]
        with ThreadPoolExecutor(self._workers) as pool:
            outcomes = pool.map(lambda task: self._sandbox.run(*task) if task[0].strip() else None, tasks)
            return torch.tensor([points(outcome) for outcome in outcomes], dtype=torch.float32)

    def _program(self, sample: Sample[str]) -> str:
        block = fenced(sample.media, ["python", "py", "python3"])
        program = sample.media if block is None else block
        return sample.prompt.caption + program if self._prepend else program

    def _tests_of(self, sample: Sample[str]) -> list[Test]:
        own = sample.prompt.meta.get(self._column) or []
        return [*self._tests, *_tests(own, f"prompt '{sample.prompt.id}': {self._column}")]


def points(outcome: Outcome | None) -> float:
    """The score of an outcome; None is an answer without a program.

    >>> points(Outcome(compiled=True, passed=1, tests=3, timed_out=False))
    0.5
    """
    if outcome is None or not outcome.compiled:
        return 0.0
    return COMPILES + (1 - COMPILES) * outcome.passed / outcome.tests


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
            ast.parse(test)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}: this test is not Python, so no program could pass it: {error}.") from None
