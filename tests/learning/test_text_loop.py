"""Every method raises the reward of a random language model of a dozen words; and a killed run gives the same bits."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float32

from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler
from raftdiff.progress import Quiet
from raftdiff.raft import raft
from raftdiff.ranking import Ranker
from raftdiff.records.run import Run
from raftdiff.selection.best import BestOfKConfig, RandomConfig, TopFractionConfig
from raftdiff.selection.lessons import AdvantageConfig, BestWorstConfig, RankedConfig, SoftmaxConfig, ThresholdConfig
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.stages.verbs import commit, sample, score, select, tune
from raftdiff.testing.toy import TOY_WORDS, ToyRecipe, WordShare
from raftdiff.types import Prompt, Report, Round, Sample


class Verifier:
    """1 where the answer says "good", else -1: what RAFT++ and Reinforce-Rej are made for."""

    name = "verifier"

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([1.0 if "good" in one.media.split() else -1.0 for one in samples], dtype=torch.float32)


def parts(
    folder: Path,
    objective: dict[str, Any],
    selector: Any,
    *,
    reward: Any = None,
    rounds: int = 4,
    candidates: int = 8,
    seed: int = 0,
    **changes: Any,
) -> Parts[str]:
    """A loop on a fresh model, as a new process would build it."""
    lm = load(LMConfig(base=str(folder), device="cpu"), str)
    options = {"rank": 8, "learning_rate": 5e-3, "batch_size": 16, "objective": objective, "epochs": 2, **changes}
    finetuner = LMFineTunerConfig(**options).build(lm, total_rounds=rounds, max_tokens=6, seed=0)
    return Parts(
        sampler=LMSampler(lm, DecodingConfig(max_new_tokens=6), 64, "policy"),
        ranker=Ranker([(reward or WordShare(), 1.0)], selector.build(seed=0)),
        finetuner=finetuner,
        prompts=[Prompt(f"p{place}", text, text, text) for place, text in enumerate(TOY_WORDS)],
        loop=LoopConfig(rounds=rounds, candidates=candidates, seed=seed),
    )


def finish(path: Path, loop: Parts[str]) -> list[Round]:
    return list(raft(Run.create(path, ToyRecipe(), seed=0), loop))


SFT = {"type": "sft"}
PG = {"type": "policy_gradient"}
METHODS: dict[str, tuple[dict[str, Any], Any, dict[str, Any]]] = {
    "raft": (SFT, BestOfKConfig(), {"epochs": 6}),
    "raft_global": (SFT, TopFractionConfig(fraction=0.125), {"epochs": 6}),
    "rwr": (SFT, SoftmaxConfig(temperature=0.1), {}),
    "rrhf": ({"type": "rrhf"}, RankedConfig(), {}),
    **{
        name: ({"type": "preference", "loss": name, **options}, BestWorstConfig(), {"epochs": 4})
        for name, options in {
            "dpo": {},
            "cdpo": {"smoothing": 0.1},
            "robust": {"smoothing": 0.1},
            "ipo": {},
            "hinge": {},
            "simpo": {"beta": 2.0},
            "orpo": {"orpo_weight": 1.0},
        }.items()
    },
    "kto": ({"type": "kto"}, ThresholdConfig(), {}),
    "grpo": (PG, AdvantageConfig(method="grpo"), {}),
    "dr_grpo": ({**PG, "aggregation": "dr_grpo"}, AdvantageConfig(method="dr_grpo"), {}),
    "rloo": ({**PG, "aggregation": "seq_mean_token_sum"}, AdvantageConfig(method="rloo"), {}),
    "reinforce_pp": (PG, AdvantageConfig(method="reinforce_plus_plus_baseline"), {}),
    "raft_pp": (PG, AdvantageConfig(method="raft_plus_plus"), {"reward": Verifier(), "epochs": 3}),
    "reinforce_rej": (PG, AdvantageConfig(method="reinforce_rej"), {"reward": Verifier(), "epochs": 3}),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_raises_the_reward(folder: Path, tmp_path: Path, name: str) -> None:
    """A round's mean is of the policy before it learns, so that the first is the base model's."""
    objective, selector, changes = METHODS[name]
    curve = [one.metrics["mean"] for one in finish(tmp_path / "run", parts(folder, objective, selector, **changes))]
    assert curve[-1] > curve[0] + 0.15


def test_without_ranking_nothing_rises(folder: Path, tmp_path: Path) -> None:
    loop = parts(folder, SFT, RandomConfig(), epochs=6)
    curve = [one.metrics["mean"] for one in finish(tmp_path / "run", loop)]
    assert abs(curve[-1] - curve[0]) < 0.1


def test_the_reward_rises_with_k(folder: Path, tmp_path: Path) -> None:
    few, many = (
        finish(tmp_path / str(k), parts(folder, SFT, BestOfKConfig(), candidates=k, epochs=6, rounds=3))
        for k in (2, 16)
    )
    assert many[-1].metrics["mean"] > few[-1].metrics["mean"] + 0.05


# --- killed and resumed ---


class KilledError(Exception):
    """Stands for SIGKILL: nothing runs after it but what the loop does for any error."""


class Dying(Quiet):
    """A progress that dies at a step of a stage of the second round."""

    def __init__(self, stage: str, step: int) -> None:
        self._stage, self._step = stage, step

    def stage(self, round: int, name: str) -> Report:
        def report(done: int, total: int) -> None:
            if (round, name, done) == (1, self._stage, self._step):
                raise KilledError

        return report


CASES: dict[str, Callable[[Path], Parts[str]]] = {
    "raft": lambda folder: parts(folder, SFT, BestOfKConfig(), rounds=3, dropout=0.1),
    "grpo": lambda folder: parts(
        folder,
        {**PG, "beta": 0.05},
        AdvantageConfig(),
        rounds=3,
        adapter="full",
        learning_rate=1e-3,
        lr_schedule="cosine",
    ),
    "dpo": lambda folder: parts(
        folder, {"type": "preference"}, BestWorstConfig(), rounds=3, optimizer="rmsprop", learning_rate=1e-3
    ),
}


def contents(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The last state, and every answer with its scores."""
    run = Run.open(path)
    state = {f"{stem}/{name}": tensor for stem, part in (run.state() or {}).items() for name, tensor in part.items()}
    rows = "".join((path / f"rounds/{t:03d}/samples/metadata.jsonl").read_text() for t in range(run.rounds_done()))
    return state, rows


def same(one: Path, other: Path) -> None:
    (state, rows), (twin, others) = contents(one), contents(other)
    assert rows == others
    assert state.keys() == twin.keys()
    assert all(torch.equal(state[name], twin[name]) for name in state)


@pytest.fixture(scope="module", params=CASES)
def whole(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    finish(path, CASES[request.param](folder))
    return request.param, path


@pytest.mark.parametrize(("stage", "step"), [("sample", 30), ("score", 64), ("tune", 1)])
def test_a_run_killed_in_a_stage_continues_to_the_same_bits(
    whole: tuple[str, Path], folder: Path, tmp_path: Path, stage: str, step: int
) -> None:
    name, path = whole
    run = Run.create(tmp_path / "killed", ToyRecipe(), seed=0)
    with pytest.raises(KilledError):
        list(raft(run, CASES[name](folder), Dying(stage, step)))
    assert run.rounds_done() == 1
    assert [one.index for one in raft(run, CASES[name](folder))] == [1, 2]
    same(path, tmp_path / "killed")


def test_stages_in_a_process_each_give_the_same_bits(whole: tuple[str, Path], folder: Path, tmp_path: Path) -> None:
    """A new model, sampler and fine-tuner for every stage, with the state of the last round."""
    name, path = whole
    run = Run.create(tmp_path / "stages", ToyRecipe(), seed=0)

    def fresh() -> Parts[str]:
        loop = CASES[name](folder)
        if state := run.state():
            loop.finetuner.load_state_dict(state)
        return loop

    def rounds() -> Iterator[Round]:
        for t in range(3):
            sample(run.draft(t), run, fresh(), Quiet())
            loop = fresh()
            score(run.draft(t), loop.ranker, loop.prompts, loop.loop, Quiet())
            select(run.draft(t), run, fresh().ranker)
            last = fresh()
            tune(run.draft(t), run, last, Quiet())
            yield commit(run.draft(t), run, last)

    assert len(list(rounds())) == 3
    same(path, tmp_path / "stages")
