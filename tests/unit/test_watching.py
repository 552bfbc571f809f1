"""A run as its files tell it: where it stands, and what to worry about."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raftdiff.config import Config
from raftdiff.errors import UserError
from raftdiff.runs import Run
from raftdiff.types import Prompt, Sample
from raftdiff.watching import snapshot, steadily, warnings


class Loop(Config):
    rounds: int = 2
    candidates: int = 2
    prompts_per_round: int | None = None


class Asked(Config):
    captions: tuple[str, ...] = ("a cat", "a dog")


class Toy(Config):
    name: str = "toy"
    loop: Loop = Loop()
    prompts: Asked = Asked()


def metrics(**changed: Any) -> dict[str, Any]:
    return {
        "round": 0,
        "mean": 1.0,
        "held_out_base": 1.0,
        "held_out": 1.2,
        "discard_rate": 0.0,
        "left_out": [],
        "diversity_all": {"pairwise_distance": 0.4},
        "tune": {"latent_std": 1.0},
        "seconds": {"sample": 2.0, "tune": 1.0},
        "network_evaluations": {"sample": 100},
        **changed,
    }


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", Toy(), seed=0)


def add(run: Run, prompt: str, index: int) -> None:
    draft = run.draft(0)
    asked = Prompt(prompt, prompt, prompt, prompt)
    draft.add(Sample(0, asked, index, index, "policy", Image.new("RGB", (8, 8))))
    draft.flush()


def test_a_run_that_has_only_begun(run: Run) -> None:
    now = snapshot(run)
    assert (now.name, now.metrics, now.making, now.finished) == ("toy", (), None, False)


def test_the_round_that_is_being_made_tells_its_stage(run: Run) -> None:
    add(run, "cat", 0)
    making = snapshot(run).making
    assert making is not None
    assert making[:3] == (0, "sample", 1)
    for prompt, index in (("cat", 1), ("dog", 0), ("dog", 1)):
        add(run, prompt, index)
    making = snapshot(run).making
    assert making is not None
    assert making[:3] == (0, "score", 4)
    assert making.idle < 30


def test_finished_rounds_add_up(run: Run) -> None:
    for t in range(2):
        draft = run.draft(t)
        draft.note(**metrics(round=t))
        draft.commit({})
    now = snapshot(run)
    assert now.finished
    assert (now.seconds, now.network_evaluations) == (6.0, 200)


def test_a_copied_folder_tells_the_same(run: Run, tmp_path: Path) -> None:
    add(run, "cat", 0)
    shutil.copytree(run.path, tmp_path / "copy")
    now = snapshot(Run(tmp_path / "copy")).making
    assert now is not None
    assert now[:3] == (0, "sample", 1)


def test_a_folder_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is not a run directory"):
        snapshot(Run(tmp_path / "nowhere"))


def test_a_file_that_moves_away_is_read_again_where_it_went() -> None:
    tries = iter([FileNotFoundError("renamed"), None])

    def read() -> str:
        if error := next(tries):
            raise error
        return "found"

    assert steadily(read) == "found"


def test_a_healthy_run_warns_of_nothing() -> None:
    assert warnings([metrics(), metrics(mean=1.5, held_out=1.3)]) == []
    assert warnings([]) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mean": 1.5, "held_out": 0.8}, "The held-out reward fell from 1.00 to 0.80"),
        ({"diversity_all": {"pairwise_distance": 0.2}}, "lie 50% as far apart"),
        ({"tune": {"latent_std": 1.5}}, "spread 1.50 times as far"),
        ({"discard_rate": 0.4}, "discard 40% of the candidates"),
        ({"left_out": ["cat"]}, "1 prompts had no valid candidate in the last round: cat"),
    ],
)
def test_each_sign_of_trouble_is_a_sentence_of_its_own(changed: dict[str, Any], sentence: str) -> None:
    (warning,) = warnings([metrics(), metrics(**changed)])
    assert sentence in warning


def test_a_held_out_fall_with_the_training_reward_is_no_hacking() -> None:
    assert warnings([metrics(), metrics(mean=0.5, held_out=0.8)]) == []


def test_answers_that_repeat_themselves_are_a_warning() -> None:
    rounds = [metrics(diversity_all={"distinct_2": share}) for share in (0.4, 0.38, 0.2)]
    assert warnings(rounds[:2]) == []
    assert any(
        "Answers repeat themselves: 20% of their two-word phrases differ, 40%" in one for one in warnings(rounds)
    )
