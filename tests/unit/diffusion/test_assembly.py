"""What a recipe's parts say together: of pictures that show nothing, and of a judge of another world."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from raftdiff.cli import evaluate
from raftdiff.diffusion.assembly import Assembly, build_ranker
from raftdiff.diffusion.recipe import load_recipe
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import build
from raftdiff.types import Prompt, Sample

EVALUATED = ["evaluation.prompts.file=null", "evaluation.prompts.captions=[a cat on a white background, two stars]"]
PARIS = "evaluation.prompts.captions=[Paris in spring, Paris at night]"
ALIEN = (
    "evaluation.prompts: the judge scene-judge understands none of these captions, and the evaluation goes without it."
    "\n  such as 'Paris in spring'; none that ships does"
)


def bare(*overrides: str) -> Assembly:
    """What a recipe says of its prompts, without models."""
    recipe = load_recipe("scene_align", [*EVALUATED, *overrides])
    model = SimpleNamespace(prompts=SimpleNamespace(token_limit=77, reads_whole=lambda text: True))
    ranker, parts = SimpleNamespace(rewards=[]), SimpleNamespace(prompts=build(recipe.prompts))
    nothing: Any = None
    return Assembly(recipe, model, nothing, nothing, nothing, ranker, ranker, parts)  # type: ignore[arg-type]


def test_black_pictures_are_what_a_model_that_computes_nan_draws() -> None:
    ranker = build_ranker(load_recipe("demo", ["ranker.rewards=[{type: jpeg}]"]), device="cpu")
    prompt = Prompt("cat", "a cat", "a cat", "a cat")
    drawn = [Sample(0, prompt, index, index, "policy", Image.new("RGB", (16, 16))) for index in range(2)]
    sentence = r"^All 2 pictures are blank, of one colour.* computes NaN.* Set model\.dtype to bfloat16 or float32"
    with pytest.raises(UserError, match=sentence):
        ranker.refuse_unfit(drawn)
    with pytest.raises(UserError, match=sentence):
        ranker.score(iter([drawn]), ["cat"], 2)
    drawn[0].media.putpixel((3, 3), (255, 0, 0))
    assert ranker.score(iter([drawn]), ["cat"], 2).unfit == 1


def test_a_judge_that_understands_no_caption_is_told() -> None:
    assert bare(PARIS).first_notes() == [ALIEN]
    assert bare().first_notes() == bare("evaluation.judge=null", PARIS).first_notes() == []
    half = "evaluation.prompts.captions=[two stars, a flat icon of a pine tree on a yellow background]"
    assert bare(half).first_notes() == [], "of which the evaluation speaks, and stops"


def test_without_held_out_prompts_the_judge_hears_the_training_s() -> None:
    own = ("prompts.file=null", "prompts.captions=[Paris in spring]")
    (note,) = bare("evaluation.prompts=null", *own).first_notes()
    assert note.startswith("prompts: the judge scene-judge understands none of these")


def test_an_evaluation_says_once_that_it_goes_without_its_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(evaluate, "compare", stop)
    logged: list[str] = []
    log: Callable[..., None] = lambda event, note: logged.append(note)  # noqa: E731
    run: Any = SimpleNamespace(path=tmp_path, log=log)
    with pytest.raises(UserError, match="far enough"):
        evaluate.measure(run, bare(PARIS))
    assert [str(one.message) for one in recwarn] == logged == [ALIEN]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("dpo", "pairs; use type: best_worst"),
        ("nft", "advantages; use type: advantage"),
        ("kto", "labelled; use type: threshold"),
    ],
)
def test_a_rule_names_the_selector_that_it_learns_from(rule, wanted):
    with pytest.raises(UserError, match=f"it selects 'weighted', and learning: {rule} learns from {wanted}."):
        load_recipe("demo", [f"finetuner.learning={{type: {rule}}}"])
    selector = wanted.rpartition(" ")[2]
    load_recipe("demo", [f"finetuner.learning={{type: {rule}}}", f"ranker.selector={{type: {selector}}}"])
