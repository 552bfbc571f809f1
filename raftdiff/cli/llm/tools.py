"""``raftdiff llm``: what there is for language models alone; each method's recipe is run by ``train``."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from raftdiff.cli.either import taken_up
from raftdiff.cli.opening import to_read
from raftdiff.cli.show import Bars
from raftdiff.embedded import resolve
from raftdiff.embedded.programs import world as programs
from raftdiff.embedded.reviews import world as reviews
from raftdiff.embedded.translation import world as translation
from raftdiff.errors import UserError, command, counted
from raftdiff.llm.assembly import check_known
from raftdiff.llm.data.prompts import asked
from raftdiff.llm.judging import Compare, RewardCompare, ServerCompareConfig, answers_of, win_lose_tie
from raftdiff.llm.recipe import text_recipe_of
from raftdiff.recipes import registry
from raftdiff.recipes.config import options
from raftdiff.records.disk import write_text
from raftdiff.scoring import in_order
from raftdiff.types import KeepsReplies, Sample


def compare(args: argparse.Namespace) -> None:
    """Several methods at the same generation budget, in one table."""
    from raftdiff.llm.methods import METHODS, check_comparison, first_reward, rounds_of, run_method, table

    methods = args.methods.split(",") if args.methods else list(METHODS)
    size = {"rounds": args.rounds, "prompts_per_round": args.prompts, "candidates": args.candidates}
    budget = [f"loop.{name}={count}" for name, count in size.items()]
    name = f"compare-{args.answers or f'{args.rounds}x{args.prompts}x{args.candidates}'}"
    root = args.out or args.runs / name
    reward = args.reward or first_reward(methods[0], args.overrides)
    rounds = {one: rounds_of(one, args.answers, args.overrides) if args.answers else args.rounds for one in methods}
    planned = {one: [*([f"loop.rounds={rounds[one]}"] if args.answers else budget), *args.overrides] for one in methods}
    check_comparison(planned, reward)
    found, base = [], []
    for seed in range(args.seeds):
        for method in methods:
            print(f"{method}, seed {seed}", file=sys.stderr, flush=True)
            bars, first = Bars(rounds[method]), method == methods[0]
            *untuned, tuned = run_method(
                method, seed, root, planned[method], reward=reward, baselines=first, progress=bars
            )
            bars.close()
            found.append(tuned)
            base += untuned
    text = table([*base, *found])
    write_text(root / "table.md", text + "\n")
    answers = args.answers or args.rounds * args.prompts * args.candidates
    over = "seeds" if args.seeds > 1 else "the held-out prompts"
    print(f"{text}\n\nbudget: {answers} answers a run, of which those of data are not drawn")
    print(f"± is half the 95% interval over {over}; {counted(args.seeds, 'seed')}: {root / 'table.md'}")


def reply(args: argparse.Namespace) -> None:
    """Answers of a tuned model to your own prompts; with --best-of, the best of several by the run's rewards."""
    _, assembly = taken_up(args.recipe, args.round)
    prompts = asked(assembly.recipe.prompts, args.prompts)
    _warn_of_strange(assembly.recipe.model.base, args.prompts)
    if args.best_of > 1:
        check_known(assembly.measures, prompts)

    def drawn() -> list[Sample[str]]:
        count, seed = args.best_of, args.seed
        found = assembly.evaluator.sample(prompts, per_prompt=count, seed=seed, round=0, done=frozenset())
        return in_order(found, prompts)

    sides = {"after": drawn()}
    if args.before:
        with assembly.finetuner.base_weights():
            sides = {"before": drawn(), **sides}
    for place, prompt in enumerate(prompts):
        print(f"{prompt.caption}")
        for side, samples in sides.items():
            held = samples[place * args.best_of : (place + 1) * args.best_of]
            raw = assembly.measures.raw(held) if args.best_of > 1 else {}
            totals = assembly.measures.total({name: one[None] for name, one in raw.items()})[0] if raw else [0.0]
            best = max(range(len(held)), key=lambda at: (totals[at] == totals[at], totals[at]))
            score = f" ({totals[best]:.2f})" if args.best_of > 1 else ""
            print(f"  {side + ': ' if args.before else ''}{held[best].media}{score}")


def _warn_of_strange(model: str, prompts: Sequence[str]) -> None:
    """A small model that ships answers anything, and knows one kind of prompt."""
    worlds = {
        "review-lm": ("text world", reviews.check),
        "translate-lm": ("world of translation", translation.check),
        "code-lm": ("world of programs", programs.check),
    }
    if model not in worlds:
        return
    name, check = worlds[model]
    try:
        check(prompts)
    except UserError as error:
        told = f"{model} knows the prompts of its {name} alone, and answers others at random"
        warnings.warn(f"{told}: {error}", stacklevel=2)


def judge(args: argparse.Namespace) -> None:
    """Win, lose and tie of the tuned model against the base on an evaluation's answers, asked in both orders."""
    run = to_read(args.recipe)
    text_recipe_of(run)
    folder = f"eval/{args.name}" if args.name else "eval"
    prompts, before, after = answers_of(run, folder)
    if not prompts:
        raise UserError(f"{run.path / folder}: the evaluation holds no answers; run: {command('eval', run.path)}")
    tally = win_lose_tie(_judge(args, run.path / folder / "replies.jsonl"), prompts, before, after)
    told = f"{counted(tally.wins, 'win')}, {counted(tally.ties, 'tie')}, {counted(tally.losses, 'loss')}"
    print(f"{counted(len(prompts), 'prompt')}: {told} for the tuned model")
    if tally.win_rate.n:
        low, high = tally.win_rate.ci95
        print(f"win rate {tally.win_rate.mean:.0%} (95% interval {low:.0%} to {high:.0%}, a tie counts half)")
        print(f"judged alike in both orders: {tally.consistent:.0%}; without a verdict: {tally.undecided}")
    else:
        print("no win rate: the judge gave no verdict")


def _judge(args: argparse.Namespace, replies: Path) -> Compare:
    """Who judges; what a server replies is kept in ``replies``, so that a judgement that failed asks for the rest."""
    if args.server and args.model and not args.reward:
        asked = {"base_url": args.server, "model": args.model, "api_key_env": args.api_key_env}
        return options(ServerCompareConfig, asked, args.overrides, "the judge").build(replies)
    if args.reward and not args.server:
        kind = registry.load("text_rewards", args.reward)
        config = options(kind, {"type": args.reward}, args.overrides, f"the reward '{args.reward}'")
        reward = config.build(device="cpu", resolve=resolve)  # type: ignore[attr-defined]
        if isinstance(reward, KeepsReplies):
            reward.keep_replies(replies)
        return RewardCompare(reward)
    raise UserError(
        "Name one judge: --server URL with --model NAME, or --reward NAME of another reward than the run's."
    )
