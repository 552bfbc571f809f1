"""A server that a recipe names and that is not there: said before anything is drawn, and not where nobody asks it."""

import json
from pathlib import Path

import pytest

from raftdiff.cli.main import main
from raftdiff.llm.model import tiny
from raftdiff.testing.servers import chat_server

WORDS = ("rain", "snow", "sun", "wind")


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A recipe of one round, whose reward is a server's."""
    monkeypatch.chdir(tmp_path)
    return [
        "llm",
        "raft",
        "--out",
        "run",
        f"model.base={tiny.write(tmp_path / 'lm', WORDS)}",
        "prompts={captions: [rain, snow]}",
        "evaluation={prompts: {captions: [sun]}, every_round: 0, samples_per_prompt: 1}",
        "sampler.decoding.max_new_tokens=3",
        "loop={rounds: 1, candidates: 2}",
        "logging.tracker=null",
    ]


def judge(address: str) -> str:
    return f"ranker.rewards=[{{type: server, base_url: '{address}', model: judge, retries: 0, criteria: [warmth]}}]"


def said(asked: object) -> str:
    return f"warmth: {1 + len(str(asked)) % 5}"


def test_a_wrong_address_leaves_no_run_behind(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(said) as gone:
        pass
    assert main([*words, judge(gone)]) != 0
    assert f"The server at {gone} gave no answer" in capsys.readouterr().err
    assert not Path("run").exists(), "nothing was drawn"


def test_what_is_drawn_goes_on_without_a_question(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(said) as address:
        pass
    assert main(["sample", *words[1:], judge(address)]) == 0, "candidates may be scored on another machine"
    port, asked = int(address.split(":")[2].split("/")[0]), []

    def counted(request: object) -> str:
        asked.append(request)
        return said(request)

    with chat_server(counted, port=port):
        assert main(["score", "run"]) == 0
    assert len(asked) == 4
    assert main(["train", "run"]) == 0, "all that it has to say is kept"
    assert json.loads(Path("run/rounds/000/metrics.json").read_text())["candidates"] == 4
    assert main(["show", "run"]) == 0
    capsys.readouterr()
    assert main(["eval", "run"]) != 0
    assert "gave no answer" in capsys.readouterr().err
    assert not Path("run/eval/eval.json").exists()
    assert main(["train", "run", "loop.rounds=2"]) != 0
    assert not Path("run/rounds/001.partial").exists(), "told before the next round is begun"
