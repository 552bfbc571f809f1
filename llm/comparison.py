"""Before and after of a run on texts: answers of both sides drawn with the same seeds, scored, and written down."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float32

from raftdiff.chat.dialogue import context, dialogue
from raftdiff.embedded.reviews.reward import true_perplexity
from raftdiff.llm.assembly import TextAssembly, decoding_of, evaluated, held_out_prompts
from raftdiff.llm.data.prompts import DataConfig, as_learnt
from raftdiff.llm.figures import diversity, perplexity
from raftdiff.llm.model.rows import Row, row_of, score
from raftdiff.measures.evaluation import draw_both, evaluate, finite
from raftdiff.recipes.config import plain
from raftdiff.recipes.prompts import find_file
from raftdiff.records.disk import write_text
from raftdiff.records.run import Run
from raftdiff.reports.before_after import BeforeAfter
from raftdiff.reports.comparison import write_comparison
from raftdiff.types import Prompt, Report, Reward, Sample, silent

SHOWN_PROMPTS, SHOWN_SEEDS = 24, 2
NO_OTHER: Mapping[str, Any] = {"hub": None, "captions": [], "sha256": None}
"""Keys of a data config that another file takes the place of."""


@final
@dataclass(frozen=True)
class TextCompared:
    """Both sides, drawn and measured."""

    prompts: Sequence[Prompt]
    before: Sequence[Sample[str]]
    after: Sequence[Sample[str]]
    marks: tuple[Sequence[Mapping[str, float | bool]], Sequence[Mapping[str, float | bool]]]
    """What the rewards and the judge say of each answer, before and after."""
    evaluation: Mapping[str, Any]
    """As in ``measures.evaluation.Evaluation``; ``drift`` has ``kl``, and ``text`` the figures of both sides."""


def evaluation_texts(assembly: TextAssembly, file: str | None) -> list[Prompt]:
    """The prompts to compare on: a file's, ``training`` for the run's own, or the held-out ones.

    Whatever was sampled in training, here the model reads what it learnt to answer, unless the recipe says otherwise.
    """
    held_out = assembly.recipe.evaluation.prompts
    given = file is None and held_out != DataConfig()
    if file is not None and file != "training":
        found_at = str(find_file(file, Path(), "--prompts"))
        held_out, given = held_out.model_copy(update={"file": found_at, **NO_OTHER}), True
    if given:
        found = held_out_prompts(assembly.recipe, held_out)
    else:
        found = [as_learnt(prompt) for prompt in assembly.parts.prompts]
    return evaluated(assembly.recipe, assembly.lm, found)


def compare(
    assembly: TextAssembly, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, report: Report = silent
) -> TextCompared:
    """Answers of the base and of the policy as it stands, with the same seeds, measured."""
    assembly.check(prompts)
    began, spent = time.perf_counter(), assembly.evaluator.network_evaluations()
    base_weights = assembly.finetuner.base_weights
    before, after = draw_both(
        assembly.evaluator, base_weights, prompts, per_prompt=per_prompt, seed=seed, report=report
    )
    told = _told(assembly, [*before, *after])
    found = evaluate(
        prompts,
        before,
        after,
        rewards=told.rewards,
        judge=assembly.judge,
        seconds=time.perf_counter() - began,
        network_evaluations=assembly.evaluator.network_evaluations() - spent,
    )
    figures, kl = _figures(assembly, prompts, before, after)
    marks = (told.marks[: len(before)], told.marks[len(before) :])
    return TextCompared(prompts, before, after, marks, {**found, "drift": {"kl": kl}, "text": figures})


class _Told(NamedTuple):
    """What the rewards and the judge say of some answers, asked once: a reward may cost a server's time."""

    rewards: Sequence[Reward[str]]
    """They repeat what was said."""
    marks: Sequence[Mapping[str, float | bool]]


@final
class _Repeating:
    def __init__(self, name: str, samples: Sequence[Sample[str]], values: Sequence[float]) -> None:
        self.name = name
        self._said = {id(sample): value for sample, value in zip(samples, values, strict=True)}

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        return torch.tensor([self._said[id(sample)] for sample in samples], dtype=torch.float32)


def _told(assembly: TextAssembly, samples: Sequence[Sample[str]]) -> _Told:
    raw = {name: values.tolist() for name, values in assembly.measures.raw(samples).items()}
    verdicts: Mapping[str, Any] = {}
    if assembly.judge:
        verdicts = assembly.judge([one.media for one in samples], [one.prompt.caption for one in samples])
    marks = [
        {name: values[row] for name, values in raw.items()}
        | {name: bool(values[row]) for name, values in verdicts.items()}
        for row in range(len(samples))
    ]
    return _Told([_Repeating(name, samples, values) for name, values in raw.items()], marks)


def _figures(
    assembly: TextAssembly, prompts: Sequence[Prompt], before: Sequence[Sample[str]], after: Sequence[Sample[str]]
) -> tuple[dict[str, dict[str, float | None]], float]:
    """What is not a reward, of both sides; and KL(policy || base), estimated on the answers of the policy."""
    size, sides = assembly.distances.batch_size, (before, after)
    rows = [[row_of(assembly.lm, sample, learning=False) for sample in side] for side in sides]
    with assembly.finetuner.base_weights():
        under_base = [score(assembly.lm, side, batch_size=size) for side in rows]
    now = score(assembly.lm, rows[1], batch_size=size)
    found = [diversity([one.media for one in side]) for side in sides]
    for place, side in enumerate(sides):
        found[place]["perplexity"] = perplexity(under_base[place])
        if assembly.judge:
            found[place]["true_perplexity"] = true_perplexity(side)
    if of_data := _data_perplexity(assembly, prompts):
        for place, value in enumerate(of_data):
            found[place]["data_perplexity"] = value
    kl = [float((p - q).sum()) for p, q in zip(now, under_base[1], strict=True)]
    return {name: {"before": found[0][name], "after": found[1][name]} for name in found[0]}, math.fsum(kl) / len(kl)


def _data_perplexity(assembly: TextAssembly, prompts: Sequence[Prompt]) -> tuple[float, float] | None:
    """Of the best answer that the data give to each prompt, under the base and under the policy: the RAFT paper's
    perplexity, and what shows a model that forgets. None where the data have no answers that the model can read."""
    lm, rows = assembly.lm, []
    for prompt in prompts:
        answers = prompt.meta.get("answers") or []
        if answers:
            best = max(answers, key=lambda one: -math.inf if one.get("score") is None else one["score"])
            row = Row(
                tuple(lm.prompt_ids(prompt, prompt.learning)),
                tuple(lm.answer_ids(best["text"], ended=not best.get("cut"))),
            )
            if lm.positions is None or len(row.prompt) + len(row.answer) <= lm.positions:
                rows.append(row)
    if not rows:
        return None
    now, before = assembly.distances.log_probabilities(rows)
    return perplexity(before), perplexity(now)


def write(
    folder: Path,
    run: Run,
    assembly: TextAssembly,
    compared: TextCompared,
    *,
    trained_on: bool = False,
    training: Mapping[str, Any] | None = None,
    round: int | None = None,
) -> Path:
    """The answers of both sides as JSON lines beside figures and page; as ``reports.comparison.write_comparison``."""
    pairs = _pairs(compared)
    lines = [
        {
            "prompt": sample.prompt.caption,
            **context(sample.prompt),
            "prompt_id": sample.prompt.id,
            "index": sample.index,
            "before": pair.before,
            "after": pair.after,
            "before_scores": pair.before_scores,
            "after_scores": pair.after_scores,
        }
        for sample, pair in zip(compared.before, pairs, strict=True)
    ]
    step = max(1, -(-len(compared.prompts) // SHOWN_PROMPTS))
    shown = {dialogue(prompt) for prompt in compared.prompts[::step]}
    first = [pair for one, pair in zip(compared.before, pairs, strict=True) if one.index < SHOWN_SEEDS]
    told = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    return write_comparison(
        folder,
        run,
        name=assembly.recipe.name,
        evaluation={
            **compared.evaluation,
            "text": {name: finite(pair) for name, pair in compared.evaluation["text"].items()},
        },
        drawn={**plain(decoding_of(assembly.recipe)), "seed": assembly.recipe.evaluation.seed},
        media=lambda aside: write_text(aside / "answers.jsonl", told),
        pairs=[pair for pair in first if pair.caption in shown],
        trained_on=trained_on,
        training=training,
        round=round,
    )


def _pairs(compared: TextCompared) -> list[BeforeAfter]:
    """Every prompt and seed, with what the rewards and the judge say of both answers."""
    return [
        BeforeAfter(dialogue(b.prompt), b.media, a.media, before, after)
        for b, a, before, after in zip(compared.before, compared.after, *compared.marks, strict=True)
    ]
