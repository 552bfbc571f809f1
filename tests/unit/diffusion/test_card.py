"""Memory counted from sizes: against what a real computation holds, and the settings that follow."""

import pytest
import torch
from torch import nn

from raftdiff.cli.main import main
from raftdiff.diffusion.families.known import FAMILIES
from raftdiff.diffusion.memory.card import card_bytes, fit
from raftdiff.diffusion.memory.counting import Autocast, peak
from raftdiff.diffusion.memory.footprint import Footprint, Stage, _Sizes
from raftdiff.diffusion.memory.footprint import footprint as counted
from raftdiff.diffusion.memory.outline import outline, outlined_text
from raftdiff.diffusion.memory.published import published
from raftdiff.diffusion.memory.rewards import reward_bytes
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import UserError
from raftdiff.rewards.clip import ClipConfig
from raftdiff.rewards.pickscore import PickScoreConfig


def test_the_peak_of_two_layers_is_worked_out_by_hand():
    """x 40,000 bytes (10 x 1,000 float32): seen through the first layer, its relu, the second, and the way back."""
    for device in ("cpu", "meta"):
        layer, x = nn.Linear(1000, 1000, device=device), torch.zeros(10, 1000, device=device)

        def forward(layer=layer, x=x):
            with torch.no_grad():
                return layer(layer(x).relu()).sum()

        # layer(x), relu's result beside it; or relu's and the second layer's
        assert peak(forward, [layer]) in (80_000, 80_004)

        def both(layer=layer, x=x):
            layer(layer(x).relu()).sum().backward()

        weights = 3 * 4_000_000  # two gradients of one layer, and their sum
        assert weights < peak(both, [layer]) < weights + 6 * 40_000
        layer.zero_grad()


def test_every_family_can_be_walked_through_without_numbers(models):
    """Of each one kind, a step without gradient and the way back to pixels."""
    of = {tiny.of(kind).name: kind for kind in tiny.KINDS}
    assert len(of) == len(FAMILIES)
    for kind in of.values():
        parts = outline(ModelConfig(base=str(models[kind]), text_device="cpu"))
        side = 2 * parts.multiple
        xt, text = torch.zeros(1, *parts.latent_shape(side, side), device=parts.device), outlined_text(parts)
        with torch.no_grad():
            said = parts.ask(parts.denoiser, xt, torch.ones(1, device=parts.device), text)
            assert said.shape == xt.shape
            assert parts.decode(xt).shape == (1, 3, side, side)


def test_what_is_merged_into_numbers_is_left_out_where_there_are_none(models):
    started = {"loras": [{"path": "./no.safetensors"}], "embeddings": [{"path": "./no.pt"}]}
    whole, bare = (outline(ModelConfig(base=str(models["sd15"]), **changes)).denoiser for changes in (started, {}))
    assert whole.state_dict().keys() == bare.state_dict().keys()


@pytest.mark.parametrize("kind", ["sd15", "sd3"])
def test_a_model_without_numbers_takes_what_the_real_one_takes(models, kind):
    """Of a real model's step on the CPU; attention apart, which a GPU's kernel does in another way."""
    held = {}
    for name, parts in (
        ("real", load(ModelConfig(base=str(models[kind]), attention="default"))),
        ("outline", outline(ModelConfig(base=str(models[kind])))),
    ):
        text = parts.prompts(["a cat"])
        xt = torch.zeros(1, *parts.latent_shape(16, 16), device=parts.device)

        def step(parts=parts, text=text, xt=xt):
            for parameter in parts.denoiser.parameters():
                parameter.requires_grad_(True)
            parts.ask(parts.denoiser, xt, torch.ones(1, device=parts.device), text).square().mean().backward()
            parts.denoiser.zero_grad(set_to_none=True)

        held[name] = peak(step, [parts.denoiser])
    assert held["outline"] == pytest.approx(held["real"], rel=0.02)


COUNTED = {}


def footprint(recipe):
    """Counted once for a recipe, whoever asks: it takes seconds."""
    told = recipe.model_dump_json()
    if told not in COUNTED:
        COUNTED[told] = counted(recipe)
    return COUNTED[told]


def sd15(models, *overrides):
    base = [f"model.base={models['sd15']}", "sampler.height=64", "sampler.width=64", "evaluation.judge=null"]
    imitated = ("finetuner.learning={type: sft}", "ranker.selector={type: best_of_k}")
    rewards = ("ranker.rewards=[{type: jpeg}]", "evaluation.rewards=[]")
    return lambda more=(): load_recipe("sd15_256", [*base, *imitated, *rewards, *overrides, *more])


def test_what_settings_do_to_a_stage(models):
    plain = {stage.name: stage for stage in footprint(sd15(models)()).stages}
    assert list(plain) == ["encoding texts", "drawing", "decoding", "scoring", "learning"]

    def found(stage, *overrides):
        changed = next(it for it in footprint(sd15(models, *overrides)()).stages if it.name == stage)
        return changed.computed / max(1, plain[stage].computed), changed.held

    # each of these is of another stage
    smaller = ("sampler.batch_size=8", "sampler.vae_batch_size=1", "finetuner.gradient_checkpointing=true")
    assert found("drawing", *smaller)[0] == pytest.approx(8 / load_recipe("sd15_256").sampler.batch_size, rel=0.05)
    assert found("decoding", *smaller)[0] < 0.2
    assert found("learning", *smaller)[0] < 0.7
    assert found("drawing", "model.offload=true")[1]["text encoders"] == 0
    assert found("encoding texts", "model.offload=true")[1]["text encoders"] > 0
    whole = plain["drawing"].held["denoiser"]
    # and these of other things that are held
    lighter = ("model.quantise=nf4", "ranker.in_turn=true", "finetuner.optimizer=adamw_8bit")
    assert whole / 2 < found("drawing", *lighter)[1]["denoiser"] < whole
    assert found("drawing", *lighter)[1]["rewards"] == 0
    trained = "trained weights and their optimizer"
    assert found("drawing", *lighter)[1][trained] < plain["drawing"].held[trained]


def test_of_several_sizes_the_largest_is_counted(models):
    none = ["sampler.height=null", "sampler.width=null"]
    assert footprint(sd15(models, *none, "sampler.sizes=[[32,32],[64,64],[64,32]]")()) == footprint(sd15(models)())
    with pytest.raises(UserError, match="a picture of 33x64 does not fit this model"):
        footprint(sd15(models, *none, "sampler.sizes=[[32,32],[33,64]]")())


def test_what_the_evaluation_draws_is_counted_and_not_learnt(models, monkeypatch):
    for name in ("drawing", "decoding", "learning"):
        monkeypatch.setattr(_Sizes, name, lambda self, rows, pixels, *_, **__: rows * pixels[0])
    small = ("sampler.height=32", "sampler.width=32")
    looked = (*small, "evaluation.height=64", "evaluation.width=64")
    found = {
        name: [it.computed for it in counted(sd15(models, *more)()).stages]
        for name, more in (("small", small), ("looked", looked), ("large", ()))
    }
    assert found["looked"][:-1] == found["large"][:-1] != found["small"][:-1]
    assert found["looked"][-1] == found["small"][-1] < found["large"][-1]


def test_numbers_of_trained_weights_are_those_of_the_fine_tuner(models):
    recipe = sd15(models, "model.dtype=bfloat16", "finetuner.ema=0.9")()
    parts = load(recipe.model)
    learner = recipe.finetuner.build(parts, total_rounds=1, guidance=1.0, seed=0)
    stage = footprint(recipe).stages[-1]
    # live and its average in float32, two moments; at rest beside them the network's own in bfloat16
    trained = "trained weights and their optimizer"
    assert stage.held[trained] == learner.parameter_count() * (4 + 4 + 8)
    assert footprint(recipe).stages[0].held[trained] == learner.parameter_count() * (4 + 4 + 8 + 2)
    assert stage.held["gradients and copies"] == learner.parameter_count() * 4


def test_a_lora_that_rests_merged_is_counted_as_it_learns(models):
    whole, half = (footprint(sd15(models, f"model.dtype={it}")()).stages[-1] for it in ("float32", "bfloat16"))
    assert 1 < whole.computed / half.computed <= 2.2


def made(**totals):
    return Footprint(tuple(Stage(name, {"denoiser": size}, 0) for name, size in totals.items()), ())


def test_the_first_settings_that_fit_are_the_cheapest(models):
    """A toy: learning needs 10 GB, checkpointing takes it to 7, half a batch to 6; drawing needs 5."""

    def measure(recipe):
        tuner = recipe.finetuner
        learning = 10e9 - 3e9 * tuner.gradient_checkpointing - 1e9 * (tuner.batch_size < whole.batch_size)
        return made(drawing=int(5e9), learning=int(learning))

    load, whole = sd15(models, "model.offload=true", "finetuner.gradient_accumulation=1"), sd15(models)().finetuner
    found = fit(load, measure, card_bytes("7.5 GB"))
    assert found.overrides == ["finetuner.gradient_checkpointing=true"]
    found = fit(load, measure, card_bytes("6.5GB"))
    half = f"finetuner.batch_size={whole.batch_size // 2}"
    assert found.overrides == ["finetuner.gradient_checkpointing=true", half, "finetuner.gradient_accumulation=2"]
    assert [stage.name for _, stage, _ in found.changes] == ["learning", "learning"]
    assert fit(load, measure, card_bytes("4GB")).last.worst.total > card_bytes("4GB")


def test_sizes_of_cards_and_of_rewards():
    assert card_bytes("12GB") == card_bytes(" 12 ") == card_bytes("12gib") == 12 * 2**30
    for wrong in ("12MB", "big", "0GB"):
        with pytest.raises(UserError, match="--card: .* is no size of a card's memory; write it as 12GB"):
            card_bytes(wrong)
    assert reward_bytes(PickScoreConfig(dtype="float16")) == 2 * 986_109_441
    assert reward_bytes(ClipConfig(model="ViT-L-14-quickgelu")) == 4 * 427_616_513
    assert reward_bytes(ClipConfig(model="nowhere")) is None


def test_plan_says_which_settings_fit_and_how_sure_it_is(models, capsys):
    words = ["plan", "sd15_256", f"model.base={models['sd15']}", "sampler.height=64", "sampler.width=64"]
    words += ["ranker.rewards=[{type: jpeg}]", "evaluation.rewards=[{type: vqa, model: it}]"]
    assert main([*words, "--card", "12GB"]) == 0
    told = capsys.readouterr().out
    assert "It fits on 12.0 GB as it stands" in told
    assert "Not counted: the weights of 1 reward (vqa)" in told
    assert "How sure: counted from sizes, nothing was run" in told
    assert main([*words, "--card", "0.561"]) == 0
    told = capsys.readouterr().out
    assert "As it stands it needs" in told
    assert "model.offload=true" in told
    assert main([*words, "--card", "0.5"]) == 0
    assert "It does not fit on 0.5 GB" in capsys.readouterr().out
    assert main([*words, "--card", "some"]) == 2


def learning(models, *overrides):
    return footprint(sd15(models, "model.dtype=bfloat16", "finetuner.ema=null", *overrides)()).stages[-1]


def test_rules_that_follow_the_rewards_hold_all_that_they_walk_through(models):
    """DRaFT's K steps with both halves of guidance, and the decoder, which is on the card then."""
    bare = ("min_snr_gamma=null", "caption_dropout=0", "pure_noise_steps=0", "offset_noise=0", "loss_on=conditional")
    clip, kept = (
        "ranker.rewards=[{type: clip, model: scene-clip}]",
        (
            *(f"finetuner.{it}" for it in bare),
            "finetuner.batch_size=1",
            "sampler.batch_size=1",
            "sampler.guidance=1",
            "model.offload=true",
        ),
    )
    plain, one, three, guided = (
        learning(models, clip, *kept, *more)
        for more in (
            (),
            ("finetuner.learning={type: draft, steps: 1}",),
            ("finetuner.learning={type: draft, steps: 3}",),
            ("finetuner.learning={type: draft, steps: 1}", "sampler.guidance=4"),
        )
    )
    decoder = one.computed - plain.computed
    assert decoder > plain.computed / 3
    assert three.computed - one.computed > 1.5 * plain.computed
    assert 0.7 * plain.computed < guided.computed - one.computed < 1.3 * plain.computed
    assert (plain.held["VAE"], one.held["VAE"] > 0) == (0, True)


def test_text_encoders_that_are_trained_are_counted_and_so_is_a_wider_precision(models):
    trained = "trained weights and their optimizer"
    plain, both = learning(models), learning(models, "finetuner.train_text_encoder=true")
    recipe = sd15(models, "model.dtype=bfloat16", "finetuner.train_text_encoder=true")()
    learner = recipe.finetuner.build(load(recipe.model), total_rounds=1, guidance=1.0, seed=0)
    assert plain.held[trained] < both.held[trained] == learner.parameter_count() * (4 + 8)
    assert 1.2 * plain.computed < learning(models, "finetuner.precision=float32").computed < 2 * plain.computed


def test_half_precision_over_whole_weights_computes_in_half_precision(models):
    """And casts every weight that it meets, which autograd keeps for the way back."""
    whole, both, half = (
        learning(models, f"model.dtype={dtype}", f"finetuner.precision={precision}")
        for dtype, precision in (("float32", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"))
    )
    cast = half.held["denoiser"]
    assert 2 * cast == whole.held["denoiser"] == both.held["denoiser"]
    assert half.computed + 0.5 * cast < both.computed < half.computed + 1.1 * cast
    assert both.computed - cast < 0.8 * whole.computed


def test_autocast_on_the_meta_device_gives_the_dtypes_of_a_gpu():
    layer, norm = nn.Linear(4, 4, device="meta"), nn.LayerNorm(4, device="meta")
    x = torch.zeros(2, 4, device="meta", dtype=torch.bfloat16)
    with Autocast(torch.bfloat16):
        seen = layer(x)
        found = [seen, norm(seen), norm(seen) @ seen.T, seen.softmax(-1), seen**2, seen + 1, norm(seen) + seen]
    wide, narrow = torch.float32, torch.bfloat16
    assert [it.dtype for it in found] == [narrow, wide, narrow, wide, wide, narrow, wide]
    assert layer(x.float()).dtype == wide  # outside


def test_a_network_that_is_trained_whole_is_held_once_while_it_learns(models):
    resting, *_, awake = footprint(sd15(models, "model.dtype=bfloat16", "finetuner.adapter=full")()).stages
    assert (resting.held["denoiser"] > 0, awake.held["denoiser"]) == (True, 0)


SIZES = {  # of the networks, as huggingface.co counts them
    "black-forest-labs/FLUX.1-dev": (11_901_408_320, 83_819_683, 123_060_480, 4_762_310_656),
    "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers": (2_614_341_888, 1_604_462_752, 312_250_275),
}


@pytest.mark.parametrize("name", SIZES)
def test_models_that_are_known_in_code_have_their_sizes_and_are_not_asked_for_at_the_hub(name, monkeypatch):
    asked = []
    monkeypatch.setattr("raftdiff.diffusion.memory.outline.hub_configs", lambda name: asked.append(name) or 1 / 0)
    parts = outline(ModelConfig(base=name, dtype="bfloat16"))
    found = [sum(it.numel() for it in parts.modules[one].parameters()) for one in parts.family.components]
    assert (tuple(found), parts.size, asked) == (SIZES[name], (1024, 1024), [])
    assert published("somebody/else") is None
    with pytest.raises(ZeroDivisionError):
        outline(ModelConfig(base="somebody/else"))
