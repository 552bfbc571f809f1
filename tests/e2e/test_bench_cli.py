"""``raftdiff bench`` on a random model of a few thousand weights, and ``plan`` by what it found."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from raftdiff.cli.main import main
from raftdiff.cli.pictures import bench
from raftdiff.diffusion.speed import ways
from raftdiff.diffusion.speed.repeats import Timed, Way

RECIPE = {
    "name": "tiny",
    "model": {"base": "MODEL", "device": "cpu"},
    "prompts": {"captions": ["a cat"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 2},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 1, "batch_size": 2},
    "loop": {"rounds": 1, "candidates": 2},
    "logging": {"tracker": None},
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.fixture
def recipe(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.yaml"
    monkeypatch.setattr(ways, "BATCHES", (1, 2))
    product = ways.product
    monkeypatch.setattr(ways, "product", lambda device, dtype: (lambda: None, product(torch.device("meta"), dtype)[1]))
    path.write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(model)))
    return str(path)


def test_what_bench_finds_is_what_plan_goes_by(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    forward, backward = torch.nn.Module.forward, torch.autograd.backward
    assert main(["bench", recipe, "--repeats", "1"]) == 0
    out, root = capsys.readouterr().out, Path("runs/bench-tiny")
    assert (root / "table.md").read_text().strip() in out
    assert (root / "bench.svg").read_text().startswith("<svg")
    found = json.loads((root / "bench.json").read_text())
    timed = {row["name"]: row for row in found["figures"]}
    assert {"sampling", "decoding", "rewards", "writing PNG", "tuning", "1", "model.channels_last=true"} <= timed.keys()
    assert "| as the recipe says |" in out
    (small, *grown) = [row for row in found["figures"] if row["table"] == "small rounds"]
    assert len(grown) == 3, "with more candidates, with more prompts, and smaller"
    assert {"sample", "score", "select", "tune", "records", "outside"} == small["parts"].keys()
    assert 0 < small["parts"]["outside"] < small["seconds"][0]
    assert found["operations"]["tuning"] > found["operations"]["sampling"] > 0
    assert (torch.nn.Module.forward, torch.autograd.backward) == (forward, backward)

    assert main(["plan", recipe, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["measured"]["seconds_per_evaluation"] == pytest.approx(1 / timed["sampling"]["rate"])
    assert plan["measured_by"].startswith("raftdiff bench, ")
    assert main(["plan", recipe]) == 0
    assert ", by raftdiff bench, 2" in capsys.readouterr().out
    assert main(["plan", recipe, "sampler.batch_size=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["measured_by"] == "raftdiff plan"


def test_plan_tells_what_bench_found_to_be_faster(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "asked", lambda assembly: {})
    monkeypatch.setattr(bench.tables, "faster", lambda found: "model.channels_last=true, 1.10 times")
    assert main(["bench", recipe, "--repeats", "1"]) == 0
    assert "faster here: model.channels_last=true, 1.10 times" in capsys.readouterr().out
    assert main(["plan", recipe]) == 0
    assert "faster there" in (told := capsys.readouterr().out)
    assert "with model.channels_last=true, 1.10 times" in told
    assert main(["plan", recipe, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faster"] == "model.channels_last=true, 1.10 times"

    for found in ("model.compile=true, 1.30 times", ""):  # without --compile a later one does not forget it
        monkeypatch.setattr(bench.tables, "faster", lambda _, found=found: found)
        assert main(["bench", recipe, "--repeats", "1"]) == 0
        capsys.readouterr()
        assert main(["plan", recipe, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["faster"] == "model.compile=true, 1.30 times"


def too_large(*given: Any, **named: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_what_memory_does_not_suffice_for_is_told_and_the_rest_is_measured(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything, large = bench.everything, Way(ways.BATCH, "64", "network evaluations", 64.0, too_large)
    monkeypatch.setattr(bench, "asked", too_large)
    monkeypatch.setattr(bench, "everything", lambda assembly: [large, *everything(assembly)])
    assert main(["bench", recipe, "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "not measured: sampling, by pictures at once: 64: memory does not suffice" in out
    assert "The minutes were over" not in out
    assert "raftdiff plan goes by this from now on" in out
    found = json.loads(Path("runs/bench-tiny/bench.json").read_text())
    assert "64" not in {row["name"] for row in found["figures"]}
    assert found["operations"] == {}


def test_where_nothing_fits_memory_is_named_and_not_the_minutes(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "asked", too_large)
    monkeypatch.setattr(bench, "everything", lambda assembly: [Way(ways.PARTS, "sampling", "pictures", 1.0, too_large)])
    monkeypatch.setattr(bench, "otherwise", lambda assembly, compiled: [])
    assert main(["bench", recipe]) == 2
    said = capsys.readouterr().err
    assert "not measured: parts: sampling: memory does not suffice" in said
    assert "--minutes" not in said


def test_without_tuning_plan_does_not_go_by_it(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "asked", lambda assembly: {})
    monkeypatch.setattr(ways, "tuning", too_large)
    assert main(["bench", recipe, "--repeats", "1"]) == 0
    out = capsys.readouterr().out
    assert "not measured: parts: tuning: memory does not suffice" in out
    assert "raftdiff plan does not go by this" in out


def test_without_time_for_what_comes_first_nothing_else_is_begun(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = list[str]()

    def timed(ways: list[Way], **given: Any) -> Iterator[Timed]:
        begun.append(ways[0].table)
        return iter(())

    monkeypatch.setattr(bench, "in_turn", timed)
    monkeypatch.setattr(bench, "asked", lambda assembly: {})
    assert main(["bench", recipe, "--minutes", "0.1"]) == 2
    assert begun == [ways.PEAK]
    assert "of which loading and counting took" in capsys.readouterr().err


def test_an_interrupt_leaves_what_was_measured(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn = bench.in_turn

    def interrupted(*given: Any, **named: Any) -> Iterator[Timed]:
        yield next(in_turn(*given, **named))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "in_turn", interrupted)
    monkeypatch.setattr(bench, "asked", lambda assembly: {})
    assert main(["bench", recipe, "--out", "here"]) == 130
    assert json.loads(Path("here/bench.json").read_text())["finished"] is False
    out = capsys.readouterr().out
    assert "peak, by a large matrix product" in out
    assert "raftdiff plan does not go by this" in out
    assert not Path("cache/speed.json").exists()
    monkeypatch.setattr(bench, "in_turn", lambda *given, **named: iter(()))
    assert main(["bench", recipe, "--minutes", "0.1"]) == 2
    assert "--minutes 0.1: nothing could be measured in that time" in capsys.readouterr().err
