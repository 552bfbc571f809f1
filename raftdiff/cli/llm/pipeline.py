"""``raftdiff llm pipeline``: recipes one after the other, each an ordinary run; what came of each in one table."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from raftdiff.cli.either import at_work, loop
from raftdiff.cli.evaluate import measure
from raftdiff.cli.llm import reward_models
from raftdiff.cli.show import Bars
from raftdiff.embedded import resolve
from raftdiff.errors import Need, UserError
from raftdiff.llm.assembly import TextAssembly
from raftdiff.llm.export import export
from raftdiff.llm.pipeline import Stage, StageRecipe, check, load_pipeline, stages
from raftdiff.llm.pipeline_folder import begin, outcome_file
from raftdiff.llm.recipe import TextRecipe
from raftdiff.llm.reward_runs.recipe import RewardRecipe
from raftdiff.llm.reward_runs.recipe import weights as reward_weights
from raftdiff.llm.reward_runs.training import assemble_reward
from raftdiff.recipes.checks import has_say
from raftdiff.recipes.files import locate
from raftdiff.recipes.needs import fetched, needs
from raftdiff.records import beginning
from raftdiff.records.disk import read_json, sync_all, write_text
from raftdiff.records.run import Run, load_round
from raftdiff.stages import verbs
from raftdiff.training import processes


class Outcome(NamedTuple):
    """What came of a stage, on held-out prompts or pairs."""

    stage: str
    accuracy: float | None = None
    """Of a reward model: the share of held-out pairs whose chosen answer it puts first."""
    interval: Sequence[float] = ()
    """The 95% interval of it."""
    rewards: Mapping[str, Sequence[float]] = {}
    """Of a policy: the mean of each reward before and after the stage; higher is better."""
    trained: Sequence[str] = ()
    """Those of them that the policy was trained on; the others looked on."""
    kl: float | None = None
    """log p - log p0 of an answer, nats; p0 is what the stage began with."""
    drawn: int | None = None
    """Of a stage that learns nothing: how many answers it drew and scored."""


def pipeline(args: argparse.Namespace) -> None:
    """Run the stages that are missing, and show what came of all of them."""
    path = locate(args.recipe)
    recipe = load_pipeline(path, args.overrides)
    out = args.out or Run.default_path(args.runs, recipe.name, recipe)
    lacking: list[Need] = []

    def look(stage: str, one: StageRecipe) -> None:
        if not outcome_file(out, stage).is_file():  # what is finished needs nothing more
            lacking.extend(need._replace(key=f"{stage}: {need.key}") for need in needs(one, resolve))

    identity = check(recipe, path, look)
    for sentence in fetched(lacking):
        print(sentence, file=sys.stderr)
    begin(out, recipe.name, identity)
    found = []
    for number, stage in enumerate(stages(recipe, path.parent, out), 1):
        told = outcome_file(out, stage.id)
        print(f"\nstage {number} of {len(recipe.stages)}, {stage.id}: {stage.source.stem}", flush=True)
        unwritten = stage.of_policy and stage.asked_for_model and not stage.model.is_dir()  # nobody asked for it then
        if not told.is_file() or unwritten:
            outcome = _made(stage)
            write_text(told, json.dumps(outcome._asdict(), indent=2))
        found.append(Outcome(**read_json(told)))
        print(line(found[-1]), flush=True)
    text = table(found)
    write_text(out / "table.md", text + "\n")
    print(f"\n{text}\n\nKL: to what each stage began with, nats\n{out}")


def line(one: Outcome) -> str:
    """A stage's outcome in a line.

    >>> line(Outcome("policy", rewards={"review": (0.1, 0.9)}, trained=("review",), kl=12.0))
    'policy: review 0.100 -> 0.900, KL 12.0 nats'
    """
    if one.drawn is not None:
        return f"{one.stage}: {one.drawn} answers drawn and scored"
    if one.accuracy is not None:
        return f"{one.stage}: {_right(one)} of the held-out pairs right"
    if not one.rewards:
        return f"{one.stage}: no pairs were held out"
    told = [f"{name} {before:.3f} -> {after:.3f}" for name, (before, after) in one.rewards.items()]
    return f"{one.stage}: {', '.join(told)}" + ("" if one.kl is None else f", KL {one.kl:.1f} nats")


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, a line a stage: a reward model's accuracy; a policy's rewards before and after, and its KL; the answers
    of a stage that draws them alone, where there is one."""
    rewards = dict.fromkeys(name for one in outcomes for name in one.rewards)
    trained = {name for one in outcomes for name in one.trained}
    drawn = any(one.drawn is not None for one in outcomes)
    heads = ["answers"] if drawn else []
    heads += ["accuracy", *(f"{name}, trained on" if name in trained else name for name in rewards), "KL"]
    lines = [f"| {' | '.join(['stage', *heads])} |", "|---|" + "--:|" * len(heads)]
    for one in outcomes:
        cells = [one.stage, *(["" if one.drawn is None else str(one.drawn)] if drawn else [])]
        cells.append(_right(one) if one.accuracy is not None else "")
        sides = [one.rewards.get(name) for name in rewards]
        cells += [f"{side[0]:.3f} → {side[1]:.3f}" if side else "" for side in sides]
        lines.append(f"| {' | '.join([*cells, '' if one.kl is None else f'{one.kl:.1f}'])} |")
    return "\n".join(lines)


def _right(one: Outcome) -> str:
    low, high = one.interval
    return f"{one.accuracy:.1%} ({low:.1%} to {high:.1%})"


def _made(stage: Stage) -> Outcome:
    try:
        return _outcome(stage)
    except UserError as error:
        raise UserError(f"the stage '{stage.id}': {error}") from None


def _outcome(stage: Stage) -> Outcome:
    if stage.until == "scores":
        return _drawn(stage)
    return _tuned(stage) if stage.of_policy else _reward_model(stage)


def _drawn(stage: Stage) -> Outcome:
    """The answers of a first round, with their scores; drawn as far as they are not."""
    recipe = stage.recipe()
    assert isinstance(recipe, TextRecipe)
    if (known := Run(stage.path)).begun() and known.info().get("until"):  # somebody may have gone on with it
        rounds = known.recipe()["loop"]["rounds"]
        recipe = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"rounds": rounds})})
    run, bars = Run.at(stage.path, recipe), Bars(1)
    with at_work(run, recipe, looked_at="never") as assembly:
        assert isinstance(assembly, TextAssembly)
        if not run.rounds_done():
            draft, parts = run.draft(0), assembly.parts
            verbs.sample(draft, run, parts, bars)
            verbs.score(draft, parts.ranker, parts.prompts, recipe.loop, bars)
            bars.close()
            run.know(until="scores")
        made = run.round(0) if run.rounds_done() else run.unfinished(0)
    return Outcome(stage.id, drawn=len(made.rows()))


def _tuned(stage: Stage) -> Outcome:
    """A policy, tuned as far as it is not, measured, and written out where a later stage begins with it."""
    recipe = stage.recipe()
    assert isinstance(recipe, TextRecipe)
    run = Run.at(stage.path, recipe)
    if stage.asked_for_model and recipe.model.sharded and processes.here().size > 1:
        raise UserError(
            "model.sharded leaves no process with a whole model, and a later stage begins with this "
            "one's. Leave it out of this stage."
        )
    with at_work(run, recipe, looked_at="at once") as assembly:
        assert isinstance(assembly, TextAssembly)
        loop(run, assembly)
        load_round(run, assembly.finetuner, None)
        evaluation = read_json(measure(run, assembly).with_name("eval.json"))
        if stage.asked_for_model:
            _write_model(assembly, stage.model)
    rewards = {name: (one["before"]["mean"], one["after"]["mean"]) for name, one in evaluation["rewards"].items()}
    trained = [str(one.name or one.type) for one in recipe.ranker.rewards if has_say(one)]
    return Outcome(
        stage.id, rewards=rewards, trained=[one for one in trained if one in rewards], kl=evaluation["drift"]["kl"]
    )


def _write_model(assembly: TextAssembly, out: Path) -> None:
    """The policy as a transformers folder, aside and then renamed: present means complete."""
    if out.is_dir():
        return
    aside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    export(assembly.finetuner, "merged", aside)
    sync_all(aside)
    aside.rename(out)


def _reward_model(stage: Stage) -> Outcome:
    """A reward model, trained as far as it is not."""
    recipe = stage.recipe()
    assert isinstance(recipe, RewardRecipe)
    run = Run.at(stage.path, recipe)
    with beginning.at_work(run, recipe, reward_weights, assemble_reward) as parts:
        reward_models.loop(run, parts)
    held_out = run.metrics()[-1].get("held_out_pairs")
    return Outcome(stage.id, held_out["accuracy"], held_out["ci95"]) if held_out else Outcome(stage.id)
