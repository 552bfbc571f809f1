"""Recipes for texts that cannot work are refused before a model is loaded."""

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.assembly import assemble_text
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.recipes.files import locate

MAGIC = "prompts.magic=['{prompt} Be kind.']"
OWN_TEXT = "prompts={captions: [{prompt: 'comedy about robots :', sampling: 'western about ghosts :'}]}"
ON_POLICY = ("grpo", "dr_grpo", "rloo", "raft_pp", "reinforce_rej", "reinforce_pp", "ppo", "ppo_max")


@pytest.mark.parametrize("method", ON_POLICY)
def test_who_compares_probabilities_learns_after_the_prompt_that_was_sampled(method: str) -> None:
    with pytest.raises(UserError, match=r"for all of them these are two texts .* Set prompts\.decouple: false"):
        load_text_recipe(locate(method), [MAGIC])
    assert load_text_recipe(locate(method), [MAGIC, "prompts.decouple=false"]).prompts.magic == ["{prompt} Be kind."]


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_a_text_of_its_own_for_the_sampler_is_found_before_the_model_is_loaded(method: str) -> None:
    recipe = load_text_recipe(locate(method), [OWN_TEXT, "model.base=/nowhere"])
    with pytest.raises(UserError, match="for 'comedy-about-robots' these are two texts"):
        assemble_text(recipe)
    coupled = load_text_recipe(locate(method), [OWN_TEXT, "model.base=/nowhere", "prompts.decouple=false"])
    with pytest.raises(UserError, match="there is no folder '/nowhere'"):
        assemble_text(coupled)


@pytest.mark.parametrize("method", ["raft", "rrhf", "dpo", "kto", "rwr"])
def test_others_distil_a_magic_prompt(method: str) -> None:
    assert load_text_recipe(locate(method), [MAGIC]).prompts.decouple
