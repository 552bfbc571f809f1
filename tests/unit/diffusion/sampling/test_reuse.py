"""Deep layers that are asked at some of the steps: which, of whom, and that nothing is taken over from elsewhere."""

from collections import Counter
from typing import Any

import pytest
import torch

from raftdiff.diffusion.checks import check_recipe
from raftdiff.diffusion.families.shared.deepcache import DeepCache
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import drawing
from raftdiff.diffusion.recipe import Recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.sampling.pruned import PrunedSampler
from raftdiff.errors import UserError
from raftdiff.ranking import Ranker
from raftdiff.selection.best import BestOfK
from raftdiff.selection.pruning import PruneConfig
from raftdiff.types import Prompt

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, name, name) for name in "ab"]


@pytest.fixture(scope="module")
def parts(models):
    return load(ModelConfig(base=str(models["sd15"])))


def drawn(parts, reuse=None, done=frozenset(), **changes):
    drawing = {"steps": 4, "batch_size": 4, "guidance": 1.0, "reuse": reuse, **changes}
    sampler = DiffusionSamplerConfig(**drawing).build(parts)
    samples = sampler.sample(PROMPTS, per_prompt=2, seed=3, round=0, done=set(done))
    return {sample.key[1:]: sample for sample in samples}


def latents(samples):
    return torch.stack([sample.aux["latent"] for sample in samples.values()])


def counted(unet, work):
    """How often each block and the first layers of the ends were asked."""
    asked: Counter[str] = Counter()
    names = ["conv_in", "mid_block", *(f"down_blocks.{k}.resnets.0" for k in (0, 1)), "up_blocks.0.resnets.0"]
    names += [f"up_blocks.1.resnets.{k}" for k in (0, 1)]
    hooks = [
        unet.get_submodule(name).register_forward_hook(lambda *_, name=name: asked.update([name])) for name in names
    ]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return asked


@pytest.mark.parametrize("kind", ["sd21", "sdxl"])
@torch.no_grad()
def test_outer_layers_say_what_the_whole_network_says_of_the_same_wherever_it_is_cut(kind):
    unet = tiny.components(kind)["unet"]
    rows, tokens = torch.randn(2, 4, 8, 8), torch.randn(2, 7, unet.config.cross_attention_dim)
    told: dict[str, Any] = {"encoder_hidden_states": tokens, "return_dict": False}
    if kind == "sdxl":
        told["added_cond_kwargs"] = {"text_embeds": torch.randn(2, 24), "time_ids": torch.ones(2, 6)}
    whole = unet(rows, torch.tensor(500), **told)[0]
    for skips in range(1, 5):
        network = DeepCache(unet, every=2, skips=skips)
        assert all(torch.equal(network(rows, torch.tensor(500), **told)[0], whole) for _ in range(2))
        beyond = network(2 * rows, torch.tensor(400), **told)[0]
        assert torch.equal(beyond, unet(2 * rows, torch.tensor(400), **told)[0])  # the third asks the whole again
    with pytest.raises(ValueError, match="the U-Net has 4 skip connections, and skips is 5"):
        DeepCache(unet, every=2, skips=5)


def test_which_layers_are_asked_at_which_steps(parts):
    """Of 5 steps the first and the fourth ask all."""
    asked = counted(parts.denoiser, lambda: drawn(parts, {"every": 3, "skips": 2}, steps=5))
    shallow = ("conv_in", "down_blocks.0.resnets.0", "up_blocks.1.resnets.0", "up_blocks.1.resnets.1")
    assert asked == dict.fromkeys(shallow, 5) | {
        "mid_block": 2,
        "down_blocks.1.resnets.0": 2,
        "up_blocks.0.resnets.0": 2,
    }
    outermost = counted(parts.denoiser, lambda: drawn(parts, {"every": 9, "skips": 1}))
    assert (outermost["up_blocks.1.resnets.0"], outermost["up_blocks.1.resnets.1"]) == (1, 4)
    assert not parts.denoiser.up_blocks[1].resnets[0]._forward_pre_hooks


def test_at_every_step_it_is_the_picture_without_and_else_another(parts):
    plain, same, other = (drawn(parts, reuse) for reuse in (None, {"every": 1}, {"every": 2}))
    assert torch.equal(latents(plain), latents(same))
    assert not torch.allclose(latents(plain), latents(other), atol=1e-3)


def test_a_picture_is_its_seeds_alone_or_in_a_batch_first_or_last(parts):
    reuse = {"every": 3}
    together, alone = drawn(parts, reuse), drawn(parts, reuse, batch_size=1)
    torch.testing.assert_close(latents(together), latents(alone), atol=1e-4, rtol=1e-4)
    rest = drawn(parts, reuse, done={("a", 0), ("a", 1), ("b", 0)}, batch_size=2)  # as after a kill
    assert list(rest) == [("b", 1)]
    assert torch.equal(rest["b", 1].aux["latent"], drawn(parts, reuse, batch_size=2)["b", 1].aux["latent"])


def test_who_is_left_of_the_pruned_is_drawn_as_without_pruning_to_the_bit(parts):
    config = DiffusionSamplerConfig(steps=4, batch_size=2, guidance=2.0, reuse={"every": 2})
    sampler = PrunedSampler(config.build(parts), PruneConfig(at=[0.5], keep=[0.5]), Ranker([(First(), 1.0)], BestOfK()))
    left = list(sampler.sample(PROMPTS, per_prompt=2, seed=3, round=0, done=set()))
    whole = drawn(parts, {"every": 2}, guidance=2.0, batch_size=2)
    assert [sample.key[1:] for sample in left] == [("a", 0), ("b", 0)]
    assert all(torch.equal(it.aux["latent"], whole[it.key[1:]].aux["latent"]) for it in left)


class First:
    """Likes a prompt's first candidate."""

    name = "first"

    def score(self, samples: Any) -> torch.Tensor:
        return torch.tensor([-float(sample.index) for sample in samples])


def test_a_measurement_draws_from_one_whole_step_to_the_next(parts):
    config = DiffusionSamplerConfig(steps=4, guidance=2.0, reuse={"every": 3})
    draw, rows, _ = drawing(config.build(parts), 2, (16, 16))
    assert (counted(parts.denoiser, draw)["conv_in"], rows) == (3, 3 * 2 * 2)


def test_evaluations_ask_the_whole_network():
    config = DiffusionSamplerConfig(reuse={"every": 2}, sizes=[(64, 64), (64, 32)])
    assert config.main == DiffusionSamplerConfig(height=64, width=64)


def test_a_transformer_has_no_such_layers(models):
    with pytest.raises(
        UserError, match=r"^sampler.reuse: .* deep layers of a U-Net, and FLUX.1 has none. Leave it out"
    ):
        DiffusionSamplerConfig(reuse={"every": 2}).build(load(ModelConfig(base=str(models["flux_schnell"]))))


def test_more_skips_than_there_are_and_strange_blocks_are_told(parts):
    with pytest.raises(UserError, match=r"^sampler.reuse: of .*sd15 the U-Net has 4 skip connections, and skips is 9"):
        DiffusionSamplerConfig(reuse={"every": 2, "skips": 9}).build(parts)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"compile": True}},
            "sampler.reuse: it asks some layers .* does not go with model.compile; leave one",
        ),
        ({"model": {"sharded": True}}, "does not go with model.sharded: true"),
        ({"reuse": {"every": 5}}, "sampler.reuse.every: of 5 steps only the first would ask the whole network"),
        ({"prune": {"at": [0.6], "keep": [0.5]}}, "compared after step 3, .* compare after a multiple of 2 steps"),
        ({"scheduler": "ddim", "learning": {"type": "ddpo"}}, "sampler.reuse: learning: ddpo learns from steps of the"),
        (
            {"sampler": {"type": "folder", "path": "p", "drawing": {"reuse": {"every": 2}}}},
            "pictures are there already",
        ),
    ],
)
def test_where_it_cannot_be_it_is_refused_with_the_recipe(changes, sentence):
    drawing = {"type": "diffusion", "steps": 5, "reuse": {"every": 2}}
    drawing |= {key: it for key, it in changes.items() if key in ("prune", "scheduler", "reuse")}
    learning = changes.get("learning", {"type": "sft"})
    recipe = Recipe(
        name="reuse",
        model={"base": "scene-sd", **changes.get("model", {})},
        prompts={"captions": ["a cat"]},
        sampler=changes.get("sampler", drawing),
        ranker={
            "rewards": [{"type": "clip", "model": "scene-clip"}],
            "selector": {"type": "advantage" if "learning" in changes else "best_of_k"},
        },
        finetuner={"type": "diffusion", "learning": learning},
        loop={"candidates": 4},
    )
    with pytest.raises(UserError, match=sentence):
        check_recipe(recipe)
