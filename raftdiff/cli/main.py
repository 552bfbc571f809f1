"""The command line: one parser, and each command imported only when it is called, so that help comes at once."""

import argparse
import errno
import importlib
import os
import re
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from raftdiff import __version__, console
from raftdiff.cli.llm.parsers import add_language
from raftdiff.cli.options import (
    RECIPE_HELP,
    Commands,
    add_command,
    add_door,
    add_place,
    add_recipe,
    from_one,
    from_one_each,
    from_zero,
    one_of,
)
from raftdiff.cli.pictures.parsers import add_rewards
from raftdiff.errors import UserError

EPILOG = """\
start here:
  raftdiff demo                            align the model that ships, look at before and after
  raftdiff train sd15_256                  the paper's job: Stable Diffusion 1.5 at 256 px on one GPU
  raftdiff eval RUN                        before and after on held-out prompts

Recipes are YAML files; every value can be overridden: raftdiff train demo loop.rounds=5 sampler.steps=20
"""
CONTINUES = "Nothing that was finished is lost; the same command continues."
"""What an interrupt means to a command that writes into a run as it goes on."""
SEVERAL = ("--reward",)
"""Options that may be given more than once."""
MIXES = ("weighted_sum", "grpo", "gdpo", "rank_sum", "minimum")
"""As in ``selection.mixes``, which is not loaded for the help."""


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    top = argparse.ArgumentParser(
        prog="raftdiff",
        description="Align text-to-image diffusion models with what people want, by reward-ranked fine-tuning (RAFT).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"raftdiff {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND")

    for add in (_running, _stages, _results, _looking, _pages, add_language, _tools):
        add(commands)
    return top


def _running(commands: Commands) -> None:
    """Run a recipe."""
    demo = add_command(commands, "demo", "train:demo", "RAFT on the model that ships, then a before/after report")
    add_recipe(demo, default="demo")
    demo.set_defaults(
        then="look at the report, then try a job with scenes of kinds the model never saw: raftdiff train scene_align"
    )
    add_place(demo)

    train = add_command(commands, "train", "train:train", "run a recipe, or continue a run")
    add_recipe(train, metavar="RECIPE|RUN")
    add_place(train)


def _stages(commands: Commands) -> None:
    """The verbs of the loop, one at a time."""
    for stage, text in (
        ("sample", "draw the candidates of the next round"),
        ("merge", "join the shards of a round that several machines sampled"),
        ("score", "score the candidates of the round that was sampled"),
        ("select", "select what to learn from"),
        ("tune", "fine-tune on the selection, and complete the round"),
    ):
        command = add_command(commands, stage, f"stages:{stage}", text)
        add_recipe(command, metavar="RECIPE|RUN" if stage == "sample" else "RUN")
        if stage == "sample":
            add_place(command)
            command.add_argument(
                "--shard", type=one_of, metavar="I/N", help="draw the I-th of N parts alone, to be joined by merge"
            )
        if stage == "score":
            command.add_argument(
                "--round", type=from_zero, metavar="N", help="score this finished round again, into a new run"
            )
            command.add_argument("--out", type=Path, metavar="FOLDER", help="the new run (with --round)")


def _results(commands: Commands) -> None:
    """What a run came to."""
    evaluate = add_command(commands, "eval", "evaluate:evaluate", "before and after on prompts, same seeds")
    add_recipe(evaluate, metavar="RUN|MODEL|FOLDER")
    evaluate.add_argument(
        "--benchmark",
        metavar="NAME",
        help="geneval, geneval2, parti, compbench, dpg, hpsv2, imagereward or pick-a-pic: figures by category and a "
        "table for papers, of a run, and also of a model or of a folder of pictures in its place",
    )
    evaluate.add_argument(
        "--prompts",
        metavar="FILE",
        help="a prompt file, the benchmark's for one, or 'training' for the run's own; held-out ones by default",
    )
    evaluate.add_argument(
        "--samples", type=from_one, metavar="N", help="pictures per prompt; the recipe's or benchmark's by default"
    )
    evaluate.add_argument(
        "--reward",
        action="append",
        metavar="NAME[:key=value,...]",
        help="with --benchmark: what scores it, as for rank, in place of the recipe's rewards",
    )
    evaluate.add_argument(
        "--out", type=Path, metavar="FOLDER", help="with --benchmark, of a model or a folder; default: NAME-BENCHMARK"
    )
    evaluate.add_argument("--steps", type=from_one, metavar="N", help="sampling steps; the recipe's by default")
    evaluate.add_argument("--guidance", metavar="W,W", help="draw with each, such as 1,2,3: each model at its best")
    evaluate.add_argument(
        "--round", type=from_zero, metavar="N", help="the model after this round; the last by default"
    )
    evaluate.add_argument("--name", metavar="NAME", help="write to eval/NAME/ instead of eval/")
    evaluate.add_argument("--json", action="store_true", help="print eval.json instead of the table")

    compared = add_command(
        commands, "methods", "pictures.methods:methods", "learning rules side by side on one recipe, at equal cost"
    )
    compared.add_argument("recipe", nargs="?", default="scene_align", metavar="RECIPE", help="default: %(default)s")
    compared.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, by dotted path")
    compared.add_argument(
        "--methods",
        metavar="A,B,...",
        help="raft, raft_random, rwr, awm, nft, dpo, ipo, kto, which are the default; ddpo, draft, refl; and recipes "
        "of your own",
    )
    compared.add_argument(
        "--seeds", type=from_one, default=3, metavar="N", help="training seeds (default: %(default)s)"
    )
    compared.add_argument(
        "--guidance",
        metavar="W,W",
        default="1",
        help="look with each of these too, each method at its best (default: 1)",
    )
    compared.add_argument(
        "--evaluations",
        type=from_one,
        metavar="N",
        help="network evaluations of a run, drawing and learning; by default what the recipe costs as it stands",
    )
    compared.add_argument("--training", action="store_true", help="look at the prompts of the training too")
    compared.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUNS/methods-RECIPE-DIGEST")
    compared.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")

    export = add_command(commands, "export", "export:export", "the tuned weights in a format that others read")
    add_recipe(export, metavar="RUN")
    export.add_argument(
        "--format",
        choices=("diffusers", "kohya", "merged", "checkpoint", "peft"),
        help="diffusers by default; of a text run, peft",
    )
    export.add_argument("--round", type=from_zero, metavar="N", help="the model after this round; the last by default")
    export.add_argument("--out", type=Path, metavar="PATH", help="default: RUN/export/FORMAT")


def _looking(commands: Commands) -> None:
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


def _pages(commands: Commands) -> None:
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


def _tools(commands: Commands) -> None:
    """Before a run."""
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, as the only process or as one of several; returns the exit status. Mistakes of the user come out
    as a sentence, not as a traceback."""
    console.show_all()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = console.sentence
    try:
        beside = console.launched()
    except UserError as error:
        print(f"raftdiff: {error}", file=sys.stderr)
        return 2
    if beside is None:
        return _command(arguments)
    from raftdiff.cli.either import joined

    return joined(*beside, lambda: _command(arguments))


def _command(arguments: Sequence[str] | None) -> int:
    stopped = CONTINUES
    try:
        parsed = _parse(console.decoded(sys.argv[1:] if arguments is None else arguments))
        if not hasattr(parsed, "run"):
            parser().print_help()
            return 0
        stopped = getattr(parsed, "stopped", CONTINUES)
        status = _run(parsed)
    except UserError as error:
        print(f"raftdiff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nraftdiff: stopped. {stopped}", file=sys.stderr)
        console.caught()
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 0
    except (OSError, RuntimeError, MemoryError) as error:
        if (sentence := _of_the_machine(error)) is None:
            raise
        print(f"raftdiff: {sentence}", file=sys.stderr)
        return 3
    return status or 0


def _of_the_machine(error: Exception) -> str | None:
    """The sentence on what a disk or a memory refused; None where it is neither."""
    if not isinstance(error, OSError):
        told = console.out_of_memory(error)
        return told and f"{told} What was finished is kept."
    place = error.filename2 or error.filename  # of a copy, where it goes
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        told = console.full(place, error.errno)
        return f"{told} What was finished is kept; make room, and the same command continues."
    return None if place is None else f"{place}: {error.strerror}."


def _run(parsed: argparse.Namespace) -> int | None:
    """The command's own work; a reward or plug-in that calls ``sys.exit(0)`` must not pass for one that is done."""
    module, _, function = parsed.run.partition(":")
    try:
        status: int | None = getattr(importlib.import_module(f"raftdiff.cli.{module}"), function)(parsed)
    except SystemExit as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{place.filename}:{place.lineno}: the program was ended here (sys.exit), before the command was done. "
            "A reward or plug-in must return what it found, or raise an error."
        ) from None
    return status


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options and overrides in any order: argparse alone wants all positional words in one place."""
    top = parser()
    words = [*takewhile(lambda word: word != "--", sys.argv[1:] if arguments is None else arguments)]
    parsed, rest = top.parse_known_args(arguments)
    given = Counter(word.partition("=")[0] for word in words if re.match("--[a-z-]+(=|$)", word))
    if twice := next((name for name, count in given.items() if count > 1 and name not in SEVERAL), None):
        top.error(f"argument {twice}: given {given[twice]} times; it can be given once")
    if isinstance(asked := getattr(parsed, "prompts", None), list):  # of draw, which has words in place of overrides
        words = list(takewhile(lambda word: not word.startswith("-"), rest))
        rest = rest[len(words) :]
        if rest[:1] == ["--"]:
            words, rest = [*words, *rest[1:]], []
        parsed.prompts = [*asked, *words]
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (overrides and not hasattr(parsed, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    return parsed


if __name__ == "__main__":
    sys.exit(main())
