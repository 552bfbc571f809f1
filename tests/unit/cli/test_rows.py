"""``raftdiff llm show-row``: what it prints is what the fine-tuner and the reward model are given."""

import json
from pathlib import Path

import pytest

from raftdiff.cli.main import main
from raftdiff.llm.model import tiny

WORDS = ("good", "bad", "film", "why", "user", "assistant")
PAIRS = [
    {"prompt": "why", "chosen": "good <eos>", "rejected": "bad", "score_chosen": 2, "score_rejected": 1},
    {"prompt": "film", "chosen": "film", "rejected": " ".join(["bad"] * 60)},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    tiny.write(folder / "lm", WORDS)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return folder


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["llm", "show-row", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def tokens(told: str, mask: str) -> list[tuple[int, str]]:
    rows = [line.split() for line in told.splitlines() if f"  {mask}  " in line]
    return [(int(row[2]), row[3]) for row in rows if row[1] == mask]


def test_a_row_of_data_is_shown_as_it_is_learnt(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"model.base={folder / 'lm'}", f"prompts.file={folder / 'pairs.jsonl'}"]
    told = shown(capsys, "dpo_offline", *changes)
    assert "row 1 of 2, 'why'; model" in told
    assert "an answer ends in <eos> (2)" in told
    assert tokens(told, "read") == [(1, "<bos>"), (7, "why")]
    assert tokens(told, "learnt") == [(4, "good"), (2, "<eos>"), (5, "bad"), (2, "<eos>")]
    assert "answer 1 of 2, score 2: 2 tokens, learnt\n  | good <eos>\n" in told
    assert "best_worst, takes what is learnt" in told
    long = shown(capsys, "dpo_offline", "--row", 2, *changes)
    assert "61 tokens, learnt" in long
    assert "... 13 more ..." in long
    assert main(["llm", "show-row", "dpo_offline", "--row", "3", *changes]) == 2
    assert "--row 3: there are 2 rows." in capsys.readouterr().err


def test_answers_that_are_alike_have_each_its_own_score(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "why", "answers": ["good", "good", "bad"], "scores": [1, 3, 0]}
    (folder / "alike.jsonl").write_text(json.dumps(row))
    changes = [f"model.base={folder / 'lm'}", f"prompts.file={folder / 'alike.jsonl'}", "loop.candidates=3"]
    told = shown(capsys, "rrhf", *changes, "sampler={type: dataset}")
    heads = [line.split(": ")[0] for line in told.splitlines() if line.startswith("answer ")]
    assert heads == [f"answer {k} of 3, score {score}" for k, score in ((1, 1), (2, 3), (3, 0))]


def test_a_pair_is_shown_as_a_reward_model_reads_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = [f"model.base={folder / 'lm'}", f"pairs.data.file={folder / 'pairs.jsonl'}", "held_out_share=0"]
    told = shown(capsys, "rm_reviews", *changes)
    assert "chosen: 2 tokens, read\n  | good <eos>" in told
    assert tokens(told, "read")[-2:] == [(5, "bad"), (2, "<eos>")]


def test_without_answers_the_prompt_is_shown_and_of_pictures_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, "raft", f"model.base={folder / 'lm'}", "prompts={captions: [film], magic: ['{prompt} good']}")
    assert "no answer: answers are drawn, sampler policy" in told
    assert "what is sampled: 3 tokens, read\n  | <bos> film good" in told
    assert main(["llm", "show-row", "demo"]) == 2
    assert "demo: this is a recipe for pictures; rows are shown of recipes on texts." in capsys.readouterr().err
