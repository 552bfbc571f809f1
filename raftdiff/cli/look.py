"""Looking at a run: how it stands, pictures from any of its models, what people chose."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

from raftdiff.cli.opening import chosen_round, to_read
from raftdiff.cli.show import Bars
from raftdiff.errors import UserError, command, counted
from raftdiff.recipes.files import medium_of
from raftdiff.records import checking, integrity
from raftdiff.records.disk import demand_writable, write_text
from raftdiff.records.labels import ballots, preferences, tally
from raftdiff.records.run import Run
from raftdiff.records.watching import snapshot
from raftdiff.reports.goodhart import signs_told
from raftdiff.reports.tables import rewards_told
from raftdiff.reports.words import duration


def show(args: argparse.Namespace) -> None:
    """Where the run stands, and what to worry about."""
    if medium_of(Path(args.recipe) / "recipe.yaml") == "preferences":
        from raftdiff.cli.llm.reward_models import show_training

        show_training(to_read(Path(args.recipe)))
        return
    now = snapshot(run := Run(Path(args.recipe)))
    back = run.rollbacks()
    print(f"{now.name}: {len(now.metrics)} of {counted(now.rounds_planned, 'round')} done")
    if now.making and now.making.stage == "select" and not now.metrics and run.info().get("until"):
        print(
            f"round 0 is drawn and scored, {counted(now.making.drawn, 'candidate')}: all that was asked (until: scores)"
        )
    elif now.making:
        idle = f", unchanged for {duration(now.making.idle)}" if now.making.idle > 60 else ""
        print(f"round {now.making.round} is at {now.making.stage}, {now.making.drawn} candidates drawn{idle}")
    for it in now.metrics:
        if "changed" in it:
            print(f"  from here on with another {', '.join(it['changed'])}")
        held_out = f", held-out {it['held_out']:.2f}" if it.get("held_out") is not None else ""
        mean = "none" if it["mean"] is None else f"{it['mean']:.2f}"
        print(f"  round {it['round']}: reward {mean}{held_out}, {duration(sum(it['seconds'].values()))}")
        if it["round"] in back:
            to = back[it["round"]]
            print(f"  from here back to {'the base model' if to is None else f'round {to}'} (loop.guard)")
    for line in [*rewards_told(now.metrics[-1]), *signs_told(now.metrics)] if now.metrics else ():
        print(line)
    print(f"{duration(now.seconds)} and {counted(now.network_evaluations, 'network evaluation')} spent")
    for warning in now.warnings:
        print(f"warning: {warning}")


def check(args: argparse.Namespace) -> None:
    """Whether a run, or every run in a folder, still is what was written.

    Raises:
        UserError: one is not, run by run and round by round.
    """
    root = Path(args.recipe)
    places = [root] if (root / "run.json").is_file() else sorted(file.parent for file in root.rglob("run.json"))
    if not places:
        Run.open(root)  # says what is there, and where runs are
    damaged, advice = [], []
    for place in places:
        for finding in checking.look(place):
            print(f"{finding.place}: {'DAMAGED' if finding.damage else finding.note}", flush=True)
            named = f"{finding.place}: "
            damaged += [said if said.startswith(f"{place}/") else named + said for said in finding.damage]
            if finding.damage and finding.place != place:
                advice = [integrity.ADVICE]
    if damaged:
        raise UserError("\n".join(["this is not what was written:", *damaged, *advice]))


def draw(args: argparse.Namespace) -> None:
    """The same prompts and seeds from the base and from a tuned model, as picture files with their scores."""
    from raftdiff.cli.either import tell
    from raftdiff.diffusion.before_after.sidebyside import Checkpoint, SideBySide, export
    from raftdiff.measures.pictures import is_flat

    most = {} if args.file is None else {"most": math.inf}  # whoever names a file means all of it
    beside = SideBySide([to_read(Path(args.recipe))], device=args.device, file=args.file, **most)
    asked = [*args.prompts, *(row["caption"] for row in beside.file)]
    run = beside.runs[0]
    chosen = chosen_round(run, args.round)
    given = {
        "seed": args.seed,
        "per_prompt": args.count,
        "steps": args.steps,
        "guidance": args.guidance,
        "height": args.size,
        "width": args.size,
    }
    settings = replace(beside.settings, **{name: value for name, value in given.items() if value is not None})
    tell(beside.notes(0, asked, settings))
    folder = args.out or run.path / "drawn"
    demand_writable(folder)
    bars = Bars()
    sides = {
        side: beside.draw(checkpoint, asked, settings, bars.stage(0, side))
        for side, checkpoint in (("before", Checkpoint(0, None)), ("after", Checkpoint(0, chosen)))
    }
    bars.close()
    for side, drawn in sides.items():
        scored = {name: [score for it in drawn if (score := it.scores[name]) == score] for name in drawn[0].scores}
        told = [f"{name} {sum(held) / len(held):.2f}" if held else f"{name} none" for name, held in scored.items()]
        blank = sum(is_flat(it.sample.media) for it in drawn)
        print(f"{side}: {', '.join(told)}" + (f" ({blank} of {len(drawn)} blank, of one colour)" if blank else ""))
    print(export(folder, sides))


def labels(args: argparse.Namespace) -> None:
    """What every rater said, all of them together, and by choice the preferences as a file."""
    run = to_read(Path(args.recipe))
    held = ballots(run)
    if not held:
        raise UserError(f"{run.path}: nobody has labelled anything yet; run: {command('label', run.path)}")
    each = [([ballot], ballot.rater) for ballot in held] if len(held) > 1 else []
    for raters, who in [*each, (held, "all")]:
        lines = tally(run, raters).lines
        print(f"{who}: {lines[0]}", *(f"  {line}" for line in lines[1:]), sep="\n")
    if args.pairs:
        found = preferences(run)
        told = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found)
        write_text(args.pairs, told)
        none = "" if found else " (ties, vetoes and choices between empty or equal answers are none)"
        print(f"{args.pairs}: {counted(len(found), 'preference')}{none}")
