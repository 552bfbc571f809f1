"""What pruning knows without a model, and the script that measures it on the one that ships."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from raftdiff.diffusion.assembly import build_ranker
from raftdiff.diffusion.models import loading
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampling.pruned import PrunedSampler
from raftdiff.embedded import resolve
from raftdiff.recipes.prompts import build
from raftdiff.seeds import fold
from raftdiff.selection.pruning import PruneConfig, fitting, going_on

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pruning.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pruning", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_whole_prompts_fill_batches_whatever_is_left_of_each():
    for width, counts in ((16, [8, 4, 2]), (16, [20, 10, 5]), (7, [4, 2])):
        together = fitting(width, counts)
        assert all(together * count % width == 0 for count in counts)


def test_a_discarded_preview_comes_last_and_what_was_dropped_never_comes_back():
    totals = np.array([[np.nan, 5.0, 1.0, np.nan], [2.0, 2.0, np.nan, np.nan]])
    there = np.array([[True, True, True, False], [True, True, False, False]])
    assert going_on(totals, there, 2).astype(int).tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert going_on(totals, there, 3).astype(int).tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]


def test_the_script_chooses_within_its_budget_and_tells_of_others(script: ModuleType, tmp_path: Path):
    """Previews that are the picture's reward and noise, less of it at every step."""
    random = np.random.default_rng(0)
    final = random.normal(size=(6, 12))
    noise = np.array([9.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1, 0.0])
    previews = final[:, :, None] + noise * random.normal(size=(6, 12, 8))
    drawn = script.Drawn(list("aabbcc"), previews, (final > 1).astype(float))
    full = script.Way(8, ())
    way = script.best(drawn, script.ways(8, [8]), 32)
    prune = PruneConfig(at=[step / 8 for step, _ in way.looks], keep=[kept / 8 for _, kept in way.looks])
    assert way.steps(8) == prune.steps(8, 8) <= 32
    assert full.choice(previews).tolist() == previews[:, :8, -1].argmax(axis=1).tolist()
    line = script.told(drawn, way, full)
    assert line["steps"].endswith(f"({way.steps(8) / 64:.0%})")
    ranks = script.spearman(drawn)
    assert ranks[:, -1] == pytest.approx(1)
    assert ranks[:, 0].mean() < ranks[:, 2].mean() < ranks[:, 4].mean()
    seconds = {"evaluation": 1.0, "preview": 2.5}
    rows = [
        {"prompt": name, "seed": place, "index": k, "previews": each.tolist(), "exact": 1.0, "seconds": seconds}
        for place, (name, table) in enumerate(zip(drawn.prompts, previews, strict=True))
        for k, each in enumerate(table)
    ]
    for part in script.PROMPTS:
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = script.tables(tmp_path)
    assert "| 8, all drawn | 64 (100%) |" in table
    assert "takes the time of 2.5 network evaluations" in table


def test_the_script_reads_off_what_pruning_draws(script: ModuleType):
    recipe = load_recipe("demo", ["sampler.steps=3", "sampler.batch_size=2", "sampler.guidance=1"])
    sampler, ranker = recipe.sampler.build(loading.load(recipe.model, resolve)), build_ranker(recipe, device="cpu")
    (prompt,) = build(recipe.prompts.model_copy(update={"captions": ["a cartoon star"]}))
    rows = list(script.rewarded(sampler, ranker, prompt, 4, 2))
    previews = np.array([[row["previews"] for row in rows]])
    assert np.isnan(previews).tolist() == [[[True, False, False]] * 2]  # seen after steps 2 and 3
    pruned, seen = PrunedSampler(sampler, PruneConfig(at=[0.66], keep=[0.5]), ranker), []
    pruned.on_previews(seen.extend)
    (left,) = pruned.sample([prompt], per_prompt=2, seed=fold(4, "pruning"), round=0, done=frozenset())
    assert left.index == script.Way(2, ((2, 1),)).choice(previews)[0]
    assert [it.total for it in seen] == pytest.approx(previews[0, :, 1].tolist(), abs=1e-2)
