"""Roles of rewards and their mix in a recipe: what has a meaning, and a sentence for what has none."""

from collections.abc import Sequence
from typing import get_args

import pytest

from raftdiff.cli.parsers.tools import MIXES as SHOWN
from raftdiff.cli.pictures.plan import _ranked_by
from raftdiff.diffusion.assembly import build_ranker, measuring
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.errors import UserError
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.ranking import Bound
from raftdiff.recipes import registry
from raftdiff.recipes.checks import RELATIVE
from raftdiff.recipes.files import locate
from raftdiff.selection.mixes import MIXES, MixName

JPEG, VETO = "{type: jpeg}", "{type: exposure, role: veto, at_least: 0.1}"
MEDIAN = "{type: saturation, role: constraint, at_least: median}"
LOOKS_ON = "evaluation.rewards=[{type: jpeg}]"
IMITATED = ("finetuner.learning={type: sft}", "ranker.selector={type: best_of_k}")


def rewards(*of: str) -> str:
    return f"ranker.rewards=[{', '.join(of)}]"


def test_every_mix_has_a_name_that_recipes_and_the_command_line_know() -> None:
    assert tuple(MIXES) == get_args(MixName) == SHOWN
    assert set(RELATIVE) < set(MIXES)


@pytest.mark.parametrize("group", ["rewards", "text_rewards"])
def test_every_reward_that_ships_has_a_role(group: registry.Group) -> None:
    for config in registry.load_all(group):
        assert config.model_fields["role"].default == "train", config
        assert config.model_fields["at_least"].default is None, config


def test_a_recipe_becomes_a_ranker_with_its_mix_and_bounds() -> None:
    onlooker = "{type: sharpness, role: hold_out}"
    recipe = load_recipe("demo", [rewards(JPEG, VETO, MEDIAN, onlooker), "ranker.mix=gdpo"])
    ranker = build_ranker(recipe, device="cpu")
    assert ranker.mix.name == "gdpo"
    assert ranker.bounds == {"exposure": Bound("veto", 0.1), "saturation": Bound("constraint", "median")}
    roles = {"jpeg": "train", "exposure": "veto", "saturation": "constraint", "sharpness": "hold_out"}
    assert {reward.name: ranker.role(reward.name) for reward, _ in ranker.rewards} == roles
    assert {name: measuring(recipe, ranker, device="cpu").role(name) for name in roles} == roles


def test_a_plan_says_who_ranks_and_who_does_not() -> None:
    onlooker = "{type: sharpness, weight: 0}"
    recipe = load_recipe("demo", [rewards(JPEG, "{type: colour_entropy, weight: 0.5}", VETO, MEDIAN, onlooker)])
    told = "weighted_sum of jpeg, colour_entropy x 0.5; exposure vetoes below 0.1; those below median in saturation"
    assert _ranked_by(recipe) == f"{told} come last; sharpness looks on"
    assert _ranked_by(load_recipe("demo", [rewards(JPEG), "ranker.mix=gdpo"])) == "jpeg"
    alone = load_recipe("demo", [rewards(VETO), LOOKS_ON, *IMITATED])
    assert _ranked_by(alone) == "nothing; exposure vetoes below 0.1"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([rewards("{type: jpeg, role: hold_out}")], "every weight is 0, or of a role that does not rank"),
        ([rewards(VETO), "evaluation.rewards=[]", *IMITATED], "and a veto measures nothing, so"),
        ([rewards(VETO, MEDIAN)], "nothing ranks, so the constraint 'saturation' would do nothing"),
        (
            [rewards(VETO), "finetuner.learning={type: dpo}", "ranker.selector={type: best_worst}"],
            "nothing ranks what the vetoes leave, and the selector 'best_worst' compares it; use best_of_k, top",
        ),
        (
            [rewards(VETO), LOOKS_ON, "finetuner.learning={type: draft}", "ranker.selector={type: random}"],
            "learning: draft climbs the rewards' gradient, and none of them has a weight, and role: train",
        ),
        ([rewards(JPEG, "{type: exposure, role: veto}")], "ranker.rewards.1: role: veto takes 'at_least'"),
        ([f"evaluation.rewards=[{VETO}]"], "evaluation.rewards: these look on, and 'exposure' is to be a veto"),
        ([rewards(JPEG, "{type: exposure, role: veto, at_least: .nan}")], "ranker.rewards.1.at_least"),
        (["ranker.mix=gdpa"], "ranker.mix: this should be 'weighted_sum', 'grpo', 'gdpo', 'rank_sum' or 'minimum'"),
        (["ranker.mix=grpo", "loop.candidates=1"], "mix: grpo compares the candidates of a prompt, and there is one"),
        ([rewards(JPEG, MEDIAN), "loop.candidates=1"], "at_least: median compares the candidates of a prompt"),
        (
            ["ranker.mix=gdpo", "ranker.selector={type: advantage}", "finetuner.learning={type: nft}"],
            "method: grpo would scale each prompt anew, and mix: gdpo has scaled the batch; use method: dr_grpo",
        ),
        (
            ["ranker.mix=rank_sum", "finetuner.learning={type: draft}", "ranker.selector={type: random}"],
            "ranker.mix: learning: draft climbs the weighted sum of the rewards, and ranks nothing",
        ),
        (
            [rewards(JPEG, MEDIAN), "finetuner.learning={type: refl}", "ranker.selector={type: random}"],
            "so that the constraint 'saturation' would do nothing",
        ),
    ],
)
def test_what_has_no_meaning_is_refused_before_a_model_is_loaded(overrides: Sequence[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe("demo", overrides)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["ranker.mix=grpo"], "ranker.mix: grpo says how a candidate stands among those of its prompt"),
        (
            [rewards("{type: review}", "{type: length, direction: more, role: constraint, at_least: 1}")],
            "the constraint 'length' puts candidates in an order, and the selector 'all' passes on how good each is",
        ),
    ],
)
def test_ppo_learns_from_how_good_an_answer_is(overrides: Sequence[str], sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        load_text_recipe(locate("ppo"), ["loop.candidates=4", *overrides])
    assert sentence in str(refused.value)


def test_gdpo_is_what_policy_gradients_on_texts_take_as_it_is() -> None:
    keys = ["ranker.mix=gdpo", rewards("{type: review}", "{type: length, target: 20}")]
    recipe = load_text_recipe(locate("grpo"), [*keys, "ranker.selector.method=dr_grpo"])
    assert recipe.ranker.mix == "gdpo"
