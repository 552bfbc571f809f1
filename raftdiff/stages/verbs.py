"""The four verbs of the loop, each on a round's folder: sample, score, select, tune; then commit."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from raftdiff.errors import UserError
from raftdiff.measures.pruning import looks, trust
from raftdiff.progress import Progress
from raftdiff.ranking import Ranker
from raftdiff.records.media import note_previews, previews
from raftdiff.records.rounds import Draft, RoundFolder
from raftdiff.records.run import Run
from raftdiff.records.watching import alarms, best_round
from raftdiff.seeds import fold
from raftdiff.selection.best import figures
from raftdiff.stages.bookkeeping import counted, keep_replies, timed
from raftdiff.stages.figures import levels_of, mean, mixing, told_apart, units_of
from raftdiff.stages.held_out import validate
from raftdiff.stages.parts import LoopConfig, Parts, asked
from raftdiff.types import Key, Media, Prompt, Prunes, Round, Sample, Selection

SCORING_BATCH = 256


def sample(
    draft: Draft, run: Run, parts: Parts[Media], progress: Progress, own: Set[tuple[str, int]] | None = None
) -> None:
    """K candidates for each of the round's prompts; those already on disk are not drawn again. In rounds that draw
    none, those of the last round that did. ``own``: those alone, where others are drawn elsewhere (``spread``)."""
    if draft.index == 0 and own is None and "held_out_base" not in draft.metrics():
        validate(draft, run, parts, "held_out_base", progress)
    sampler, loop, t = parts.sampler, parts.loop, draft.index
    prompts = asked(parts.prompts, loop, t)
    every = {(prompt.id, index) for prompt in prompts for index in range(loop.candidates)}
    done, left = draft.sampled(), every - own if own is not None else set()
    kept = sampler.kept(loop.candidates) if isinstance(sampler, Prunes) else loop.candidates
    drawn, total = len(done), (len(every) - len(left)) * kept // loop.candidates
    report = progress.stage(t, "sample")
    with timed(draft, "sample", sampler.network_evaluations):
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
    keep_replies(draft, ranker)
    with timed(draft, "score"):
        batches = counted(draft.folder.batches(SCORING_BATCH), len(rows), progress.stage(draft.index, "score"))
        scores = ranker.score(batches, rows_asked, loop.candidates)
        draft.write_scores(scores)
    unfit = {ranker.unfit.name: scores.unfit} if ranker.unfit else {}
    draft.note(per_prompt=loop.candidates, **unfit)


def select(draft: Draft, run: Run, ranker: Ranker[Media]) -> None:
    """What to learn from, and the round's figures."""
    scores = draft.folder.scores()
    units = units_of(draft, run, ranker, scores.raw)
    with timed(draft, "select"):
        selection = ranker.select(scores, draft.folder.batches(SCORING_BATCH))
        draft.write_selection(selection)
        chosen = {key for item in selection.items for key in item.keys}
        batches = draft.folder.batches(SCORING_BATCH)
        described = ranker.describe(batches, chosen) if ranker.describe else {}
        levels = replace(scores, total=levels_of(ranker, scores, units.get("units", {})))
        drawn = draft.metrics().get("candidates", scores.total.size)
        draft.note(
            **{**figures(levels, selection, drawn), **trust(previews(draft.path), scores)},
            selected=len(selection.items),
            left_out=list(selection.left_out),
            prompts=len(scores.prompts),
            **told_apart(draft, scores, ranker),
            rewards={name: mean(table) for name, table in scores.raw.items()},
            **units,
            mixing=mixing(ranker, scores, selection),
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
        validate(draft, run, parts, "held_out_base", progress)
    with timed(draft, "tune"):
        samples: dict[Key, Sample[Media]] = _samples(draft, run, lesson)
        report = progress.stage(draft.index, "tune")
        seed = fold(parts.loop.seed, draft.index, "tune")
        learnt = parts.finetuner.fit(lesson, samples, seed=seed, report=report) if lesson.items else {"steps": 0.0}
    draft.note(tune=dict(learnt))
    draft.spend("tune", seconds=0.0, evaluations=int(learnt.get("network_evaluations", 0)))
    validate(draft, run, parts, "held_out", progress)


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


def merge(selections: Sequence[Selection]) -> Selection:
    """One lesson out of several rounds' selections: the first's and those of its kind. A weight of one kind says
    another thing in another."""
    alike = [selection for selection in selections if selection.kind == selections[0].kind]
    items = tuple(item for selection in alike for item in selection.items)
    return Selection(selections[0].kind, items, selections[0].left_out)


def _taken_over(folder: RoundFolder, t: int, done: Set[tuple[str, int]]) -> Iterator[Sample[Any]]:
    """The candidates of an earlier round, as those of round ``t``."""
    for batch in folder.batches(SCORING_BATCH):
        yield from (replace(one, round=t) for one in batch if (one.prompt.id, one.index) not in done)


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
