"""Where a run's recipe changes between two rounds, what made the rounds that are done stays on record.

``recipe.yaml`` is the recipe of the rounds to come. Before it changes, it is kept as ``recipes/before-003.yaml``, where
round 3 is the first that the new one makes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, check, completed, dump, flat, plain, put
from raftdiff.records.run import Run

C = TypeVar("C", bound=Config)
STATE_SHAPE = {f"finetuner.{key}" for key in ("adapter", "rank", "target_modules", "train_text_encoder", "ema")}
"""Recipe keys that decide what a finished round's state holds."""
FORKED = (
    "ranker",
    "finetuner",
    "evaluation",
    "loop.rounds",
    "loop.replay_rounds",
    "loop.patience",
    "loop.guard",
    "name",
)
"""What may differ in a fork; the rest made the samples that it takes over."""
SCALE = ("ranker", "evaluation")
"""Recipe keys that decide what a reward means: rounds before and after a change of these are not compared."""
HARMLESS = ("loop.rounds", "loop.patience", "loop.guard", "name")
"""What may change while a round is half made: it does not enter into it."""


def left_open(recipe: Config) -> list[str]:
    """The keys whose value is measured where a run begins, and is a number in the run."""
    return [key for key, value in flat(plain(recipe)).items() if key.endswith(".batch_size") and value == "auto"]


def settled(recipe: C, values: Mapping[str, Any]) -> C:
    """The recipe with these values, by dotted path."""
    data = plain(recipe)
    for key, value in values.items():
        put(data, key, value)
    return check(type(recipe), data) if values else recipe


def as_begun(run: Run, recipe: C) -> C:
    """The recipe with what it leaves open as the run has it, where one was begun: it is never measured again, or the
    rest of a round would be cut otherwise than what is drawn of it."""
    keys = left_open(recipe)
    if not keys or not (run.path / "run.json").is_file() or not any((run.path / "rounds").glob("*")):
        return recipe
    own = flat(completed(run.recipe(), type(recipe)))
    return settled(recipe, {key: own[key] for key in keys if key in own})


def go_on_with(run: Run, recipe: Config) -> list[str]:
    """Let ``recipe`` make the rounds that are still missing. Returns the keys that change.

    Raises:
        UserError: it would change what all rounds share, what the trained weights are, a round that is half made, or
            plan fewer rounds than are done.
    """
    new, done = plain(recipe), run.rounds_done()
    if fixed := run.differing(recipe, FORKED):
        stems = [key.rpartition(".")[0] for key in fixed]
        other = [stem for stem, key in zip(stems, fixed, strict=True) if key.endswith(".sha256")]
        if other and len(other) == len(fixed):  # at the same place
            lie = f"the files of {', '.join(other)} are not those that it began with"
            raise UserError(f"{run.path}: {lie}. Put the old ones back, or begin a new run.")
        shared = run.told(fixed, recipe)
        raise UserError(f"{run.path}: all rounds of a run share {shared}; for another begin a new run.")
    changed = run.differing(recipe)
    if done and (shaped := sorted(set(changed) & STATE_SHAPE)):
        raise UserError(
            f"{run.path}: its weights were begun with this {', '.join(shaped)}; for another begin a new run."
        )
    entering = [key for key in changed if key not in HARMLESS]
    if entering and run.unfinished(done).path.is_dir():
        raise UserError(
            f"{run.path}: round {done} is half made, and {', '.join(entering)} would change in it. Finish it first "
            f"(loop.rounds={done + 1}), or remove {run.unfinished(done).path}."
        )
    if new["loop"]["rounds"] < done:
        raise UserError(f"{run.path}: {done} rounds are done, so loop.rounds cannot be {new['loop']['rounds']}.")
    run.settle(recipe)
    if not changed:
        return []
    # of several changes before one round the first recipe made the rounds before it
    run.keep_recipe(done, dump(completed(run.recipe(), type(recipe))))
    run.put_recipe(dump(recipe))
    run.log("recipe", round=done, changed=changed)
    return changed


def alike(rounds: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Of the rounds' metrics (``Run.metrics``) the last ones whose rewards mean the same.

    >>> alike([{"round": 0}, {"round": 1, "changed": ["ranker.rewards.0.type"]}, {"round": 2, "changed": ["name"]}])[0]
    {'round': 1, 'changed': ['ranker.rewards.0.type']}
    """
    began = [at for at, it in enumerate(rounds) if any(key.split(".")[0] in SCALE for key in it.get("changed", ()))]
    return rounds[began[-1] if began else 0 :]
