"""Several sizes in one run: which there are, who has which, and batches of one."""

import math

import pytest
import torch

from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sizes import alike, buckets, cut, filled, fit, nearest, size_of_prompt
from raftdiff.errors import UserError
from raftdiff.training.optimizer import exposure_plan
from raftdiff.types import Prompt

SDXL = {(1024, 1024), (960, 1088), (896, 1152), (832, 1216), (768, 1280), (768, 1344), (704, 1408)}
"""Those of the paper's appendix I from 1:2 to 2:1, the shorter side first, but for 960x1024, 896x1088, 832x1152 and
704x1344, which are smaller than others of their height."""


def test_buckets_have_about_as_many_pixels() -> None:
    assert {tuple(sorted(size)) for size in buckets((1024, 1024), 32)} == SDXL
    for main, multiple in (((768, 768), 32), ((512, 512), 64), ((1216, 832), 16), ((80, 80), 16)):
        found = buckets(main, multiple)
        assert found[0] == main
        assert len(set(found)) == len(found)
        assert all(size[::-1] in found for size in found)
        assert all(side % multiple == 0 for size in found for side in size)
        assert all(max(size) <= 2 * min(size) and 0.75 < math.prod(size) / math.prod(main) <= 1 for size in found)


def test_a_prompt_keeps_its_size_through_a_round_and_comes_in_all_of_them() -> None:
    sizes = [(16, 16), (16, 24), (24, 16)]
    over = [size_of_prompt(sizes, "a-cat", number) for number in range(30)]
    assert over == [size_of_prompt(sizes, "a-cat", number) for number in range(30)]
    assert set(over) == set(sizes)
    assert over != [size_of_prompt(sizes, "a-dog", number) for number in range(30)]


@pytest.mark.parametrize(
    ("pictures", "size"),
    [
        ([(1000, 1000)], (64, 64)),
        ([(100, 170)], (32, 64)),
        ([(170, 100)], (64, 32)),
        ([(64, 64)], (64, 64)),
        ([(31, 31)], (32, 32)),  # larger than none of its shape: the least enlarged
        ([(64, 65)], (64, 64)),
        ([(100, 170), (170, 100), (150, 100)], (64, 64)),  # together the least is lost so
    ],
)
def test_a_picture_goes_where_least_of_it_is_lost(pictures: list[tuple[int, int]], size: tuple[int, int]) -> None:
    assert nearest([(64, 64), (32, 64), (64, 32), (32, 32)], pictures) == size


def test_how_a_picture_is_scaled_and_cut() -> None:
    way = fit((40, 20), (16, 16))
    assert (way.scale, way.kept) == pytest.approx((0.8, 0.5))
    assert (way.top, way.left) == (8, 0)
    assert fit((8, 8), (16, 16)).scale == 2


@pytest.mark.parametrize("count", [1, 3, 4])
def test_batches_are_of_one_kind_and_show_all_as_often_as_before(count: int) -> None:
    kinds = ["wide", "high", "high", "high", "square", "high", "wide", "high"]
    order = [item for step in exposure_plan(len(kinds), 100, 4, 5.0, seed=1) for item in step]
    found = filled(order, kinds, count)
    assert sorted(found) == sorted(order)
    batches = [{kinds[item] for item in found[start : start + count]} for start in range(0, len(found), count)]
    whole = sum(order_of.count(kind) // count for order_of in [[kinds[i] for i in order]] for kind in set(kinds))
    assert all(len(batch) == 1 for batch in batches[:whole])
    for kind in set(kinds):
        assert [it for it in found if kinds[it] == kind] == [it for it in order if kinds[it] == kind]
        own = [it for it in found if kinds[it] == kind]
        first = own[: kinds.count(kind)]  # each once before any is seen again
        assert len(set(first)) == len(first)
    assert filled(order, ["one"] * len(kinds), count) == order
    assert [set(map(kinds.__getitem__, same)) for same in alike(found[:4], kinds)] == [
        {kind} for kind in dict.fromkeys(map(kinds.__getitem__, found[:4]))
    ]


def test_jobs_are_cut_size_by_size() -> None:
    assert cut("abABc", lambda job: (1, 1) if job.islower() else (2, 2), 2) == [
        ((1, 1), ["a", "b"]),
        ((1, 1), ["c"]),
        ((2, 2), ["A", "B"]),
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (["sampler.sizes=[[64,64]]", "sampler.height=64"], "sampler: sizes say heights and widths, the first the main"),
        (["sampler.sizes=[[64,64],[64,64]]"], "sampler: sizes: one of them stands there twice"),
        (["sampler.sizes=all"], "sampler.sizes: this should be a list of a list of 2 whole numbers, 'buckets' or null"),
    ],
)
def test_sizes_that_say_nothing_are_a_sentence(override: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("[", r"\[")):
        load_recipe("sdxl_align", override)


def test_the_main_size_is_the_first() -> None:
    several = DiffusionSamplerConfig(sizes=[(832, 1216), (1024, 1024)])
    assert several.main == DiffusionSamplerConfig(width=832, height=1216)
    assert several.main.main == several.main
    assert DiffusionSamplerConfig(sizes="buckets", height=64).main == DiffusionSamplerConfig(height=64)
    assert several.at((1216, 832), (1024, 1024)) == several


PROMPTS = [Prompt(name, name, name, name) for name in ("cat", "dog", "cow", "fox")]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sdxl", "flux_dev"])
def test_a_prompt_is_drawn_as_in_a_run_of_its_size_alone(models, kind) -> None:
    """Flux steps by the number of its tokens."""
    parts = load(ModelConfig(base=str(models[kind])))
    side = 2 * parts.multiple
    how = {"steps": 2, "guidance": 1.0, "scheduler": "euler", "batch_size": 4}
    sizes = [(2 * side, side), (side, side), (side, 2 * side)]
    several = DiffusionSamplerConfig(sizes=sizes, **how).build(parts)

    def drawn(sampler, done=frozenset()):
        return {it.key: it for it in sampler.sample(PROMPTS, per_prompt=1, seed=3, round=1, done=done)}

    found = drawn(several)
    assert len(found) == len(PROMPTS)
    told = [key for batch in several.batches(PROMPTS, per_prompt=1, round=1) for key in batch]
    assert told == [(it.prompt.id, it.index) for it in found.values()]
    assert {it.prompt.id: it.media.size[::-1] for it in found.values()} == {
        prompt.id: size_of_prompt(several.sizes, prompt.id, 1) for prompt in PROMPTS
    }
    drawn_sizes = {it.media.size for it in found.values()}
    assert len(drawn_sizes) > 1
    for width, height in drawn_sizes:
        alone = drawn(DiffusionSamplerConfig(height=height, width=width, **how).build(parts))
        for key, it in found.items():
            if it.media.size == (width, height):
                torch.testing.assert_close(it.aux["latent"], alone[key].aux["latent"], atol=1e-4, rtol=1e-4)
    done = {("cat", 0), ("dog", 0)}
    rest = drawn(several, frozenset(done))
    assert all(torch.equal(rest[key].aux["latent"], found[key].aux["latent"]) for key in rest)
    assert len(rest) == len(found) - len(done)


def test_a_size_that_the_model_cannot_draw_is_a_sentence(models) -> None:
    parts = load(ModelConfig(base=str(models["sd15"])))
    with pytest.raises(UserError, match="a picture of 18x24 does not fit .* multiples of 4, as in 16x24"):
        DiffusionSamplerConfig(sizes=[(16, 16), (18, 24)]).build(parts)
    assert DiffusionSamplerConfig(sizes="buckets").build(parts).sizes == ((16, 16), (12, 20), (20, 12))
