"""A look at the held-out prompts: drawn with the same seeds in every round, scored, and noted."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from raftdiff.progress import Progress
from raftdiff.records.changes import alike
from raftdiff.records.media import file_name, opened
from raftdiff.records.rounds import Draft
from raftdiff.records.run import Run
from raftdiff.scoring import in_order
from raftdiff.seeds import fold
from raftdiff.stages.bookkeeping import counted, keep_replies, timed
from raftdiff.stages.figures import each, mean, units_of
from raftdiff.stages.parts import Parts
from raftdiff.types import Media, Sample


def validate(draft: Draft, run: Run, parts: Parts[Media], name: str, progress: Progress) -> None:
    """The mean total reward on the held-out prompts, with the same seeds in every round."""
    if not parts.held_out:
        return
    sampler = parts.held_out_sampler or parts.sampler
    with timed(draft, "validate", sampler.network_evaluations):
        seed = fold(parts.loop.seed, "held_out")
        count, report = parts.held_out_candidates, progress.stage(draft.index, "validate")
        stream = sampler.sample(parts.held_out, per_prompt=count, seed=seed, round=draft.index, done=frozenset())
        told = counted(([one] for one in stream), len(parts.held_out) * count, report)
        drawn = in_order((one for batch in told for one in batch), parts.held_out)
        ranker = parts.held_out_ranker or parts.ranker
        keep_replies(draft, ranker)
        ranker.refuse_unfit(drawn)
        raw = ranker.raw(drawn)
        units = units_of(draft, run, ranker, raw)
        totals = ranker.level(raw, units.get("units", {}))
        draft.keep(name, drawn)
        further = parts.examine(drawn) if parts.examine else {}
        base = _of_base(draft, run, drawn) if parts.moved and name == "held_out" else []
        moved = {f"{name}_drift": dict(parts.moved(base, drawn))} if parts.moved and base else {}
    draft.note(
        **{name: mean(totals), f"{name}_each": each(drawn, totals)},
        **{f"{name}_rewards": {reward: mean(values) for reward, values in raw.items()}},
        **{f"{name}_rewards_each": {reward: each(drawn, values) for reward, values in raw.items()}},
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
