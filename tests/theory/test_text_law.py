"""The law of best of K, met by the real loop: T rounds with K equal one with K^T, on a policy of a few words.

The loop, the ranker, the selector and the run directory are those of every run, and the medium is text; sampler and
fine-tuner are a categorical distribution and its maximum-likelihood fit, so that the only distance to the law is that
of finite data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float32

from raftdiff.raft import raft
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import Config
from raftdiff.records.run import Run
from raftdiff.seeds import fold
from raftdiff.selection.advantages import best_of_k_bound, best_of_n_kl_bound, exact_best_of, exact_best_of_k
from raftdiff.selection.best import BestOfK, Random
from raftdiff.selection.lessons import SoftmaxConfig
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.types import Key, Prompt, Report, Requires, Sample, Selection, Selector, Source, State

WORDS = ("awful", "poor", "fair", "good", "fine", "superb")
P = np.array([0.3, 0.2, 0.2, 0.15, 0.1, 0.05])
R = np.array([-1.0, -0.6, 0.1, 0.4, 0.4, 1.0])  # two are equal: ties keep their proportions
MEAN = float(P @ R)
NEAR = 0.08
"""How far off the law 1024 prompts may be: 0.04 on average, as the error of a round goes into the next."""


class WordRecipe(Config):
    name: str = "words"
    seed: int = 0


class Words:
    """A distribution over words, whatever the prompt."""

    def __init__(self) -> None:
        self.p = P.copy()


class WordSampler:
    source: Source = "policy"
    provides: tuple[str, ...] = ()

    def __init__(self, policy: Words) -> None:
        self.policy = policy
        self._drawn = 0

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        edges = self.policy.p.cumsum()
        for prompt in prompts:
            for index in range(per_prompt):
                if (prompt.id, index) not in done:
                    own = fold(seed, prompt.id, index)
                    self._drawn += 1
                    word = int(np.searchsorted(edges, own / 2**63 * edges[-1], side="right"))
                    yield Sample(round, prompt, index, own, self.source, WORDS[min(word, len(WORDS) - 1)])

    def network_evaluations(self) -> int:
        return self._drawn


Noise = Callable[[Sample[str]], float]


class WordReward:
    """What a word is worth, and the noise that the ranking sees."""

    name = "words"

    def __init__(self, noise: Noise = lambda sample: 0.0) -> None:
        self.noise = noise

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        worth = [R[WORDS.index(sample.media)] + self.noise(sample) for sample in samples]
        return torch.tensor(worth, dtype=torch.float32)


class WordFineTuner:
    """Maximum likelihood: weighted counts of what was selected."""

    requires = Requires(kinds=("weighted",))

    def __init__(self, policy: Words) -> None:
        self.policy = policy

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[str]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        counts = np.zeros(len(WORDS))
        for item in selection.items:
            counts[WORDS.index(samples[item.keys[0]].media)] += item.weight
        self.policy.p = counts / counts.sum()
        report(1, 1)
        return {"loss": 0.0, "steps": 1.0}

    def state_dict(self) -> State:
        return {"policy": {"p": torch.from_numpy(self.policy.p)}}

    def load_state_dict(self, state: State) -> None:
        self.policy.p = state["policy"]["p"].numpy()


def run(
    path: Path,
    k: int,
    rounds: int,
    prompts: int,
    *,
    seed: int = 0,
    selector: Selector | None = None,
    noise: Noise = lambda sample: 0.0,
) -> list[np.ndarray]:
    """The policy before the first round and after each."""
    policy = Words()
    parts = Parts(
        sampler=WordSampler(policy),
        ranker=Ranker([(WordReward(noise), 1.0)], selector or BestOfK(1)),
        finetuner=WordFineTuner(policy),
        prompts=[Prompt(f"p{place}", "a word", "a word", "a word") for place in range(prompts)],
        loop=LoopConfig(rounds=rounds, candidates=k, seed=seed),
    )
    return [P, *(policy.p for _ in raft(Run.create(path, WordRecipe(), seed=seed), parts))]


def distance(p: np.ndarray, q: np.ndarray) -> float:
    """Total variation: 0 to 1."""
    return float(np.abs(p - q).sum() / 2)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())


Policies = list[np.ndarray]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """Three rounds of the better of two."""
    return run(tmp_path_factory.mktemp("pairs") / "run", 2, 3, 1024)


@pytest.fixture(scope="module")
def fours(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """Two rounds of the best of four."""
    return run(tmp_path_factory.mktemp("fours") / "run", 4, 2, 1024)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> list[Policies]:
    """As ``pairs``, 24 times with a 32nd of the prompts."""
    folder = tmp_path_factory.mktemp("few")
    return [run(folder / str(seed), 2, 3, 32, seed=seed) for seed in range(24)]


@pytest.mark.parametrize("rounds", [2, 3])
def test_rounds_of_best_of_k_approach_one_of_best_of_their_power(
    pairs: Policies, few: list[Policies], rounds: int
) -> None:
    """The distance falls as 1 / sqrt(prompts): 32 times the prompts, about 6 times closer."""
    exact = exact_best_of_k(P, R, 2**rounds)
    assert distance(pairs[rounds], exact) < NEAR
    assert distance(pairs[rounds], exact) < 0.5 * np.mean([distance(one[rounds], exact) for one in few])


def test_every_round_on_the_way_is_on_the_law(pairs: Policies) -> None:
    for t, p in enumerate(pairs):
        exact = exact_best_of_k(P, R, 2**t)
        assert distance(p, exact) < NEAR
        assert p @ R == pytest.approx(exact @ R, abs=0.1)
        assert p @ R <= best_of_k_bound(MEAN, float(np.ptp(R)), 2**t) + 0.03
        assert kl(p, P) <= best_of_n_kl_bound(2**t) + 0.03


def test_k_of_2_twice_is_k_of_4_once(pairs: Policies, fours: Policies) -> None:
    once, twice = pairs[1:3]
    assert distance(twice, fours[1]) < 0.06
    assert distance(twice, once) > 0.1


def test_the_mean_reward_rises_with_k_and_with_rounds(tmp_path: Path, pairs: Policies, fours: Policies) -> None:
    alone, eights = run(tmp_path / "1", 1, 2, 1024), run(tmp_path / "8", 8, 2, 512)
    means = [[float(p @ R) for p in policies[:3]] for policies in (alone, pairs, fours, eights)]
    assert means[0] == pytest.approx([MEAN] * 3, abs=0.08)  # K = 1 is fine-tuning on one's own samples
    for rising in means[1:]:
        assert rising[0] < rising[1] < rising[2]
    assert means[0][1] < means[1][1] < means[2][1] < means[3][1]


def test_random_selection_gains_nothing(tmp_path: Path) -> None:
    control = run(tmp_path / "random", 4, 2, 512, selector=Random(1, seed=0))
    assert [float(p @ R) for p in control] == pytest.approx([MEAN] * 3, abs=0.08)


def test_a_cold_softmax_is_raft_and_a_hot_one_changes_nothing(tmp_path: Path, fours: Policies) -> None:
    cold = run(tmp_path / "cold", 4, 1, 1024, selector=SoftmaxConfig(temperature=1e-4).build(seed=0))[-1]
    hot = run(tmp_path / "hot", 4, 1, 1024, selector=SoftmaxConfig(temperature=1e4).build(seed=0))[-1]
    assert distance(cold, fours[1]) < 0.02  # but for ties, which it shares out
    assert distance(hot, P) < 0.03


def test_two_samplers_give_the_best_of_both(tmp_path: Path) -> None:
    """One draw of each a prompt: the law for mixed sources, with the ranker's rule for ties."""
    policy, q = Words(), np.array([0.1, 0.1, 0.1, 0.2, 0.2, 0.3])

    class Pair(WordSampler):
        def sample(self, prompts, *, per_prompt, seed, round, done):
            for index, p in enumerate((P, q)):
                policy.p = p
                for one in super().sample(prompts, per_prompt=2, seed=seed, round=round, done=done):
                    if one.index == index:
                        yield one

    parts = Parts(
        sampler=Pair(policy),
        ranker=Ranker([(WordReward(), 1.0)], BestOfK(1)),
        finetuner=WordFineTuner(policy),
        prompts=[Prompt(f"p{place}", "a word", "a word", "a word") for place in range(1024)],
        loop=LoopConfig(rounds=1, candidates=2),
    )
    list(raft(Run.create(tmp_path / "run", WordRecipe(), seed=0), parts))
    exact = exact_best_of(np.stack([P, q]), R)
    assert distance(policy.p, exact) < 0.04
    assert distance(exact_best_of_k(P, R, 2), exact) > 0.1


def test_a_run_in_two_processes_is_on_the_same_bits(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 2, 3, 64)
    part = run(tmp_path / "part", 2, 2, 64)
    assert np.array_equal(part[-1], whole[2])
    again = run(tmp_path / "part", 2, 3, 64)
    assert np.array_equal(again[-1], whole[-1])


BIASES = (-0.75, -0.25, 0.5, 1.0)


def generator(*parts: int | str) -> np.random.Generator:
    return np.random.default_rng(fold(*parts))


def gaussian(sample: Sample[str]) -> float:
    return float(generator(sample.seed, "noise").normal())


def biased(hit: np.random.Generator, own: np.random.Generator) -> float:
    """With probability 0.2 a bias, and noise of standard deviation 1 about it."""
    return float(hit.choice(BIASES) + own.normal()) if hit.random() < 0.2 else 0.0


def biased_prompts(sample: Sample[str]) -> float:
    return biased(generator(sample.round, sample.prompt.id, "bias"), generator(sample.seed, "noise"))


def biased_samples(sample: Sample[str]) -> float:
    return biased(generator(sample.seed, "bias"), generator(sample.seed, "noise"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Policies:
    """What a round without noise makes of the same prompts."""
    return run(tmp_path_factory.mktemp("clean") / "run", 6, 1, 256)


@pytest.mark.parametrize("noise", [gaussian, biased_prompts, biased_samples])
def test_the_true_reward_rises_under_the_papers_three_kinds_of_noise(
    tmp_path: Path, clean: Policies, noise: Noise
) -> None:
    """RAFT, appendix A.3: the ranking sees noisy rewards; what is measured is the true one."""
    means = [float(p @ R) for p in run(tmp_path / "run", 6, 3, 256, noise=noise)]
    assert np.diff(means).min() > 0.05
    assert means[-1] > 0.5
    assert means[1] < clean[1] @ R + 0.05  # noise is no help
