"""A language model of twice the width, four times the weights, that says exactly what a smaller Llama says.

    python tests/benchmarks/wider.py --out FOLDER

Every hidden unit stands twice, and what reads it reads a share of each copy; the shares are drawn by chance, so that
the copies learn different things from the first step on. So the size of a reward model can be told from how well its
body was trained before.

Source of the idea: Chen et al. 2016, Net2Net, arXiv:1511.05641 (Net2WiderNet).
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raftdiff import embedded
from raftdiff.embedded.language import load

BOTH_SIDES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def wider(model: Any, *, seed: int = 0) -> Any:
    """A Llama with tied embeddings -> one of twice its width and as many layers, with the same next-token logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    told, generator = model.config.to_dict(), torch.Generator().manual_seed(seed)
    doubled = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")
    found = LlamaForCausalLM(LlamaConfig(**told | {name: 2 * told[name] for name in doubled}))
    state = {name: _twice(name, weight, generator) for name, weight in model.state_dict().items()}
    found.load_state_dict(state)
    return found.eval()


def _twice(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    if name.split(".")[-2] in BOTH_SIDES:
        return torch.cat([_shared(weight, generator) for _ in range(2)])
    both = torch.cat([weight, weight], dim=-1)  # embeddings and norms
    return both / 2 if name == "model.norm.weight" else both  # each copy's say in the logits


def _shared(weight: Tensor, generator: torch.Generator) -> Tensor:
    """What reads both copies of its input as the weight read the one."""
    share = torch.rand(weight.shape, generator=generator)
    return torch.cat([weight * share, weight * (1 - share)], dim=1)


def save_wider(folder: Path, *, seed: int = 0) -> None:
    """review-lm, made wider."""
    model, tokenizer = load(embedded.folder("review-lm"))
    wider(model, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    save_wider(parser.parse_args().out)


if __name__ == "__main__":
    main()
