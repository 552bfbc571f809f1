"""What a language model need not compute: the same work with and without, in turn in one process, by processor time.

    OMP_NUM_THREADS=1 python tests/benchmarks/texts.py review-lm --repeats 9
    OMP_NUM_THREADS=1 python tests/benchmarks/texts.py smollm2 --repeats 1     # its sizes, random weights; two minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/texts.py FOLDER --only nucleus   # SmolLM2 itself

- ``sampling``: K answers to each prompt, when every row reads its prompt; when a prompt is read once; and when prompts
  of like length are drawn together too.
- ``nucleus``: answers drawn with top_p, when the whole vocabulary is sorted, and as it is. With random weights every
  word is as likely, and nothing is gained.
- ``scoring`` and ``learning``: log p of the answers' tokens, the second with the backward pass to a LoRA, from the
  logits of all positions, and from those of the answers alone, a part at a time.
- ``memory``: the most bytes that the loss's own tensors hold at once, hidden states given, forward and backward.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from raftdiff.diffusion.memory.counting import Follower
from raftdiff.embedded import resolve
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.learning.steps import attach, training
from raftdiff.llm.model import tiny
from raftdiff.llm.model.head import LOGITS, log_probabilities_of
from raftdiff.llm.model.loading import LM, LMConfig, load
from raftdiff.llm.model.network import Network
from raftdiff.llm.model.rows import Batch, Row, collate
from raftdiff.llm.model.tokens import log_probabilities, sums
from raftdiff.llm.sampling import generation
from raftdiff.llm.sampling.generation import DecodingConfig, generate
from raftdiff.records.provenance import provenance

CANDIDATES = 10
JOBS = {
    # lengths of prompts, prompts drawn together, tokens of an answer, rows learnt from at once
    "review-lm": ((4, 5, 4, 6, 4, 5, 6, 4, 5, 4, 6, 5), 6, 24, 64),
    "smollm2": ((16, 76, 30, 62), 2, 40, 16),
}
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
Ways = Mapping[str, Callable[[], Any]]


def in_turn(ways: Ways, repeats: int) -> dict[str, float]:
    """Median processor seconds of each way."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, call in ways.items():
            began = time.process_time()
            call()
            spent[name].append(time.process_time() - began)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


def model(name: str) -> LM:
    """The model that ships or lies in a folder, or one of SmolLM2-135M's sizes with random weights and words for
    tokens."""
    if name != "smollm2":
        return load(LMConfig(base=name, device="cpu"), resolve)
    from transformers import LlamaConfig, LlamaForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        words = [f"w{number}" for number in range(SMOLLM2["vocab_size"] - len(tiny.SPECIAL))]
        lm = load(LMConfig(base=str(tiny.write(Path(folder) / "lm", words, width=8, layers=1)), device="cpu"), str)
    torch.manual_seed(0)
    return replace(lm, model=LlamaForCausalLM(LlamaConfig(**SMOLLM2)).eval().requires_grad_(False))


def tokens(lm: LM, count: int, seed: int) -> tuple[int, ...]:
    """Of no special kind."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(4, lm.model.config.vocab_size, (count,), generator=generator).tolist())


def sampling(lm: LM, prompts: Sequence[tuple[int, ...]], together: int, longest: int) -> Ways:
    how = DecodingConfig(max_new_tokens=longest, min_new_tokens=longest)

    def drawn(prompts: Sequence[tuple[int, ...]]) -> None:
        for start in range(0, len(prompts), together):
            rows = [prompt for prompt in prompts[start : start + together] for _ in range(CANDIDATES)]
            generate(lm, rows, range(len(rows)), how)

    def every_row() -> None:
        with patch.object(generation, "_read", lambda *given, **named: {}):
            drawn(prompts)

    return {
        "every row reads": every_row,
        "read once": lambda: drawn(prompts),
        "read once, sorted": lambda: drawn(sorted(prompts, key=len, reverse=True)),
    }


def nucleus(lm: LM, prompts: Sequence[tuple[int, ...]], longest: int) -> Ways:
    from transformers import TopPLogitsWarper

    how = DecodingConfig(temperature=0.8, top_p=0.95, max_new_tokens=longest, min_new_tokens=longest)
    rows = [prompt for prompt in prompts for _ in range(CANDIDATES)]

    def drawn() -> None:
        generate(lm, rows, range(len(rows)), how)

    def every_word() -> None:
        with patch.object(generation, "nucleus", lambda ids, scores, top_p: TopPLogitsWarper(top_p)(ids, scores)):
            drawn()

    return {"the vocabulary sorted": every_word, "the likeliest thousand": drawn}


def all_logits(network: Network, batch: Batch) -> Tensor:
    return log_probabilities(network.logits(batch), batch.ids)


def learning(lm: LM, network: Network, batch: Batch, lp: Callable[[Network, Batch], Tensor]) -> Callable[[], None]:
    def step() -> None:
        torch.autograd.backward(sums(lp(network, batch), batch.mask).sum())
        lm.model.zero_grad()

    return step


def scored(network: Network, batch: Batch) -> Ways:
    return {
        "all logits": torch.no_grad()(lambda: all_logits(network, batch)),
        "the answers' alone, in parts": torch.no_grad()(lambda: network.lp(batch)),
    }


def learnt(lm: LM, network: Network, batch: Batch, repeats: int) -> dict[str, float]:
    """As ``in_turn``, with a LoRA in the model from now on."""
    trainable = attach(LMFineTunerConfig(), lm, seed=0)
    ways = {
        "all logits": learning(lm, network, batch, all_logits),
        "the answers' alone, in parts": learning(lm, network, batch, Network.lp),
    }
    with training(trainable, lm.model, torch.float32, checkpointing=False):
        return in_turn(ways, repeats)


def memory(lm: LM, batch: Batch) -> dict[str, int]:
    """Bytes at most; the head's weights and the hidden states are there before."""
    table = lm.model.get_output_embeddings().weight
    head = nn.Linear(table.shape[1], table.shape[0], bias=False).requires_grad_(False)
    hidden = torch.randn(*batch.ids.shape, table.shape[1], requires_grad=True)
    at_once = LOGITS // len(table)

    def every() -> Tensor:
        return log_probabilities(head(hidden), batch.ids)[batch.mask]

    def some() -> Tensor:
        return log_probabilities_of(head, hidden.flatten(0, 1)[batch.places], batch.targets, at_once=at_once)

    found = {}
    for name, call in (("all logits", every), ("the answers' alone, in parts", some)):
        with Follower() as held:
            torch.autograd.backward(call().sum())
        found[name], hidden.grad = held.most, None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=f"{', '.join(JOBS)}, or the folder of another, which gets the jobs of smollm2")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("sampling", "nucleus", "scoring", "learning", "memory"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    lm = model(given.model)
    lengths, together, longest, rows = JOBS.get(given.model, JOBS["smollm2"])
    prompts = [tokens(lm, length, seed) for seed, length in enumerate(lengths)]
    asked = [Row(prompts[place % len(prompts)], tokens(lm, longest, 100 + place)) for place in range(rows)]
    batch, network = collate(asked, lm.pad), Network(lm, torch.float32)
    parts: dict[str, Callable[[], Any]] = {
        "sampling": lambda: in_turn(sampling(lm, prompts, together, longest), given.repeats),
        "nucleus": lambda: in_turn(nucleus(lm, prompts, longest), given.repeats),
        "scoring": lambda: in_turn(scored(network, batch), given.repeats),
        "learning": lambda: learnt(lm, network, batch, given.repeats),
        "memory": lambda: memory(lm, batch),
    }
    figures = {name: part() for name, part in parts.items() if given.only in (None, name)}
    for part, found in figures.items():
        first = next(iter(found.values()))
        for way, amount in found.items():
            print(f"{part:10}{way:32}{amount:16,.3f}{first / amount:8.2f} times")
    print(json.dumps({"model": given.model, **figures, "provenance": provenance()}, indent=2))


if __name__ == "__main__":
    main()
