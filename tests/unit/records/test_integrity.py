"""Runs that were damaged, mixed up or made by somebody else: a sentence, and nothing outside of the run is touched."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.cli.main import main
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config
from raftdiff.records import integrity
from raftdiff.records.beginning import fork
from raftdiff.records.checking import check
from raftdiff.records.run import Run
from raftdiff.types import Item, Key, Prompt, Sample, Scores, Selection


class Toy(Config):
    name: str = "toy"
    rate: float = 0.1


def draw(run: Run, round: int, value: int = 0) -> None:
    draft = run.draft(round)
    for index in range(2):
        prompt = Prompt("a", "a cat", "a cat", "a cat")
        latent = torch.full((4, 2, 2), float(index + value))
        picture = Image.new("RGB", (8, 8), (value, index, round))
        draft.add(Sample(round, prompt, index, 7, "policy", picture, {"latent": latent}))
        draft.flush()


def finish(run: Run, round: int, value: int = 0) -> None:
    draw(run, round, value)
    draft = run.draft(round)
    total = np.array([[1.0, 2.0]])
    draft.write_scores(Scores(round, ("a",), total, {"clip": total}))
    draft.write_selection(Selection("weighted", (Item((Key(round, "a", 1),)),)))
    draft.note(mean=2.0)
    draft.commit({name: {"w": torch.full((2,), float(value))} for name in ("adapter", "optimizer", "ema")})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "run", Toy(), seed=3)
    finish(run, 0)
    finish(run, 1)
    return run


@pytest.fixture
def other(tmp_path: Path) -> Run:
    run = Run.create(tmp_path / "other", Toy(rate=1.0), seed=4)
    finish(run, 0, 9)
    finish(run, 1, 9)
    return run


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def exchange(at: Path, other: Path) -> None:
    shutil.rmtree(at)
    shutil.copytree(other, at)


def everything(run: Run) -> None:
    """What a resumed run reads."""
    assert run.state()
    for selection in run.selections(range(2)):
        assert run.round(0).samples([key for item in selection.items for key in item.keys]) is not None
    for _ in run.round(1).batches(8):
        pass


DAMAGE: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "a flipped bit": (r"state/adapter.safetensors was changed", lambda at, _: flip(at / "state/adapter.safetensors")),
    "of the optimizer": (r"state/optimizer.safetensors was c", lambda at, _: flip(at / "state/optimizer.safetensors")),
    "in a latent": (r"latents.safetensors was changed", lambda at, _: flip(at / "latents.safetensors")),
    "in a picture": (r"samples/a-001.png was changed", lambda at, _: flip(at / "samples/a-001.png")),
    "no optimizer": (
        r"state/optimizer.safetensors is mis",
        lambda at, _: (at / "state/optimizer.safetensors").unlink(),
    ),
    "no average": (r"state/ema.safetensors is missing", lambda at, _: (at / "state/ema.safetensors").unlink()),
    "no picture": (r"samples/a-001.png is missing", lambda at, _: (at / "samples/a-001.png").unlink()),
    "no state": (r"001: the state after this round was removed", lambda at, _: shutil.rmtree(at / "state")),
    "one more state": (
        r"state/new.safetensors was not there when the round was finished",
        lambda at, _: shutil.copy(at / "state/ema.safetensors", at / "state/new.safetensors"),
    ),
    "cut short": (r"state/ema.safetensors was ch", lambda at, _: os.truncate(at / "state/ema.safetensors", 40)),
    "another's selection": (
        r"selection.json was changed",
        lambda at, _: (at / "selection.json").write_text((at / "selection.json").read_text().replace("1.0", "0.5")),
    ),
    "another's adapter": (
        r"state/adapter.safetensors was changed",
        lambda at, other: shutil.copy(other / "state/adapter.safetensors", at / "state/adapter.safetensors"),
    ),
    "another's round": (
        r"SHA256SUMS is not the list that the round was finished with",
        exchange,
    ),
    "no checksums": (r"SHA256SUMS is not the list", lambda at, _: (at / "SHA256SUMS").unlink()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_a_resumed_run_reads_is_what_was_written(run: Run, other: Run, kind: str) -> None:
    everything(run)
    sentence, do = DAMAGE[kind]
    do(run.round_path(1), other.round_path(1))
    with pytest.raises(UserError, match=sentence):
        everything(run)
    assert [bool(found.damage) for found in check(run)] == [False, True]


def test_sha256sum_reads_the_list(run: Run) -> None:
    command = ["sha256sum", "--check", "--strict", integrity.SUMS]
    told = subprocess.run(command, cwd=run.round_path(0), capture_output=True, text=True, check=True)
    files = {path for path in run.round_path(0).rglob("*") if path.is_file()}
    assert told.stdout.count(": OK\n") == len(files) - 1, "all but the list itself"


def test_what_a_kill_left_of_a_list_half_written_is_no_part_of_the_round(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "it", Toy(), seed=3)
    draw(run, 0)
    for name in ("SHA256SUMS.tmp", "samples/metadata.jsonl.tmp"):
        (run.draft(0).path / name).write_text("half")
    run.draft(0).commit({})
    assert not integrity.damage(run.round(0).path, integrity.digest(run.round(0).path / "SHA256SUMS"))
    assert not list(run.path.rglob("*.tmp"))


def test_a_run_of_an_earlier_version_has_none_and_goes_on(run: Run) -> None:
    facts = run.info()
    del facts["rounds"]
    (run.path / "run.json").write_text(json.dumps(facts))
    for t in range(2):
        (run.round_path(t) / integrity.SUMS).unlink()
    everything(run)
    finish(run, 2)
    assert [found.note[:12] for found in check(run)] == ["no checksums", "no checksums", "9 files as t"]
    os.truncate(run.round_path(0) / "state/ema.safetensors", 40)
    (found, *_) = check(run)
    assert found.damage[0].startswith("state/ema.safetensors: this file is damaged")


def test_an_old_rounds_state_may_be_removed(run: Run) -> None:
    shutil.rmtree(run.round_path(0) / "state")
    assert not any(found.damage for found in check(run))
    assert run.state()


def test_a_fork_takes_over_what_was_written_and_nothing_else(run: Run, tmp_path: Path) -> None:
    child = fork(run, Toy(), tmp_path / "child", round=1, seed=3)
    assert [found.damage for found in check(child)] == [[], []]
    flip(run.round_path(0) / "latents.safetensors")
    with pytest.raises(
        UserError, match=r"rounds/000: latents.safetensors was changed\. Take it from a copy of the run"
    ):
        fork(run, Toy(), tmp_path / "second", round=1, seed=3)
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("name", ["samples/a-001.png", "latents/00001.safetensors"])
@pytest.mark.parametrize("how", ["exchanged", "cut short", "empty"])
def test_what_is_damaged_in_an_unfinished_round_is_made_again(run: Run, other: Run, name: str, how: str) -> None:
    draw(run, 2)
    draw(other, 2, 9)
    at = run.unfinished(2).path / name
    if how == "exchanged":
        shutil.copy(other.unfinished(2).path / name, at)
    else:
        os.truncate(at, 60 if how == "cut short" else 0)
    assert list(check(run))[-1].damage
    assert run.draft(2).sampled() == {("a", 0)}
    draw(run, 2)
    assert run.draft(2).sampled() == {("a", 0), ("a", 1)}
    (drawn,) = run.unfinished(2).samples([Key(2, "a", 1)])
    assert torch.equal(drawn.aux["latent"], torch.full((4, 2, 2), 1.0))


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("run.json", b"[]", r"run.json: this file is damaged \(it holds list, not an object\)"),
        ("run.json", b'{"format": 1, "dig', r"run.json: this file is damaged \("),
        ("recipe.yaml", b"\xff\xfe\x00", r"recipe.yaml: this file is damaged \("),
        ("rounds/001/metrics.json", b'{"a":', r"rounds/001/metrics.json: this file is damaged \("),
        (
            "rounds/001/samples/metadata.jsonl",
            b'{"a": 1}\n',
            r"metadata.jsonl: this file is damaged \(a line without pro",
        ),
        ("rounds/001/samples/metadata.jsonl", b"\xff\xfe{}\n1\n[]\n", r"metadata.jsonl was changed"),
        ("rounds/001/selection.json", b'{"kind": "weighted"}', r"selection.json was changed"),
    ],
)
def test_a_damaged_file_of_a_run_is_a_sentence(run: Run, name: str, content: bytes, sentence: str) -> None:
    (run.path / name).write_bytes(content)

    def read() -> None:
        Run.open(run.path).recipe()
        run.metrics()
        everything(run)

    with pytest.raises(UserError, match=sentence):
        read()


@pytest.mark.parametrize(
    ("was", "now"),
    [('"index": 1,', '"index": 1000000000,'), ('"a-001.png"', '"../a-001.png"'), ('"a-001.png"', '"/a-001.png"')],
)
def test_a_line_of_no_sample_is_a_sentence(run: Run, was: str, now: str) -> None:
    """An endless index would take all memory, and a path would lead out of the run."""
    file = run.round_path(1) / "samples/metadata.jsonl"
    file.write_text(file.read_text().replace(was, now))
    with pytest.raises(UserError, match=r"metadata.jsonl: this file is damaged \(a line that is of no sample"):
        run.round(1).scores()


def test_the_command_names_what_is_damaged(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(run.path)]) == 0
    assert "rounds/001: 9 files as they were written" in capsys.readouterr().out
    flip(run.round_path(1) / "state/ema.safetensors")
    assert main(["check", str(run.path.parent)]) == 2, "a folder with runs in it will do"
    told = capsys.readouterr()
    assert "rounds/001: DAMAGED" in told.out
    assert "rounds/001: state/ema.safetensors was changed" in told.err


PLACES = (
    "rounds/002.partial/samples/a-000.png",
    "rounds/002.partial/samples",
    ".lock",
    "log.jsonl",
    "eval",
    "run.json.tmp",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_that_leads_out_of_a_run_is_never_written_through(run: Run, place: str, dangling: bool) -> None:
    outside = run.path.parent / "outside"
    folder = "." not in Path(place).name
    if not dangling:
        outside.mkdir() if folder else outside.write_text("mine")
    link = run.path / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    for begin in (lambda: Run.open(run.path), lambda: Run.create(run.path, Toy(), seed=3), run.locked().__enter__):
        with pytest.raises(UserError, match=r"this is a link that leads out of the run, .* Remove it, or put what it"):
            begin()
    assert outside.exists() != dangling
    assert dangling or folder or outside.read_text() == "mine"


def test_a_link_within_a_run_is_replaced_and_not_written_through(run: Run) -> None:
    kept = hashlib.sha256((run.path / "recipe.yaml").read_bytes()).hexdigest()
    samples = run.draft(2).path / "samples"
    (samples / "a-000.png").symlink_to(run.path / "recipe.yaml")
    (run.path / "run.json.tmp").symlink_to(run.path / "recipe.yaml")
    (run.path / "latest").symlink_to("rounds/001")
    with Run.open(run.path).locked():
        finish(run, 2)
    assert hashlib.sha256((run.path / "recipe.yaml").read_bytes()).hexdigest() == kept
    assert not (run.round_path(2) / "samples/a-000.png").is_symlink()


def test_a_file_that_is_gone_by_the_time_it_is_looked_at_is_no_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    look = integrity._looked_at

    def gone(entry: os.DirEntry[str], home: Path) -> list[str]:
        Path(entry.path).unlink() if entry.name == "run.json.tmp" else None
        return look(entry, home)

    (run.path / "run.json.tmp").write_text("{}")
    monkeypatch.setattr(integrity, "_looked_at", gone)
    integrity.refuse_links(run.path)


def test_the_lock_is_not_emptied(run: Run) -> None:
    (run.path / ".lock").write_text("whatever lies there")
    with run.locked():
        pass
    assert (run.path / ".lock").read_text() == "whatever lies there"
