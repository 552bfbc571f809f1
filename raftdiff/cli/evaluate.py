"""``raftdiff eval``: before and after on prompts, with the same seeds."""

import argparse
import json
import re
from pathlib import Path

from raftdiff.cli.show import Bars
from raftdiff.cli.train import existing_run, prepared
from raftdiff.comparison import compare, evaluation_prompts, load_round, write
from raftdiff.errors import UserError
from raftdiff.recipe import Assembly
from raftdiff.runs import Run
from raftdiff.tables import table

FREE = (
    "evaluation",
    "sampler.height",
    "sampler.width",
    "sampler.guidance",
    "sampler.scheduler",
    "sampler.batch_size",
    "model.dtype",
    "model.attention",
    "finetuner.precision",
)
"""Recipe keys that an evaluation may change: none of them is what was trained."""


def evaluate(args: argparse.Namespace) -> None:
    run, recipe = existing_run(args, free=FREE)
    if args.name in ("before", "after"):
        raise UserError(f"--name {args.name}: eval/{args.name} holds pictures already; choose another name.")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", args.name):
        raise UserError(f"--name '{args.name}': use letters, digits, '_' and '-'; it names a folder within the run.")
    if args.steps is not None:
        recipe = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"steps": args.steps})})
    assembly = prepared(run, recipe)
    load_round(run, assembly, args.round)
    report = measure(run, assembly, prompts=args.prompts, samples=args.samples, name=args.name)
    result = report.with_name("eval.json")
    if args.json:
        print(result.read_text(encoding="utf-8"), end="")
    else:
        show(result)
        print(f"\nreport: {report}")


def measure(
    run: Run, assembly: Assembly, *, prompts: str | None = None, samples: int | None = None, name: str | None = None
) -> Path:
    """Compare the base with the policy as it stands, and write it all down; returns the page's path."""
    evaluation = assembly.recipe.evaluation
    asked = evaluation_prompts(assembly, prompts)
    bars = Bars(1)
    compared = compare(
        assembly,
        asked,
        per_prompt=samples or evaluation.samples_per_prompt,
        seed=evaluation.seed,
        report=bars.stage(0, "evaluate"),
    )
    bars.close()
    folder = run.path / "eval" / name if name else run.path / "eval"
    trained = {prompt.caption for prompt in assembly.parts.prompts}
    trained_on = any(prompt.caption in trained for prompt in asked)
    return write(folder, run, assembly, compared, trained_on=trained_on)


def show(result: Path) -> None:
    print(f"\n{table(json.loads(result.read_text(encoding='utf-8')))}")
