"""What a recipe can learn from the answers that its data bring: looked at when they are read, before any model is."""

import warnings
from collections.abc import Sequence

from raftdiff.errors import UserError
from raftdiff.llm.data.formats import BAD
from raftdiff.types import Prompt, SelectionKind


def screened(prompts: Sequence[Prompt], kind: SelectionKind, *, candidates: int, given: bool) -> list[Prompt]:
    """The prompts whose own answers can be learnt from, for a selector of the ``kind``; what is left out is said.

    ``given``: whether answers are told apart by nothing but the scores that the data give them.

    - weighted: an answer that was labelled bad is nobody's example;
    - pairs: a prompt needs two answers, and by the scores one of them is to be better.

    Raises:
        UserError: nothing is left.
    """
    used = {prompt.id: list(prompt.meta.get("answers", ()))[:candidates] for prompt in prompts}
    more = sum(len(prompt.meta.get("answers", ())) > candidates for prompt in prompts)
    if more:
        warnings.warn(
            f"prompts: {more} of {len(prompts)} bring more answers than loop.candidates ({candidates}), and only the "
            "first ones are looked at; raise loop.candidates to look at all.",
            stacklevel=2,
        )
    if kind == "weighted":
        bad = {prompt.id for prompt in prompts if used[prompt.id] and all(a["source"] == BAD for a in used[prompt.id])}
        reason = "their answers are labelled bad, and would be learnt as good ones"
    elif kind == "pairs":
        bad = {prompt.id for prompt in prompts if not _paired(used[prompt.id], given)}
        reason = "a pair needs two answers" + (", of which the data rate one higher" if given else "")
    else:
        return list(prompts)
    if not bad:
        return list(prompts)
    if len(bad) == len(prompts):
        raise UserError(f"prompts: all {len(prompts)} would be left out: {reason}. Name other data, or another recipe.")
    warnings.warn(f"prompts: {len(bad)} of {len(prompts)} are left out: {reason}.", stacklevel=2)
    return [prompt for prompt in prompts if prompt.id not in bad]


def refuse_mean(prompts: Sequence[Prompt]) -> None:
    """
    Raises:
        UserError: no prompt has two answers, so that none is above or below the mean of its prompt's.
    """
    if all(len(prompt.meta.get("answers", ())) < 2 for prompt in prompts):
        raise UserError(
            "ranker.selector.threshold: each prompt of the data has one answer, which is its own mean, and so neither "
            "good nor bad; set the threshold, 0.5 for labels of true and false."
        )


def _paired(answers: Sequence[dict[str, object]], given: bool) -> bool:
    scores = [float(str(answer["score"])) for answer in answers if answer["score"] is not None]
    return len(answers) > 1 if not given else len(scores) > 1 and max(scores) > min(scores)
