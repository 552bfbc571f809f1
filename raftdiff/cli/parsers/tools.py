"""The parsers of what there is before a run: the plan, rewards and pictures looked at alone, recipes."""

from pathlib import Path

from raftdiff.cli.parsers.options import Commands, add_command, add_recipe, from_one, from_one_each, minutes
from raftdiff.cli.parsers.rewards import add_rewards

MIXES = ("weighted_sum", "grpo", "gdpo", "rank_sum", "minimum")
"""As in ``selection.mixes``, which is not loaded for the help."""


def add_tools(commands: Commands) -> None:
    """Before a run."""
    _add_bench(commands)
    plan = add_command(
        commands, "plan", "pictures.plan:plan", "what a recipe will do: pictures, evaluations, memory, time"
    )
    add_recipe(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.add_argument(
        "--machines",
        type=from_one_each,
        default=(),
        metavar="N,N",
        help="also with so many machines like this one that sample in shards: time and traffic of a round",
    )
    plan.add_argument("--card", metavar="12GB", help="a card's memory: which settings fit on it, by sizes alone")

    checked = add_command(commands, "check-reward", "tools:check_reward", "does a reward keep the rules?")
    checked.add_argument("reward", metavar="NAME", help="a reward (clip, aesthetic, jpeg, ...) or your module:function")
    checked.add_argument("overrides", nargs="*", metavar="key=value", help="its options, e.g. model=scene-clip")
    checked.add_argument("--text", action="store_true", help="try it on answers: for a module:function on texts")
    checked.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures to try it on, instead of patterns")

    ranked = add_command(commands, "rank", "pictures.rank:rank_pictures", "score pictures that you have, copy the best")
    ranked.add_argument(
        "folder",
        type=Path,
        metavar="FOLDER",
        help="pictures: an ImageFolder or its table, GenEval's folders, or any with captions in .txt files beside them",
    )
    ranked.add_argument(
        "--reward",
        action="append",
        required=True,
        metavar="NAME[:key=value,...]",
        help="a reward (clip, jpeg, ...) or your module:function, its options behind a colon, such as "
        "clip:model=scene-clip,weight=0.5; or a mapping as in a recipe. Several are mixed",
    )
    ranked.add_argument(
        "--mix", choices=MIXES, default=MIXES[0], help="how they become one ranking (default: %(default)s)"
    )
    ranked.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt file: what the pictures should show, in place of their own captions; a picture that is of none "
        "of several prompts is left out",
    )
    ranked.add_argument(
        "--top", type=from_one, default=100, metavar="N", help="pictures to copy (default: %(default)s)"
    )
    ranked.add_argument(
        "--per-prompt",
        type=from_one,
        metavar="N",
        help="of one prompt copy at most so many: else those that score highest anyway fill the best",
    )
    ranked.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")
    ranked.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="a new folder, FOLDER-ranked by default; one with something in it is refused",
    )

    for command in (plan, checked, ranked, *add_rewards(commands)):
        command.set_defaults(stopped="Nothing was written; the same command begins again.")

    add_command(commands, "recipes", "tools:recipes", "list the recipes that ship")
    schema = add_command(commands, "schema", "tools:schema", "print the JSON schema of recipes")
    media = ("image", "text", "preferences", "pipeline")
    schema.add_argument("media", nargs="?", choices=media, default="image", help="default: %(default)s")


def _add_bench(commands: Commands) -> None:
    """How fast this machine is."""
    timed = add_command(
        commands, "bench", "pictures.bench:bench", "how fast this machine draws, scores and tunes, in tables and a plot"
    )
    timed.add_argument("recipe", nargs="?", default="demo", metavar="RECIPE", help="default: %(default)s")
    timed.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, by dotted path")
    timed.add_argument(
        "--minutes", type=minutes, default=5.0, metavar="M", help="take at most so long (default: %(default)g)"
    )
    timed.add_argument(
        "--repeats", type=from_one, default=3, metavar="N", help="of everything, in turn (default: %(default)s)"
    )
    timed.add_argument(
        "--compile", action="store_true", help="time a compiled network too; compiling takes a minute or several"
    )
    timed.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUNS/bench-RECIPE")
    timed.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")
    timed.set_defaults(stopped="What was measured until then is told above, if anything was.")
