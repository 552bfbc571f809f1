"""How a run begins: when all parts of its recipe are there, or as a fork, which keeps the rounds of another and goes on
from the samples of its next.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from raftdiff.errors import BusyError, UserError
from raftdiff.recipes.config import Config, plain
from raftdiff.records import integrity
from raftdiff.records.changes import FORKED, STATE_SHAPE
from raftdiff.records.disk import copy_files, naming
from raftdiff.records.media import TENSOR_FILES
from raftdiff.records.provenance import revisions
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run

Recipe = TypeVar("Recipe", bound=Config)
Parts = TypeVar("Parts")
PATIENCE = 60.0
"""Seconds that processes wait for each other where many begin at once."""


@contextmanager
def at_work(
    run: Run, recipe: Recipe, weights: Callable[[Recipe], Mapping[str, str]], assemble: Callable[[Recipe], Parts]
) -> Iterator[Parts]:
    """The parts of a run's recipe, and the run, held for writing. One that is yet to begin (``Run.at``) begins when
    they are there, so that what is refused on the way leaves no folder.

    Args:
        weights: fingerprints of the models that a recipe names.

    Raises:
        UserError: whatever ``assemble`` refuses; the run was begun with other weights, another commit of a model on a
            hub, or another recipe.
    """
    if (run.path / "run.json").is_file() and not Run.open(run.path).differing(recipe):
        with run.locked(recipe):
            run.bind(weights(recipe))
            parts = assemble(recipe)
            run.bind(revisions(plain(recipe)))  # only now: a hub that was asked may have moved on
            yield parts
        return
    marks, parts = weights(recipe), assemble(recipe)
    with Run.create(run.path, recipe, seed=plain(recipe)["loop"]["seed"]).locked(recipe):
        run.bind({**marks, **revisions(plain(recipe))})
        yield parts


@contextmanager
def in_turn(run: Run, recipe: Config, weights: Mapping[str, str]) -> Iterator[None]:
    """For one of several processes that begin a run at once, or take it up, and do not hold it while they work: each
    waits its turn, and within holds the run, begun with models of these fingerprints, as by ``at_work``. Who makes
    nothing within, not even the folder of a round, leaves it for the next one to begin anew.

    Raises:
        UserError: the run was begun with other weights or another recipe, or a process holds it for longer than these
            take.
    """
    patient_until = monotonic() + PATIENCE
    with ExitStack() as held:
        while True:
            try:
                begun = Run.create(run.path, recipe, seed=plain(recipe)["loop"]["seed"])
                held.enter_context(begun.locked(recipe))
                break
            except BusyError:
                if monotonic() > patient_until:
                    raise
                sleep(0.1)
        run.bind(weights)
        yield


def fork(parent: Run, recipe: Config, path: Path, *, round: int, seed: int) -> Run:
    """A new run that keeps the parent's rounds before ``round``, and of ``round`` the samples but not their scores.

    So a finished round can be scored, selected and learnt from again without sampling again.

    Raises:
        UserError: the folder exists, the parent has no such round, its recipe.yaml was changed by hand, or the recipe
            would have made other samples.
        OSError: the disk refuses; nothing of the new run stays then.
    """
    parent.demand_recipe()
    source = parent.round(round)
    if path.exists():
        raise UserError(f"{path}: this folder exists; a forked run needs a new one.")
    if keys := parent.differing(recipe, FORKED):
        others = parent.told(keys, recipe)
        raise UserError(f"{parent.path}: with another {others} the samples would be others; begin a new run.")
    changed = parent.differing(recipe)
    if source.index and (shaped := sorted(set(changed) & STATE_SHAPE)):
        raise UserError(
            f"{parent.path}: round {source.index - 1} left weights of another {', '.join(shaped)}, which the new run "
            "would go on from; change these only in a fork of round 0."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as scratch:
        aside = Path(scratch) / "run"
        with naming(path, aside):
            run = Run.create(aside, recipe, seed=seed, parent=parent.path.resolve().name)
            _fork_into(run, parent, source)
            if moved := parent.info().get("moved", {}) | dict(parent.moves(plain(recipe)).values()):
                run.know(moved=moved)
            aside.rename(path)
    return Run(path)


def _fork_into(run: Run, parent: Run, source: RoundFolder) -> None:
    if source.index:
        kept = {int(path.stem.removeprefix("before-")): path for path in parent.kept_recipes()}
        made = next((path for t, path in kept.items() if t >= source.index), parent.path / "recipe.yaml")
        earlier = {t: path for t, path in kept.items() if t < source.index}
        for t, path in {**earlier, source.index: made}.items():
            run.keep_recipe(t, path.read_text(encoding="utf-8"))
    for t in range(source.index):
        integrity.demand(parent.round_path(t), parent.round(t).mark)
        copy_files(parent.round_path(t), run.round_path(t))
        mark = parent.round(t).mark
        run._hold(t, integrity.seal(run.round_path(t)) if mark is None else mark)
        run.log("forked", round=t)
    if earlier_ones := {f"{t:03d}": to for t, to in parent.rollbacks().items() if t < source.index}:
        run.know(rollbacks=earlier_ones)
    integrity.demand(source.path, source.mark)
    draft = run.draft(source.index)
    rows = source.rows()
    for row in rows:
        if "file_name" in row:
            shutil.copy2(source.path / "samples" / row["file_name"], draft.path / "samples" / row["file_name"])
    for stem in TENSOR_FILES:
        if (source.path / f"{stem}.safetensors").is_file():
            (draft.path / stem).mkdir()
            shutil.copy2(source.path / f"{stem}.safetensors", draft.path / stem / "00000.safetensors")
    scored = ("total", "selected")
    unscored = [{k: v for k, v in row.items() if k not in scored and not k.startswith("reward_")} for row in rows]
    draft.write_rows(unscored)
    draft.note(candidates=len(rows))
