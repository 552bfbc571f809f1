"""What a recipe for pictures says beside its parts."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from raftdiff.diffusion.recipe import Recipe
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
