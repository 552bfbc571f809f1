"""The world of programs: tasks, what solves them, what a beginner writes, and the files and the model made of it."""

import ast
import json
import re
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import pytest

from raftdiff import embedded
from raftdiff.embedded.language import IGNORED
from raftdiff.embedded.programs import data, world
from raftdiff.embedded.programs.grammar import CHANGE_KNOWN, CHANGES, CONDITIONS, KNOWN, VALUES
from raftdiff.embedded.programs.train import batches, build_tokenizer, vocabulary
from raftdiff.embedded.programs.world import Case
from raftdiff.errors import UserError

PROMPTS = Path(__file__).parents[4] / "configs/prompts"
TASK = (Case("the first is above {k}", 3, "the spread", "times", 2), Case("", 0, "the floored mean", "", 0))


def passes(program: str, tests: list[str]) -> int:
    """How many; programs of this world's own making only."""
    names: dict[str, Any] = {}
    exec(program, names)
    return sum(_holds(test, names) for test in tests)


def _holds(test: str, names: dict[str, Any]) -> bool:
    try:
        exec(test, names)
    except AssertionError:
        return False
    return True


def test_a_task_in_words_and_in_python() -> None:
    assert world.prompt(TASK) == "if the first is above three , the spread times two ; else the floored mean :"
    assert world.solution(TASK).split("\n") == [
        "def f(xs):",
        "    if xs[0] > 3:",
        "        return (max(xs) - min(xs)) * 2",
        "    return sum(xs) // len(xs)",
    ]
    assert world.prompt(TASK[1:]) == "the floored mean :"


def test_every_task_is_known_by_its_words_and_nothing_else_is() -> None:
    for out in (False, True):
        world.check([world.prompt(task) for task in world.tasks(200, seed=1, out=out)])
    for strange in (
        "Write a function that sorts a list.",
        "the sum",
        "the mode :",
        "if the first is even , the sum :",
        "if the first is even , the sum ; if the sum is odd , the last :",
        "the sum plus :",
        "if the first is above {k} , the sum ; else the last :",
    ):
        with pytest.raises(UserError, match=f"'{re.escape(strange)}' is no task in the world of programs; one is 'if"):
            world.check(["the sum :", strange])


def test_the_solution_passes_its_tests_and_a_mistaken_one_some_of_them() -> None:
    tests = world.tests(TASK, 8, seed=0)
    assert len(set(tests)) == 8
    assert passes(world.solution(TASK), tests) == 8
    firsts = [int(re.findall(r"-?\d+", test)[0]) for test in tests]
    assert sum(first > 3 for first in firsts) == 4, "as many for each case"
    assert 4 <= passes(world.solution(TASK).replace(" * 2", ""), tests) < 8
    assert not {*tests} & {*world.tests(TASK, 8, seed=1)}
    for task in world.tasks(12, seed=5, out=False):
        assert passes(world.solution(task), world.tests(task, 6, seed=0)) == 6


def test_held_out_pairs_are_in_no_training_task_though_their_parts_are() -> None:
    def pairs(task: world.Task) -> set[tuple[str, str]]:
        lone = {("lone " + task[0].change, task[0].value)} if len(task) == 1 else set()
        return lone | {(case.condition, case.value) for case in task if case.condition}

    seen = {pair for task in world.tasks(3000, seed=0, out=False) for pair in pairs(task)}
    asked = world.tasks(200, seed=1, out=True)
    assert all(pairs(task) - seen for task in asked)
    assert {value for _, value in seen} == set(VALUES)
    assert {condition for condition, _ in seen} == {*CONDITIONS, *(f"lone {change}" for change in ("", *CHANGES))}
    assert {case.value for task in asked for case in task} == set(VALUES)


def test_a_beginner_has_an_easy_part_mostly_right_and_a_hard_one_mostly_wrong_in_the_same_way() -> None:
    generator = Random(0)
    easy, hard = (Case("", 0, "the sum", "plus", 4),), (Case("", 0, "the runner-up", "", 0),)
    written = [[world.beginner(task, generator) for _ in range(2000)] for task in (easy, hard)]
    right = [texts.count(world.solution(task)) / 2000 for texts, task in zip(written, (easy, hard), strict=True)]
    assert right == pytest.approx([KNOWN * CHANGE_KNOWN * 0.96 * 0.85, 0.12 * 0.96 * 0.85], abs=0.03)
    assert written[1].count("def f(xs):\n    return sorted(xs)[-1]") > 4 * written[1].count(world.solution(hard))
    torn = sum(_tears(text) for text in written[0]) / 2000
    assert torn == pytest.approx(0.1, abs=0.02)


def _tears(program: str) -> bool:
    try:
        ast.parse(program)
    except SyntaxError:
        return True
    return False


def test_the_files_are_what_the_world_makes() -> None:
    for name, made in (("train", data.training()), ("held_out", data.held_out()), ("ptx", data.ptx())):
        lines = (PROMPTS / f"programs_{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines[:16]] == list(islice(made, 16))
    rows = [json.loads(line) for line in (PROMPTS / "programs_held_out.jsonl").read_text().splitlines()]
    assert all(len(row["tests"]) == 8 and len(row["hidden"]) == 16 for row in rows)
    assert not any({*row["tests"]} & {*row["hidden"]} for row in rows)


def test_texts_come_back_from_tokens_to_the_letter_and_no_piece_is_unknown() -> None:
    tokenizer, generator = build_tokenizer(), Random(3)
    for task in world.tasks(100, seed=3, out=True):
        for text in (world.prompt(task), world.beginner(task, generator)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids
    assert len(vocabulary()) == 101


def test_a_batch_holds_training_tasks_and_is_learnt_on_the_programs_alone() -> None:
    tokenizer, drawn = build_tokenizer(), dict[str, str]()

    def write(task: world.Task, generator: Random) -> str:
        assert not world.held_out(task)
        return drawn.setdefault(world.prompt(task), world.solution(task))

    ids, labels = next(batches(0, write, size=4))
    for row, targets in zip(ids, labels, strict=True):
        learnt = tokenizer.decode(targets[targets != IGNORED])
        prompt = tokenizer.decode(row[(targets == IGNORED) & (row != tokenizer.pad_token_id)], skip_special_tokens=True)
        assert learnt == drawn[prompt] + "<eos>"


def test_the_model_that_ships_is_small_and_its_card_says_what_it_is() -> None:
    folder = embedded.folder("code-lm")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2.5 * 2**20
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert all(word in card for word in ("apache-2.0", "--seed", "2 CPU cores", "programs_held_out.jsonl"))
    assert "/work" not in card
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert list(words)[4:] == list(vocabulary())
