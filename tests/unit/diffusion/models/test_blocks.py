"""Blocks that wait in main memory: the same to the bit, one at a time, and never away when they are needed.

In place of a GPU a block that is away has no numbers at all, so that whoever computes with it fails.
"""

import pytest
import torch

from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.memory.card import _changes
from raftdiff.diffusion.memory.footprint import footprint, over_the_bus
from raftdiff.diffusion.models.blocks import Blocks, blocks_of, in_turn
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.errors import UserError
from raftdiff.types import Item, Prompt, Selection, silent

# diffusers asks numpy for an array in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = [Prompt(name, name, name, name) for name in ("a cat", "two dogs")]
TUNER = DiffusionFineTunerConfig(
    rank=2, steps=2, batch_size=1, learning_rate=1e-2, anchor=0.1, ema=0.9, gradient_checkpointing=True
)


def away(self, held):
    for weight, _ in held:
        weight.data = weight.data.new_empty(0)


@pytest.fixture
def apart(monkeypatch):
    monkeypatch.setattr(Blocks, "_away", away)


def opened(folder, **changes):
    return load(ModelConfig(base=str(folder), dtype="bfloat16", **changes))


def drawn(parts):
    sampler = DiffusionSamplerConfig(steps=2, guidance=2.0, batch_size=2, scheduler="euler").build(parts)
    return list(sampler.sample(PROMPTS, per_prompt=1, seed=0, round=0, done=set()))


def learnt(parts):
    samples = {sample.key: sample for sample in drawn(parts)}
    tuner = TUNER.build(parts, total_rounds=1, guidance=1.0, seed=0)
    figures = tuner.fit(Selection("weighted", tuple(Item((key,)) for key in samples)), samples, seed=0, report=silent)
    state = tuner.state_dict()
    return figures, state, torch.stack([sample.aux["latent"] for sample in drawn(parts)])


def here(parts):
    return [all(it.numel() for it in block.parameters()) for block in blocks_of(parts.denoiser)]


@pytest.mark.parametrize("kind", ["sd3_no_t5", "zimage"])
def test_what_is_drawn_and_learnt_is_the_same_to_the_bit_with_one_block_at_a_time(models, kind, apart):
    plain, parts = opened(models[kind]), opened(models[kind], offload="blocks")
    assert not any(here(parts))
    most = []
    for module in parts.denoiser.modules():
        module.register_forward_pre_hook(lambda *_: most.append(sum(here(parts))))
    one, other = learnt(plain), learnt(parts)
    assert one[0] == other[0]
    for stem, tensors in one[1].items():
        assert all(torch.equal(tensor, other[1][stem][name]) for name, tensor in tensors.items())
    assert torch.equal(one[2], other[2])
    assert max(most) == sum(here(parts)) == 1
    assert len(here(parts)) > 1


def test_without_checkpointing_the_way_back_needs_what_has_left(models, apart):
    """Why it is refused."""
    parts = opened(models["sd3_no_t5"], offload="blocks")
    xt = torch.randn(1, *parts.latent_shape(16, 16), requires_grad=True)
    loss = parts.predict(xt, torch.tensor([1.0]), parts.prompts(["a cat"])).square().mean()
    with pytest.raises(RuntimeError):
        loss.backward()
    for changes, needed in (
        ({"adapter": "full"}, "finetuner.adapter: lora"),
        ({"gradient_checkpointing": False}, "finetuner.gradient_checkpointing: true"),
        ({"precision": "float32"}, "model.dtype: bfloat16, in which it is trained too"),
    ):
        config = TUNER.model_copy(update=changes)
        with pytest.raises(UserError, match=rf"model.offload: blocks leave the GPU .* That goes with {needed}\."):
            config.build(parts, total_rounds=1, guidance=1.0, seed=0)


def test_what_does_not_go_with_it_is_told(models):
    with pytest.raises(UserError, match="model.offload: blocks is for transformers.* draws with a U-Net"):
        opened(models["sd15"], offload="blocks")
    checkpointed = "finetuner.gradient_checkpointing=true"
    words = [f"model.base={models['sd15']}", "model.dtype=bfloat16", "model.offload=blocks", checkpointed]
    with pytest.raises(UserError, match="model.offload: blocks is for transformers"):
        footprint(load_recipe("sd15_256", words))
    with pytest.raises(ValueError, match="offload: blocks moves plain weights, and does not go with quantise"):
        ModelConfig(base="it", offload="blocks", quantise="nf4")
    with pytest.raises(ValueError, match="offload: blocks moves plain weights, and does not go with sharded"):
        ModelConfig(base="it", offload="blocks", sharded=True)
    with pytest.raises(ValueError, match="sharded: true splits plain weights, and does not go with compile"):
        ModelConfig(base="it", compile=True, sharded=True)


@pytest.mark.parametrize("kind", ["sd15", "sd3_no_t5", "zimage", "sana", "flux2"])
def test_blocks_are_asked_in_the_order_in_which_they_are_lent(models, kind):
    """Where they are split over processes; of another order none of these would hear before it hangs."""
    parts, asked = opened(models[kind]), []
    blocks = in_turn(parts.denoiser)
    for place, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, place=place: asked.append(place))
    parts.predict(torch.randn(1, *parts.latent_shape(16, 16)), torch.tensor([1.0]), parts.prompts(["a cat"]))
    assert asked == list(range(len(blocks)))


def test_it_is_counted_and_named_with_its_cost(models):
    base = [f"model.base={models['sd3_no_t5']}", "sampler.height=16", "sampler.width=16", "evaluation.rewards=[]"]
    base += ["ranker.rewards=[{type: jpeg}]", "ranker.selector={type: best_worst}"]

    def recipe(more=()):
        return load_recipe("sd35_medium", [*base, *more])

    with pytest.raises(UserError, match="blocks leave the GPU .* finetuner.gradient_checkpointing: true"):
        recipe(["model.offload=blocks", "finetuner.gradient_checkpointing=false"])
    plain, waiting = (footprint(recipe(more)).stages[1].held["denoiser"] for more in ([], ["model.offload=blocks"]))
    parts = load(ModelConfig(base=str(models["sd3_no_t5"]), dtype="bfloat16"))
    sizes = [sum(2 * it.numel() for it in block.parameters()) for block in blocks_of(parts.denoiser)]
    assert over_the_bus(recipe()) == sum(sizes)
    assert plain - waiting == sum(sizes) - max(sizes)
    *_, last = _changes(recipe(), "drawing")
    assert last.overrides == ("model.offload=blocks",)
    assert (
        "GB over the bus for each batch that is drawn a step, 0.0 s at 16 GB/s; twice that where it is l" in last.costs
    )
    *_, last = _changes(recipe(["model.quantise=nf4", "finetuner.gradient_checkpointing=false"]), "learning")
    assert last.overrides[1:] == ("model.quantise=null", "finetuner.gradient_checkpointing=true")
    assert not over_the_bus(load_recipe("sd15_256", [f"model.base={models['sd15']}"]))
