"""Answers of the current policy, several to each prompt, which MetaRM learns to tell apart: drawn once, kept in a file.

``pool.jsonl`` holds a prompt a line: {"id": "...", "prompt": "...", "answers": ["...", "..."]}, with "system" and
"history" where the prompt has them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from raftdiff.embedded import resolve
from raftdiff.errors import UserError
from raftdiff.llm.assembly import decoding_of
from raftdiff.llm.data.prompts import as_learnt, like, read_prompts
from raftdiff.llm.learning.steps import attach
from raftdiff.llm.model.lengths import readable
from raftdiff.llm.model.loading import LM, load
from raftdiff.llm.recipe import limits_of, text_recipe_of
from raftdiff.llm.reward_runs.recipe import PolicyPoolConfig
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.policy import LMSampler
from raftdiff.records.disk import read_json_lines, write_text
from raftdiff.records.run import Run
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Report

CARRIED = ("system", "history")


class Answered(NamedTuple):
    """A prompt and what the policy answered to it."""

    prompt: Prompt
    answers: list[str]


def answered(file: Path, pool: PolicyPoolConfig, *, count: int, seed: int, report: Report) -> list[Answered]:
    """``count`` answers to each prompt: those in ``file``, or drawn now and written there.

    Answers without a letter are kept: they are the policy's too, and a reward model has to say something of them.

    Raises:
        UserError: the model or its data cannot be loaded, or the file was cut short.
    """
    if not file.is_file():
        write_text(file, "".join(json.dumps(_line(one)) + "\n" for one in _drawn(pool, count, seed, report)))
    found = [_read(line) for line in read_json_lines(file)]
    if not found:
        raise UserError(f"{file}: no answers of the policy are here; delete the file, and they are drawn again.")
    return found


def _drawn(pool: PolicyPoolConfig, count: int, seed: int, report: Report) -> list[Answered]:
    lm, prompts, decoding = _policy(pool)
    limits = limits_of(pool.prompts, "policy_pool.prompts")
    prompts = readable(lm, prompts, limits, room=decoding.max_new_tokens)
    sampler = LMSampler(lm, decoding, pool.batch_size, "policy")
    found: dict[str, Answered] = {prompt.id: Answered(prompt, []) for prompt in prompts}
    stream = sampler.sample(prompts, per_prompt=count, seed=fold(seed, "pool"), round=0, done=frozenset())
    for done, sample in enumerate(stream):
        found[sample.prompt.id].answers.append(sample.media)
        report(done + 1, len(prompts) * count)
    return list(found.values())


def _policy(pool: PolicyPoolConfig) -> tuple[LM, Sequence[Prompt], DecodingConfig]:
    """The model with the weights that it has now, what it is asked, and how it answers."""
    if pool.model is not None:
        prompts = read_prompts(pool.prompts, Path(), "policy_pool.prompts")
        return load(pool.model, resolve), prompts, pool.decoding or DecodingConfig()
    assert pool.run is not None
    run = Run.open(Path(pool.run))
    run.demand_recipe()  # it says what answers
    recipe = text_recipe_of(run)
    decoding = decoding_of(recipe)
    lm = load(recipe.model, resolve)
    state = run.state()
    if state is None:
        raise UserError(f"policy_pool.run: '{pool.run}' has no finished round yet, so its policy is the base model.")
    policy = attach(recipe.finetuner, lm, seed=fold(recipe.loop.seed, "finetuner"))  # whichever method trained it
    policy.take(state)
    policy.rest(None)
    if pool.prompts.given:
        prompts = read_prompts(like(recipe.prompts, pool.prompts), Path(), "policy_pool.prompts")
    else:  # the run's own, which its recipe names
        prompts = read_prompts(recipe.prompts, Path(), "policy_pool.run: prompts")
    return lm, [as_learnt(prompt) for prompt in prompts], pool.decoding or decoding


def _line(one: Answered) -> dict[str, object]:
    carried = {name: one.prompt.meta[name] for name in CARRIED if one.prompt.meta.get(name)}
    return {"id": one.prompt.id, "prompt": one.prompt.caption, **carried, "answers": one.answers}


def _read(line: dict[str, object]) -> Answered:
    text, answers = str(line["prompt"]), line["answers"]
    assert isinstance(answers, list)
    meta = {name: line[name] for name in CARRIED if name in line}
    return Answered(Prompt(str(line["id"]), text, text, text, meta=meta), [str(answer) for answer in answers])
