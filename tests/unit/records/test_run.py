"""The run directory: what is there, what is refused, what is never lost."""

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records import rounds
from raftdiff.records.beginning import fork
from raftdiff.records.disk import save_tensors
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection


class Toy(Config):
    name: str = "toy"
    rate: float = 0.1
    logging: str = "x"


def sample(prompt: str, index: int, value: int = 0) -> Sample[Image.Image]:
    one = Prompt(prompt, f"a {prompt}", f"a {prompt}, sharp", f"a {prompt}", meta={"split": "in"})
    latent = torch.full((4, 2, 2), float(value))
    return Sample(0, one, index, 7, "policy", Image.new("RGB", (8, 8), (value, 0, 0)), {"latent": latent})


def filled(run: Run) -> Draft:
    draft = run.draft(0)
    for prompt in ("b", "a"):
        for index in range(2):
            draft.add(sample(prompt, index, 10 * index + len(prompt)))
    draft.flush()
    return draft


def finish(run: Run) -> None:
    draft = filled(run)
    total = np.array([[1.0, np.nan], [0.1 + 0.2, 3.0]])
    draft.write_scores(Scores(0, ("b", "a"), total, {"clip": total}))
    draft.write_selection(Selection("weighted", (Item((Key(0, "a", 1),), 0.5),), ("c",)))
    draft.spend("sample", seconds=1.5, evaluations=8)
    draft.note(mean=2.0)
    draft.commit({"adapter": {"w": torch.ones(2)}})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Toy(), seed=3)


def test_a_finished_round_reads_back_to_the_bit(run: Run) -> None:
    finish(run)
    folder = run.round(0)
    scores, selection = folder.scores(), folder.selection()
    np.testing.assert_array_equal(scores.total, [[1.0, np.nan], [0.1 + 0.2, 3.0]])
    assert scores.prompts == ("b", "a")
    assert selection == Selection("weighted", (Item((Key(0, "a", 1),), 0.5),), ("c",))
    (chosen,) = folder.samples([Key(0, "a", 1)])
    assert chosen.prompt == sample("a", 1).prompt
    assert chosen.media.getpixel((0, 0)) == (11, 0, 0)
    assert torch.equal(chosen.aux["latent"], torch.full((4, 2, 2), 11.0))
    assert run.metrics()[0]["seconds"] == {"sample": 1.5}
    state = run.state()
    assert state is not None
    assert torch.equal(state["adapter"]["w"], torch.ones(2))


def test_a_round_is_an_image_folder_with_every_reward(run: Run) -> None:
    finish(run)
    rows = [json.loads(line) for line in (run.path / "rounds/000/samples/metadata.jsonl").read_text().splitlines()]
    assert {path.name for path in (run.path / "rounds/000/samples").glob("*.png")} == {r["file_name"] for r in rows}
    assert rows[1]["reward_clip"] is None
    assert [row["selected"] for row in rows] == [False, False, False, True]
    assert {"caption", "sampling", "learning", "seed", "source", "total"} <= rows[0].keys()
    assert not (run.path / "rounds/000/latents").exists()
    assert set(load_file(run.path / "rounds/000/latents.safetensors")) == {
        f"{prompt}/{index:03d}/latent" for prompt in "ab" for index in (0, 1)
    }


def test_an_answer_that_was_cut_off_stays_one_and_says_so_to_others(run: Run) -> None:
    prompt, draft = Prompt("a", "Why?", "Why?", "Why?"), run.draft(0)
    draft.add(Sample(0, prompt, 0, 0, "teacher", "Since", {"cut": torch.tensor(True)}))
    draft.add(Sample(0, prompt, 1, 0, "teacher", "Since."))
    draft.flush()
    assert [sample.cut for sample in draft.folder.samples()] == [True, False]
    assert [row.get("cut") for row in draft.folder.rows()] == [True, None]


def test_no_pickle_is_ever_written(run: Run) -> None:
    finish(run)
    plain = {".lock", "SHA256SUMS"}
    kinds = {path.suffix for path in run.path.rglob("*") if path.is_file() and path.name not in plain}
    assert kinds <= {".yaml", ".json", ".jsonl", ".png", ".safetensors"}


def test_samples_that_were_not_flushed_do_not_count(run: Run) -> None:
    draft = run.draft(0)
    draft.add(sample("a", 0))
    assert run.draft(0).sampled() == set()
    draft.flush()
    assert run.draft(0).sampled() == {("a", 0)}


def test_a_sample_is_written_while_the_next_is_drawn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    go, write = threading.Event(), rounds.store

    def slow(folder: Path, one: Sample[Any]) -> dict[str, str]:
        assert go.wait(60)
        return write(folder, one)

    monkeypatch.setattr(rounds, "store", slow)
    draft = run.draft(0)
    for index in range(3):
        draft.add(sample("a", index))
    assert not list(draft.path.rglob("*.png"))  # drawn, and none of them waited for
    go.set()
    draft.flush()
    assert [row["index"] for row in draft.folder.rows()] == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("behind")]


def test_a_disk_that_refuses_one_picture_is_told_of_and_loses_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = rounds.store

    def refusing(folder: Path, one: Sample[Any]) -> dict[str, str]:
        if one.index == 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "a-001.png"))
        return write(folder, one)

    monkeypatch.setattr(rounds, "store", refusing)
    draft = run.draft(0)

    def draw() -> None:
        try:
            for index in range(4):
                draft.add(sample("a", index))
        finally:
            draft.flush()

    with pytest.raises(OSError, match="No space left") as told:
        draw()
    assert told.value.filename.endswith("a-001.png")
    found = {index for _, index in run.draft(0).sampled()}
    assert 0 in found  # and of the later ones those that were added before it was told
    assert 1 not in found
    assert not list((draft.path / "samples").glob("a-001*"))


def test_a_round_that_is_not_committed_is_not_there(run: Run) -> None:
    filled(run)
    assert run.rounds_done() == 0
    with pytest.raises(UserError, match="no finished round 0; this run has no finished round"):
        run.round(0)


def test_times_of_an_interrupted_stage_add_up(run: Run) -> None:
    draft = run.draft(0)
    draft.spend("sample", seconds=2.0, evaluations=10)
    draft.spend("sample", seconds=1.0, evaluations=5)
    assert draft.metrics()["seconds"] == {"sample": 3.0}
    assert draft.metrics()["network_evaluations"] == {"sample": 15}


def test_the_same_recipe_continues_and_another_is_refused_by_the_keys_that_differ(run: Run) -> None:
    filled(run)
    assert Run.create(run.path, Toy(logging="elsewhere"), seed=3) == run
    with pytest.raises(UserError, match="begun with another recipe; these keys differ: rate"):
        Run.create(run.path, Toy(rate=0.2), seed=3)


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no run directory and not empty"):
        Run.create(tmp_path, Toy(), seed=0)
    with pytest.raises(UserError, match="not a run directory"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match=r"thesis.txt is a file, and a folder goes there"):
        Run.create(tmp_path / "thesis.txt", Toy(), seed=0)


def test_a_mistyped_run_is_told_with_its_nearest_name(run: Run) -> None:
    with pytest.raises(UserError, match=f"Did you mean '{run.path}'"):
        Run.open(run.path.with_name(f"{run.path.name}s"))


def test_a_start_that_made_nothing_protects_nothing(run: Run, tmp_path: Path) -> None:
    assert Run.create(run.path, Toy(rate=0.2), seed=3).recipe()["rate"] == 0.2
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text("rate: 1")
    assert Run.create(tmp_path / "half", Toy(), seed=0).info()["seed"] == 0


def test_a_newer_format_is_refused(run: Run) -> None:
    info = run.info() | {"format": 99}
    (run.path / "run.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="has format 99; this raftdiff reads format 1"):
        Run.open(run.path)


def test_the_default_folder_of_a_recipe_is_found_again_on_another_day(tmp_path: Path) -> None:
    path = Run.default_path(tmp_path, "toy", Toy())
    older = tmp_path / ("2020-01-01" + path.name[10:])
    older.mkdir()
    assert Run.default_path(tmp_path, "toy", Toy(logging="elsewhere")) == older
    assert Run.default_path(tmp_path, "toy", Toy(rate=0.3)) != older


def test_a_run_says_where_it_came_from(run: Run) -> None:
    info = run.info()
    assert info["seed"] == 3
    assert info["packages"]["torch"]
    assert info["hardware"]


def test_two_processes_do_not_work_on_one_run(run: Run) -> None:
    with run.locked(), pytest.raises(UserError, match="another raftdiff process"), Run(run.path).locked():
        pass


def test_a_fork_keeps_the_samples_and_drops_the_scores(run: Run, tmp_path: Path) -> None:
    finish(run)
    with pytest.raises(UserError, match="with another rate the samples would be others"):
        fork(run, Toy(rate=0.5), tmp_path / "child", round=0, seed=3)
    child = fork(run, Toy(name="other"), tmp_path / "child", round=0, seed=3)
    draft = child.draft(0)
    assert len(draft.sampled()) == 4
    assert not any("total" in row or "reward_clip" in row for row in draft.folder.rows())
    assert torch.equal(draft.folder.samples([Key(0, "a", 1)])[0].aux["latent"], torch.full((4, 2, 2), 11.0))
    assert child.info()["parent"] == "run"
    assert run.round(0).scores().total.shape == (2, 2)
    with pytest.raises(UserError, match="this folder exists"):
        fork(run, Toy(), tmp_path / "child", round=0, seed=3)


class Tuner(Config):
    rank: int = 2


class Whole(Config):
    name: str = "whole"
    ranker: str = "clip"
    finetuner: Tuner = Tuner()


@pytest.fixture
def two_rounds(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "parent", Whole(), seed=3)
    for t in range(2):
        draft = run.draft(t)
        draft.add(sample("a", 0))
        draft.flush()
        draft.note(mean=1.0, held_out=72.0, held_out_base=70.0)
        draft.commit({})
    return run


def test_a_fork_keeps_on_record_what_made_the_rounds_before_it(two_rounds: Run, tmp_path: Path) -> None:
    same = fork(two_rounds, Whole(), tmp_path / "same", round=1, seed=3)
    other = fork(two_rounds, Whole(ranker="aesthetic"), tmp_path / "other", round=1, seed=3)
    assert other.metrics()[0] == same.metrics()[0] == two_rounds.metrics()[0]
    assert same.changes() == {}
    assert other.changes() == {1: ["ranker"]}
    assert other.kept_recipes()[0].read_text() == (two_rounds.path / "recipe.yaml").read_text()


def test_a_fork_that_could_not_go_on_from_its_parents_weights_is_refused_at_once(
    two_rounds: Run, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="round 0 left weights of another finetuner.rank"):
        fork(two_rounds, Whole(finetuner=Tuner(rank=4)), tmp_path / "child", round=1, seed=3)
    assert not (tmp_path / "child").exists()
    assert fork(two_rounds, Whole(finetuner=Tuner(rank=4)), tmp_path / "child", round=0, seed=3).rounds_done() == 0


def test_a_fork_leaves_other_folders_alone(two_rounds: Run, tmp_path: Path) -> None:
    (tmp_path / "child.tmp").mkdir()
    (tmp_path / "child.tmp/mine.txt").write_text("mine")
    fork(two_rounds, Whole(), tmp_path / "child", round=0, seed=3)
    assert (tmp_path / "child.tmp/mine.txt").read_text() == "mine"


def test_weights_that_changed_under_their_name_are_noticed(run: Run) -> None:
    run.bind({"scene-sd": "1", "scene-clip": "2"})
    run.bind({"scene-sd": "1", "scene-clip": "2"})
    with pytest.raises(UserError, match="begun with other weights of scene-sd than lie there now"):
        run.bind({"scene-sd": "3", "scene-clip": "2"})


def test_stages_out_of_order_are_sentences(run: Run) -> None:
    draft = filled(run)
    with pytest.raises(UserError, match="no scores yet; run 'raftdiff score' first"):
        draft.folder.scores()
    with pytest.raises(UserError, match="nothing is selected in this round yet"):
        draft.folder.selection()


def test_a_full_disk_loses_nothing_that_was_committed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = run.draft(0)
    draft.add(sample("a", 0))
    draft.flush()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    draft.add(sample("a", 1))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        draft.flush()
    monkeypatch.undo()
    assert ("a", 0) in run.draft(0).sampled()


def test_a_full_disk_under_tensors_is_the_same_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **words: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("raftdiff.records.disk.save_file", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_tensors(tmp_path / "x.safetensors", {"x": torch.zeros(1)})


def test_an_interrupted_flush_does_not_count_twice(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = run.draft(0)
    draft.add(sample("a", 0))
    real = os.fsync

    def interrupted(descriptor: int) -> None:
        real(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "metadata.jsonl":
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draft.flush()
    monkeypatch.undo()
    draft.flush()
    again = run.draft(0)
    again.add(sample("a", 0))
    again.flush()
    assert len(again.folder.rows()) == len(again.sampled()) == 1


def test_a_commit_that_died_half_way_loses_no_tensor(run: Run) -> None:
    draft = filled(run)
    parts = sorted((draft.path / "latents").glob("*"))
    merged = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    save_tensors(draft.path / "latents.safetensors", merged)
    parts[0].unlink()
    draft.add(sample("a", 0, 99))
    draft.flush()
    assert float(draft.folder.samples([Key(0, "a", 0)])[0].aux["latent"].mean()) == 99
    path = run.draft(0).commit({})
    whole = load_file(path / "latents.safetensors")
    assert len(whole) == 4
    assert float(whole["a/000/latent"].mean()) == 99


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", ""])
def test_a_prompt_id_never_leaves_the_folder(run: Run, name: str) -> None:
    with pytest.raises(UserError, match="cannot name a file"):
        run.draft(0).add(sample(name, 0))


def test_the_log_is_append_only(run: Run) -> None:
    run.log("round", round=0)
    run.log("round", round=1)
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert [(line["event"], line["round"]) for line in lines] == [("round", 0), ("round", 1)]
