"""PPO and PPO-max raise the reward of a random language model of a dozen words; a killed run gives the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.ppo.finetuner import PpoConfig
from raftdiff.llm.ppo.rollouts import written_rows
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler
from raftdiff.progress import Quiet
from raftdiff.raft import raft
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import check
from raftdiff.records.run import Run
from raftdiff.selection.lessons import AllConfig
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.testing.toy import TOY_WORDS, ToyRecipe, WordShare
from raftdiff.types import Prompt, Report, Round

PPO: dict[str, Any] = {"kl": {"beta": 0.01}, "critic": {"learning_rate": 1e-2}}
PPO_MAX: dict[str, Any] = {
    "kl": {"beta": 0.01, "adaptive": {"target": 3.0}},
    "reward_norm": "normalise",
    "reward_clip": 2.0,
    "value_clip": 0.2,
    "max_grad_norm": 1.0,
    "critic": {"learning_rate": 1e-2, "pretrain_steps": 8},
    "ptx": {"weight": 0.05, "batch_size": 4, "data": {"captions": ["-"]}},
}
METHODS = {"ppo": (PPO, 4, 16), "ppo_max": (PPO_MAX, 8, 8)}
"""Switches, rounds, and candidates a prompt: PPO-max learns from half as many answers at a time, twice as often."""


def parts(folder: Path, name: str, *, adapter: str = "lora", shorter: int = 0) -> Parts[str]:
    """A loop on a fresh model, as a new process would build it."""
    switches, rounds, candidates = METHODS[name]
    base = LMConfig(base=str(folder), device="cpu")
    lm = load(base, str)
    options = {"rank": 8, "learning_rate": 5e-3, "batch_size": 16, "epochs": 2, "adapter": adapter, **switches}
    config = check(PpoConfig, options)
    answered = [Prompt(word, word, word, word, meta={"answers": [{"text": f"was {word}"}]}) for word in TOY_WORDS]
    finetuner = config.build(
        lm,
        total_rounds=rounds,
        seed=0,
        critic=config.critic.open(base, lm, str, seed=0),
        pretraining=written_rows(lm, answered) if config.ptx else [],
    )
    return Parts(
        sampler=LMSampler(lm, DecodingConfig(max_new_tokens=6), 64, "policy"),
        ranker=Ranker([(WordShare(), 1.0)], AllConfig().build(seed=0)),
        finetuner=finetuner,
        prompts=[Prompt(f"p{place}", text, text, text) for place, text in enumerate(TOY_WORDS)],
        loop=LoopConfig(rounds=rounds - shorter, candidates=candidates, seed=0),
    )


def finish(path: Path, loop: Parts[str]) -> list[Round]:
    return list(raft(Run.create(path, ToyRecipe(), seed=0), loop))


@pytest.mark.parametrize(("name", "adapter"), [("ppo", "full"), ("ppo_max", "full"), ("ppo_max", "lora")])
def test_it_raises_the_reward(folder: Path, tmp_path: Path, name: str, adapter: str) -> None:
    """A round's mean is of the policy before it learns, so that the first is the base model's."""
    rounds = finish(tmp_path / "run", parts(folder, name, adapter=adapter))
    curve = [one.metrics["mean"] for one in rounds]
    assert curve[-1] > curve[0] + 0.3
    assert rounds[-1].metrics["tune"]["kl"] > 0.1, "what is learnt leaves the base"


# --- killed and resumed ---


class KilledError(Exception):
    """Stands for SIGKILL: nothing runs after it but what the loop does for any error."""


class Dying(Quiet):
    """A progress that dies in the tuning of a round."""

    def __init__(self, round: int, step: int) -> None:
        self._at = (round, "tune", step)

    def stage(self, round: int, name: str) -> Report:
        def report(done: int, total: int) -> None:
            if (round, name, done) == self._at:
                raise KilledError

        return report


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    path = tmp_path_factory.mktemp("whole") / "run"
    finish(path, parts(folder, "ppo_max", shorter=5))
    return path


@pytest.mark.parametrize(("round", "step"), [(0, 3), (0, 12), (2, 1)], ids=["pretraining", "first", "later"])
def test_a_killed_run_continues_to_the_same_bits(
    whole: Path, folder: Path, tmp_path: Path, round: int, step: int
) -> None:
    """Killed while the critic learns alone, in the first round's steps, and in a later round."""
    run = Run.create(tmp_path / "killed", ToyRecipe(), seed=0)
    with pytest.raises(KilledError):
        list(raft(run, parts(folder, "ppo_max", shorter=5), Dying(round, step)))
    assert run.rounds_done() == round
    assert len(list(raft(run, parts(folder, "ppo_max", shorter=5)))) == 3 - round
    one, other = (Run.open(path).state() or {} for path in (whole, tmp_path / "killed"))
    assert set(one) == {"adapter", "optimizer", "critic", "critic_optimizer", "ppo"}
    assert all(torch.equal(one[stem][name], other[stem][name]) for stem in one for name in one[stem])
    rows = [(path / "rounds/002/samples/metadata.jsonl").read_text() for path in (whole, tmp_path / "killed")]
    assert rows[0] == rows[1]
