"""What a recipe for pictures says beside its parts."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.checks import check_recipe
from raftdiff.diffusion.recipe import Recipe, looking_of
from raftdiff.diffusion.recipe_files import weights
from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.records.run import Run

LOOP = {
    "name": "t",
    "prompts": {"captions": ["a cat"]},
    "sampler": {"type": "diffusion"},
    "finetuner": {"type": "diffusion"},
}


def test_another_vae_is_another_model(models, tmp_path):
    vae, head = tmp_path / "vae", tmp_path / "head.pth"
    shutil.copytree(models["sd15"] / "vae", vae)
    head.write_bytes(b"1")
    recipe = check(
        Recipe,
        {
            **LOOP,
            "model": {"base": str(models["sd15"]), "vae": str(vae)},
            "ranker": {"rewards": [{"type": "aesthetic", "head": str(head)}], "selector": {"type": "best_of_k"}},
        },
    )
    run = Run.create(tmp_path / "run", recipe, seed=0)
    own = weights(recipe.model_copy(update={"model": recipe.model.model_copy(update={"vae": None})}))
    assert set(own) == {str(models["sd15"]), str(head)}
    run.bind(own)  # as a run of an earlier version, which did not look at its VAE
    run.bind(weights(recipe))
    assert set(run.info()["weights"]) == {str(models["sd15"]), str(head), str(vae)}
    (file,) = vae.glob("*.safetensors")
    save_file({name: weight + 1 for name, weight in load_file(file).items()}, file)
    with pytest.raises(UserError, match=f"was begun with other weights of {vae} than lie there now"):
        run.bind(weights(recipe))


def test_guidance_is_rescaled_where_a_model_is_looked_at_as_the_evaluation_says_else_as_the_sampler_does():
    def looked(sampler, evaluation, finetuner=None):
        tuner = {"type": "diffusion", **(finetuner or {})}
        parts = {"sampler": {"type": "diffusion", **sampler}, "evaluation": evaluation, "finetuner": tuner}
        ranker = {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}}
        recipe = check(Recipe, {**LOOP, "model": {"base": "scene-sd"}, "ranker": ranker, **parts})
        check_recipe(recipe)
        return looking_of(recipe).guidance_rescale

    assert looked({"guidance_rescale": 0.7}, {}) == 0.7
    assert looked({"guidance_rescale": 0.7}, {"guidance_rescale": 0}) == 0
    guided = {"loss_on": "guided"}
    assert looked({"guidance_rescale": 0.7}, {"guidance_rescale": 0}, guided) == 0
    assert looked({"guidance_rescale": 0.7, "guidance": 1}, {}, guided) == 0.7  # where it does nothing
    with pytest.raises(UserError, match="finetuner.loss_on: the guided prediction is learnt as it is without guidance"):
        looked({"guidance_rescale": 0.7}, {}, guided)
