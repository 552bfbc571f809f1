"""Training a reward model on a run's folder: part by part, each on the disk when it is done, and the model at the end.

A run is a folder as any other (``records.run``): ``rounds/000`` holds the figures of the first part of the training and
the state after it. Beside the rounds stand ``model/``, the trained reward model in the transformers format with its
head, and ``pool.jsonl``, the policy's answers that MetaRM was given.
"""

import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from jaxtyping import Float

from raftdiff.embedded import resolve
from raftdiff.errors import UserError
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.model.lengths import Lengths, Limits
from raftdiff.llm.model.rows import Row
from raftdiff.llm.recipe import limits_of
from raftdiff.llm.reward_models.reward import MODEL
from raftdiff.llm.reward_models.strength import Annotation
from raftdiff.llm.reward_models.tuner import RewardTuner, differences
from raftdiff.llm.reward_models.value_model import (
    ValueModel,
    load_value_model,
    positions,
    save_value_model,
    value_row,
)
from raftdiff.llm.reward_runs.policy_pool import answered
from raftdiff.llm.reward_runs.recipe import RewardRecipe, divided, strengths
from raftdiff.measures.calibration import accuracy, ece
from raftdiff.progress import Progress, Quiet
from raftdiff.records.disk import sync_all
from raftdiff.records.run import Run
from raftdiff.seeds import fold
from raftdiff.training.devices import flush_denormals
from raftdiff.types import Report, Round

POOL = "pool.jsonl"
BINS = 10


@final
@dataclass(frozen=True)
class RewardParts:
    """What a recipe is assembled into."""

    recipe: RewardRecipe
    model: ValueModel
    tuner: RewardTuner
    pairs: Sequence[Comparison]
    """What is trained on, in the order of the data."""
    annotation: Annotation
    """What the denoising says of each of them."""
    held_out: Sequence[Comparison]


def assemble_reward(recipe: RewardRecipe) -> RewardParts:
    """Load the model and the data, and wire them.

    Raises:
        UserError: the model cannot be loaded or is not one that the tuner can train, or a pair is too long for it.
    """
    flush_denormals()
    pairs, held_out = divided(recipe)
    seed = recipe.loop.seed
    model = load_value_model(recipe.model, resolve, seed=fold(seed, "head"))
    pairs = readable_pairs(model, pairs, limits_of(recipe.pairs.data, "pairs.data"))
    apart = recipe.held_out and limits_of(recipe.held_out.data, "held_out.data")
    if held_out:
        held_out = readable_pairs(model, held_out, apart or limits_of(recipe.pairs.data, "pairs.data"))
    annotation = recipe.denoise.annotate(strengths(recipe, pairs), len(pairs))
    tuner = RewardTuner(recipe.tuner, model, total_rounds=recipe.loop.rounds, seed=fold(seed, "tuner"))
    return RewardParts(recipe, model, tuner, pairs, annotation, held_out)


def readable_pairs(model: ValueModel, pairs: Sequence[Comparison], limits: Limits) -> list[Comparison]:
    """The pairs that the model reads, cut where the recipe asks for it; what is left out is said.

    Raises:
        UserError: a pair is too long, and the recipe does not say what to do about it; or nothing is left.
    """
    lengths, found = Lengths(model.lm, limits, positions=positions(model.lm)), []
    for pair in pairs:
        if row := lengths.fit(pair.prompt, [pair.chosen, pair.rejected]):
            chosen, rejected = row.answers
            found.append(replace(pair, prompt=row.prompt, chosen=chosen, rejected=rejected))
    lengths.tell(len(pairs))
    return found


def train(run: Run, parts: RewardParts, progress: Progress | None = None) -> Iterator[Round]:
    """Train the parts that are still missing, and yield each when it is committed; then write the model.

    A run that was killed goes on after its last finished part, to the same bits on the CPU.
    """
    yield from rounds(run, parts, progress or Quiet())
    if not (run.path / MODEL).is_dir():
        _write_model(run, parts)


def rounds(run: Run, parts: RewardParts, progress: Progress) -> Iterator[Round]:
    """The same without the model at the end."""
    if state := run.state():
        parts.tuner.load_state_dict(state)
    loop = parts.recipe.loop
    if run.rounds_done() < loop.rounds:
        pool = _pool(run, parts, progress)
    for t in range(run.rounds_done(), loop.rounds):
        draft, began = run.draft(t), time.perf_counter()
        seed = fold(loop.seed, loop.order, "tune")  # one order for all parts
        learnt = parts.tuner.fit(parts.pairs, parts.annotation, pool=pool, seed=seed, report=progress.stage(t, "tune"))
        spent = time.perf_counter() - began
        draft.spend("tune", seconds=spent, evaluations=int(learnt.get("network_evaluations", 0)))
        draft.note(tune=dict(learnt), pairs=len(parts.pairs), **_validated(parts, progress.stage(t, "validate")))
        draft.spend("validate", seconds=time.perf_counter() - began - spent, evaluations=0)
        metrics = draft.metrics()
        yield Round(t, draft.commit(parts.tuner.state_dict()), metrics)


def figures(d: Float[np.ndarray, " pairs"]) -> dict[str, Any]:
    """What differences of reward (chosen less rejected, in logits) say of a model, as JSON.

    ``accuracy``: the share of pairs in which the chosen answer has the higher reward, a tie counting half, higher is
    better; ``loss``: the Bradley-Terry loss, -log sigmoid(d), nats, lower is better, 0.693 is chance; ``ece``: the
    expected calibration error of sigmoid(d), 0 to 1, lower is better.
    """
    found = accuracy(d)
    return {
        "accuracy": found.mean,
        "ci95": list(found.ci95),
        "pairs": len(d),
        "loss": float(np.logaddexp(0.0, -d).mean()),
        "ece": float(ece(d, BINS)),
    }


def _pool(run: Run, parts: RewardParts, progress: Progress) -> Sequence[Sequence[Row]]:
    """The policy's answers as the reward model's tokens; none without MetaRM. Those that it cannot read are left out,
    and so are prompts that have too few without them, which is said.

    Raises:
        UserError: nothing is left.
    """
    recipe = parts.recipe
    if recipe.policy_pool is None or recipe.tuner.meta is None:
        return ()
    count = recipe.tuner.meta.answers
    found = answered(
        run.path / POOL,
        recipe.policy_pool,
        count=count,
        seed=recipe.loop.seed,
        report=progress.stage(run.rounds_done(), "sample"),
    )
    model, limits = parts.model, Limits("policy_pool", long="skip")
    lengths, kept = Lengths(model.lm, limits, positions=positions(model.lm)), []
    for prompt, answers in found:
        read = [answer for answer in answers if lengths.fit(prompt, [answer])]
        if len(read) >= min(count, len(answers)):
            kept.append([value_row(model, prompt, answer) for answer in read])
    lengths.tell(sum(len(answers) for _, answers in found))
    if less := len(found) - len(kept):
        told = f"policy_pool: {less} of {len(found)} prompts have fewer than {count} answers that can be read"
        if not kept:
            raise UserError(f"{told}. Lower policy_pool.decoding.max_new_tokens, or name a model that reads more.")
        warnings.warn(f"{told}, and were left out.", stacklevel=2)
    return kept


def _validated(parts: RewardParts, report: Report) -> Mapping[str, Any]:
    """The held-out pairs as the model stands; nothing where none are held out."""
    if not parts.held_out:
        return {}
    return {"held_out_pairs": figures(asked(parts, parts.held_out, report))}


def asked(parts: RewardParts, pairs: Sequence[Comparison], report: Report) -> Float[np.ndarray, " pairs"]:
    """The difference of reward of each pair, chosen less rejected, as the model stands."""
    return differences(parts.model, pairs, batch_size=parts.recipe.tuner.rows_per_pass, report=report)


def _write_model(run: Run, parts: RewardParts) -> None:
    """The reward's folder, aside and then renamed: present means complete."""
    aside = run.path / f"{MODEL}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    notes = {
        "name": parts.recipe.name,
        "trained_on": len(parts.pairs),
        "denoise": parts.recipe.denoise.type,
        "held_out": run.metrics()[-1].get("held_out_pairs"),
    }
    save_value_model(aside, parts.model, notes)
    sync_all(aside)
    aside.rename(run.path / MODEL)
