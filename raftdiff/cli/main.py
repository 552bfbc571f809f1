"""The command line: one parser, and each command imported only when it is called, so that help comes at once."""

import argparse
import errno
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from raftdiff import __version__, console
from raftdiff.errors import UserError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
RECIPE_HELP = {
    "RECIPE": "a recipe's name or file",
    "RUN": "a run directory",
    "RECIPE|RUN": "a recipe's name or file, or a run directory",
}
EPILOG = """\
start here:
  raftdiff demo                            align the model that ships, look at before and after
  raftdiff train sd15_256                  the paper's job: Stable Diffusion 1.5 at 256 px on one GPU
  raftdiff eval RUN                        before and after on held-out prompts

Recipes are YAML files; every value can be overridden: raftdiff train demo loop.rounds=5 sampler.steps=20
"""


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

    for add in (_running, _stages, _results, _looking, _pages, _language, _tools):
        add(commands)
    return top


def _running(commands: Commands) -> None:
    """Run a recipe."""
    demo = _command(commands, "demo", "train:demo", "RAFT on the model that ships, then a before/after report")
    _recipe(demo, default="demo")
    demo.set_defaults(
        then="look at the report, then try a job with scenes of kinds the model never saw: raftdiff train scene_align"
    )
    _where(demo)

    train = _command(commands, "train", "train:train", "run a recipe, or continue a run")
    _recipe(train, metavar="RECIPE|RUN")
    _where(train)


def _stages(commands: Commands) -> None:
    """The verbs of the loop, one at a time."""
    for stage, text in (
        ("sample", "draw the candidates of the next round"),
        ("score", "score the candidates of the round that was sampled"),
        ("select", "select what to learn from"),
        ("tune", "fine-tune on the selection, and complete the round"),
    ):
        command = _command(commands, stage, f"stages:{stage}", text)
        _recipe(command, metavar="RECIPE|RUN" if stage == "sample" else "RUN")
        if stage == "sample":
            _where(command)
        if stage == "score":
            command.add_argument(
                "--round", type=_count, metavar="N", help="score this finished round again, into a new run"
            )
            command.add_argument("--out", type=Path, metavar="FOLDER", help="the new run (with --round)")


def _results(commands: Commands) -> None:
    """What a run came to."""
    evaluate = _command(commands, "eval", "evaluate:evaluate", "before and after on prompts, same seeds")
    _recipe(evaluate, metavar="RUN")
    evaluate.add_argument(
        "--prompts", metavar="FILE", help="a prompt file, or 'training' for the run's own; held-out ones by default"
    )
    evaluate.add_argument("--samples", type=_positive, metavar="N", help="pictures per prompt; the recipe's by default")
    evaluate.add_argument("--steps", type=_positive, metavar="N", help="sampling steps; the recipe's by default")
    evaluate.add_argument("--guidance", metavar="W,W", help="draw with each, such as 1,2,3: each model at its best")
    evaluate.add_argument("--round", type=_count, metavar="N", help="the model after this round; the last by default")
    evaluate.add_argument("--name", metavar="NAME", help="write to eval/NAME/ instead of eval/")
    evaluate.add_argument("--json", action="store_true", help="print eval.json instead of the table")

    export = _command(commands, "export", "export:export", "the tuned weights in a format that others read")
    _recipe(export, metavar="RUN")
    export.add_argument(
        "--format", choices=("diffusers", "kohya", "merged", "peft"), help="diffusers by default; of a text run, peft"
    )
    export.add_argument("--round", type=_count, metavar="N", help="the model after this round; the last by default")
    export.add_argument("--out", type=Path, metavar="PATH", help="default: RUN/export/FORMAT")


def _looking(commands: Commands) -> None:
    """Looking at a run."""
    shown = _command(commands, "show", "look:show", "how a run stands, and what to worry about")
    shown.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])

    checked = _command(commands, "check", "look:check", "is a run what was written, file by file?")
    checked.add_argument("recipe", metavar="RUN", help="a run directory, or a folder with runs in it")

    drawn = _command(commands, "draw", "look:draw", "pictures of your own prompts, before and after, same seeds")
    drawn.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    drawn.add_argument(
        "prompts",
        nargs="+",
        metavar="PROMPT",
        help="what to draw, in quotes; after -- if it is a word that begins with -",
    )
    drawn.add_argument("--round", type=_count, metavar="N", help="the model after this round; the last by default")
    drawn.add_argument("--count", type=_positive, metavar="N", help="pictures per prompt; as in eval by default")
    drawn.add_argument("--seed", type=_count, metavar="N", help="as in eval by default")
    drawn.add_argument("--steps", type=_positive, metavar="N", help="sampling steps; as in eval by default")
    drawn.add_argument("--guidance", type=float, metavar="W", help="classifier-free guidance; the recipe's by default")
    drawn.add_argument("--size", type=_positive, metavar="PIXELS", help="width and height; the recipe's by default")
    drawn.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; the recipe's by default")
    drawn.add_argument("--out", type=Path, metavar="FOLDER", help="default: RUN/drawn")

    told = _command(commands, "labels", "look:labels", "what people chose: tallies, win rates, preference pairs")
    told.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    told.add_argument("--pairs", type=Path, metavar="FILE", help="write the preferences as JSON lines")


def _pages(commands: Commands) -> None:
    """The same in a browser."""
    compared = _command(commands, "compare", "pages:compare", "a page: before and after of any prompt, side by side")
    compared.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    compared.add_argument("other", nargs="?", type=Path, metavar="RUN2", help="another run to compare with")
    _door(compared)

    watched = _command(commands, "watch", "pages:watch", "a page: a run while it goes on")
    watched.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    _door(watched)

    label = _command(commands, "label", "pages:label", "a page: choose the better of two pictures or answers, blind")
    label.add_argument("recipe", metavar="RUN", help=RECIPE_HELP["RUN"])
    label.add_argument("--round", type=_count, metavar="N", help="candidates of this round; the last by default")
    label.add_argument(
        "--eval", nargs="?", const="", metavar="NAME", help="before and after of an evaluation, instead of candidates"
    )
    label.add_argument("--per-prompt", type=_positive, default=4, metavar="N", help="pairs a prompt (%(default)s)")
    label.add_argument("--rater", default="me", metavar="NAME", help="who answers (default: %(default)s)")
    _door(label)


def _language(commands: Commands) -> None:
    """Language models on the same loop."""
    llm = commands.add_parser(
        "llm",
        help="language models: RAFT, RRHF, DPO, GRPO and others on the same loop",
        description="Language models on the same loop. A run is continued, evaluated and exported as one on pictures.",
    )
    words = llm.add_subparsers(title="commands and recipes", metavar="WHAT", required=True)

    demo = _command(words, "demo", "train:demo", "RAFT on the small language model that ships, in a minute")
    _recipe(demo, default="llm_demo")
    demo.set_defaults(then="set the methods side by side: raftdiff llm compare --methods raft,rrhf,dpo,grpo")
    _where(demo)

    compared = _command(
        words, "compare", "llm.tools:compare", "several methods at the same generation budget, in one table"
    )
    compared.add_argument("--methods", metavar="A,B,...", help="recipes' names; a dozen by default")
    compared.add_argument(
        "--reward", metavar="NAME", help="compare by this reward; by default the first of the first recipe"
    )
    for name, count, text in (
        ("rounds", 8, "rounds"),
        ("prompts", 64, "prompts a round"),
        ("candidates", 8, "answers a prompt"),
        ("seeds", 1, "training seeds"),
    ):
        compared.add_argument(
            f"--{name}", type=_positive, default=count, metavar="N", help=f"{text} (default: %(default)s)"
        )
    compared.add_argument(
        "--answers", type=_positive, metavar="N", help="so many for each, in rounds of its own recipe's size instead"
    )
    compared.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every recipe, by dotted path")
    _where(compared)

    replied = _command(
        words, "reply", "llm.tools:reply", "answers of a tuned model to your own prompts; best of n by choice"
    )
    replied.add_argument("recipe", type=Path, metavar="RUN", help=RECIPE_HELP["RUN"])
    replied.add_argument("prompts", nargs="+", metavar="PROMPT", help="what to ask, in quotes")
    replied.add_argument("--best-of", type=_positive, default=1, metavar="N", help="the best of N, by the rewards")
    replied.add_argument("--before", action="store_true", help="the base model's answer too")
    replied.add_argument("--round", type=_count, metavar="N", help="the model after this round; the last by default")
    replied.add_argument("--seed", type=_count, default=0, metavar="N", help="default: %(default)s")

    shown = _command(
        words, "show-row", "llm.rows:show_row", "a row of data as the model sees it, token by token: what is learnt"
    )
    _recipe(shown, metavar="RECIPE|RUN")
    shown.add_argument("--row", type=_positive, default=1, metavar="N", help="which, from 1 (default: %(default)s)")

    judged = _command(words, "judge", "llm.tools:judge", "win, lose, tie against the base, asked in both orders")
    judged.add_argument("recipe", type=Path, metavar="RUN", help=RECIPE_HELP["RUN"])
    judged.add_argument("overrides", nargs="*", metavar="key=value", help="options of the judge")
    judged.add_argument("--name", metavar="NAME", help="judge eval/NAME/ instead of eval/")
    judged.add_argument("--server", metavar="URL", help="an OpenAI-compatible server that judges")
    judged.add_argument("--model", metavar="NAME", help="the judge's name on the server")
    judged.add_argument("--api-key-env", metavar="VARIABLE", help="the environment variable that holds the key")
    judged.add_argument("--reward", metavar="NAME", help="a reward that judges instead: sentiment, classifier, ...")

    _reward_models(words)

    piped = _command(
        words, "pipeline", "llm.pipeline:pipeline", "recipes one after the other: reward model, policy, again"
    )
    _recipe(piped)
    _where(piped)

    for path in sorted((Path(__file__).resolve().parent.parent / "configs" / "llm").glob("*.yaml")):
        if path.stem != "llm_demo":
            text = path.read_text(encoding="utf-8").splitlines()[1].removeprefix("#").strip()
            recipe = _command(words, path.stem, "train:train", text.replace("%", "%%"))
            _recipe(recipe, default=path.stem)
            _where(recipe)


def _reward_models(words: Commands) -> None:
    """Reward models, trained on what was preferred to what."""
    rm = words.add_parser(
        "rm",
        help="reward models: train, eval, strength, pairs",
        description="Reward models, trained on what was preferred to what.",
    )
    verbs = rm.add_subparsers(title="commands", metavar="COMMAND", required=True)

    trained = _command(verbs, "train", "llm.reward_models:train_model", "train a reward model, or continue its run")
    _recipe(trained, metavar="RECIPE|RUN")
    _where(trained)

    strong = _command(
        verbs, "strength", "llm.reward_models:strength", "how strong each preference is, by several models"
    )
    _recipe(strong)
    strong.add_argument("--models", type=_positive, default=10, metavar="N", help="default: %(default)s")
    strong.add_argument("--out", type=Path, required=True, metavar="FILE", help="the pairs with mu and sigma, .jsonl")

    evaluated = _command(
        verbs, "eval", "llm.reward_models:evaluate", "what a reward model learnt: accuracy, calibration, a page"
    )
    evaluated.add_argument("recipe", type=Path, metavar="RUN|FOLDER", help="a run, or the folder of a reward model")
    evaluated.add_argument("--pairs", metavar="FILE", help="pairs to ask; the run's held-out ones by default")
    evaluated.add_argument("--before", type=Path, metavar="RUN|FOLDER", help="another reward model, shown beside it")
    evaluated.add_argument("--out", type=Path, metavar="FOLDER", help="default: eval/ beside the model")
    evaluated.add_argument("--json", action="store_true", help="print eval.json instead of the figures")

    paired = _command(verbs, "pairs", "llm.reward_models:pairs", "preference pairs of a run on texts, as JSON lines")
    paired.add_argument("recipe", type=Path, metavar="RUN", help=RECIPE_HELP["RUN"])
    paired.add_argument("--labels", action="store_true", help="what people chose, instead of best against worst")
    paired.add_argument("--rounds", type=_count, nargs="+", metavar="N", help="of these rounds; of all by default")
    paired.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write them, .jsonl")


def _tools(commands: Commands) -> None:
    """Before a run."""
    plan = _command(commands, "plan", "plan:plan", "what a recipe will do: pictures, evaluations, memory, time")
    _recipe(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")

    checked = _command(commands, "check-reward", "tools:check_reward", "does a reward keep the rules?")
    checked.add_argument("reward", metavar="NAME", help="a reward (clip, aesthetic, jpeg, ...) or your module:function")
    checked.add_argument("overrides", nargs="*", metavar="key=value", help="its options, e.g. model=scene-clip")
    checked.add_argument("--text", action="store_true", help="try it on answers: for a module:function on texts")
    checked.add_argument("--pictures", type=Path, metavar="FOLDER", help="pictures to try it on, instead of patterns")

    _command(commands, "recipes", "tools:recipes", "list the recipes that ship")
    schema = _command(commands, "schema", "tools:schema", "print the JSON schema of recipes")
    media = ("image", "text", "preferences", "pipeline")
    schema.add_argument("media", nargs="?", choices=media, default="image", help="default: %(default)s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Mistakes of the user come out as a sentence, not as a traceback."""
    console.show_all()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.formatwarning = console.sentence
    try:
        console.alone()
        parsed = _parse(console.decoded(sys.argv[1:] if arguments is None else arguments))
        if not hasattr(parsed, "run"):
            parser().print_help()
            return 0
        status = _run(parsed)
    except UserError as error:
        print(f"raftdiff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nraftdiff: stopped. Nothing that was finished is lost; the same command continues.", file=sys.stderr)
        console.caught()
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
        return 0
    except OSError as error:
        place = error.filename2 or error.filename  # of a copy, where it goes
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            told = console.full(place, error.errno)
            sentence = f"{told} What was finished is kept; make room, and the same command continues."
        elif place is not None:
            sentence = f"{place}: {error.strerror}."
        else:
            raise
        print(f"raftdiff: {sentence}", file=sys.stderr)
        return 3
    return status or 0


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
    parsed, rest = top.parse_known_args(arguments)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if len(overrides) < len(rest) or (overrides and not hasattr(parsed, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    return parsed


def _command(commands: Commands, name: str, run: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")
    )
    command.set_defaults(run=run)
    return command


def _count(text: str) -> int:
    """A number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0")
    return int(text)


def _positive(text: str) -> int:
    """A number from 1."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


def _recipe(command: argparse.ArgumentParser, metavar: str = "RECIPE", default: str | None = None) -> None:
    if default:
        command.set_defaults(recipe=default)
    else:
        command.add_argument("recipe", metavar=metavar, help=RECIPE_HELP[metavar])
    command.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, by dotted path")


def _door(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    command.add_argument("--port", type=_positive, help="default: the first free one from 7860")
    command.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
    command.add_argument("--auth", metavar="NAME:PASSWORD", help="what visitors must give")
    command.add_argument("--no-browser", action="store_true", help="open no browser window")


def _where(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="the run directory; by default runs/DATE-RECIPE-DIGEST"
    )
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")


if __name__ == "__main__":
    sys.exit(main())
