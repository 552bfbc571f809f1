"""A round sampled in shards, on the toy world: what is joined, what is refused, what a kill leaves."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raftdiff.errors import BusyError, UserError
from raftdiff.progress import Quiet
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import Config
from raftdiff.records import beginning, integrity
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run
from raftdiff.selection.best import BestOfK
from raftdiff.spread import shards
from raftdiff.spread.shards import Part
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.stages.verbs import sample
from raftdiff.testing.toy import toy_prompts, toy_world
from raftdiff.types import Sample


class Toy(Config):
    name: str = "toy"
    base: str = "painter"
    guidance: float = 2.0
    loop: LoopConfig = LoopConfig(candidates=3)


def parts(loop: LoopConfig) -> Parts[Any]:
    sampler, reward, tuner = toy_world()
    return Parts(sampler, Ranker([(reward, 1.0)], BestOfK()), tuner, toy_prompts(3), loop=loop)


def begun(path: Path, recipe: Toy | None = None, mark: str = "0a") -> Run:
    run = Run.create(path, recipe or Toy(), seed=0)
    run.bind({"painter": mark})
    run.draft(0)
    return run


def draw(run: Run, *numbers: int, of: int = 3, loop: LoopConfig | None = None) -> None:
    for number in numbers:
        shards.sample(run, Part(number, of), parts(loop or Toy().loop), Quiet())


def drawn(draft: Draft) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in (draft.path / "samples").iterdir()}


def latents(draft: Draft) -> list[list[float]]:
    return [one.aux["latent"].tolist() for one in draft.folder.samples()]


@pytest.fixture
def alone(tmp_path: Path) -> Draft:
    """The same round, drawn by one process."""
    draft = begun(tmp_path / "alone").draft(0)
    sample(draft, Run(tmp_path / "alone"), parts(Toy().loop), Quiet())
    return draft


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return begun(tmp_path / "run")


@pytest.mark.parametrize(("batches", "of"), [(5, 3), (40, 64), (64, 64), (1, 1)])
def test_parts_have_each_batch_once_and_as_many_as_others(batches: int, of: int) -> None:
    found = [Part(number, of).among(batches) for number in range(1, of + 1)]
    assert [place for part in found for place in part] == list(range(batches))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_shard_is_of_the_batches_that_a_sampler_with_an_order_of_its_own_draws(run: Run) -> None:
    """Else it would draw whole batches for the few candidates of each that are its own."""
    mine = parts(Toy().loop)
    keys = [(prompt.id, index) for prompt in toy_prompts(3)[::-1] for index in range(3)]
    told = [keys[start : start + 2] for start in range(0, 9, 2)]
    mine.sampler.batches = lambda *_, **__: told  # type: ignore[attr-defined]
    folder = shards.sample(run, Part(2, 3), mine, Quiet())
    assert folder is not None
    assert set(Draft(folder, 0, folder).sampled()) == {*told[1], *told[2]}


def test_shards_of_several_machines_make_the_round_that_one_process_makes(
    tmp_path: Path, run: Run, alone: Draft
) -> None:
    """The third on another machine, where the model lies elsewhere; and joining twice changes nothing."""
    draw(run, 2, 1)
    other = begun(tmp_path / "other")
    other.put_recipe(
        (other.path / "recipe.yaml").read_text().replace("painter", "there/p"), moved={"painter": "there/p"}
    )
    other.know(weights={**other.info()["weights"], "there/p": "1b"})
    draw(other, 3)
    shutil.copytree(other.path / "shards", run.path / "shards", dirs_exist_ok=True)
    draft = run.draft(0)
    for _ in range(2):
        assert shards.join(run, draft, Quiet()) == 3
        assert (drawn(draft), latents(draft)) == (drawn(alone), latents(alone))
        metrics = draft.metrics()
        assert (metrics["candidates"], metrics["shards"], metrics["network_evaluations"]["sample"]) == (9, 3, 9)
        assert 0 < metrics["seconds"]["sample"] < 60


def test_what_a_kill_leaves_of_a_shard_and_of_a_merge_goes_on(
    run: Run, alone: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(after: int) -> Callable[[Draft, Sample[Any]], None]:
        def adding(self: Draft, one: Sample[Any]) -> None:
            add(self, one)
            added.append(one)
            if len(added) == after:
                raise KeyboardInterrupt

        add, added = Draft.add, list[Sample[Any]]()
        return adding

    monkeypatch.setattr(Draft, "add", dying(2))
    with pytest.raises(KeyboardInterrupt):
        draw(run, 3)
    monkeypatch.undo()
    assert [path.name for path in (run.path / "shards/000").iterdir()] == ["3-of-3.partial"]
    draw(run, 1, 2, 3)
    monkeypatch.setattr(Draft, "add", dying(5))
    with pytest.raises(KeyboardInterrupt):
        shards.join(run, run.draft(0), Quiet())
    monkeypatch.undo()
    assert len(run.draft(0).sampled()) == 5
    shards.join(run, run.draft(0), Quiet())
    assert drawn(run.draft(0)) == drawn(alone)


def edit(folder: Path, **facts: Any) -> None:
    (folder / "shard.json").write_text(json.dumps({**json.loads((folder / "shard.json").read_text()), **facts}))


def rewritten(folder: Path, file: str, text: str) -> None:
    """With checksums as if it had been drawn so."""
    (folder / file).write_text(text)
    integrity.seal(folder)


def rows(folder: Path) -> list[str]:
    return (folder / "samples/metadata.jsonl").read_text().splitlines(keepends=True)


FAULTS: dict[str, Callable[[Path], object]] = {
    "shards are missing: 2/3. Draw them: raftdiff sample .* --shard 2/3": lambda at: shutil.rmtree(at / "2-of-3"),
    "missing: 2/3 \\(of them half drawn here: 2/3\\)": lambda at: (at / "2-of-3").rename(at / "2-of-3.partial"),
    "no complete shard of round 0 is here": shutil.rmtree,
    "shard 2/3 is here twice, 2-of-3 and copy": lambda at: shutil.copytree(at / "2-of-3", at / "copy"),
    "shards of 2 and 3 are here": lambda at: draw(Run(at.parents[1]), 1, of=2),
    "2-of-3: samples/green-1-000.png was changed": lambda at: (at / "2-of-3/samples/green-1-000.png").write_bytes(b""),
    "2-of-3: samples/green-1-000.png is missing": lambda at: (at / "2-of-3/samples/green-1-000.png").unlink(),
    "1-of-3: SHA256SUMS is not the list": lambda at: (at / "1-of-3/SHA256SUMS").unlink(),
    "3-of-3: this is no shard": lambda at: (at / "3-of-3/shard.json").unlink(),
    "shard.json: this file is damaged \\(it does not say of\\)": lambda at: edit(at / "3-of-3", of="?"),
    "of round 1, and round 0 is being made": lambda at: edit(at / "3-of-3", round=1),
    "with another recipe .* differ: guidance": lambda at: edit(
        at / "3-of-3", recipe={"guidance": 1.0, "base": "painter"}
    ),
    "with other weights of painter": lambda at: edit(at / "3-of-3", weights={"painter": "0b"}),
    "3-of-3: this shard was drawn with o/m as of bb on the hub, and 1-of-3 as of aa": lambda at: [
        edit(at / f"{number}-of-3", revisions={"o/m": commit}) for number, commit in ((1, "aa"), (3, "bb"))
    ],
    "3-of-3: it holds 2 candidates, and 3 were drawn. Bring": lambda at: rewritten(
        at / "3-of-3", "samples/metadata.jsonl", "".join(rows(at / "3-of-3")[1:])
    ),
    "3-of-3: candidate . of '.*' is in 2-of-3 too": lambda at: rewritten(
        at / "3-of-3", "samples/metadata.jsonl", "".join([*rows(at / "2-of-3")[:1], *rows(at / "3-of-3")[1:]])
    ),
    "metrics.json: this file is damaged": lambda at: rewritten(at / "1-of-3", "metrics.json", "{}"),
    "by another model than this run has come to": lambda at: edit(at / "3-of-3", begins_from=[0, "0c"]),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its three shards; to be copied."""
    run = begun(tmp_path_factory.mktemp("three") / "run")
    draw(run, 1, 2, 3)
    return run.path


@pytest.mark.parametrize("told", FAULTS)
def test_a_fault_is_a_sentence_and_nothing_is_joined(tmp_path: Path, three: Path, told: str) -> None:
    run = Run(Path(shutil.copytree(three, tmp_path / "run")))
    FAULTS[told](run.path / "shards/000")
    with pytest.raises(UserError, match=told):
        shards.join(run, run.draft(0), Quiet())
    assert not run.draft(0).sampled()


def test_a_shard_of_another_run_is_not_gone_on_with(tmp_path: Path, three: Path) -> None:
    other = begun(tmp_path / "other", Toy(guidance=1.0))
    shutil.copytree(three / "shards", other.path / "shards")
    with pytest.raises(UserError, match="with another recipe .* differ: guidance. Remove it, and draw it again"):
        draw(other, 1)


def test_there_may_be_more_shards_than_batches_and_rounds_that_draw_nothing(run: Run) -> None:
    draw(run, *range(1, 14), of=13)
    assert len(list((run.path / "shards/000").iterdir())) == 9
    draft = run.draft(0)
    assert shards.join(run, draft, Quiet()) == 9
    draft.commit({})
    with pytest.raises(UserError, match="round 1 draws no candidates, it takes over those of round 0"):
        draw(run, 1, loop=LoopConfig(sample_every=2))


def test_processes_that_begin_a_run_at_once_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, recipe = Run(tmp_path / "run"), Toy()
    with beginning.in_turn(run, recipe, {"painter": "0a"}):
        run.draft(0)
        known = run.info()
        monkeypatch.setattr(beginning, "PATIENCE", -1.0)
        with pytest.raises(BusyError, match="another raftdiff process"), beginning.in_turn(run, recipe, {}):
            pass
    monkeypatch.undo()
    with ExitStack() as first:
        first.enter_context(run.locked())
        monkeypatch.setattr(beginning, "sleep", lambda _: first.close())
        with beginning.in_turn(run, recipe, {"painter": "0a"}):
            assert run.info() == known
    with pytest.raises(UserError, match="other weights of painter"), beginning.in_turn(run, recipe, {"painter": "0b"}):
        pass


class OneLeft:
    """A sampler that drops all candidates of a prompt but one."""

    source, provides = "policy", ("latent",)

    def kept(self, per_prompt: int) -> int:
        return min(1, per_prompt)

    def on_previews(self, told: Any) -> None: ...

    def sample(self, prompts: Any, **how: Any) -> Any: ...

    def network_evaluations(self) -> int:
        return 0


def test_a_round_that_is_pruned_is_not_divided(tmp_path: Path) -> None:
    pruned = replace(parts(Toy().loop), sampler=OneLeft())
    with pytest.raises(
        UserError, match="sampler.prune: a round that is pruned is drawn on one machine.* leave --shard"
    ):
        shards.sample(begun(tmp_path / "run"), Part(1, 3), pruned, Quiet())
