"""Recipes and runs of either medium: which assembly they belong to."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from raftdiff.cli import opening
from raftdiff.cli.show import Bars, round_line
from raftdiff.diffusion.assembly import Assembly, assemble, build_ranker, read_by, settled
from raftdiff.diffusion.recipe import Recipe, unheeded
from raftdiff.diffusion.recipe_files import load_recipe, recipe_of, weights
from raftdiff.diffusion.wording import NEXT, limits
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, command, counted
from raftdiff.llm.assembly import TextAssembly, assemble_text
from raftdiff.llm.comparison import evaluation_texts
from raftdiff.llm.recipe import TextRecipe, load_text_recipe, text_recipe_of
from raftdiff.llm.recipe import weights as text_weights
from raftdiff.measures.alarms import after_going_back
from raftdiff.raft import raft
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import plain
from raftdiff.recipes.files import locate, medium_of
from raftdiff.recipes.needs import ready
from raftdiff.recipes.prompts import build
from raftdiff.records import beginning
from raftdiff.records.changes import alike
from raftdiff.records.disk import read_appended
from raftdiff.records.provenance import revisions
from raftdiff.records.run import Run, load_round
from raftdiff.records.watching import new_warnings, went_back
from raftdiff.scoring import demand_prompts
from raftdiff.spread.processes import follow, shared
from raftdiff.stages.ending import guarded, until_alarm, until_no_gain
from raftdiff.stages.parts import LoopConfig, Parts
from raftdiff.stages.servers import asking_first
from raftdiff.stages.verbs import heed
from raftdiff.training import processes, sharded
from raftdiff.training.devices import find_device
from raftdiff.types import Prompt, Round, State

AnyRecipe: TypeAlias = Recipe | TextRecipe
LookedAt: TypeAlias = Literal["never", "later", "at once"]
"""When an evaluation looks at what a run makes."""
AnyAssembly: TypeAlias = Assembly | TextAssembly


def parts_of(assembly: AnyAssembly) -> Parts[Any]:
    """What the loop takes; it does not care for the medium."""
    return assembly.parts


def ranker_of(recipe: AnyRecipe, state: State | None) -> tuple[Ranker[Any], list[Prompt]]:
    """Rewards and selector of a run, and the prompts: for pictures the diffusion model stays on the disk, for texts a
    reward may be the policy's own distance from the base, so all of it is loaded."""
    if isinstance(recipe, TextRecipe):
        assembly = assemble_text(recipe)
        if state:
            assembly.finetuner.load_state_dict(state)
        return assembly.ranker, list(assembly.parts.prompts)
    return build_ranker(recipe, device=str(find_device(recipe.model.device))), build(recipe.prompts)


def read(name: str, overrides: list[str]) -> AnyRecipe:
    """The recipe in a file, or the one of that name that ships.

    Raises:
        UserError: no such recipe, or anything wrong in it, in a sentence a line.
    """
    path = locate(name)
    return load_text_recipe(path, overrides) if medium_of(path) == "text" else load_recipe(name, overrides)


def recipe_file(name: str) -> Path:
    """The recipe that a word of the command line means: a run's own, a file, or one that ships.

    Raises:
        UserError: there is none.
    """
    run = Path(name)
    return run / "recipe.yaml" if (run / "run.json").is_file() else locate(name)


def of(run: Run) -> AnyRecipe:
    """What a run was begun with."""
    return text_recipe_of(run) if medium_of(run.path / "recipe.yaml") == "text" else recipe_of(run)


def weights_of(recipe: AnyRecipe) -> dict[str, str]:
    """A fingerprint of every local model that a recipe names."""
    return text_weights(recipe) if isinstance(recipe, TextRecipe) else weights(recipe)


def prepared(run: Run, recipe: AnyRecipe) -> AnyAssembly:
    """The parts of a run's recipe, to look at its model.

    Raises:
        UserError: the weights that it names, or the commits of those on a hub, are not those that the run was begun
            with, or cannot be loaded.
    """
    run.bind(weights_of(recipe))
    parts = assembled(recipe) if isinstance(recipe, TextRecipe) else assemble(recipe, training=False)
    run.bind(revisions(plain(recipe)))  # only now: a hub that was asked may have moved on
    return parts


def assembled(recipe: AnyRecipe) -> AnyAssembly:
    """The parts of a recipe of either medium.

    Raises:
        UserError: one cannot be loaded, or the prompts cannot be read.
    """
    return assemble_text(recipe) if isinstance(recipe, TextRecipe) else assemble(recipe)


def _together(recipe: AnyRecipe) -> AnyAssembly:
    """As ``assembled``, while the other processes, where there are any, load the same."""
    with sharded.assembling():
        return assembled(recipe)


def _looked_ahead(run: Run, assembly: AnyAssembly, looked_at: LookedAt) -> AnyAssembly:
    """The parts, when an evaluation will be able to look at what they make; asked where nothing was made yet.

    Raises:
        UserError: texts whose held-out prompts cannot be read, or that a reward knows nothing of; the tuned model has
            no room for the answers that are asked for; the server of a reward that looks ``at once`` is not there.
    """
    fresh = not run.rounds_done() and not run.unfinished(0).path.is_dir()
    if isinstance(assembly, TextAssembly) and fresh and looked_at != "never":
        demand = assembly.check if looked_at == "at once" else assembly.demand_known
        demand(evaluation_texts(assembly, None))
    return assembly


def measured(recipe: AnyRecipe) -> AnyRecipe:
    """The recipe with what it leaves to be measured on this machine."""
    return recipe if isinstance(recipe, TextRecipe) else settled(recipe)


@contextmanager
def at_work(
    run: Run, recipe: AnyRecipe, *, scored: bool = True, looked_at: LookedAt = "later"
) -> Iterator[AnyAssembly]:
    """As ``beginning.at_work``, of pictures or of texts; the other processes, where there are any, take their share of
    what the parts do. Servers are asked whether they are there, of rewards where the candidates are ``scored`` too.
    What an evaluation will look at is looked at, unless that is ``never``."""
    recipe = measured(recipe)  # once for all processes, whose batches are cut alike
    processes.tell(("begin", recipe))

    def whole(one: AnyRecipe) -> AnyAssembly:
        return _looked_ahead(run, _together(one), looked_at)

    with beginning.at_work(run, recipe, weights_of, asking_first(run, whole, scored=scored)) as assembly:
        if isinstance(assembly, Assembly):
            yield replace(assembly, parts=shared(assembly.parts, learns_together=True))
        else:
            yield replace(assembly, parts=shared(assembly.parts, learns_together=False))


def joined(rank: int, size: int, work: Callable[[], int]) -> int:
    """Do the ``work`` as the first of several processes, or take part in it as another; returns the exit status."""
    try:
        processes.join(rank, size)
        if rank:
            warnings.simplefilter("ignore")  # the first says it
            os.environ["TQDM_DISABLE"] = "1"
            follow(lambda recipe: parts_of(assembled(recipe)))
            return 0
        status = work()
        if status == 0:
            processes.tell(None)
        elif processes.lost(0.0):
            status = 1
    except UserError as error:
        sys.stderr.write(f"raftdiff: process {rank}: {error}\n")
        return 2
    except RuntimeError:
        if not processes.lost():
            raise
        return 1
    finally:
        processes.leave()
    return status


def taken_up(path: Path, round: int | None) -> tuple[Run, TextAssembly]:
    """A text run's parts, its policy as it was after a round, the last by default.

    Raises:
        UserError: there is no such run or round, or it is one on pictures.
    """
    run = opening.to_read(path)
    recipe = text_recipe_of(run)
    assembly = prepared(run, recipe)
    assert isinstance(assembly, TextAssembly)
    load_round(run, assembly.finetuner, round)
    return run, assembly


KIND = opening.Kind(read, of, "train", lambda recipe: ready(recipe, resolve))


def open_run(args: argparse.Namespace) -> tuple[Run, AnyRecipe]:
    """The run that the arguments name, as ``opening.open_run``, of pictures or of texts."""
    run, recipe = opening.open_run(args, KIND)
    return run, recipe


def going_on(args: argparse.Namespace) -> tuple[Run, AnyRecipe]:
    """The run that the arguments name, as ``opening.going_on``, of pictures or of texts."""
    run, recipe = opening.going_on(args, KIND)
    return run, recipe


def existing_run(args: argparse.Namespace) -> tuple[Run, AnyRecipe]:
    """A run and its recipe, as ``opening.existing_run``, of pictures or of texts."""
    run, recipe = opening.existing_run(args, KIND)
    return run, recipe


def run_to_read(args: argparse.Namespace, *, free: Sequence[str]) -> tuple[Run, AnyRecipe]:
    """A run and its recipe, as ``opening.run_to_read``, of pictures or of texts.

    Raises:
        UserError: as there; an override would change nothing of how the model is looked at.
    """
    run, recipe = opening.run_to_read(args, KIND, free=free)
    if isinstance(recipe, Recipe) and (told := unheeded(recipe, run.differing(recipe))):
        raise UserError("\n".join(told))
    return run, recipe


def tell(notes: Iterable[str]) -> None:
    """Say what is worth knowing before work begins, whatever was said before."""
    for note in notes:
        warnings.warn_explicit(note, UserWarning, __file__, 1)


def tell_once(run: Run, notes: Iterable[str]) -> None:
    """As ``tell``, each line of a note once a run: its log keeps what was told, by whichever command."""
    logged = read_appended(run.path / "log.jsonl")
    told = {part for line in logged if "note" in line for part in _parts(str(line["note"]))}
    for note in notes:
        if fresh := [part for part in _parts(note) if part not in told]:
            said = NEXT.join([fresh[0][0], *(line for _, line in fresh if line)])
            tell([said])
            run.log("note", note=said)


def _parts(note: str) -> list[tuple[str, str]]:
    """Each line of a note with its head; a note of one line is its head alone."""
    head, *lines = note.split(NEXT)
    return [(head, line) for line in lines or [""]]


def begin(run: Run, assembly: AnyAssembly) -> None:
    """Tell what of a run's prompts is not read as it stands there."""
    if isinstance(assembly, Assembly):
        tell_once(run, assembly.first_notes())


def begin_scoring(run: Run, recipe: AnyRecipe, ranker: Ranker[Any], prompts: Sequence[Prompt]) -> None:
    """Tell what of a run's prompts its rewards do not read.

    Raises:
        UserError: a reward can say nothing of one of the prompts.
    """
    demand_prompts([reward for reward, _ in ranker.rewards], prompts)
    if isinstance(recipe, Recipe):
        tell_once(run, limits("prompts", prompts, read_by(ranker)))


def loop(run: Run, assembly: AnyAssembly) -> None:
    """Consume the rounds: show a line each with what alarms in it, log, track, and stop when the held-out reward has
    stopped rising, or when the guard says so."""
    plan, done = assembly.parts.loop, run.rounds_done()
    told = f"continuing with round {done}" if done else counted(plan.rounds, "round")
    begin(run, assembly)
    print(f"{run.path}: {told}, the last is round {plan.rounds - 1}")
    print(f"trained: {assembly.finetuner.trainable.described()}")

    def rounds(bars: Bars) -> Iterator[Round]:
        made = until_no_gain(raft(run, parts_of(assembly), bars), plan.patience, alike(run.metrics()))
        return until_alarm(made, run, plan)

    def line(finished: Round, wanted: int, seconds_left: float) -> str:
        return "\n".join([round_line(finished, wanted, seconds_left), *alarming(run)])

    opening.follow(run, assembly.recipe, rounds, line, event="round")
    if not guarding(run, plan) and run.rounds_done() < plan.rounds:
        print(f"stopped early: the held-out reward has not risen for {plan.patience} rounds")


def alarming(run: Run) -> list[str]:
    """A line for each warning that the last round gives cause for and the one before it did not."""
    told = new_warnings(run.metrics())
    return [f"warning: {one}" for one in (after_going_back(told) if went_back(run) else told)]


def guarding(run: Run, plan: LoopConfig) -> bool:
    """Whether the guard ended the run, which is then said; what it had begun is brought to its end."""
    heed(run, plan, run.metrics())
    if back := went_back(run):
        print(back)
    if not guarded(run, plan):
        return False
    on = command("train", run.path, "loop.guard=warn")
    print(
        f"stopped after round {run.rounds_done() - 1}, which raised an alarm (loop.guard: {plan.guard}); to go on: {on}"
    )
    return True
