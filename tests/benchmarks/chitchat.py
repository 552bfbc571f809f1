"""Preference pairs out of people's ratings of their own conversations, and how much a frozen model knows of them.

    pip download --no-deps chitchat-dataset==0.9.0
    python tests/benchmarks/chitchat.py pairs chitchat_dataset-0.9.0-py3-none-any.whl --out DIR
    python tests/benchmarks/chitchat.py bound DIR --model SMOLLM2
    python tests/benchmarks/chitchat.py lower SMOLLM2 --out DIR
    python tests/benchmarks/chitchat.py signs RUN

The Chit-Chat data (MIT; Myers, Etchart and Fulda, 2020): 7,168 conversations of two, with an opening question,
5,988 of them with one rating each, of 1 to 10, for witty, interesting and upbeat. Half of these are 5/5/5, most of them
where nobody answered or the talk was short: presumably what the page stood at, so they are left out.

A rating is of a whole conversation, and a reward model for answers reads one text in one voice. So an excerpt is what
**one of the two** wrote in a row: whole messages of 30 to 50 words together, from the beginning, the middle or the end.
A pair is two excerpts about one question and from the same part, the better of a conversation rated 9 or more in the
mean, the worse of one rated 6 or less, with at most two words between their lengths: longer is not better. People, and
with them conversations, are either trained on or held out, and every excerpt is in one pair only.

``pairs`` writes train.jsonl and held_out.jsonl in DIR and prints what is in them; ``bound`` prints what length and a
linear reading of SmolLM2's own features make of the held-out pairs; ``lower`` writes a model of SmolLM2's lower layers
alone, which tell no less of the ratings at 0.4 of the cost; ``signs`` prints what changed in a policy's answers.
"""

import argparse
import json
import re
import sys
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from raftdiff.measures.calibration import accuracy
from raftdiff.measures.statistics import Estimate, mean_std_ci, paired_difference
from raftdiff.records.disk import read_json_lines, write_text

FILE = "chitchat_dataset/dataset.json"
RATED = ("witty", "interesting", "upbeat")
UNTOUCHED = [5, 5, 5]
HIGH, LOW = 9.0, 6.0
FEWEST_TURNS, FEWEST, MOST, APART = 6, 30, 50, 2
"""Turns of a conversation; words of an excerpt, from and to; words between the two of a pair."""
ALWAYS_TRAINED = 10
"""The people with the most conversations, whom nobody can be held apart from."""
LAYER = 14
"""Of SmolLM2's 30, whose states ``bound`` reads: those of the middle tell most."""
KEPT = 12
"""How many of its layers ``lower`` keeps by default."""

SIGNS: Mapping[str, str] = {
    "words": r"\S+",
    "sentences": r"[.!?]+(\s|$)",
    "questions": r"\?",
    "exclamation marks": r"!",
    "I, me, my": r"\b(i|i['’]m|i['’]ve|me|my)\b",
    "you, your": r"\b(you|you['’]re|your)\b",
    "haha, lol": r"\b(haha\w*|lol)\b",
    "praise": r"\b(love\w*|awesome|cool|great|fun|nice|good|amazing|wonderful)\b",
}
"""What may be counted in an answer to see what a reward taught."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What one person wrote in a row in a conversation."""

    conversation: str
    speaker: str
    question: str
    part: str
    """beginning, middle or end."""
    text: str
    words: int
    rating: float
    """Mean of the three, 1 to 10, higher is better."""


class Conversation(NamedTuple):
    id: str
    question: str
    people: frozenset[str]
    rating: float
    messages: Sequence[tuple[str, str]]
    """Who and what, in order."""


def conversations(wheel: Path) -> list[Conversation]:
    """Those of two people, of six turns or more, that somebody rated."""
    with zipfile.ZipFile(wheel) as archive:
        data: dict[str, Any] = json.loads(archive.read(FILE))
    found = []
    for name, told in sorted(data.items()):
        ratings = [told.get("ratings", {}).get(which) for which in RATED]
        messages = [(one["sender"], " ".join(one["text"].split())) for turn in told["messages"] for one in turn]
        people = frozenset(sender for sender, _ in messages)
        known = None not in ratings and ratings != UNTOUCHED and "prompt" in told
        if known and len(people) == 2 and len(told["messages"]) >= FEWEST_TURNS:
            question = " ".join(told["prompt"].split())
            found.append(Conversation(name, question, people, float(np.mean(ratings)), messages))
    return found


def excerpts(conversation: Conversation, speaker: str) -> list[Excerpt]:
    """The speaker's first, middle and last excerpt; fewer where there is not so much."""
    found: list[str] = []
    held: list[str] = []
    for sender, text in conversation.messages:
        if sender != speaker or not text:
            continue
        held += (text if text[-1] in ".!?):,;" else text + ".").split()
        if FEWEST <= len(held) <= MOST:
            found.append(" ".join(held))
        if len(held) >= FEWEST:
            held = []
    places = dict(zip((0, len(found) // 2, len(found) - 1), ("beginning", "middle", "end"), strict=True))
    places[0] = "beginning"
    return [
        Excerpt(conversation.id, speaker, conversation.question, part, text, len(text.split()), conversation.rating)
        for place, part in places.items()
        for text in found[place : place + 1]
    ]


def divided(known: Sequence[Conversation], share: float, seed: int) -> tuple[list[Excerpt], list[Excerpt]]:
    """Excerpts to train on and to hold out. Nobody who is held out is in a conversation that is trained on."""
    often = Counter(person for one in known for person in sorted(one.people))
    always = {person for person, _ in often.most_common(ALWAYS_TRAINED)}
    rest = sorted(set(often) - always)
    rng = np.random.default_rng(seed)
    apart = {rest[place] for place in rng.permutation(len(rest))[: int(share * len(rest))]}
    train = [cut for one in known if not one.people & apart for who in sorted(one.people) for cut in excerpts(one, who)]
    held = [cut for one in known for who in sorted(one.people & apart) for cut in excerpts(one, who)]
    return train, held


def paired(cuts: Sequence[Excerpt], seed: int) -> list[tuple[Excerpt, Excerpt]]:
    """Better and worse about one question, from one part, of like length; each excerpt once."""
    rng = np.random.default_rng(seed)
    groups: dict[tuple[str, str], list[Excerpt]] = defaultdict(list)
    for place in rng.permutation(len(cuts)):
        groups[cuts[place].question, cuts[place].part].append(cuts[place])
    found = []
    for group in groups.values():
        better = [cut for cut in group if cut.rating >= HIGH]
        for worse in (cut for cut in group if cut.rating <= LOW):
            fits = [cut for cut in better if abs(cut.words - worse.words) <= APART]
            if fits:
                best = min(fits, key=lambda cut: abs(cut.words - worse.words))
                better.remove(best)
                found.append((best, worse))
    return [found[place] for place in rng.permutation(len(found))]


def rows(pairs: Sequence[tuple[Excerpt, Excerpt]]) -> Iterator[dict[str, Any]]:
    for place, (better, worse) in enumerate(pairs):
        yield {
            "id": f"pair-{place:04d}",
            "prompt": better.question,
            "chosen": better.text,
            "rejected": worse.text,
            "rating_chosen": round(better.rating, 2),
            "rating_rejected": round(worse.rating, 2),
            "part": better.part,
        }


def write_pairs(given: argparse.Namespace) -> None:
    known = conversations(given.wheel)
    train, held = divided(known, given.share, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    print(f"{len(known)} rated conversations; {sum(one.rating >= HIGH for one in known)} high, ", end="")
    print(f"{sum(one.rating <= LOW for one in known)} low")
    for name, cuts in (("train", train), ("held_out", held)):
        pairs = paired(cuts, given.seed)
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(pairs))
        write_text(given.out / f"{name}.jsonl", text)
        of = {cut.conversation for pair in pairs for cut in pair}
        who = {cut.speaker for pair in pairs for cut in pair}
        print(f"{name}: {len(pairs)} pairs of {len(of)} conversations and {len(who)} speakers")
        _print_lengths([(better.text, worse.text) for better, worse in pairs])


def _print_lengths(pairs: Sequence[tuple[str, str]]) -> None:
    """How often the longer one is the better: a half says that length tells nothing."""
    for name, of in (("words", lambda text: len(text.split())), ("characters", len)):
        d = np.array([of(better) - of(worse) for better, worse in pairs], dtype=np.float64)
        print(f"  right by more {name}: {_figure(accuracy(d))}")


def write_bound(given: argparse.Namespace) -> None:
    sides = {name: read_json_lines(given.folder / f"{name}.jsonl")[: given.limit] for name in ("train", "held_out")}
    _print_lengths([(row["chosen"], row["rejected"]) for row in sides["held_out"]])
    read = Reader(given.model)
    train, held = (read(rows) for rows in sides.values())
    spread = train.std(axis=0) + 1e-6
    for decay in (1e-4, 1e-3, 1e-2):
        weight = logistic(train / spread, decay)
        right = [_figure(accuracy(d @ weight)) for d in (train / spread, held / spread)]
        print(f"layer {LAYER}, decay {decay:g}: train {right[0]}, held out {right[1]}", flush=True)


class Reader:
    """The mean of a middle layer's states over an excerpt: chosen less rejected."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.bfloat16).eval()
        self._model.layers = self._model.layers[:LAYER]

    @torch.no_grad()
    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "pairs width"]:
        sides = [self._means([(row["prompt"], row[side]) for row in rows]) for side in ("chosen", "rejected")]
        found: np.ndarray = (sides[0] - sides[1]).numpy()
        return found

    def _means(self, texts: Sequence[tuple[str, str]]) -> torch.Tensor:
        found = []
        for start in range(0, len(texts), 32):
            part = texts[start : start + 32]
            batch = self._tokenizer(
                [f"{q}\n{a}" for q, a in part], padding=True, padding_side="right", return_tensors="pt"
            )
            mask = batch["attention_mask"].clone()
            for row, (question, _) in enumerate(part):
                mask[row, : len(self._tokenizer(f"{question}\n")["input_ids"])] = 0
            # Before the final norm, which is for the last layer's states alone.
            states = self._model(**batch, output_hidden_states=True).hidden_states[LAYER - 1].float()
            found.append((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        return torch.cat(found)


def logistic(d: Float[np.ndarray, "pairs width"], decay: float) -> Float[np.ndarray, " width"]:
    """The weights that minimise the mean Bradley-Terry loss of these differences and decay times their square."""
    given = torch.from_numpy(d).double() / d.shape[1] ** 0.5
    weight = torch.zeros(given.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weight], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        search.zero_grad()
        found = -torch.nn.functional.logsigmoid(given @ weight).mean() + decay * weight.square().sum()
        torch.autograd.backward(found)
        return found

    search.step(loss)
    found: np.ndarray = weight.detach().numpy()
    return found


def write_lower(given: argparse.Namespace) -> None:
    """A model of the lower layers alone, as a transformers folder: the last norm then follows another layer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(given.folder, local_files_only=True)
    model.model.layers = model.model.layers[: given.layers]
    model.config.num_hidden_layers = given.layers
    model.save_pretrained(given.out, safe_serialization=True)
    AutoTokenizer.from_pretrained(given.folder, local_files_only=True).save_pretrained(given.out)


def write_signs(given: argparse.Namespace) -> None:
    """What may be counted in the answers of both sides, an answer, with the 95% interval of the difference."""
    lines = read_json_lines(given.run / "eval" / given.name / "answers.jsonl")
    if not lines:
        sys.exit(f"{given.run}: there are no answers; run: raftdiff eval {given.run}")
    prompts = list(dict.fromkeys(line["prompt"] for line in lines))
    ordered = sorted(lines, key=lambda line: prompts.index(line["prompt"]))
    print("| an answer | base | tuned | difference |\n|---|---:|---:|---:|")
    for name, pattern in SIGNS.items():
        before, after = (
            np.array([float(len(re.findall(pattern, line[side], re.IGNORECASE))) for line in ordered])
            for side in ("before", "after")
        )
        sides = before.reshape(len(prompts), -1), after.reshape(len(prompts), -1)
        columns = [_figure(mean_std_ci(sides[0])), _figure(mean_std_ci(sides[1])), _figure(paired_difference(*sides))]
        print(f"| {name} | {' | '.join(columns)} |")
    for place, line in enumerate(ordered[:: max(1, len(ordered) // given.replies)] if given.replies else []):
        print(f"\n{place + 1}. **{line['prompt']}**\n   - base: {line['before']!r}\n   - tuned: {line['after']!r}")


def _figure(estimate: Estimate) -> str:
    low, high = estimate.ci95
    return f"{estimate.mean:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    pairs = commands.add_parser("pairs", help="write train.jsonl and held_out.jsonl")
    pairs.add_argument("wheel", type=Path)
    pairs.add_argument("--out", type=Path, required=True)
    pairs.add_argument("--share", type=float, default=0.3, help="of the people, to hold out")
    pairs.add_argument("--seed", type=int, default=0)
    pairs.set_defaults(do=write_pairs)
    bound = commands.add_parser("bound", help="what length and frozen features tell")
    bound.add_argument("folder", type=Path)
    bound.add_argument("--model", type=Path, required=True)
    bound.add_argument("--limit", type=int, help="pairs of each file")
    bound.set_defaults(do=write_bound)
    lower = commands.add_parser("lower", help="write a model of the lower layers alone")
    lower.add_argument("folder", type=Path)
    lower.add_argument("--layers", type=int, default=KEPT)
    lower.add_argument("--out", type=Path, required=True)
    lower.set_defaults(do=write_lower)
    signs = commands.add_parser("signs", help="what changed in a policy's answers")
    signs.add_argument("run", type=Path)
    signs.add_argument("--name", default="", help="eval/NAME instead of eval")
    signs.add_argument("--replies", type=int, default=0, help="print so many answers of both sides, evenly chosen")
    signs.set_defaults(do=write_signs)
    given = parser.parse_args()
    given.do(given)


if __name__ == "__main__":
    main()
