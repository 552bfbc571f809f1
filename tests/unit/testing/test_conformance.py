"""The checks catch what they are for, and the toy world obeys theory."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.seeds import fold
from raftdiff.testing.conformance import check_finetuner, check_reward, check_sampler
from raftdiff.testing.examples import reward_samples
from raftdiff.testing.toy import (
    MAGIC_SHIFT,
    ToyFineTuner,
    ToyPolicy,
    ToyReward,
    ToySampler,
    toy_direction,
    toy_features,
    toy_prompts,
    toy_world,
)
from raftdiff.types import Item, Key, Prompt, Report, Sample, Selection, Source, State, silent

Samples = Sequence[Sample[Image.Image]]
ORDER_STATISTIC = {2: 0.5641896, 5: 1.1629645, 20: 1.8674751}
"""Mean of the largest of K standard normals."""


@dataclass
class Scored:
    """A reward that is any function of the samples. Higher is better."""

    call: Callable[[Samples], Any]
    name: str = "mine"

    def score(self, samples: Samples) -> Any:
        return self.call(samples)


def brightness(samples: Samples) -> torch.Tensor:
    return torch.tensor([float(np.asarray(sample.media).mean()) for sample in samples])


def failed(report: Any) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_a_reward_that_drops_the_batch_axis_of_a_single_sample_is_a_finding() -> None:
    report = check_reward(Scored(lambda samples: brightness(samples).squeeze()), reward_samples())
    assert failed(report) == {"batch-invariant"}
    assert "score() of 1 returned Tensor of shape ()" in str(report)
    assert "keep the batch axis" in str(report)


def test_a_reward_that_raises_on_a_single_sample_is_a_finding() -> None:
    def fussy(samples: Samples) -> torch.Tensor:
        if len(samples) < 2:
            raise RuntimeError("one is not enough")
        return brightness(samples)

    report = check_reward(Scored(fussy), reward_samples())
    assert failed(report) == {"batch-invariant"}
    assert "one is not enough" in str(report)


def test_a_good_reward_passes() -> None:
    report = check_reward(Scored(brightness), reward_samples())
    assert failed(report) == set(), str(report)
    report.demand()
    lines = str(report).splitlines()
    first = float(np.asarray(reward_samples()[0].media).mean())
    assert lines[:2] == ["The reward 'mine'", f"  {first:>10.4g}  example-0: a red circle"]
    assert lines[9:11] == [
        "ok    name: the column of its scores is headed 'mine'.",
        "ok    numbers: score() returned one number for each of 8 samples.",
    ]


@pytest.mark.parametrize(
    "call", [lambda s: brightness(s)[:, None], lambda s: brightness(s).tolist(), lambda s: brightness(s).double()]
)
def test_what_the_loop_takes_passes_with_a_word_on_what_is_usual(call: Callable[[Samples], Any]) -> None:
    report = check_reward(Scored(call), reward_samples())
    assert failed(report) == {"dtype"}
    assert report.passed
    assert "rewards usually return a float32 tensor of shape (8,)" in str(report)


def vandal(samples: Samples) -> torch.Tensor:
    scores = brightness(samples)
    samples[0].media.putpixel((0, 0), (1, 2, 3))
    return scores


def aux_vandal(samples: Samples) -> torch.Tensor:
    for sample in samples:
        sample.aux["latent"].zero_()
    return brightness(samples)


class Drifting:
    """Higher is better."""

    name = "drifting"
    calls = 0

    def score(self, samples: Samples) -> torch.Tensor:
        self.calls += 1
        return brightness(samples) + self.calls


@pytest.mark.parametrize(
    ("call", "name", "sentence"),
    [
        (lambda s: brightness(s)[1:], "numbers", r"score\(\) returned Tensor of shape \(7,\)"),
        (lambda s: (brightness(s), {}), "numbers", "That is a pair: return its first part"),
        (lambda s: brightness(s) / 0, "numbers", "infinity for 8 of 8 samples, inf for number 0"),
        (lambda s: brightness(s) * float("nan"), "finite", "not NaN for all of them"),
        (lambda s: brightness(s) - brightness(s).mean(), "batch-invariant", "do not normalise over the batch"),
        (lambda s: brightness(s) + torch.arange(len(s)), "batch-invariant", "alone and in any order"),
        (vandal, "pure", "leave the samples as they were"),
        (lambda s: 1 / 0, "runs", r"score\(\) raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_bad_reward_is_told_what_to_fix(call: Callable[[Samples], Any], name: str, sentence: str) -> None:
    report = check_reward(Scored(call), reward_samples())
    assert name in failed(report)
    with pytest.raises(UserError, match=f"(?s)The reward 'mine' does not keep its contract:.*{name}: .*{sentence}"):
        report.demand()


def test_a_reward_that_changes_its_mind_is_found() -> None:
    assert "deterministic" in failed(check_reward(Drifting(), reward_samples()))


def test_a_reward_that_harms_the_latents_is_found() -> None:
    samples = [replace(sample, aux={"latent": torch.ones(3)}) for sample in reward_samples()]
    assert failed(check_reward(Scored(aux_vandal), samples)) == {"pure"}


class Brightness:
    """Mean of all channels, 0 to 1; higher is brighter."""

    name = "brightness"

    def __init__(self, graded: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._graded = graded

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.tensor([float(np.asarray(sample.media.convert("RGB")).mean() / 255) for sample in samples])

    def graded(self, pixels: torch.Tensor, prompts: Sequence[Prompt]) -> torch.Tensor:
        return self._graded(pixels)


@pytest.mark.parametrize(
    ("graded", "passed", "sentence"),
    [
        (lambda pixels: pixels.mean(dim=(1, 2, 3)), True, "says what score() says"),
        (lambda pixels: 1 - pixels.mean(dim=(1, 2, 3)), False, "differ by up to"),
        (lambda pixels: pixels.mean(), False, "should return 5 numbers for as many pictures; it returned ()"),
        (lambda pixels: pixels.detach().mean(dim=(1, 2, 3)), False, "raised RuntimeError"),
        (lambda pixels: pixels.detach().mean(dim=(1, 2, 3)) + 0 * pixels.sum(), False, "no gradient for some picture"),
    ],
)
def test_a_gradient_belongs_to_its_score(
    graded: Callable[[torch.Tensor], torch.Tensor], passed: bool, sentence: str
) -> None:
    report = check_reward(Brightness(graded), reward_samples(count=5))
    (found,) = (check for check in report.checks if check.name == "gradient")
    assert (found.passed, report.passed) == (passed, passed)
    assert sentence in found.sentence


def test_some_nan_is_a_discard_not_a_fault() -> None:
    def picky(samples: Samples) -> torch.Tensor:
        return torch.where(brightness(samples) > 150, brightness(samples), torch.nan)

    assert failed(check_reward(Scored(picky), reward_samples())) == set()


def test_advice_does_not_fail_a_reward() -> None:
    class Silent:
        name = "silent"

        def score(self, samples: Samples) -> torch.Tensor:
            return torch.zeros(len(samples))

    report = check_reward(Silent(), reward_samples())
    assert failed(report) == {"varied", "direction"}
    assert report.passed
    assert "note  direction: " in str(report)


def test_the_toy_world_keeps_its_contracts() -> None:
    sampler, reward, _ = toy_world()
    prompts = toy_prompts(3)
    assert failed(check_sampler(sampler, prompts)) == set()
    samples = draw(sampler, prompts, per_prompt=3)
    assert failed(check_reward(reward, samples)) == set()
    report = check_finetuner(lambda: ToyFineTuner(ToyPolicy()), best(samples, reward), store(samples))
    assert failed(report) == set(), str(report)


class WrongSampler:
    """A toy sampler with one thing spoilt."""

    source: Source = "policy"

    def __init__(self, spoil: Callable[[list[Any], AbstractSet[Any]], list[Any]], provides: tuple[str, ...]) -> None:
        self.inner, self.spoil, self.provides = ToySampler(ToyPolicy()), spoil, provides
        self.runs = 0

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        self.runs += 1
        drawn = self.inner.sample(prompts, per_prompt=per_prompt, seed=seed, round=round, done=frozenset())
        kept = [sample for sample in drawn if (sample.prompt.id, sample.index) not in done]
        yield from self.spoil(kept, done)

    def network_evaluations(self) -> int:
        return -self.inner.network_evaluations()


BLACK = Image.new("RGB", (8, 8))


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (lambda samples, done: [*samples, samples[0]], "keys"),
        (lambda samples, done: samples[1:], "counts"),
        (lambda samples, done: [replace(sample, seed=0) for sample in samples], "seeds"),
        (lambda samples, done: [replace(sample, source="human") for sample in samples], "labels"),
        (lambda samples, done: [replace(sample, round=0) for sample in samples], "labels"),
        (lambda samples, done: [replace(sample, aux={}) for sample in samples], "provides"),
        (lambda samples, done: [replace(s, media=BLACK) for s in samples] if done else samples, "done"),
        (lambda samples, done: samples, "network evaluations"),
    ],
)
def test_a_bad_sampler_is_found(spoil: Callable[[list[Any], AbstractSet[Any]], list[Any]], name: str) -> None:
    report = check_sampler(WrongSampler(spoil, ("latent",)), toy_prompts(2))
    assert name in failed(report), str(report)
    with pytest.raises(UserError, match="The sampler 'WrongSampler' does not keep its contract"):
        report.demand()


def test_a_sampler_with_a_hidden_generator_is_found() -> None:
    noise = iter(range(10_000))

    def spoil(samples: list[Any], done: AbstractSet[Any]) -> list[Any]:
        return [replace(sample, aux={"latent": torch.tensor(next(noise))}) for sample in samples]

    assert "deterministic" in failed(check_sampler(WrongSampler(spoil, ("latent",)), toy_prompts(2)))


HIDDEN = itertools.count()


class WrongFineTuner:
    """A toy fine-tuner with one thing spoilt."""

    requires = ToyFineTuner.requires

    def __init__(self, spoilt: str) -> None:
        self.inner, self.spoilt = ToyFineTuner(ToyPolicy()), spoilt
        if spoilt == "kinds":
            self.requires = replace(self.requires, kinds=("pairs",))
        if spoilt == "requires":
            self.requires = replace(self.requires, aux=())

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[Image.Image]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        if self.spoilt == "deterministic":
            seed = next(HIDDEN)
        if self.spoilt == "pure":
            samples[selection.items[0].keys[0]].media.putpixel((0, 0), (9, 9, 9))
        if self.spoilt == "requires":
            samples = {k: replace(s, aux={"latent": s.aux.get("latent", torch.zeros(3))}) for k, s in samples.items()}
        figures = {} if self.spoilt == "learns" else self.inner.fit(selection, samples, seed=seed, report=report)
        return {"loss": float("nan")} if self.spoilt == "figures" else figures

    def state_dict(self) -> State:
        state = self.inner.state_dict()
        return {**state, "optimizer": {}} if self.spoilt == "resumes" else state

    def load_state_dict(self, state: State) -> None:
        if self.spoilt != "round trip":
            self.inner.load_state_dict(state)


@pytest.mark.parametrize(
    "spoilt", ["kinds", "figures", "learns", "pure", "deterministic", "round trip", "resumes", "requires"]
)
def test_a_bad_finetuner_is_found(spoilt: str) -> None:
    sampler, reward, _ = toy_world()
    samples = draw(sampler, toy_prompts(3), per_prompt=3)
    report = check_finetuner(lambda: WrongFineTuner(spoilt), best(samples, reward), store(samples))
    assert spoilt in failed(report), str(report)


def draw(sampler: ToySampler, prompts: Sequence[Prompt], *, per_prompt: int, seed: int = 0, round: int = 0) -> Samples:
    return list(sampler.sample(prompts, per_prompt=per_prompt, seed=seed, round=round, done=frozenset()))


def store(samples: Samples) -> dict[Key, Sample[Image.Image]]:
    return {sample.key: sample for sample in samples}


def best(samples: Samples, reward: ToyReward) -> Selection:
    """The best of each prompt."""
    top: dict[str, tuple[float, Key]] = {}
    for sample, score in zip(samples, reward.score(samples).tolist(), strict=True):
        top[sample.prompt.id] = max(top.get(sample.prompt.id, (-9.0, sample.key)), (score, sample.key))
    return Selection("weighted", tuple(Item((key,)) for _, key in top.values()))


@pytest.mark.parametrize("count", ORDER_STATISTIC)
def test_the_best_of_k_has_the_mean_of_the_order_statistic(count: int) -> None:
    sampler, reward, _ = toy_world(std=0.08)
    groups = 600
    scores = reward.score(draw(sampler, toy_prompts(groups), per_prompt=count)).reshape(groups, count)
    std = 0.08 * 1.5**0.5
    error = 4 * std / groups**0.5  # four standard errors of a mean over the groups
    assert float(scores.mean()) == pytest.approx(0, abs=error)
    assert float(scores.max(dim=1).values.mean()) == pytest.approx(ORDER_STATISTIC[count] * std, abs=error)


def test_raft_on_the_toy_world_raises_the_reward() -> None:
    sampler, reward, tuner = toy_world()
    prompts = toy_prompts(3)
    before = float(reward.score(draw(sampler, prompts, per_prompt=40, seed=99)).mean())
    for t in range(6):
        samples = draw(sampler, prompts, per_prompt=8, seed=fold(0, t), round=t)
        tuner.fit(best(samples, reward), store(samples), seed=t, report=silent)
    after = float(reward.score(draw(sampler, prompts, per_prompt=40, seed=99)).mean())
    assert after > before + 0.3


def test_the_magic_word_helps_the_sampler_and_is_learnt_by_the_caption() -> None:
    plain, magic = toy_prompts(1)[0], toy_prompts(1, magic=True)[0]
    assert (magic.caption, magic.sampling, magic.learning) == ("red 0", "vivid red 0", "red 0")
    sampler, reward, tuner = toy_world(std=0.01)
    assert float(reward.score(draw(sampler, [magic], per_prompt=8)).mean()) == pytest.approx(
        1.5 * MAGIC_SHIFT, abs=0.02
    )
    samples = draw(sampler, [magic], per_prompt=8)
    selection = Selection("all", tuple(Item((sample.key,)) for sample in samples))
    tuner.fit(selection, store(samples), seed=0, report=silent)
    assert float(reward.score(draw(sampler, [plain], per_prompt=8)).mean()) > MAGIC_SHIFT


def test_progress_and_figures_are_reported() -> None:
    sampler, reward, tuner = toy_world()
    samples, seen = draw(sampler, toy_prompts(3), per_prompt=2), []
    figures = tuner.fit(
        best(samples, reward), store(samples), seed=0, report=lambda done, total: seen.append((done, total))
    )
    assert seen == [(step, 6) for step in range(1, 7)]
    assert figures["steps"] == figures["network_evaluations"] == 6
    assert sampler.network_evaluations() == 6


def test_features_are_of_unit_length() -> None:
    sampler, _, _ = toy_world()
    features = toy_features(draw(sampler, toy_prompts(3), per_prompt=2))
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    assert toy_features([]).shape == (0, 3)
    assert toy_direction("a green thing").tolist() == [-0.5, 1.0, -0.5]


def test_a_reward_is_tried_on_given_pictures_or_on_our_own() -> None:
    given = reward_samples([BLACK, BLACK])
    assert [sample.media is BLACK for sample in given] == [True, True]
    assert len({sample.key for sample in given}) == 2
    assert len({sample.media.tobytes() for sample in reward_samples(count=12)}) == 12


class Ranks:
    """How many candidates of the prompt have a lower index. Higher is better."""

    name, whole_prompts = "ranks", True

    def __init__(self, *, over_all: bool = False, alone: bool = True) -> None:
        self._over_all, self._alone = over_all, alone

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        if len(samples) == 1 and not self._alone:
            raise ValueError("nothing to compare with")
        same = [[it for it in samples if self._over_all or it.prompt.id == one.prompt.id] for one in samples]
        below = [sum(it.index < one.index for it in mine) for one, mine in zip(samples, same, strict=True)]
        return torch.tensor(below, dtype=torch.float32)


def test_a_reward_that_compares_candidates_is_tried_on_two_prompts() -> None:
    report = check_reward(Ranks(), reward_samples(count=7))
    assert report.passed, str(report)
    assert [score for _, score in report.scores] == [0, 1, 2, 3, 0, 1, 2]
    assert report.scores[5][0].startswith("example-5: "), "called as they were given"
    assert "ok    batch-invariant: each prompt got the same scores alone and in another order." in str(report)
    assert not check_reward(Ranks(over_all=True), reward_samples(count=7)).passed, "it looks at other prompts"
    assert "failed: nothing to compare with" in str(check_reward(Ranks(alone=False), reward_samples(count=4)))
