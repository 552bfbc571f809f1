"""``batch_size: auto``: measured once a machine, and a number in the run."""

import pytest

from raftdiff.cli import stages
from raftdiff.diffusion import assembly
from raftdiff.diffusion.models import measured
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampling import batches
from raftdiff.errors import UserError
from raftdiff.recipes.config import plain
from raftdiff.records.changes import as_begun, left_open, settled
from raftdiff.records.run import Run
from raftdiff.spread.shards import Part

AUTO = "sampler.batch_size=auto"


@pytest.fixture
def speeds(tmp_path, monkeypatch):
    """What a batch of so many gives; every measurement is counted."""
    table, asked = {1: 5.0, 2: 9.0, 4: 14.0, 8: 14.1}, []
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(batches, "measuring", lambda drawing, parts: lambda n: asked.append(n) or table.get(n))
    monkeypatch.setattr(assembly.loading, "load", lambda *_: None)
    return asked


def found(*overrides):
    recipe = load_recipe("demo", overrides)
    return batches.found(recipe.model, recipe.sampler, lambda: None)


def test_what_was_found_is_remembered_for_this_machine_model_and_size(speeds, capsys, monkeypatch):
    assert (found(), speeds) == (4, [1, 2, 4, 8])
    told = capsys.readouterr().err
    assert "sampler.batch_size: auto is 4 on this machine" in told
    assert "batches.json; 'raftdiff bench RECIPE' measures it anew" in told
    assert (found("sampler.steps=3"), len(speeds)) == (4, 4)
    for other in ("sampler.guidance=1", "sampler.height=64", "model.channels_last=false"):
        before = len(speeds)
        assert (found(other), len(speeds) - before) == (4, 4)
    monkeypatch.setattr(batches.kept, "machine", lambda device: ["another"])
    assert (found(), len(speeds)) == (4, 20)


def test_memory_that_did_not_suffice_is_remembered_and_a_broken_file_is_not_believed(speeds):
    recipe = load_recipe("demo")
    where = batches.facts(recipe.model, recipe.sampler)
    batches.lower(where, 2)  # of a number that a person gave nothing is kept
    assert batches.remembered(where) is None
    assert found() == 4
    batches.lower(where, 2)
    batches.lower(where, 3)
    assert (found(), len(speeds)) == (2, 4)
    measured.place(batches.FILE).write_text("{")
    with pytest.warns(UserWarning, match=r"batches.json: this file is damaged and not read; .* batch_size: auto"):
        assert (found(), len(speeds)) == (4, 8)


def test_bench_forgets_what_was_found_beside_other_work_and_that_alone(speeds):
    recipe, other = load_recipe("demo"), "sampler.guidance=1"
    assert (found(), found(other), len(speeds)) == (4, 4, 8)
    batches.forget(recipe.model, recipe.sampler)
    assert (found(other), len(speeds)) == (4, 8)
    assert (found(), len(speeds)) == (4, 12)


def test_where_nothing_can_be_remembered_that_is_told(speeds, tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path / "file"))
    assert (found(), found(), len(speeds)) == (4, 4, 8)
    assert capsys.readouterr().err.count("It cannot be remembered in") == 2


@pytest.mark.parametrize("sampler", [AUTO, "sampler={type: teacher, drawing: {steps: 4, batch_size: auto}}"])
def test_a_run_has_a_number_and_goes_on_with_it(speeds, tmp_path, sampler):
    asked = load_recipe("demo", [sampler])
    (key,) = left_open(asked)
    begun = assembly.settled(asked, lambda: None)
    assert (left_open(begun), settled(asked, {key: 4})) == ([], begun)
    assert as_begun(Run(tmp_path / "new"), asked) is asked
    run = Run.create(tmp_path / "run", begun, seed=0)
    assert as_begun(run, asked) is asked, "nothing was drawn yet"
    run.draft(0)
    measured.place(batches.FILE).unlink()  # on another machine, say, another number would be found
    assert as_begun(run, asked) == begun
    assert Run.at(run.path, as_begun(run, asked)).recipe() == plain(begun)
    with pytest.raises(UserError, match="begun with another recipe"):
        Run.at(run.path, settled(asked, {key: 8}))


def test_shards_are_not_measured_each_for_itself(speeds, tmp_path):
    with pytest.raises(UserError, match=r"shards fit together only .* here it would be sampler.batch_size=4"):
        stages._sample_shard(Run(tmp_path / "run"), load_recipe("demo", [AUTO]), Part(1, 2))
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_split_over_processes_is_not_measured(speeds):
    with pytest.raises(UserError, match=r"^sampler.batch_size: auto .* model.sharded splits the model. Say a number"):
        assembly.settled(load_recipe("demo", [AUTO, "model.sharded=true", "model.channels_last=false"]))
