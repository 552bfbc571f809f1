"""``raftdiff eval``: before and after on prompts, with the same seeds."""

import argparse
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raftdiff.chat.dialogue import whole
from raftdiff.cli.either import AnyAssembly, prepared, run_to_read, tell_once
from raftdiff.cli.opening import chosen_round
from raftdiff.cli.parsers.options import strengths
from raftdiff.cli.show import Bars
from raftdiff.diffusion.before_after.comparison import compare, compare_over, evaluation_prompts, write
from raftdiff.diffusion.recipe import EvaluationConfig, Recipe
from raftdiff.errors import UserError
from raftdiff.llm.assembly import TextAssembly
from raftdiff.llm.comparison import compare as compare_texts
from raftdiff.llm.comparison import evaluation_texts
from raftdiff.llm.comparison import write as write_texts
from raftdiff.recipes.config import check, plain
from raftdiff.records.disk import demand_writable, read_json_lines
from raftdiff.records.run import Run, load_round
from raftdiff.reports.tables import guidance_table, side_by_side, table
from raftdiff.types import Prompt

ANSWERS = 4
"""Of a run on texts, shown side by side."""
FREE = (
    "evaluation",
    *(
        f"{drawing}.{key}"
        for drawing in ("sampler", "sampler.drawing")
        for key in ("height", "width", "sizes", "guidance", "guidance_rescale", "scheduler", "batch_size")
    ),
    "model.dtype",
    "model.attention",
    "finetuner.precision",
    "finetuner.rows_per_pass",
)
"""Recipe keys that an evaluation may change: none of them is what was trained."""


def evaluate(args: argparse.Namespace) -> None:
    if args.name in ("before", "after"):
        raise UserError(f"--name {args.name}: eval/{args.name} holds pictures already; choose another name.")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", args.name):
        raise UserError(f"--name '{args.name}': use letters, digits, '_' and '-'; it names a folder within the run.")
    guidance = strengths(args.guidance)
    if args.benchmark is not None:
        from raftdiff.cli.pictures.benchmarks import benchmark

        benchmark(args, free=FREE, guidance=guidance)
        return
    if args.reward or args.out is not None:
        given = "--reward" if args.reward else "--out"
        raise UserError(f"{given} goes with --benchmark; a run is evaluated by its own rewards, and that lies in it.")
    run, recipe = run_to_read(args, free=FREE)
    if args.steps is not None and not isinstance(recipe, Recipe):
        raise UserError("--steps is for pictures; how answers are drawn is changed with evaluation.decoding.")
    if guidance and not isinstance(recipe, Recipe):
        raise UserError("--guidance is for pictures; answers have none.")
    if args.steps is not None and isinstance(recipe, Recipe):
        evaluation = check(EvaluationConfig, {**plain(recipe.evaluation), "steps": args.steps}, "on the command line")
        recipe = recipe.model_copy(update={"evaluation": evaluation})
    chosen = chosen_round(run, args.round)
    assembly = prepared(run, recipe)
    load_round(run, assembly.finetuner, args.round)
    how: dict[str, Any] = {"prompts": args.prompts, "samples": args.samples, "name": args.name, "guidance": guidance}
    report = measure(run, assembly, round=chosen, **how)
    result = report.with_name("eval.json")
    if args.json:
        print(result.read_text(encoding="utf-8"), end="")
    else:
        show(result)
        print(f"\nreport: {report}")


def measure(
    run: Run,
    assembly: AnyAssembly,
    *,
    prompts: str | None = None,
    samples: int | None = None,
    name: str | None = None,
    guidance: Sequence[float] = (),
    training: Mapping[str, Any] | None = None,
    round: int | None = None,
) -> Path:
    """Compare the base with the policy as it stands, and write it all down; returns the page's path.

    ``guidance`` names strengths at which both sides are drawn, each to be compared at its best.
    ``training`` is what an earlier call found on the training prompts; the page then speaks of both.
    ``round`` is the one whose weights the policy has, as ``records.run.finished`` by default.
    """
    evaluation = assembly.recipe.evaluation
    asked = _asked(assembly, prompts)
    trained = {whole(prompt) for prompt in assembly.parts.prompts}
    trained_on = any(whole(prompt) in trained for prompt in asked)
    folder, count = run.path / "eval" / (name or ""), samples or evaluation.samples_per_prompt
    demand_writable(folder)
    bars = Bars()
    report = bars.stage(0, "evaluate")
    try:
        if isinstance(assembly, TextAssembly):
            answers = compare_texts(assembly, asked, per_prompt=count, seed=evaluation.seed, report=report)
            return write_texts(folder, run, assembly, answers, trained_on=trained_on, training=training, round=round)
        where = "evaluation.prompts" if evaluation.prompts.captions else "prompts"
        what = "prompts" if prompts == "training" else prompts or where
        tell_once(run, [*assembly.notes(what, asked), *assembly.unjudged(what, asked)])
        how: dict[str, Any] = {"per_prompt": count, "seed": evaluation.seed, "report": report}
        pictures = compare_over(assembly, asked, guidance, **how) if guidance else compare(assembly, asked, **how)
        return write(folder, run, assembly, pictures, trained_on=trained_on, training=training, round=round)
    finally:
        bars.close()


def _asked(assembly: AnyAssembly, prompts: str | None) -> list[Prompt]:
    if isinstance(assembly, TextAssembly):
        return evaluation_texts(assembly, prompts)
    return evaluation_prompts(assembly.recipe, prompts)


def show(result: Path) -> None:
    """The figures; of a run on texts first some answers, before and after side by side."""
    pairs = read_json_lines(result.with_name("answers.jsonl"))
    width = shutil.get_terminal_size((100, 24)).columns
    for pair in pairs[:: max(1, len(pairs) // ANSWERS)][:ANSWERS]:
        print(f"\n{side_by_side(pair['prompt'], pair['before'], pair['after'], width)}")
    evaluation = json.loads(result.read_text(encoding="utf-8"))
    if over := guidance_table(evaluation):
        print(f"\n{over}")
    print(f"\n{table(evaluation)}")
