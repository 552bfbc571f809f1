"""`raftdiff demo`, shortened, on the models that ship: the path that a newcomer takes first."""

import json
from pathlib import Path

import pytest

from raftdiff.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

LEARNT, OTHER = (
    "a cartoon star, three foxes on a white background, a large guitar on a pink background, four cactuses",
    "a cactus right of a sketched sailboat, two large red sketched foxes, a crab, a crown on a pink background, "
    "three cats, a gift above a star, a house and two umbrellas, a small ladybug, two pizzas",
)
SHORT = (
    *("loop.rounds=1", "loop.candidates=2", "sampler.steps=1", "finetuner.steps=2", "finetuner.batch_size=4"),
    *("evaluation.samples_per_prompt=1", "prompts.file=null", f"prompts.captions=[{LEARNT}]"),
    *("evaluation.prompts.file=null", f"evaluation.prompts.captions=[{OTHER}]"),
)


def test_the_demo_ends_with_a_table_a_report_and_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["demo", "--out", str(run), *SHORT]) == 0
    out = capsys.readouterr().out
    assert f"report: {run}/eval/report.html" in out
    assert "next: " in out
    result = json.loads((run / "eval/eval.json").read_text())
    assert set(result["judge"]) >= {"object", "count", "relation", "size", "style", "colour", "ground", "exact"}
    assert result["diversity"]["vendi"]["before"] > 1
    both = [json.loads((run / name).read_text()) for name in ("eval/training/eval.json", "eval/eval.json")]
    assert [one["prompts"] for one in both] == [4, 9]
    page = (run / "eval/report.html").read_text()
    assert page.index("The prompts it was tuned on: the ") < page.index("Prompts it never saw: the ")
    assert out.index("The prompts it was tuned on:") < out.index("Prompts it never saw:")
    assert "<script src" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<img") > 20
    events = list((run / "logs").rglob("events.out.tfevents*"))
    assert events, "TensorBoard is the default tracker"

    (tmp_path / "mixed.txt").write_text("a cartoon cat on a pink background\na cartoon cat on a tartan one\n")
    assert main(["eval", str(run), "--prompts", str(tmp_path / "mixed.txt"), "--name", "mixed"]) == 2
    said = capsys.readouterr().err
    assert "The judge does not understand 'a cartoon cat on a tartan one', though it understands 1 of 2" in said


def test_the_demo_on_texts_ends_with_a_table_and_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    few = ("loop.rounds=1", "loop.candidates=2", "loop.prompts_per_round=4", "evaluation.samples_per_prompt=1")
    few += ("finetuner.adapter=lora", "evaluation.prompts.limit=4", "evaluation.every_round=0")
    assert main(["llm", "demo", "--out", str(run), *few]) == 0
    assert f"report: {run}/eval/report.html" in capsys.readouterr().out
    result = json.loads((run / "eval/eval.json").read_text())
    assert result["judge"]["fluent"]["before"] >= 0.5, "it speaks the world's language"
