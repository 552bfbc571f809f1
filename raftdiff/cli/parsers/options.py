"""What the commands' parsers are made of."""

import argparse
import math
from pathlib import Path
from typing import Literal, TypeAlias

from raftdiff.errors import UserError

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
RECIPE_HELP = {
    "RECIPE": "a recipe's name or file",
    "RUN": "a run directory",
    "RUN|MODEL|FOLDER": "a run directory; with --benchmark also a model without a run, or a folder of pictures",
    "RECIPE|RUN": "a recipe's name or file, or a run directory",
}


def add_command(commands: Commands, name: str, run: str, text: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")
    )
    command.set_defaults(run=run)
    return command


def add_recipe(command: argparse.ArgumentParser, metavar: str = "RECIPE", default: str | None = None) -> None:
    if default:
        command.set_defaults(recipe=default)
    else:
        command.add_argument("recipe", metavar=metavar, help=RECIPE_HELP[metavar])
    command.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe, by dotted path")


def add_place(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--out", type=Path, metavar="FOLDER", help="the run directory; by default runs/DATE-RECIPE-DIGEST"
    )
    command.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER", help="default: %(default)s")


def add_door(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine alone")
    command.add_argument("--port", type=from_one, help="default: the first free one from 7860")
    command.add_argument("--share", action="store_true", help="a public address, through Gradio's servers")
    command.add_argument("--auth", metavar="NAME:PASSWORD", help="what visitors must give")
    command.add_argument("--no-browser", action="store_true", help="open no browser window")


def from_zero(text: str) -> int:
    """A number from 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0")
    return int(text)


def from_one(text: str) -> int:
    """A number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


def from_one_or_all(text: str) -> int | Literal["all"]:
    """A number from 1, or the word "all", in letters of either case."""
    if text.lower() == "all":
        return "all"
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"'{text}' is neither a number from 1 nor 'all'")
    return int(text)


def from_one_each(text: str) -> tuple[int, ...]:
    """Numbers from 1, with commas between."""
    return tuple(from_one(number) for number in text.split(","))


def one_of(text: str) -> tuple[int, int]:
    """Which of how many, from 1: 3/64."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"'{text}' is not one of several, such as 1/4 or 4/4")
    return int(number), int(of)


def minutes(text: str) -> float:
    """A number above 0."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of minutes above 0")
    return found


def part(text: str) -> float:
    """A number between 0 and 1."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number between 0 and 1")
    return found


def strengths(text: str | None) -> tuple[float, ...]:
    """
    Raises:
        UserError: they are no numbers from 0 on with commas between.
    """
    if text is None:
        return ()
    wrong = f"--guidance '{text}': give strengths from 0 on with commas between, such as --guidance 1,2,3."
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(wrong) from None
    if not all(0 <= strength < math.inf for strength in found):
        raise UserError(wrong)
    return found
