"""Pruned best of K: who is left is drawn as ever, to the bit, and who is not is told of."""

from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import pytest
import torch

from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling.pruned import PrunedSampler, meant
from raftdiff.mixing import MixSampler
from raftdiff.ranking import Ranker
from raftdiff.selection.best import BestOfK
from raftdiff.selection.pruning import PruneConfig
from raftdiff.types import Prompt

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, f"{name}, best", name, negative="dull" if name == "a" else "") for name in "abc"]
HALF = PruneConfig(at=[0.5], keep=[0.5])
TWICE = PruneConfig(at=[0.3, 0.6], keep=[0.5, 0.25])


@final
@dataclass
class Red:
    """Mean of the red channel; sees, and keeps count."""

    name: str = "red"
    seen: int = 0

    def score(self, samples: Any) -> torch.Tensor:
        self.seen += len(samples)
        return torch.tensor([float(np.asarray(it.media)[..., 0].mean()) for it in samples])


@pytest.fixture(scope="module")
def opened(models):
    """A model by its kind, loaded once."""
    held: dict[str, Any] = {}
    return lambda kind: held.setdefault(kind, load(ModelConfig(base=str(models[kind]))))


def pruned(parts, prune=HALF, **changes):
    drawing = {"steps": 3, "batch_size": 6, "guidance": 2.0, "scheduler": "dpm++", **changes}
    ranker = Ranker([(Red(), 1.0)], BestOfK())
    return PrunedSampler(DiffusionSamplerConfig(**drawing).build(parts), prune, ranker)


def draw(sampler, done=frozenset(), per_prompt=2):
    return list(sampler.sample(PROMPTS, per_prompt=per_prompt, seed=3, round=5, done=set(done)))


def equal(one, other):
    return torch.equal(one.aux["latent"], other.aux["latent"]) and one.media.tobytes() == other.media.tobytes()


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [
        ("sd15", "unipc"),  # which remembers the most; euler_a stands below
        ("sd21_zero_snr", "dpm++"),
        ("sd3", "dpm++"),
    ],
)
def test_who_is_left_is_drawn_as_without_pruning_to_the_bit(opened, kind, scheduler):
    sampler = pruned(opened(kind), scheduler=scheduler, batch_size=3)
    left, whole = draw(sampler), {sample.key: sample for sample in draw(sampler.drawing)}
    assert [sample.prompt.id for sample in left] == list("abc")
    assert all(equal(sample, whole[sample.key]) and sample.seed == whole[sample.key].seed for sample in left)


def test_the_best_previews_are_those_that_go_on_and_all_are_told_of(opened):
    sampler, told = pruned(opened("sd15"), TWICE, steps=10, guidance=1.0, batch_size=3), []
    sampler.on_previews(told.extend)
    left = draw(sampler, per_prompt=4)
    assert [(it.step, it.kept) for it in told].count((3, True)) == 6
    assert [it.step for it in told].count(6) == 6
    for step in (3, 6):
        for name in "abc":
            seen = [it for it in told if (it.step, it.prompt) == (step, name)]
            assert min(it.total for it in seen if it.kept) >= max(it.total for it in seen if not it.kept)
    assert [(it.prompt.id, it.index) for it in left] == [it[:2] for it in told if it.step == 6 and it.kept]
    assert sampler.network_evaluations() == 12 * 3 + 6 * 3 + 3 * 4


def test_a_batch_that_is_not_full_is_filled_up_and_that_is_counted(opened):
    sampler = pruned(opened("sd15"), scheduler="euler_a", batch_size=2)
    left = draw(sampler)
    assert sampler.network_evaluations() == 2 * (6 * 2 + 4 * 1)  # 3 are left, in batches of 2
    whole = {sample.key: sample for sample in draw(sampler.drawing)}
    assert all(equal(sample, whole[sample.key]) for sample in left)


def test_where_memory_does_not_suffice_batches_are_narrower(opened):
    whole = opened("sd15")

    def network(rows, *args, **options):
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole.network(rows, *args, **options)

    drawing = {"scheduler": "euler_a", "guidance": 1.0, "steps": 2}
    narrow = pruned(replace(whole, network=network), **drawing, batch_size=3)
    with pytest.warns(UserWarning, match="to draw 3 pictures at once; from here on 1 at most"):
        left = draw(narrow)
    ones = draw(pruned(whole, **drawing, batch_size=1))
    assert all(equal(one, other) for one, other in zip(left, ones, strict=True))


def test_what_was_drawn_before_a_kill_changes_no_bit_of_the_rest(opened):
    """Prompts are drawn two at a time, of which the first two are done but for one."""
    drawing = {"batch_size": 2, "guidance": 1.0, "steps": 2}
    whole = draw(pruned(opened("sd15"), **drawing))
    sampler, told = pruned(opened("sd15"), **drawing), []
    sampler.on_previews(told.extend)
    rest = draw(sampler, {("a", whole[0].index), ("c", whole[2].index)})
    assert [sample.key for sample in rest] == [whole[1].key]
    assert equal(rest[0], whole[1])
    assert {it.prompt for it in told} == {"a", "b"}
    assert draw(sampler, {(it.prompt.id, it.index) for it in whole}) == []


def test_a_mixture_counts_the_candidates_of_a_part_in_its_own_numbers(opened):
    sampler = pruned(opened("sd15"), guidance=1.0)
    mixture, told = MixSampler([(1, sampler.drawing), (2, sampler)]), []
    mixture.on_previews(told.extend)
    assert mixture.kept(3) == 2
    drawn = draw(mixture, per_prompt=3)
    assert {it.index for it in told} == {1, 2}
    kept = {(it.prompt, it.index) for it in told if it.kept}
    assert {(it.prompt.id, it.index) for it in drawn} == kept | {(name, 0) for name in "abc"}


def test_prompts_of_several_sizes_are_compared_each_in_its_own(opened):
    sampler = pruned(opened("sd15"), sizes=[(16, 16), (16, 24)], guidance=1.0, steps=2, batch_size=2)
    left, whole = draw(sampler), {sample.key: sample for sample in draw(sampler.drawing)}
    assert sorted(sample.prompt.id for sample in left) == list("abc")
    assert len({sample.media.size for sample in left}) == 2
    for sample in left:
        torch.testing.assert_close(sample.aux["latent"], whole[sample.key].aux["latent"], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["sd15", "sd21", "sd3"])
def test_what_the_last_prediction_means_is_where_euler_goes(opened, kind):
    sampler = pruned(opened(kind), scheduler="euler", guidance=1.0, steps=2)
    drawing, jobs = sampler.drawing, [(PROMPTS[0], 0)]
    noise, generators = drawing.noise(jobs, 3, drawing.sizes[0])
    solver = drawing.solver()
    *_, last = drawing.steps(solver, solver.timesteps, drawing.begun(noise, solver), drawing.texts(jobs), generators)
    torch.testing.assert_close(meant(drawing.parts.process, last), last.following, atol=1e-5, rtol=1e-4)
