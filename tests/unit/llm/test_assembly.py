"""What is found out when the parts of a text recipe are wired, before anything is sampled."""

from pathlib import Path

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.assembly import assemble_text
from raftdiff.llm.comparison import evaluation_texts
from raftdiff.llm.recipe import TextRecipe, load_text_recipe

RECIPE = """
media: text
name: small
model: {{base: {model}}}
prompts: {{captions: [the film, was]}}
sampler: {{type: policy, decoding: {{max_new_tokens: 6}}}}
ranker:
  rewards: [{{type: length, direction: more}}]
  selector: {{type: best_of_k}}
finetuner: {{adapter: lora, epochs: 1}}
loop: {{rounds: 1, candidates: 2}}
logging: {{tracker: null}}
"""


@pytest.fixture
def recipe(tmp_path: Path, lm_folder: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=lm_folder))
    return path


def of(path: Path, *overrides: str) -> TextRecipe:
    return load_text_recipe(path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ranker.rewards=[{type: review}]"],
        ["evaluation={prompts: {captions: [comedy of a dog]}, every_round: 1, rewards: [{type: review}]}"],
    ],
)
def test_prompts_that_a_reward_does_not_know_are_told_before_anything_is_sampled(
    recipe: Path, overrides: list[str]
) -> None:
    with pytest.raises(UserError, match="is no prompt of the text world; write one like"):
        assemble_text(of(recipe, *overrides))


def test_a_judge_that_does_not_know_a_prompt_says_so(recipe: Path) -> None:
    assembly = assemble_text(of(recipe, "evaluation.judge=reviews"))
    with pytest.raises(UserError, match="'the film' is no prompt of the text world"):
        assembly.check(assembly.parts.prompts)
    assemble_text(of(recipe, "ranker.rewards=[{type: review, fluency: false}]"))  # any text will do


def test_an_evaluation_asks_with_the_system_message_of_the_training(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("film\n")
    known = of(recipe, "prompts.system=Be kind.", "evaluation={prompts: {captions: [film]}, every_round: 1}")
    assembly = assemble_text(known)
    asked = (*evaluation_texts(assembly, None), *evaluation_texts(assembly, str(tmp_path / "held.txt")))
    for found in (*asked, *assembly.parts.held_out):
        assert (found.caption, found.meta) == ("film", {"system": "Be kind."})
