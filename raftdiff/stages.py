"""The four verbs of the loop, each on a round's folder: sample, score, select, tune; then commit."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, final

import numpy as np
from jaxtyping import Float
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.measures.mixing import agreements, chosen_above, contributions, signed, told_nothing
from raftdiff.measures.pruning import looks, trust
from raftdiff.progress import Progress
from raftdiff.ranking import Ranker
from raftdiff.recipes.config import Config
from raftdiff.records.changes import alike
from raftdiff.records.media import file_name, note_previews, opened, previews
from raftdiff.records.rounds import Draft, RoundFolder
from raftdiff.records.run import Run
from raftdiff.records.watching import alarms, best_round
from raftdiff.scoring import in_order
from raftdiff.seeds import fold
from raftdiff.selection.best import constant, figures, undecided
from raftdiff.types import (
    FineTuner,
    KeepsReplies,
    Key,
    Media,
    Prompt,
    Prunes,
    Report,
    Round,
    Sample,
    Sampler,
    Scores,
    Selection,
)

SCORING_BATCH = 256


class LoopConfig(Config):
    """How often, on how much."""

    rounds: int = Field(default=10, ge=1)
    """RAFT rounds; the paper's T."""
    candidates: int = Field(default=10, ge=1)
    """Candidates per prompt in each round; the paper's K."""
    prompts_per_round: int | None = Field(default=None, ge=1)
    """Prompts drawn for each round, without repetition until all were used; all of them by default. The paper's b."""
    sample_every: int = Field(default=1, ge=1)
    """Candidates are drawn in the first of so many rounds, and taken over in the others: what a slow sampler or a
    teacher drew is learnt from several times, each time from where the model then is."""
    replay_rounds: int = Field(default=0, ge=0)
    """From how many earlier rounds the selected samples are learnt from again."""
    patience: int | None = Field(default=None, ge=1)
    """Stop when the held-out reward has not risen for this many rounds; never by default."""
    guard: Literal["warn", "stop", "rollback"] = "warn"
    """What to do when the held-out figures move as where a reward is hacked: warn, stop after the round, or also go
    back to the round whose held-out rewards were best."""
    seed: int = 0
    """Every other seed is derived from this one."""

    @property
    def draws(self) -> int:
        """How many of the rounds draw candidates."""
        return -(-self.rounds // self.sample_every)


@final
@dataclass(frozen=True)
class Parts(Generic[Media]):
    """What a recipe is assembled into."""

    sampler: Sampler[Media]
    ranker: Ranker[Media]
    finetuner: FineTuner[Media]
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt] = ()
    held_out_sampler: Sampler[Media] | None = None
    """Draws the held-out prompts as the tuned model is to be used; the sampler itself by default."""
    held_out_ranker: Ranker[Media] | None = None
    """Scores the held-out samples, where the rewards of the training cannot; its selector is not used."""
    held_out_candidates: int = 1
    """Samples per held-out prompt; their seeds are the same in every round."""
    examine: Callable[[Sequence[Sample[Media]]], Mapping[str, Any]] | None = None
    """Further figures of the held-out samples, such as their distance from the base model, or what their pixels say."""
    moved: Callable[[Sequence[Sample[Media]], Sequence[Sample[Media]]], Mapping[str, Any]] | None = None
    """How far the held-out samples lie from the base's of the same prompts and seeds, which come first."""
    loop: LoopConfig = field(default_factory=LoopConfig)


def sample(
    draft: Draft, run: Run, parts: Parts[Media], progress: Progress, own: Set[tuple[str, int]] | None = None
) -> None:
    """K candidates for each of the round's prompts; those already on disk are not drawn again. In rounds that draw
    none, those of the last round that did. ``own``: those alone, where others are drawn elsewhere (``spread``)."""
    if draft.index == 0 and own is None and "held_out_base" not in draft.metrics():
        _validate(draft, run, parts, "held_out_base", progress)
    sampler, loop, t = parts.sampler, parts.loop, draft.index
    prompts = asked(parts.prompts, loop, t)
    every = {(prompt.id, index) for prompt in prompts for index in range(loop.candidates)}
    done, left = draft.sampled(), every - own if own is not None else set()
    kept = sampler.kept(loop.candidates) if isinstance(sampler, Prunes) else loop.candidates
    drawn, total = len(done), (len(every) - len(left)) * kept // loop.candidates
    report = progress.stage(t, "sample")
    with _timed(draft, "sample", sampler.network_evaluations):
        if ago := t % loop.sample_every:
            stream = _taken_over(run.round(t - ago), t, done)
            note_previews(draft.path, previews(run.round(t - ago).path))
        else:
            seed = fold(loop.seed, t, "sample")
            if isinstance(sampler, Prunes):
                sampler.on_previews(lambda seen: note_previews(draft.path, seen))
            stream = sampler.sample(prompts, per_prompt=loop.candidates, seed=seed, round=t, done=done | left)
        try:
            for candidate in stream:
                draft.add(candidate)
                drawn += 1
                report(drawn, total)
        finally:
            draft.flush()
    draft.note(candidates=drawn, **looks(previews(draft.path)))


def score(draft: Draft, ranker: Ranker[Media], prompts: Sequence[Prompt], loop: LoopConfig, progress: Progress) -> None:
    """Every reward of every candidate."""
    rows = draft.folder.rows()
    if not rows:
        raise UserError(f"{draft.path}: this round has no samples yet; run 'raftdiff sample' first.")
    rows_asked = [prompt.id for prompt in asked(prompts, loop, draft.index)]
    # a data set may have fewer answers than were asked for, and says so once it has given all of them
    missing = draft.metrics().get("candidates", len(rows_asked) * loop.candidates) - len(rows)
    if missing:
        raise UserError(f"{draft.path}: {missing} candidates are missing; run 'raftdiff sample' again to complete it.")
    _keep_replies(draft, ranker)
    with _timed(draft, "score"):
        batches = _counted(draft.folder.batches(SCORING_BATCH), len(rows), progress.stage(draft.index, "score"))
        scores = ranker.score(batches, rows_asked, loop.candidates)
        draft.write_scores(scores)
    counted = {ranker.unfit.name: scores.unfit} if ranker.unfit else {}
    draft.note(per_prompt=loop.candidates, **counted)


def select(draft: Draft, run: Run, ranker: Ranker[Media]) -> None:
    """What to learn from, and the round's figures."""
    scores = draft.folder.scores()
    units = _units(draft, run, ranker, scores.raw)
    with _timed(draft, "select"):
        selection = ranker.select(scores, draft.folder.batches(SCORING_BATCH))
        draft.write_selection(selection)
        chosen = {key for item in selection.items for key in item.keys}
        batches = draft.folder.batches(SCORING_BATCH)
        described = ranker.describe(batches, chosen) if ranker.describe else {}
        levels = replace(scores, total=_levels(ranker, scores, units.get("units", {})))
        drawn = draft.metrics().get("candidates", scores.total.size)
        draft.note(
            **{**figures(levels, selection, drawn), **trust(previews(draft.path), scores)},
            selected=len(selection.items),
            left_out=list(selection.left_out),
            prompts=len(scores.prompts),
            **_alike(draft, scores, ranker),
            rewards={name: _mean(table) for name, table in scores.raw.items()},
            **units,
            mixing=_mixing(ranker, scores, selection),
            **described,
        )


def tune(draft: Draft, run: Run, parts: Parts[Media], progress: Progress) -> None:
    """Fine-tune on this round's selection and those replayed, then look at the held-out prompts."""
    earlier = run.selections(sorted(_lineage(run, draft.index)[: parts.loop.replay_rounds]))
    lesson = merge([draft.folder.selection(), *earlier])
    if strangers := [one.kind for one in earlier if one.kind != lesson.kind]:
        draft.note(not_replayed=len(strangers), not_replayed_kind=strangers[0])
    if not lesson.items and lesson.kind not in ("pairs", "labelled"):  # all candidates alike: no pair, no label
        raise UserError(f"{draft.path}: nothing was selected in this round, so there is nothing to learn from.")
    if draft.index == 0 and "held_out_base" not in draft.metrics():  # a fork's, which was sampled elsewhere
        _validate(draft, run, parts, "held_out_base", progress)
    with _timed(draft, "tune"):
        samples: dict[Key, Sample[Media]] = _samples(draft, run, lesson)
        report = progress.stage(draft.index, "tune")
        seed = fold(parts.loop.seed, draft.index, "tune")
        learnt = parts.finetuner.fit(lesson, samples, seed=seed, report=report) if lesson.items else {"steps": 0.0}
    draft.note(tune=dict(learnt))
    draft.spend("tune", seconds=0.0, evaluations=int(learnt.get("network_evaluations", 0)))
    _validate(draft, run, parts, "held_out", progress)


def commit(draft: Draft, run: Run, parts: Parts[Media]) -> Round:
    """The round is complete, and the fine-tuner's state with it; what the guard makes of it is on record before."""
    metrics = draft.metrics()
    heed(run, parts.loop, [*run.metrics(), {**metrics, "changed": run.changes().get(draft.index, [])}])
    return Round(draft.index, draft.commit(parts.finetuner.state_dict()), metrics)


def heed(run: Run, loop: LoopConfig, rounds: Sequence[Mapping[str, Any]]) -> None:
    """Where ``loop.guard`` is to go back and the last of these rounds alarmed, note which round the run goes on from.
    It counts from when that round is complete; noted once, it stays."""
    after = len(rounds) - 1
    if loop.guard != "rollback" or after in run.rollbacks() or not alarms(rounds):
        return
    run.go_back(after, best_round(rounds, lambda t: (run.round_path(t) / "state").is_dir()))


def asked(prompts: Sequence[Prompt], loop: LoopConfig, round: int) -> list[Prompt]:
    """The prompts of a round: all, or the next hand of a deck that is shuffled again when it runs out. Rounds that draw
    no candidates have the hand of the one that did."""
    if loop.prompts_per_round is None or loop.prompts_per_round >= len(prompts):
        return list(prompts)
    count = loop.prompts_per_round
    deck: list[int] = []
    epoch = 0
    for _ in range(round // loop.sample_every + 1):
        if len(deck) < count:
            fresh = np.random.default_rng(fold(loop.seed, "deck", epoch)).permutation(len(prompts)).tolist()
            # What is left of the old deck goes first, and not into the same hand twice.
            deck += sorted(fresh, key=lambda card: card in deck)
            epoch += 1
        hand, deck = deck[:count], deck[count:]
    return [prompts[card] for card in hand]


def merge(selections: Sequence[Selection]) -> Selection:
    """One lesson out of several rounds' selections: the first's and those of its kind. A weight of one kind says
    another thing in another."""
    alike = [selection for selection in selections if selection.kind == selections[0].kind]
    items = tuple(item for selection in alike for item in selection.items)
    return Selection(selections[0].kind, items, selections[0].left_out)


def _validate(draft: Draft, run: Run, parts: Parts[Media], name: str, progress: Progress) -> None:
    """The mean total reward on the held-out prompts, with the same seeds in every round."""
    if not parts.held_out:
        return
    sampler = parts.held_out_sampler or parts.sampler
    with _timed(draft, "validate", sampler.network_evaluations):
        seed = fold(parts.loop.seed, "held_out")
        count, report = parts.held_out_candidates, progress.stage(draft.index, "validate")
        stream = sampler.sample(parts.held_out, per_prompt=count, seed=seed, round=draft.index, done=frozenset())
        told = _counted(([one] for one in stream), len(parts.held_out) * count, report)
        drawn = in_order((one for batch in told for one in batch), parts.held_out)
        ranker = parts.held_out_ranker or parts.ranker
        _keep_replies(draft, ranker)
        ranker.refuse_unfit(drawn)
        raw = ranker.raw(drawn)
        units = _units(draft, run, ranker, raw)
        totals = ranker.level(raw, units.get("units", {}))
        draft.keep(name, drawn)
        further = parts.examine(drawn) if parts.examine else {}
        base = _of_base(draft, run, drawn) if parts.moved and name == "held_out" else []
        moved = {f"{name}_drift": dict(parts.moved(base, drawn))} if parts.moved and base else {}
    draft.note(
        **{name: _mean(totals), f"{name}_each": _each(drawn, totals)},
        **{f"{name}_rewards": {reward: _mean(values) for reward, values in raw.items()}},
        **{f"{name}_rewards_each": {reward: _each(drawn, values) for reward, values in raw.items()}},
        **{f"{name}_weights": {reward.name: weight for reward, weight in ranker.rewards}},
        **{f"{name}_roles": {reward: ranker.role(reward) for reward in raw}},
        **units,
        **({f"{name}_figures": dict(further)} if further else {}),
        **moved,
    )


def _of_base(draft: Draft, run: Run, drawn: Sequence[Sample[Any]]) -> list[Sample[Any]]:
    """What the base drew for the same prompts and seeds; nothing where that was not kept, or in another way, before a
    change of the evaluation."""
    since = {"changed": run.changes().get(draft.index, [])}
    if draft.index and len(alike([*run.metrics(), since])) <= draft.index:
        return []
    first = run.round(0) if draft.index else draft.folder
    kept, names = first.held_out("held_out_base"), [file_name(sample) for sample in drawn]
    if not all(name in kept for name in names):
        return []
    folder = first.path / "held_out_base"
    return [
        replace(sample, media=opened(folder, {"file_name": name}), aux={})
        for sample, name in zip(drawn, names, strict=True)
    ]


def _keep_replies(draft: Draft, ranker: Ranker[Media]) -> None:
    """A round whose scoring failed half-way asks a judge only for what it has not yet said."""
    for reward, _ in ranker.rewards:
        if isinstance(reward, KeepsReplies):
            reward.keep_replies(draft.path / "replies.jsonl")


def _taken_over(folder: RoundFolder, t: int, done: Set[tuple[str, int]]) -> Iterator[Sample[Any]]:
    """The candidates of an earlier round, as those of round ``t``."""
    for batch in folder.batches(SCORING_BATCH):
        yield from (replace(one, round=t) for one in batch if (one.prompt.id, one.index) not in done)


def _counted(batches: Iterator[list[Sample[Media]]], total: int, report: Report) -> Iterator[list[Sample[Media]]]:
    """The batches, saying how far they are once the next is asked for."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        report(done, total)


def _alike(draft: Draft, scores: Scores, ranker: Ranker[Any]) -> dict[str, Any]:
    """Where the rewards told nothing apart. Of what a model did not draw one answer a prompt is all that there is, and
    with one alone from a teacher its answers are learnt for their own sake: there nothing was to be told apart."""
    sources = {row["source"] for row in draft.folder.rows()}
    wanted = {"policy"} if scores.total.shape[1] == 1 else {"policy", "teacher"}
    if not sources & wanted:
        return {"undecided": 0, "constant": []}
    weighed = [
        reward.name
        for reward, _ in ranker.rewards
        if ranker.role(reward.name) in ("train", "constraint")
        and not (draft.index == 0 and getattr(reward, "nothing_at_first", False))
    ]
    return {
        "undecided": undecided(scores.total, getattr(ranker.selector, "compares", "prompt")),
        "constant": [name for name in weighed if name in scores.raw and constant(scores.raw[name])],
    }


def _units(
    draft: Draft, run: Run, ranker: Ranker[Any], raw: Mapping[str, Float[np.ndarray, "..."]]
) -> dict[str, dict[str, float]]:
    """What scores are divided by in the figures of the total, to be noted, where the weights count a reward's own
    spread: of each reward the spread that was first seen while the rewards meant the same, so that rounds can be
    compared. Nothing for other mixes."""
    if not ranker.mix.unitless:
        return {}
    before = alike([*run.metrics(), {"changed": run.changes().get(draft.index, [])}])[:-1]
    seen = [*(it.get("units") or {} for it in (*before, draft.metrics())), ranker.units(raw)]
    return {"units": {name: unit for units in reversed(seen) for name, unit in units.items()}}


def _levels(ranker: Ranker[Any], scores: Scores, units: Mapping[str, float]) -> Float[np.ndarray, "prompts candidates"]:
    """How good candidates are by themselves; NaN where one is discarded."""
    return np.where(np.isnan(scores.total), np.nan, ranker.level(scores.raw, units))


def _mixing(ranker: Ranker[Any], scores: Scores, selection: Selection) -> dict[str, Any]:
    """How the rewards went together: what ``measures.mixing`` says of them."""
    learnt = signed(scores, selection)
    weights = {reward.name: weight for reward, weight in ranker.rewards}
    wanted = {name: -table if weights[name] < 0 else table for name, table in scores.raw.items()}
    return {
        "mix": ranker.mix.name,
        "roles": {name: ranker.role(name) for name in scores.raw},
        "told_nothing": {name: told_nothing(table) for name, table in scores.raw.items()},
        "agreement": agreements(wanted),
        "contribution": contributions(ranker.parts(scores.raw), learnt),
        "chosen_above": {name: chosen_above(table, learnt) for name, table in scores.raw.items()},
        "vetoed": ranker.vetoed(scores.raw),
    }


def _mean(values: Any) -> float | None:
    """The mean of those that are not discarded; None where all are."""
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _each(drawn: Sequence[Sample[Any]], totals: Any) -> list[float | None]:
    """The mean of each prompt's samples, in the prompts' order."""
    held: dict[str, list[float]] = {}
    for sample, total in zip(drawn, totals, strict=True):
        held.setdefault(sample.key.prompt, []).append(float(total))
    return [_mean(np.array(values)) for values in held.values()]


def _lineage(run: Run, round: int) -> list[int]:
    """The rounds that tuned the weights with which a round begins, the latest first: those that were gone back from are
    none of them."""
    found: list[int] = []
    while (origin := run.origin(found[-1] if found else round)) is not None:
        found.append(origin)
    return found


def _samples(draft: Draft, run: Run, lesson: Selection) -> dict[Key, Sample[Media]]:
    """The samples that a lesson names, of this round and of earlier ones."""
    keys = [key for item in lesson.items for key in item.keys]
    found = {}
    for t in sorted({key.round for key in keys}):
        folder = draft.folder if t == draft.index else run.round(t)
        found.update({sample.key: sample for sample in folder.samples([key for key in keys if key.round == t])})
    return found


@contextlib.contextmanager
def _timed(draft: Draft, stage: str, evaluations: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Add the seconds and the network evaluations of the block to the round's metrics, also when it is interrupted."""
    began, before = time.perf_counter(), evaluations()
    try:
        yield
    finally:
        draft.spend(stage, seconds=time.perf_counter() - began, evaluations=evaluations() - before)
