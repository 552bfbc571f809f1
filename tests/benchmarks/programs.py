"""Feedback of Python itself: RAFT, GRPO and PPO-max with a graded reward and with all or nothing, equal drawn answers.

    python tests/benchmarks/programs.py --out runs/programs --seeds 0 1 2
    python tests/benchmarks/programs.py --out runs/programs --table

Each arm is a recipe with overrides. A run that is done is not run again, and several of these commands may work on one
folder at a time. What counts is the held-out tasks' hidden tests, which no reward saw; four answers to each task.
"""

import argparse
import builtins
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from raftdiff.llm.assembly import TextAssembly, assemble_text
from raftdiff.llm.comparison import evaluation_texts
from raftdiff.llm.recipe import load_text_recipe, weights
from raftdiff.measures import statistics
from raftdiff.progress import Quiet
from raftdiff.raft import raft
from raftdiff.recipes.files import locate
from raftdiff.records.beginning import at_work
from raftdiff.records.disk import read_json_lines, write_text
from raftdiff.records.run import Run, load_round
from raftdiff.rewards.sandbox import Outcome, Sandbox
from raftdiff.scoring import in_order

ALL = "ranker.rewards.0.grades=all"
_RIGHT = "{type: code, grades: all, seconds: 2, workers: 4"
ONLY_RIGHT = f"ranker.rewards=[{_RIGHT}}}, {_RIGHT}, name: right, role: veto, at_least: 1}}]"
BASE = "base"
ARMS: Mapping[str, tuple[str, Sequence[str]]] = {
    BASE: ("code_raft", []),
    "raft graded": ("code_raft", []),
    "raft all": ("code_raft", [ALL]),
    "raft only right": ("code_raft", [ONLY_RIGHT]),
    "raft random": ("code_raft", ["ranker.selector={type: random}"]),
    "grpo graded": ("code_grpo", []),
    "grpo all": ("code_grpo", [ALL]),
    "ppo_max graded": ("code_ppo_max", []),
    "ppo_max all": ("code_ppo_max", [ALL]),
}
SIZE = ("loop.prompts_per_round=48", "loop.rounds=6"), ("loop.prompts_per_round=16", "loop.rounds=18")
"""Of all recipes but PPO-max, and of that: 2,304 answers each."""
PER_PROMPT = 4
KNOWN_NAMES = ("len", "max", "min", "set", "sorted", "sum", "AssertionError")
GRADES = ("does not parse", "parses", "runs", "some tests", "all tests")


def grade(outcome: Outcome) -> str:
    """The step that a program has come to, by the name that the tables give it."""
    if not outcome.compiled:
        return GRADES[0]
    if outcome.passed:
        return GRADES[4] if outcome.passed == outcome.tests else GRADES[3]
    return GRADES[2] if outcome.ran else GRADES[1]


def answers(assembly: TextAssembly, *, per_prompt: int = PER_PROMPT, seed: int = 1000) -> list[dict[str, Any]]:
    """The policy's answers to the held-out tasks as it stands: for each what its tests say, and the hidden ones."""
    prompts = evaluation_texts(assembly, None)
    stream = assembly.evaluator.sample(prompts, per_prompt=per_prompt, seed=seed, round=0, done=frozenset())
    drawn, sandbox = in_order(stream, prompts), Sandbox(seconds=2)
    texts = sorted({(one.prompt.caption, one.media) for one in drawn})
    tests = {one.caption: one.meta for one in prompts}
    told: dict[tuple[str, str], list[Outcome]] = {}
    with ThreadPoolExecutor(8) as pool:
        for column in ("tests", "hidden"):
            tasks = [(text, tests[caption][column]) for caption, text in texts]
            parts = pool.map(sandbox.run_all, [tasks[start : start + 32] for start in range(0, len(tasks), 32)])
            for key, outcome in zip(texts, [one for part in parts for one in part], strict=True):
                told.setdefault(key, []).append(outcome)
    rows = []
    for one in drawn:
        seen, hidden = told[one.prompt.caption, one.media]
        marks = {"tests": grade(seen), "hidden": grade(hidden), "share": hidden.passed / hidden.tests}
        rows.append({"prompt": one.prompt.caption, "answer": one.media, **marks})
    return rows


def judged(_: Sandbox, tasks: Sequence[tuple[str, Sequence[str]]]) -> list[Outcome]:
    """As ``Sandbox.run_all``, in this process and without a limit: for a machine too crowded to start thousands of
    processes. Programs of code-lm alone, whose tokens hold no dot, no underscore and no import, so that they can reach
    nothing; any other is refused."""
    return [_judged(program, tests) for program, tests in tasks]


def _judged(program: str, tests: Sequence[str]) -> Outcome:
    if re.search(r"[._]|import|\*\*", program):
        raise ValueError(f"Not of code-lm's tokens, so not to be run here: {program}")
    names: dict[str, Any] = {"__builtins__": {one: getattr(builtins, one) for one in KNOWN_NAMES}}
    said: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = compile(program, "answer.py", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return Outcome(compiled=False, ran=False, passed=0, tests=len(tests), timed_out=False)
    for statement in (code, *tests):
        try:
            exec(statement, names)
            said.append("passed")
        except AssertionError:
            said.append("failed")
        except Exception:
            said.append("broke")
    ran, passed = "broke" not in said, said[1:].count("passed") if said[0] == "passed" else 0
    return Outcome(compiled=True, ran=ran, passed=passed, tests=len(tests), timed_out=False)


def run(arm: str, seed: int, root: Path, overrides: Sequence[str]) -> None:
    """One arm's run, trained and measured as far as it is not; with the arm ``base`` the base's answers alone."""
    name, own = ARMS[arm]
    size = SIZE["ppo" in name]
    fixed = [f"loop.seed={seed}", "evaluation.every_round=0", "logging.tracker=null"]
    recipe = load_text_recipe(locate(name), [*size, *own, *fixed, *overrides])
    place = Run.at(root / f"{arm.replace(' ', '-')}-{seed}", recipe)
    told = place.path / "answers.json"
    if told.is_file():
        return
    if arm == BASE:
        place.path.mkdir(parents=True, exist_ok=True)
        write_text(told, json.dumps(answers(assemble_text(recipe), per_prompt=8)))
        return
    with at_work(place, recipe, weights, assemble_text) as assembly:
        for _ in raft(place, assembly.parts, Quiet()):
            pass
        load_round(place, assembly.finetuner, None)
        write_text(told, json.dumps(answers(assembly)))


def first_round(place: Path) -> tuple[int, int]:
    """(prompts, those of them of whose candidates none passed all tests) in a run's first round."""
    best: dict[str, float] = {}
    for row in read_json_lines(place / "rounds" / "000" / "samples" / "metadata.jsonl"):
        best[row["prompt_id"]] = max(best.get(row["prompt_id"], 0.0), row["reward_code"])
    return len(best), sum(value < 1 for value in best.values())


def figures(
    rows: Sequence[Mapping[str, Any]], never: Set[str] = frozenset(), each: int = PER_PROMPT
) -> dict[str, float]:
    """Of the first ``each`` answers to a task, in percent: how many came to each step by the hidden tests; of those to
    tasks that the base ``never`` solved, how many are right; the tasks of which one of them is right; of those that
    pass the reward's tests, how many fail a hidden one; different answers a task."""
    tasks = {row["prompt"] for row in rows}
    drawn = len(rows) // len(tasks)
    rows = [row for place, row in enumerate(rows) if place % drawn < each]
    counts = Counter(row["hidden"] for row in rows)
    hard = [row["hidden"] == GRADES[4] for row in rows if row["prompt"] in never]
    right = {row["prompt"] for row in rows if row["hidden"] == GRADES[4]}
    passed = [row for row in rows if row["tests"] == GRADES[4]]
    lucky = sum(row["hidden"] != GRADES[4] for row in passed) / max(1, len(passed))
    different = len({(row["prompt"], row["answer"]) for row in rows}) / len(tasks)
    return {
        **{name: 100 * counts[name] / len(rows) for name in GRADES},
        "all, never solved": 100 * sum(hard) / max(1, len(hard)),
        f"one of {each}": 100 * len(right) / len(tasks),
        "lucky": 100 * lucky,
        "different": different,
    }


def unsolved(rows: Sequence[Mapping[str, Any]]) -> Set[str]:
    """Tasks of which none of these answers is right.

    >>> sorted(unsolved([{"prompt": "a", "hidden": "runs"}, {"prompt": "b", "hidden": "all tests"}]))
    ['a']
    """
    return {row["prompt"] for row in rows} - {row["prompt"] for row in rows if row["hidden"] == GRADES[4]}


def kept(place: Path) -> list[dict[str, Any]]:
    """The answers of a finished run."""
    found: list[dict[str, Any]] = json.loads((place / "answers.json").read_text(encoding="utf-8"))
    return found


def table(root: Path) -> str:
    """Markdown: mean and half of the 95% t-interval over the training seeds."""
    lines: list[str] = []
    never: Set[str] = frozenset()
    for arm in ARMS:
        places = sorted(root.glob(f"{arm.replace(' ', '-')}-[0-9]*"))
        done = [place for place in places if (place / "answers.json").is_file()]
        if not done:
            continue
        if arm == BASE:
            never = unsolved(kept(done[0]))
        rounds = [[] if arm == BASE else Run(place).metrics() for place in done]
        each = [
            figures(kept(place), never)
            | {
                "tokens drawn": sum(r["network_evaluations"].get("sample", 0) for r in metrics),
                "seconds": seconds(metrics),
            }
            for place, metrics in zip(done, rounds, strict=True)
        ]
        if not lines:
            lines = ["| arm | " + " | ".join(each[0]) + " |", "|---" * (len(each[0]) + 1) + "|"]
        cells = [spread([one[name] for one in each]) for name in each[0]]
        lines.append(f"| {arm} ({len(done)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seconds(rounds: Sequence[Mapping[str, Any]]) -> float:
    """Of all stages of a run."""
    return sum(sum(one["seconds"].values()) for one in rounds)


def spread(values: Sequence[float]) -> str:
    """Mean and half of the 95% t-interval.

    >>> spread([1.0, 2.0, 3.0])
    '2.0 ± 2.5'
    """
    if len(values) < 2:
        return f"{values[0]:.1f}"
    low, high = statistics.t_interval(np.array(values))
    return f"{np.mean(values):.1f} ± {(high - low) / 2:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/programs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS))
    parser.add_argument("--in-process", action="store_true", help="judge programs without the sandbox (see judged)")
    parser.add_argument("--table", action="store_true", help="of what is done so far")
    given, overrides = parser.parse_known_args()
    if given.table:
        print(table(given.out))
        return
    if given.in_process:
        Sandbox.run_all = judged  # type: ignore[method-assign,assignment]
    for seed in given.seeds:
        for arm in given.arms:
            print(f"{arm}, seed {seed}", file=sys.stderr, flush=True)
            run(arm, seed, given.out, overrides)


if __name__ == "__main__":
    main()
