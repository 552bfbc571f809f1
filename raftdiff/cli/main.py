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

from raftdiff import __version__, console
from raftdiff.cli.llm.parsers import add_language, elsewhere
from raftdiff.cli.parsers.looking import add_looking, add_pages
from raftdiff.cli.parsers.results import add_results
from raftdiff.cli.parsers.running import add_running, add_stages
from raftdiff.cli.parsers.tools import add_tools
from raftdiff.errors import UserError

EPILOG = """\
start here:
  raftdiff demo                            align the model that ships, look at before and after
  raftdiff train sd15_256                  Stable Diffusion 1.5 at 256 px on one GPU, as in the paper
  raftdiff eval RUN                        before and after on held-out prompts

Recipes are YAML files; every value can be overridden: raftdiff train demo loop.rounds=5 sampler.steps=20
"""
CONTINUES = "Nothing that was finished is lost; the same command continues."
"""What an interrupt means to a command that writes into a run as it goes on."""
SEVERAL = ("--reward",)
"""Options that may be given more than once."""


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

    for add in (add_running, add_stages, add_results, add_looking, add_pages, add_language, add_tools):
        add(commands)
    return top


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
    if told := elsewhere(words):
        raise UserError(told)
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
        takes = hasattr(parsed, "overrides")
        top.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in overrides or not takes)}")
    if overrides:
        parsed.overrides = [*parsed.overrides, *overrides]
    return parsed


if __name__ == "__main__":
    sys.exit(main())
