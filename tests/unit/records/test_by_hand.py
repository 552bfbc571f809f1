"""Records that were changed by hand, mixed up or made by somebody else: a sentence, whoever reads them."""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raftdiff.cli.main import main
from raftdiff.cli.opening import to_read
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records import run as records
from raftdiff.records.beginning import fork
from raftdiff.records.changes import go_on_with
from raftdiff.records.disk import append, read_appended, read_json_lines
from raftdiff.records.entries import of_evaluation
from raftdiff.records.labels import Ballot, Pair, tally
from raftdiff.records.run import Run
from raftdiff.records.watching import snapshot
from raftdiff.types import Prompt, Sample, Scores, Selection


class Loop(Config):
    rounds: int = 2
    candidates: int = 2
    prompts_per_round: int | None = None


class Asked(Config):
    captions: tuple[str, ...] = ("a cat",)


class Toy(Config):
    name: str = "toy"
    loop: Loop = Loop()
    prompts: Asked = Asked()


def draw(run: Run, round: int, indices: Sequence[int] = (0, 1)) -> None:
    draft = run.draft(round)
    for index in indices:
        picture = Image.new("RGB", (8, 8), (9, index, round))
        draft.add(Sample(round, Prompt("a", "a cat", "a cat", "a cat"), index, 7, "policy", picture, {}))
    draft.flush()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", Toy(), seed=3)
    draw(run, 0)
    draft = run.draft(0)
    total = np.array([[1.0, 2.0]])
    draft.write_scores(Scores(0, ("a",), total, {"clip": total}))
    draft.write_selection(Selection("weighted", ()))
    draft.note(mean=2.0)
    draft.commit({})
    draw(run, 1)
    return run


def put(path: Path, was: str, now: str) -> None:
    text = path.read_text()
    assert was in text
    path.write_text(text.replace(was, now))


def scored(run: Run) -> Path:
    draft, total = run.draft(1), np.array([[1.0, 2.0]])
    draft.write_scores(Scores(1, ("a",), total, {"clip": total}))
    return draft.path


def drawn_again(run: Run) -> None:
    """A picture of a scored round was cut short, and sampling makes another."""
    os.truncate(scored(run) / "samples/a-001.png", 20)
    assert run.draft(1).sampled() == {("a", 0)}
    draw(run, 1, [1])


def finished(run: Run) -> Path:
    draft = run.draft(1)
    draft.keep("held_out", [Sample(1, Prompt("b", "b", "b", "b"), 0, 7, "policy", "a fine film")])
    draft.note(mean=1.0)
    return draft.commit({})


def earlier_recipe(run: Run) -> None:
    (run.path / "rounds/001.partial").rename(run.path / "aside")
    first = (run.path / "recipe.yaml").read_text()
    for name in ("second", "third"):
        go_on_with(run, Toy(name=name))
    (run.path / "recipe.yaml").write_text(first)


CHANGED: dict[str, tuple[str, Callable[[Path], object], Callable[[Run], object]]] = {
    "a score": (
        r"metadata.jsonl was changed",
        lambda at: put(at / "rounds/000/samples/metadata.jsonl", '"total": 2.0', '"total": 9.0'),
        lambda run: run.round(0).scores(),
    ),
    "a line cut out": (
        r"metadata.jsonl was changed",
        lambda at: os.truncate(at / "rounds/000/samples/metadata.jsonl", 300),
        lambda run: run.round(0).scores(),
    ),
    "a figure": (
        r"metrics.json was changed",
        lambda at: put(at / "rounds/000/metrics.json", '"mean": 2.0', '"mean": 3.0'),
        lambda run: run.metrics(),
    ),
    "the mark on record": (
        r"SHA256SUMS is not the list that the round was finished with",
        lambda at: put(at / "run.json", '"rounds"', '"round"'),
        lambda run: run.metrics(),
    ),
    "marks that are none": (
        r"run.json: this file is damaged \('weights' is no table of names\)",
        lambda at: put(at / "run.json", '"rounds"', '"weights": [],\n "rounds"'),
        lambda run: Run.open(run.path),
    ),
    "one picture of two candidates": (
        r"a line that is of no sample",
        lambda at: put(at / "rounds/001.partial/samples/metadata.jsonl", "a-001.png", "a-000.png"),
        lambda run: run.draft(1).sampled(),
    ),
    "two scores of one candidate": (
        r"two lines speak of one candidate",
        lambda at: append(
            at / "rounds/001.partial/samples/metadata.jsonl",
            [(at / "rounds/000/samples/metadata.jsonl").read_text().splitlines()[0] + "\n"],
        ),
        lambda run: run.draft(1).folder.scores(),
    ),
    "a recipe of earlier rounds": (
        r"before-001.yaml: this file is damaged \(it holds list",
        lambda at: Run(at).keep_recipe(1, "- a"),
        lambda run: run.metrics(),
    ),
    "the recipe": (
        r"recipe.yaml: this is not the recipe that raftdiff wrote here last.* line: raftdiff train .*run KEY=VALUE\. ",
        lambda at: put(at / "recipe.yaml", "toy", "other"),
        lambda run: run.locked().__enter__(),
    ),
    "a recipe that is none, to who only looks": (
        r"recipe.yaml: this is not the recipe that raftdiff wrote here last",
        lambda at: (at / "recipe.yaml").write_text("name: 2026-01-01"),
        snapshot,
    ),
    "an earlier recipe over a later one": (
        r"recipe.yaml: this is not the recipe that raftdiff wrote here last",
        lambda at: earlier_recipe(Run(at)),
        lambda run: Run.at(run.path, Toy(name="third")),
    ),
    "a recipe that holds itself": (
        r"recipe.yaml: this file is damaged \(Circular reference",
        lambda at: (at / "recipe.yaml").write_text("a: &a [*a]"),
        lambda run: run.demand_recipe(),
    ),
    "the recipe of an earlier version": (
        r"recipe.yaml: this file is damaged \(it holds list",
        lambda at: (put(at / "run.json", '"recipe"', '"others"'), (at / "recipe.yaml").write_text("- a")),
        lambda run: Run.open(run.path).recipe(),
    ),
    "an act": (
        r"ada.jsonl: this file is damaged \(a line that is no choice, veto or undo",
        lambda at: Ballot(Run(at), "ada").choose(Pair("c", "x", "y"), "both"),  # type: ignore[arg-type]
        lambda run: tally(run, [Ballot(run, "ada")]),
    ),
    "a score of one that was drawn again": (
        r"1 of 2 candidates have no scores yet, such as a-001, .* run 'raftdiff score' first",
        lambda at: drawn_again(Run(at)),
        lambda run: run.draft(1).folder.scores(),
    ),
    "a score that is none": (
        r"metadata.jsonl: this file is damaged \(a score that is no number: high",
        lambda at: put(scored(Run(at)) / "samples/metadata.jsonl", '"total": 2.0', '"total": "high"'),
        lambda run: run.draft(1).folder.scores(),
    ),
    "a held-out text": (
        r"held_out/texts.jsonl was changed",
        lambda at: put(finished(Run(at)) / "held_out/texts.jsonl", "fine", "poor"),
        lambda run: run.round(1).held_out(),
    ),
    "a held-out picture": (
        r"held_out/b-000.png was not there when the round was finished",
        lambda at: Image.new("RGB", (8, 8)).save(finished(Run(at)) / "held_out/b-000.png"),
        lambda run: run.round(1).held_out(),
    ),
    "a text": (
        r"texts.jsonl: this file is damaged \(line 1: ",
        lambda at: ((at / "rounds/000/held_out").mkdir(), (at / "rounds/000/held_out/texts.jsonl").write_text('{"pr')),
        lambda run: run.round(0).held_out(),
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_what_was_changed_by_hand_is_a_sentence_for_whoever_reads_it(run: Run, what: str) -> None:
    sentence, change, read = CHANGED[what]
    change(run.path)
    with pytest.raises(UserError, match=sentence):
        read(run)


def test_a_recipe_that_a_kill_came_upon_is_one_of_two(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (run.path / "rounds/001.partial").rename(run.path / "aside")
    write = records.write_text
    for kills_before in ("run.json", "recipe.yaml", "nothing"):

        def dying(path: Path, text: str, at: str = kills_before) -> None:
            if path.name == at:
                raise KeyboardInterrupt
            write(path, text)

        monkeypatch.setattr(records, "write_text", dying)
        with pytest.raises(KeyboardInterrupt) if kills_before != "nothing" else nullcontext():
            go_on_with(Run.open(run.path), Toy(name="other"))
        assert Run.open(run.path).recipe()["name"] == ("other" if kills_before == "nothing" else "toy")


def test_a_recipe_in_other_words_is_the_same(run: Run) -> None:
    file = run.path / "recipe.yaml"
    file.write_text(f"# mine\n{file.read_text()}\n")
    with run.locked(Toy()):
        assert run.edited() is None


def test_a_recipe_that_was_changed_does_not_keep_anybody_from_looking(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    told = f"{run.path / 'recipe.yaml'}: this is not the recipe that raftdiff wrote here last"
    put(run.path / "recipe.yaml", "toy", "other")
    assert told in snapshot(run).warnings[0]
    assert to_read(run.path).rounds_done() == 1
    assert capsys.readouterr().err.startswith(f"raftdiff: {told}")
    with pytest.raises(UserError, match=re.escape(told)):
        fork(run, Toy(name="other"), run.path.parent / "new", round=0, seed=3)


def test_every_run_in_a_folder_is_checked_whatever_one_of_them_holds(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run.path.parent
    for name in ("a", "b", "c"):
        shutil.copytree(run.path, folder / name)
    put(folder / "a/recipe.yaml", "toy", "other")
    put(folder / "a/rounds/000/metrics.json", '"mean": 2.0', '"mean": 3.0')
    (folder / "b/run.json").write_text("[]")
    assert main(["check", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert f"{folder / 'c/rounds/000'}: 5 files as they were written" in out
    assert f"{folder / 'run/rounds/000'}: 5 files as they were written" in out
    assert f"\n{folder / 'a/recipe.yaml'}: this is not the recipe that raftdiff wrote here last" in err
    assert f"\n{folder / 'a/rounds/000'}: metrics.json was changed" in err
    assert f"\n{folder / 'b/run.json'}: this file is damaged" in err


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"../../../outside.png": "a cat"}, "it names a file that is not here, or no caption"),
        ({"/etc/outside.png": "a cat"}, "it names a file that is not here, or no caption"),
        ({"a-000.png": None}, "it names a file that is not here, or no caption"),
        (["a-000.png"], "it holds list, not an object"),
    ],
)
def test_an_evaluation_of_somebody_else_shows_no_picture_from_elsewhere(run: Run, told: object, sentence: str) -> None:
    (run.path / "eval").mkdir()
    (run.path / "eval/pictures.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=rf"pictures.json: this file is damaged \({sentence}"):
        of_evaluation(run, "eval")


def test_answers_that_were_cut_short_are_not_fewer_answers(run: Run) -> None:
    (run.path / "eval").mkdir()
    row = {"prompt": "a", "prompt_id": "a", "index": 0, "before": "x", "after": "y"}
    file = run.path / "eval/answers.jsonl"
    file.write_text(json.dumps(row) + "\n" + json.dumps(row)[:30])
    with pytest.raises(UserError, match=r"answers.jsonl: this file is damaged \(line 2: "):
        of_evaluation(run, "eval")
    file.write_text(json.dumps({**row, "after": None}) + "\n")
    with pytest.raises(UserError, match="before and after are texts"):
        of_evaluation(run, "eval")


@pytest.mark.parametrize("place", ["recipe.yaml", "rounds/001.partial/samples/a-000.png", ".lock", "log.jsonl"])
def test_a_pipe_in_a_run_is_a_sentence_and_is_not_waited_for(
    run: Run, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.path / place).unlink(missing_ok=True)
    os.mkfifo(run.path / place)
    for command in ("show", "check", "train", "eval"):
        assert main([command, str(run.path)]) == 2
        assert f"{run.path / place}: this is neither a file nor a folder" in capsys.readouterr().err


def test_nothing_is_read_through_a_link_before_it_is_refused(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    outside = run.path.parent / "outside"
    outside.write_text('{"format": "a secret"}')
    (run.path / "run.json").unlink()
    (run.path / "run.json").symlink_to(outside)
    assert main(["show", str(run.path)]) == 2
    err = capsys.readouterr().err
    assert "this is a link that leads out of the run" in err
    assert "a secret" not in err


def test_a_line_that_was_cut_short_spoils_none_that_follows(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    append(file, ['{"a": 1}\n', '{"a": 2}\n'])
    os.truncate(file, file.stat().st_size - 4)
    append(file, ['{"a": 3}\n'])
    append(file, ['{"a": 4}\n'])
    assert [row["a"] for row in read_appended(file)] == [1, 3, 4]
    with pytest.raises(UserError, match="line 2"):
        read_json_lines(file)
