"""Which recipe each method is, and that all of them cost the same."""

from collections.abc import Callable

import pytest

from raftdiff.diffusion.methods.changes import ALIKE, Trial, cost, planned, step_cost
from raftdiff.diffusion.recipe import looking_of
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import UserError

RecipeFile = Callable[..., str]
SAMPLING = 2 * 3 * 3 * 2 * 2
"""In two rounds of three prompts, three candidates each, of two steps with guidance."""


def trials(
    file: str, *overrides: str, names: tuple[str, ...] = ALIKE, evaluations: int | None = None
) -> dict[str, Trial]:
    base = load_recipe(file, overrides)
    return {one.name: one for one in planned(names, base, file, overrides, evaluations=evaluations)}


def parts(trial: Trial) -> tuple[str, str]:
    return trial.recipe.ranker.selector.type, trial.recipe.finetuner.learning.type


def test_what_gdpo_has_scaled_is_not_scaled_again(recipe_file: RecipeFile) -> None:
    found = trials(recipe_file(), "ranker.mix=gdpo")
    assert [found[name].recipe.ranker.selector.method for name in ("awm", "nft")] == ["dr_grpo", "dr_grpo"]
    assert trials(recipe_file())["nft"].recipe.ranker.selector.method == "grpo"


def test_each_method_is_a_selector_and_a_rule(recipe_file: RecipeFile) -> None:
    found = trials(recipe_file())
    assert {name: parts(one) for name, one in found.items()} == {
        "raft": ("best_of_k", "sft"),
        "raft_random": ("random", "sft"),
        "rwr": ("softmax", "sft"),
        "awm": ("advantage", "advantage"),
        "nft": ("advantage", "nft"),
        "dpo": ("best_worst", "dpo"),
        "ipo": ("best_worst", "dpo"),
        "kto": ("threshold", "kto"),
    }
    losses = {name: found[name].recipe.finetuner.learning.loss for name in ("dpo", "ipo")}
    assert losses == {"dpo": "sigmoid", "ipo": "ipo"}


def test_a_policy_gradient_draws_anew_for_the_caption_itself_at_the_same_cost(recipe_file: RecipeFile) -> None:
    """Two evaluations a step of guidance, and both again for the policy that drew."""
    changes = ("prompts.magic=['{caption}, sharp']", "loop.replay_rounds=1", "finetuner.steps=40")
    found = trials(recipe_file(), *changes, names=("raft", "ddpo"))
    recipe, raft = found["ddpo"].recipe, found["raft"]
    assert parts(found["ddpo"]) == ("advantage", "ddpo")
    assert (recipe.sampler.scheduler, recipe.sampler.eta, recipe.prompts.magic) == ("ddim", 1.0, ["{caption}"])
    assert (recipe.loop.replay_rounds, recipe.loop.sample_every) == (0, 1)
    assert (raft.recipe.sampler.scheduler, raft.recipe.loop.replay_rounds) == ("dpm++", 1)
    assert step_cost(recipe) == 4 * step_cost(raft.recipe)
    assert recipe.finetuner.steps == 10
    assert found["ddpo"].cost == raft.cost
    taught = ("sampler={type: teacher, drawing: {steps: 2}}",)
    with pytest.raises(UserError, match=r"sampler.eta: unknown key.*\nSo 'ddpo' does not fit this recipe"):
        trials(recipe_file(), *taught, names=("ddpo",))


def test_the_gradient_of_the_reward_is_taken_on_pictures_that_are_not_ranked(recipe_file: RecipeFile) -> None:
    """Of which each costs its guided steps, and no more."""
    changes = ("ranker.selector.keep=2", "loop.candidates=4")
    climbed = "ranker.rewards=[{type: clip, model: scene-clip}]"
    found = trials(recipe_file(), *changes, climbed, names=("raft", "draft", "refl"))
    with pytest.raises(UserError, match=r"(?s)refl follows the gradient.*'jpeg' has none.*So 'refl' does not fit this"):
        trials(recipe_file(), *changes, "ranker.rewards=[{type: jpeg}]", names=("raft", "refl"))
    raft = found.pop("raft")
    for name, one in found.items():
        assert parts(one) == ("random", name)
        assert one.recipe.ranker.selector.keep == 4
        assert one.recipe.sampler == raft.recipe.sampler
        assert step_cost(one.recipe) == 2 * step_cost(raft.recipe)


def test_what_the_recipe_says_of_a_rule_or_selector_stays(recipe_file: RecipeFile) -> None:
    found = trials(recipe_file(), "ranker.selector.keep=2", "loop.candidates=4")
    assert [found[name].recipe.ranker.selector.keep for name in ("raft", "raft_random")] == [2, 2]
    pairs = trials(
        recipe_file(),
        "finetuner.learning={type: dpo, beta: 500, loss: ipo}",
        "ranker.selector={type: best_worst, min_gap: 0.1}",
    )
    for name in ("dpo", "ipo"):
        assert pairs[name].recipe.finetuner.learning.beta == 500
        assert pairs[name].recipe.ranker.selector.min_gap == 0.1
    assert pairs["dpo"].recipe.finetuner.learning.loss == "sigmoid"
    assert pairs["kto"].recipe.finetuner.learning.beta == 2000, "another rule's beta is another thing"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("finetuner.batch_size=3",),
        ("finetuner.batch_size=5", "finetuner.gradient_accumulation=3", "finetuner.steps=11"),
        ("sampler.guidance=1", "finetuner.steps=7"),
        ("loop.rounds=3", "loop.replay_rounds=2", "finetuner.exposures=2.5", "finetuner.steps=100"),
        ("finetuner.anchor=0.1", "finetuner.steps=9"),
        ("loop.prompts_per_round=2", "finetuner.steps=40"),
    ],
)
def test_drawing_and_learning_together_cost_the_same(recipe_file: RecipeFile, overrides: tuple[str, ...]) -> None:
    file = recipe_file()
    allowed = cost(load_recipe(file, overrides)).total
    found = trials(file, *overrides)
    for one in found.values():
        rounds, step = one.recipe.loop.rounds, step_cost(one.recipe)
        assert one.cost.total == one.cost.sampling + rounds * one.recipe.finetuner.steps * step
        assert allowed - rounds * step < one.cost.total <= allowed, "as near as a whole step comes"
        assert one.recipe.finetuner.exposures is None, "which would make a round shorter"
    assert len({one.cost.sampling for one in found.values()}) == 1
    assert found["raft"].cost.total == allowed or "finetuner.exposures=2.5" in overrides


def test_a_picture_costs_two_under_a_rule_with_a_reference_and_a_pair_has_two(recipe_file: RecipeFile) -> None:
    found = trials(recipe_file(), "finetuner.steps=20", "finetuner.batch_size=8")
    assert {name: step_cost(one.recipe) for name, one in found.items()} == {
        **dict.fromkeys(("raft", "raft_random", "rwr"), 8),
        **dict.fromkeys(("awm", "nft", "dpo", "ipo", "kto"), 16),
    }
    assert {one.cost.total for one in found.values()} == {SAMPLING + 2 * 20 * 8}
    assert {name: one.recipe.finetuner.steps for name, one in found.items() if name in ("raft", "nft")} == {
        "raft": 20,
        "nft": 10,
    }


def test_another_budget_changes_the_steps_alone(recipe_file: RecipeFile) -> None:
    found = trials(recipe_file(), evaluations=SAMPLING + 100)
    assert {name: one.recipe.finetuner.steps for name, one in found.items() if name in ("raft", "kto")} == {
        "raft": 25,
        "kto": 12,
    }
    assert all(one.cost.sampling == SAMPLING for one in found.values())


def test_a_budget_smaller_than_the_drawing_is_told_with_the_least(recipe_file: RecipeFile) -> None:
    with pytest.raises(UserError, match=f"--evaluations 50: raft draws for {SAMPLING} in all, 2 x 36, .* Allow 76 or"):
        trials(recipe_file(), evaluations=50)
    with pytest.raises(UserError, match="tiny as it stands costs 72 evaluations: raft draws for 72"):
        trials(recipe_file(), "finetuner.steps=0")
    with pytest.raises(UserError, match=r"--evaluations 76: nft draws for .* Allow 80 or more"):
        trials(recipe_file(), names=("raft", "nft"), evaluations=76)


def test_a_seed_is_all_that_tells_the_runs_of_a_method_apart(recipe_file: RecipeFile) -> None:
    one = trials(recipe_file())["nft"]
    assert one.of_seed(7).loop.seed == 7
    assert one.of_seed(one.recipe.loop.seed) == one.recipe


def test_a_recipe_is_a_method_too_and_is_looked_at_as_the_others(recipe_file: RecipeFile) -> None:
    own = recipe_file(
        "own", ranker={"rewards": [{"type": "jpeg"}], "selector": {"type": "top_fraction", "fraction": 0.5}}
    )
    found = trials(recipe_file(), "loop.rounds=1", names=("raft", own), evaluations=100)
    assert parts(found["own"]) == ("top_fraction", "sft")
    assert found["own"].recipe.loop.rounds == 1, "overrides are for all"
    assert found["own"].cost.total == found["raft"].cost.total == 100
    other = recipe_file("other", evaluation={"samples_per_prompt": 9})
    found = trials(recipe_file(), names=("raft", other))
    assert found["other"].recipe.evaluation == found["raft"].recipe.evaluation
    assert found["raft"].recipe.evaluation.guidance == 2.0
    rescaled = recipe_file("rescaled", sampler={"steps": 2, "batch_size": 6, "guidance_rescale": 0.7})
    found = trials(recipe_file(), names=("raft", rescaled))
    assert looking_of(found["rescaled"].recipe) == looking_of(found["raft"].recipe)
    assert found["rescaled"].recipe.sampler.guidance_rescale == 0.7


def test_what_is_no_method_is_told_with_the_nearest(recipe_file: RecipeFile) -> None:
    with pytest.raises(UserError, match=r"'nfta' is not a method. Did you mean 'nft'\? Known: awm, ddpo, dpo"):
        trials(recipe_file(), names=("raft", "nfta"))
    with pytest.raises(UserError, match=r"There is no recipe file 'nope.yaml'"):
        trials(recipe_file(), names=("nope.yaml",))
    with pytest.raises(UserError, match=r"tunes another model than the other methods \(model.base: scene-sd, and"):
        trials(recipe_file(), names=("scene_align",))
    twin = recipe_file("twin")
    with pytest.raises(UserError, match="two are called 'raft'"):
        trials(twin, names=("raft", recipe_file("raft")))


@pytest.mark.parametrize(
    ("overrides", "name", "told"),
    [
        (("finetuner.loss_on=guided",), "nft", "loss_on: guided is for learning: sft alone; nft has no need of it"),
        (("finetuner.min_snr_gamma=5",), "kto", "min_snr_gamma is for learning: sft alone, not for kto"),
        (("loop.candidates=1",), "dpo", "a pair takes two candidates of a prompt"),
    ],
)
def test_a_method_that_does_not_fit_is_told_before_anything_runs(
    recipe_file: RecipeFile, overrides: tuple[str, ...], name: str, told: str
) -> None:
    with pytest.raises(
        UserError, match=f"{told}[^\n]*\nSo '{name}' does not fit this recipe. .* or leave '{name}' out"
    ):
        trials(recipe_file(), *overrides, names=("raft", name))
    assert set(trials(recipe_file(), *overrides, names=("raft",))) == {"raft"}


def test_rounds_that_take_candidates_over_leave_more_for_learning(recipe_file: RecipeFile) -> None:
    once, twice = (trials(recipe_file(), f"loop.sample_every={every}", evaluations=2000)["raft"] for every in (2, 1))
    assert (once.cost.sampling, twice.cost.sampling) == (SAMPLING // 2, SAMPLING)
    assert once.recipe.finetuner.steps > twice.recipe.finetuner.steps
    assert all(2000 - 2 * step_cost(one.recipe) < one.cost.total <= 2000 for one in (once, twice))


def test_a_method_is_not_called_as_the_base_and_tunes_the_same_model(recipe_file: RecipeFile) -> None:
    with pytest.raises(UserError, match="'base' is what the untuned model is called; give that file another name"):
        trials(recipe_file(), names=("raft", recipe_file("base")))
    base = recipe_file()
    model = {**load_recipe(base).model.model_dump(), "dtype": "bfloat16"}
    with pytest.raises(UserError, match=r"than the other methods \(model.dtype: bfloat16, and theirs float"):
        trials(base, names=("raft", recipe_file("half", model=model)))
