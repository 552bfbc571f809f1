"""A run as its files tell it: where it stands, and what to worry about."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.measures.alarms import after_going_back
from raftdiff.recipes.config import Config
from raftdiff.records.run import Run
from raftdiff.records.watching import new_warnings, snapshot, steadily, warnings
from raftdiff.types import Prompt, Sample


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
    assert warnings([metrics(), metrics(undecided=1, prompts=4, candidates=16)]) == []  # usual for right or wrong


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mean": 1.5, "held_out": 0.8}, "The held-out reward fell from 1 to 0.8 while"),
        ({"diversity_all": {"pairwise_distance": 0.2}}, "lie 50% as far apart"),
        ({"tune": {"latent_std": 1.12}}, "spread 1.12 times as far"),
        ({"discard_rate": 0.4}, "discard 40% of the candidates"),
        (
            {"discard_rate": 0.4, "mixing": {"vetoed": {"nsfw": 3, "dark": 0}}},
            "discard 40% of the candidates. Vetoes turned down: 'nsfw' 3 (at_least).",
        ),
        (
            {"not_replayed": 1, "not_replayed_kind": "pairs"},
            "1 earlier round selected 'pairs', of which the last round's",
        ),
        ({"left_out": ["cat"]}, "1 prompts had no valid candidate in the last round: cat"),
        ({"discard_rate": 0.4, "blank": 4, "candidates": 10}, "4 of 10 pictures in the last round were blank"),
        ({"discard_rate": 0.4, "too_long": 4, "candidates": 10}, "4 of 10 answers in the last round were longer, with"),
        ({"undecided": 2, "prompts": 4, "candidates": 8}, "told nothing apart for 2 of 4 prompts"),
        ({"undecided": 4, "prompts": 4, "candidates": 4}, "There was one candidate a prompt in the last round"),
        (
            {"undecided": 4, "prompts": 4, "candidates": 4, "per_prompt": 1},
            "There was one candidate a prompt in the last",
        ),
        # of four answers a prompt that were asked for, a server gave one or none
        ({"undecided": 3, "prompts": 4, "candidates": 4, "per_prompt": 4}, "told nothing apart for 3 of 4 prompts"),
        ({"undecided": 1, "prompts": 4, "constant": ["a", "b"]}, "'a' and 'b' said the same"),
    ],
)
def test_each_sign_of_trouble_is_a_sentence_of_its_own(changed: dict[str, Any], sentence: str) -> None:
    (warning,) = warnings([metrics(), metrics(**changed)])
    assert sentence in warning


def test_a_fall_within_chance_is_no_warning_and_one_beyond_it_says_by_how_much() -> None:
    before = [4.0, 5.0, 6.0, None]
    chance = metrics(mean=1.5, held_out=4.9993, held_out_each=[3.0, 6.0, 5.998, 1.0])
    surely = metrics(mean=1.5, held_out=4.5, held_out_each=[3.5, 4.45, 5.55, 1.0])
    first = metrics(held_out_base=5.0, held_out_base_each=before)
    assert warnings([first, chance]) == []
    (warning,) = warnings([first, surely])
    # the changes are -0.5, -0.55, -0.45: mean -0.5, deviation 0.05, so at most -0.5 + 1.96 * 0.05 / sqrt(3)
    assert "fell from 5 to 4.5 (by 0.44 or more, at 95%)" in warning


def test_a_sure_fall_is_a_warning_though_the_training_reward_did_not_rise() -> None:
    """Of one round alone, and of several."""
    held_out = {"held_out_base": 5.0, "held_out_base_each": [4.0, 5.0, 6.0]}
    only = metrics(**held_out, held_out=4.5, held_out_each=[3.5, 4.45, 5.55])
    (warning,) = warnings([only])
    assert "fell from 5 to 4.5 (by 0.44 or more, at 95%), and that of the training prompts did not rise" in warning
    later = metrics(mean=0.5, held_out=4.5, held_out_each=[3.5, 4.45, 5.55])
    assert len(warnings([metrics(**held_out), later])) == 1
    assert warnings([metrics(**held_out, held_out=4.9, held_out_each=[3.0, 6.0, 5.7])]) == []


def test_a_spread_is_compared_with_that_of_rounds_ranked_alike() -> None:
    rounds = [metrics(), metrics(round=1, tune={"latent_std": 1.5}), metrics(round=2, tune={"latent_std": 1.55})]
    assert len(warnings(rounds)) == 1
    rounds[1]["changed"] = ["ranker.selector.type"]
    assert warnings(rounds) == []


def test_a_warning_is_new_in_the_round_that_first_gives_cause_for_it() -> None:
    """As ``train`` tells it while the run goes on; its figures differ from round to round."""
    rounds = [metrics(round=t, tune={"latent_std": 1.0 + 0.06 * t}) for t in range(5)]
    told = [new_warnings(rounds[: t + 1]) for t in range(5)]
    assert [len(found) for found in told] == [0, 0, 1, 0, 0]
    assert "spread 1.12 times as far" in told[2][0]
    assert "spread 1.24 times as far" in warnings(rounds)[0]
    rounds[3] = metrics(round=3, tune={"latent_std": 1.05})
    assert [len(new_warnings(rounds[: t + 1])) for t in range(5)] == [0, 0, 1, 0, 1]


def test_rounds_of_another_reward_are_not_compared() -> None:
    rounds = [metrics(mean=1.0, held_out_base=70.0), metrics(round=1, mean=5.0, held_out=3.0)]
    assert len(warnings(rounds)) == 1
    rounds[1]["changed"] = ["ranker.rewards.0.type"]
    assert warnings(rounds) == []


def test_a_held_out_fall_with_the_training_reward_is_no_hacking() -> None:
    assert warnings([metrics(), metrics(mean=0.5, held_out=0.8)]) == []


def test_answers_that_repeat_themselves_are_a_warning() -> None:
    rounds = [metrics(diversity_all={"distinct_2": share}) for share in (0.4, 0.38, 0.2)]
    assert warnings(rounds[:2]) == []
    assert any(
        "Answers repeat themselves: 20% of their two-word phrases differ, 40%" in one for one in warnings(rounds)
    )


HEALTHY = {"length": 24.0, "perplexity": 4.6, "kl_token": 0.0, "reward_tail": 0.5}
COLLAPSED = {"length": 60.0, "perplexity": 2.0, "kl_token": 0.9, "reward_tail": 0.9}


def ppo(**changed: float) -> list[dict[str, Any]]:
    return [metrics(tune=HEALTHY), metrics(tune={**HEALTHY, **changed})]


def test_the_pattern_of_a_collapse_is_one_sentence_with_every_sign() -> None:
    (warning,) = warnings(ppo(**COLLAPSED))
    assert warning.startswith("The policy runs off, as before a collapse: answers are 2.5 times as long, their ")
    assert "perplexity under the base model is 43% of what it was, the KL to the base is 0.90 nats a token" in warning
    assert "and a few rewards lie far above the rest. Read the answers" in warning


def test_a_run_that_went_back_is_not_advised_to_go_back_once_more() -> None:
    strange = [metrics(held_out_base_figures={"perplexity": 4.7}), metrics(held_out_figures={"perplexity": 530.1})]
    told = [*warnings(ppo(**COLLAPSED)), *warnings(strange)]
    assert all("go back to an earlier round (loop.guard: rollback)" in one for one in told)
    runs_off, left = after_going_back(told)
    assert "Read the answers; raise finetuner.kl.beta" in runs_off
    assert "Read them; lower finetuner.learning_rate" in left


@pytest.mark.parametrize("missing", COLLAPSED)
def test_three_signs_of_four_are_enough(missing: str) -> None:
    (warning,) = warnings(ppo(**{name: value for name, value in COLLAPSED.items() if name != missing}))
    assert "runs off" in warning


@pytest.mark.parametrize("one", COLLAPSED)
@pytest.mark.parametrize("other", COLLAPSED)
def test_one_or_two_signs_are_those_of_learning(one: str, other: str) -> None:
    """A run that learns makes its answers likelier and leaves the base: RAFT does, and is healthy."""
    assert warnings(ppo(**{name: COLLAPSED[name] for name in (one, other)})) == []


def test_a_run_that_learnt_well_is_no_collapse() -> None:
    """PPO-max on the review reward, as measured: likelier, far from the base, shorter, most rewards at the top."""
    assert warnings(ppo(length=14.0, perplexity=3.27, kl_token=0.49, reward_tail=0.0)) == []


def test_other_fine_tuners_have_no_such_figures() -> None:
    assert warnings([metrics(tune={"loss": 1.0}), metrics(tune={"loss": 0.5})]) == []


@pytest.mark.parametrize(("perplexity", "warned"), [(530.1, True), (14.0, False), (2.0, False)])
def test_answers_that_the_base_would_never_give_are_a_warning(perplexity: float, warned: bool) -> None:
    """The first figure is of a PPO run that was lost in its last round, as measured."""
    first = metrics(held_out_base_figures={"perplexity": 4.7}, held_out_figures={"perplexity": 4.6})
    found = warnings([first, metrics(held_out_figures={"perplexity": perplexity})])
    assert (
        any(
            "leave the language of the base model: their perplexity under it is 530.1, that of its own 4.7" in one
            for one in found
        )
        is warned
    )
