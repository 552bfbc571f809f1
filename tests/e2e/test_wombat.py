"""The Wombat recipes against servers that are no models: answers from several sources, ratings, RRHF on their sum."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from raftdiff.cli.main import main
from raftdiff.embedded.teacher import by_rules, replied
from raftdiff.llm.model import tiny
from raftdiff.testing.servers import chat_server

WORDS = ("Rain", "is", "water", "that", "falls", "from", "clouds", "snow", "cold", "and", "white", "the", "sky")


@pytest.fixture
def server() -> Iterator[str]:
    """Answers instructions with "Rain is water", and rates an answer by its words about rain."""

    def said(request: Mapping[str, Any]) -> str:
        asked = request["messages"][-1]["content"]
        if "Relevance" not in asked and "relevance" not in asked:
            return "Rain is water"
        answer = asked.split("[Answer]")[1].split("[End of the answer]")[0]
        rating = 1 + min(4, sum(answer.count(word) for word in ("water", "clouds", "falls", "sky")))
        return f"Relevance: {rating}\nCorrectness: {rating}\nCoherence: 3\nSafety: 5"

    with chat_server(said) as address:
        yield address


def test_several_models_answer_a_teacher_rates_rrhf_learns(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "a-key-that-is-none")
    model = tiny.write(tmp_path / "lm", WORDS)
    questions = ["What is rain?", "What is snow?"]
    rows = [{"instruction": one, "input": "", "output": "that falls from the sky"} for one in questions]
    Path("alpaca.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    collected = [{"prompt": one, "text": "water from clouds and the sky falls"} for one in questions]
    Path("collected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in collected))
    words = [
        f"model.base={model}",
        "model.dtype=float32",
        "prompts.hub=null",
        "prompts.file=alpaca.jsonl",
        f"sampler.parts.0.sampler.base_url={server}",
        "sampler.parts.2.sampler.path=collected.jsonl",
        "sampler.parts.3.sampler.decoding.max_new_tokens=5",
        f"ranker.rewards.0.base_url={server}",
        "evaluation.samples_per_prompt=1",
        "evaluation.decoding.max_new_tokens=5",
        "finetuner.warmup_steps=0",
        "logging.tracker=null",
    ]
    assert main(["llm", "wombat", "--out", "run", *words]) == 0
    samples = [json.loads(line) for line in Path("run/rounds/000/samples/metadata.jsonl").read_text().splitlines()]
    assert [row["source"] for row in samples[:5]] == ["teacher", "teacher", "dataset", "teacher", "policy"]
    by_text = {row["text"]: row["reward_server"] for row in samples}
    assert by_text["Rain is water"] == 2 + 2 + 3 + 5
    assert by_text["that falls from the sky"] == 3 + 3 + 3 + 5
    assert by_text["water from clouds and the sky falls"] == 5 + 5 + 3 + 5
    items = json.loads(Path("run/rounds/000/selection.json").read_text())["items"]
    assert [len(item["keys"]) for item in items] == [5, 5]
    assert items[0]["scores"] == sorted(items[0]["scores"], reverse=True)
    assert items[0]["scores"][0] == 18, "the best of the five is learnt, the others are ranked below it"
    tuned = json.loads(Path("run/rounds/000/metrics.json").read_text())["tune"]
    assert tuned["ft_loss"] > 0
    assert "a-key-that-is-none" not in "".join(
        file.read_text() for file in Path("run").rglob("*") if file.suffix in (".json", ".yaml", ".jsonl")
    )


def test_the_small_recipe_asks_the_teacher_that_has_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = tiny.write(tmp_path / "lm", (*WORDS, "Paris", "capital", "Rome", "What", "France", "Italy", "?", "."))
    with chat_server(replied) as address:
        words = [
            f"model.base={model}",
            "model.template=plain",
            f"sampler.parts.4.sampler.model.base={model}",
            "sampler.parts.4.sampler.model.template=plain",
            *(f"sampler.parts.{part}.sampler.decoding.max_new_tokens=4" for part in range(5)),
            "prompts={captions: ['What is the capital of France?', 'What is the capital of Italy?']}",
            f"ranker.rewards.0.base_url={address}",
            "loop.rounds=1",
            "logging.tracker=null",
        ]
        assert main(["llm", "wombat_smollm2", "--out", "run", *words]) == 0
    samples = [json.loads(line) for line in Path("run/rounds/000/samples/metadata.jsonl").read_text().splitlines()]
    rated = {row["text"]: row["reward_server"] for row in samples}
    assert rated == {
        row["text"]: sum(one.stars for one in by_rules(row["caption"], row["text"]).values()) for row in samples
    }
    assert {row["source"] for row in samples} == {"policy", "teacher"}
    assert len(set(rated.values())) > 1, "there is something to rank"
    assert json.loads(Path("run/rounds/000/metrics.json").read_text())["tune"]["ft_loss"] > 0
