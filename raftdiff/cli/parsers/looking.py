"""The parsers of what looks at a run, in the terminal and in a browser."""

from pathlib import Path

from raftdiff.cli.parsers.options import RECIPE_HELP, Commands, add_command, add_door, from_one, from_zero


def add_looking(commands: Commands) -> None:
    """Looking at a run."""
    shown = add_command(commands, "show", "look:show", "how a run stands, and what to worry about")
    shown.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])

    checked = add_command(commands, "check", "look:check", "is a run what was written, file by file?")
    checked.add_argument("recipe", metavar="RUN", help="a run directory, or a folder with runs in it")

    drawn = add_command(commands, "draw", "look:draw", "pictures of your own prompts, before and after, same seeds")
    drawn.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    drawn.add_argument(
        "prompts",
        nargs="*",
        metavar="PROMPT",
        help="what to draw, in quotes; after -- if it is a word that begins with -",
    )
    drawn.add_argument("--prompts", dest="file", metavar="FILE", help="a prompt file, drawn as a whole")
    drawn.add_argument("--round", type=from_zero, metavar="N", help="the model after this round; the last by default")
    drawn.add_argument("--count", type=from_one, metavar="N", help="pictures per prompt; as in eval by default")
    drawn.add_argument("--seed", type=from_zero, metavar="N", help="as in eval by default")
    drawn.add_argument("--steps", type=from_one, metavar="N", help="sampling steps; as in eval by default")
    drawn.add_argument("--guidance", type=float, metavar="W", help="classifier-free guidance; the recipe's by default")
    drawn.add_argument("--size", type=from_one, metavar="PIXELS", help="width and height; the recipe's by default")
    drawn.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; the recipe's by default")
    drawn.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/drawn")

    told = add_command(commands, "labels", "look:labels", "what people chose: tallies, win rates, preference pairs")
    told.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    told.add_argument("--pairs", type=Path, metavar="FILE", help="write the preferences as JSON lines")


def add_pages(commands: Commands) -> None:
    """The same in a browser."""
    compared = add_command(commands, "compare", "pages:compare", "a page: before and after of any prompt, side by side")
    compared.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    compared.add_argument("other", nargs="?", type=Path, metavar="RUN2", help="another run to compare with")
    compared.add_argument("--prompts", metavar="FILE", help="a prompt file to choose from, beside the run's prompts")
    add_door(compared)

    watched = add_command(commands, "watch", "pages:watch", "a page: a run while it goes on")
    watched.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    add_door(watched)

    label = add_command(commands, "label", "pages:label", "a page: choose the better of two pictures or answers, blind")
    label.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    label.add_argument("--round", type=from_zero, metavar="N", help="candidates of this round; the last by default")
    label.add_argument(
        "--eval", nargs="?", const="", metavar="NAME", help="before and after of an evaluation, instead of candidates"
    )
    label.add_argument("--per-prompt", type=from_one, default=4, metavar="N", help="pairs a prompt (%(default)s)")
    label.add_argument("--rater", default="me", metavar="NAME", help="who answers (default: %(default)s)")
    add_door(label)
