"""``raftdiff llm show-row``: one row of the data as the model sees it."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from raftdiff.cli.either import recipe_file
from raftdiff.embedded import resolve
from raftdiff.errors import UserError, counted
from raftdiff.llm.assembly import data_rows
from raftdiff.llm.model.loading import LM, load
from raftdiff.llm.model.rows import row_of
from raftdiff.llm.recipe import TextRecipe, limits_of, load_text_recipe
from raftdiff.llm.reward_models.value_model import load_value_model, value_row
from raftdiff.llm.reward_runs.recipe import divided, load_reward_recipe
from raftdiff.llm.reward_runs.training import readable_pairs
from raftdiff.recipes.files import medium_of, spoken
from raftdiff.recipes.needs import ready
from raftdiff.types import Prompt, Sample

SHOWN = 24
"""Of a longer text, so many tokens at its begin and at its end."""


def show_row(args: argparse.Namespace) -> None:
    """Prompt and answers of one row, token by token: what is read, what is learnt, and what ends it."""
    path = recipe_file(args.recipe)
    lines = {"text": _learnt, "preferences": _preferred}.get(medium := medium_of(path))
    if lines is None:
        raise UserError(f"{args.recipe}: this is a recipe for {spoken(medium)}; rows are shown of recipes on texts.")
    print("\n".join(lines(path, args.overrides, args.row)))


def _learnt(path: Any, overrides: Sequence[str], number: int) -> Iterator[str]:
    """Of a policy's recipe: the prompt, and the answers to it that the data hold."""
    recipe = _ready(load_text_recipe(path, overrides))
    lm = load(recipe.model, resolve)
    prompts, samplers = data_rows(recipe, lm)
    prompt = _row(prompts, number)
    yield from _head(lm, f"row {number} of {len(prompts)}, '{prompt.id}'")
    found = [one for sampler in samplers for one in _answers(sampler, prompt, recipe)]
    told = lm.prompt_ids(prompt, prompt.learning)
    if prompt.sampling != prompt.learning:
        yield from _block(lm, "what is sampled", lm.prompt_ids(prompt, prompt.sampling), "read")
    yield from _block(lm, "prompt", told, "read")
    for place, sample in enumerate(found, 1):
        answer = row_of(lm, sample, learning=True).answer
        cut = ", cut off and so without an end" if sample.cut else ""
        name = f"answer {place} of {len(found)}{_score(prompt, sample)}{cut}"
        yield from _block(lm, name, answer, "learnt", start=len(told))
    if not found:
        yield f"\nno answer: answers are drawn, sampler {recipe.sampler.type}, and end as they were drawn"
    elif len(found) > 1:
        yield f"\nof these the selector, {recipe.ranker.selector.type}, takes what is learnt"


def _preferred(path: Any, overrides: Sequence[str], number: int) -> Iterator[str]:
    """Of a reward model's recipe: the prompt, and both answers of a pair."""
    recipe = _ready(load_reward_recipe(path, overrides))
    model = load_value_model(recipe.model, resolve)
    pairs = readable_pairs(model, divided(recipe)[0], limits_of(recipe.pairs.data, "pairs.data"))
    pair = _row(pairs, number)
    yield from _head(model.lm, f"pair {number} of {len(pairs)}, '{pair.id}'")
    for place, name in enumerate(("chosen", "rejected")):
        row = value_row(model, pair.prompt, getattr(pair, name))
        if place == 0:
            yield from _block(model.lm, "prompt", row.prompt, "read")
        yield from _block(model.lm, name, row.answer, "read", start=len(row.prompt))
    yield "\nthe reward is read at the last token"


def _ready(recipe: Any) -> Any:
    for sentence in ready(recipe, resolve):
        print(sentence, file=sys.stderr)
    return recipe


def _row(rows: Sequence[Any], number: int) -> Any:
    if number > len(rows):
        raise UserError(f"--row {number}: there are {counted(len(rows), 'row')}.")
    return rows[number - 1]


def _answers(sampler: Any, prompt: Prompt, recipe: TextRecipe) -> list[Sample[str]]:
    count = recipe.loop.candidates
    return list(sampler.sample([prompt], per_prompt=count, seed=recipe.loop.seed, round=0, done=frozenset()))


def _score(prompt: Prompt, sample: Sample[str]) -> str:
    """What the data say of this answer, which may stand there again with another score."""
    answers = prompt.meta.get("answers") or ()
    own = answers[sample.index] if sample.index < len(answers) else {}
    score = own.get("score") if own.get("text") == sample.media else None
    return "" if score is None else f", score {score:g}"


def _head(lm: LM, what: str) -> Iterator[str]:
    written = lm.template if lm.template in ("chat", "plain") else "the recipe's own"
    first, *others = (f"{_token(lm, one)} ({one})" for one in lm.eos)
    yield f"{what}; model {lm.name}, template: {written}"
    yield f"an answer ends in {first}" + (f"; drawn ones also at {', '.join(others)}" if others else "")


def _block(lm: LM, name: str, ids: Sequence[int], mask: str, *, start: int = 0) -> Iterator[str]:
    """A heading, the text as a whole, and a line a token: place, mask, id, token."""
    yield f"\n{name}: {counted(len(ids), 'token')}, {mask}"
    yield from (f"  | {line}" for line in lm.tokenizer.decode(list(ids), **EXACT).split("\n"))
    special = set(lm.tokenizer.all_special_ids)
    left = len(ids) - 2 * SHOWN
    for place, one in enumerate(ids):
        if left > 1 and SHOWN <= place < len(ids) - SHOWN:
            if place == SHOWN:
                yield f"         ... {left} more ..."
            continue
        note = "  the end" if one in lm.eos and place == len(ids) - 1 else "  special" if one in special else ""
        yield f"  {start + place:>5}  {mask:<6}  {one:>6}  {_token(lm, one)}{note}"


EXACT = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}


def _token(lm: LM, one: int) -> str:
    """A token as people read it: spaces and line ends visible; a part of a letter as the tokenizer calls it."""
    name = str(lm.tokenizer.convert_ids_to_tokens(one))
    text = name.replace("▁", " ") if "▁" in name else str(lm.tokenizer.decode([one], **EXACT))
    shown = name if not text or "\ufffd" in text else text
    return repr(shown)[1:-1] if shown.strip() == shown and shown.isprintable() else repr(shown)
