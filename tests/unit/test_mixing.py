"""A mixture: indices, seeds and what is done, mapped to each part and back."""

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, final

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.sampling.given import DatasetSampler
from raftdiff.mixing import MixPartConfig, MixSampler, MixSamplerConfig
from raftdiff.seeds import fold
from raftdiff.testing.conformance import check_sampler
from raftdiff.types import Prompt, Sample, Sampler, Source

PROMPTS = [
    Prompt("why", "Why?", "Why?", "Why?", meta={"answers": [{"text": "a"}, {"text": "b"}]}),
    Prompt("how", "How?", "How?", "How?", meta={"answers": [{"text": "c"}]}),
]


@final
class Numbers:
    """Says its own seed, in batches of three that are drawn whole; counts what it draws."""

    def __init__(self, source: Source, provides: tuple[str, ...] = ()) -> None:
        self.source, self.provides = source, provides
        self.drawn = 0

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        jobs = [(prompt, index) for prompt in prompts for index in range(per_prompt)]
        for start in range(0, len(jobs), 3):
            batch = jobs[start : start + 3]
            if all((prompt.id, index) in done for prompt, index in batch):
                continue
            self.drawn += len(batch)
            for prompt, index in batch:
                own = fold(seed, prompt.id, index)
                # the answer depends on the whole batch, as the last digits of a real model's do
                text = str(fold(own, *[f"{p.id} {k}" for p, k in batch]))
                if (prompt.id, index) not in done:
                    yield Sample(
                        round, prompt, index, own, self.source, text, {n: torch.ones(1) for n in self.provides}
                    )

    def network_evaluations(self) -> int:
        return self.drawn


def mixture() -> MixSampler:
    return MixSampler([(2, Numbers("policy", ("tokens", "logprobs"))), (3, DatasetSampler()), (1, Numbers("teacher"))])


def draw(sampler: Sampler[str], per_prompt: int, done: AbstractSet[tuple[str, int]] = frozenset()) -> dict[Any, Any]:
    found = list(sampler.sample(PROMPTS, per_prompt=per_prompt, seed=9, round=1, done=done))
    by_key = {(sample.prompt.id, sample.index): sample for sample in found}
    assert len(by_key) == len(found)
    return by_key


def test_each_part_has_its_own_range_of_candidates_and_keeps_its_source() -> None:
    found = draw(mixture(), 6)
    sources = {key: sample.source for key, sample in found.items()}
    assert sources == {
        ("why", 0): "policy",
        ("why", 1): "policy",
        ("how", 0): "policy",
        ("how", 1): "policy",
        ("why", 2): "dataset",
        ("why", 3): "dataset",
        ("how", 2): "dataset",
        ("why", 5): "teacher",
        ("how", 5): "teacher",
    }
    assert [found["why", k].media for k in (2, 3)] == ["a", "b"]
    assert found["how", 2].media == "c"
    assert set(found["why", 0].aux) == {"tokens", "logprobs"}
    assert {sample.round for sample in found.values()} == {1}


def test_the_first_part_draws_what_it_would_draw_alone() -> None:
    alone, mixed = draw(Numbers("policy"), 2), draw(mixture(), 6)
    assert {key: sample.media for key, sample in alone.items()} == {
        key: sample.media for key, sample in mixed.items() if sample.source == "policy"
    }
    assert mixed["why", 1].seed == fold(9, "why", 1)


def test_two_policies_of_a_mixture_draw_apart() -> None:
    found = draw(MixSampler([(2, Numbers("policy")), (2, Numbers("policy"))]), 4)
    assert len({sample.seed for sample in found.values()}) == 8
    assert len({sample.media for sample in found.values()}) == 8


@pytest.mark.parametrize("killed_after", range(10))
def test_a_resumed_mixture_draws_the_same_bits(killed_after: int) -> None:
    whole = draw(mixture(), 6)
    done = frozenset(list(whole)[:killed_after])
    rest = draw(mixture(), 6, done)
    assert set(rest) == set(whole) - done
    assert {key: (s.media, s.seed, s.source) for key, s in rest.items()} == {
        key: (whole[key].media, whole[key].seed, whole[key].source) for key in rest
    }


def test_fewer_candidates_leave_out_the_last_ones() -> None:
    whole, three = draw(mixture(), 6), draw(mixture(), 3)
    assert {sample.source for sample in three.values()} == {"policy", "dataset"}
    assert {key: s.media for key, s in three.items()} == {key: s.media for key, s in whole.items() if key[1] < 3}
    with pytest.raises(UserError, match="the shares add up to 6 candidates, and 7 are asked for"):
        draw(mixture(), 7)


def test_network_evaluations_are_the_sum() -> None:
    policy, teacher = Numbers("policy"), Numbers("teacher")
    mix = MixSampler([(2, policy), (1, teacher)])
    draw(mix, 3)
    assert (policy.drawn, teacher.drawn, mix.network_evaluations()) == (4, 2, 6)
    draw(mix, 3, frozenset({("why", 2), ("how", 2)}))
    assert (policy.drawn, teacher.drawn) == (8, 2)


def test_source_and_provides_are_what_all_have() -> None:
    mix = mixture()
    assert isinstance(mix, Sampler)
    assert (mix.source, mix.provides) == ("dataset", ())
    two = MixSampler([(1, Numbers("policy", ("tokens", "logprobs"))), (1, Numbers("policy", ("logprobs",)))])
    assert (two.source, two.provides) == ("policy", ("logprobs",))


def test_a_mixture_of_one_keeps_the_whole_contract() -> None:
    check_sampler(MixSampler([(2, Numbers("policy", ("tokens",)))]), PROMPTS).demand()


def test_the_config_takes_a_sampler_for_each_part() -> None:
    parts = [MixPartConfig(share=2, sampler={"type": "policy"}), MixPartConfig(share=1, sampler={"type": "dataset"})]
    config = MixSamplerConfig(parts=parts)
    assert config.candidates == 3
    mix = config.build([Numbers("policy"), DatasetSampler()])
    assert [share for share, _ in mix.parts] == [2, 1]
    with pytest.raises(ValueError, match="zip"):
        config.build([DatasetSampler()])
    with pytest.raises(UserError, match="a mixture needs a part"):
        MixSampler([])
    with pytest.raises(UserError, match="a share of 1 or more"):
        MixSampler([(0, DatasetSampler())])
