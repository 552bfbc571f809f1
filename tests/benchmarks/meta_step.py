"""How far MetaRM's inner step goes for an eta, and how much of the plain gradient is left there.

    python tests/benchmarks/meta_step.py --out runs/pilot --seed 11

Of a folder that ``contrast_meta.py --pilot --pairs 1000 --seen plain`` has left: 16 pairs and 4 prompts of the moved
policy, at the start of a training and at its end.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from contrast_meta import NOISE, TUNER, Bench
from reward_models import comparisons
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from raftdiff.embedded import resolve
from raftdiff.embedded.reviews.preferences import preferences
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.reward_models.contrast import NoContrastConfig
from raftdiff.llm.reward_models.objective import RewardObjective, Whole, taught
from raftdiff.llm.reward_models.strength import plain
from raftdiff.llm.reward_models.value_model import load_value_model, value_row

ETAS = (0.003, 0.1, 0.5, 2, 5, 20)
PAIRS, PROMPTS = 16, 4


def steps(bench: Bench, seed: int, base: str) -> list[str]:
    """A line of a table for each eta, of a reward model on ``base``."""
    model = load_value_model(LMConfig(base=base, device="cpu"), resolve, seed=seed)
    weights = [*model.lm.model.parameters(), *model.head.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    objective = RewardObjective(model, 0.0, 0.0, NoContrastConfig(), None)
    known = comparisons(preferences(bench.own["train"], bench.count, seed=seed, noise=NOISE))[:PAIRS]
    pairs = taught(model, known, plain(PAIRS))
    shown = bench.drawn(seed, "plain", "early", "pool")[:PROMPTS]
    pool = [[value_row(model, one.prompt, text) for text in one.answers] for one in shown]

    def gradient(value: Callable[[], Tensor]) -> tuple[float, Tensor]:
        found = value()
        each = torch.autograd.grad(found, weights, allow_unused=True, materialize_grads=True)
        return float(found.detach()), torch.cat([one.flatten() for one in each])

    theta = parameters_to_vector(weights).detach().clone()
    loss, first = gradient(lambda: objective.loss(pairs, Whole(PAIRS, 1)).loss)
    j, up = gradient(lambda: objective.separation(pool))
    rows = [f"{base}: J {j:.3f}, loss {loss:.3f}; AdamW's step about {TUNER.learning_rate * len(theta) ** 0.5:.2f}"]
    for eta in ETAS:
        vector_to_parameters(theta + eta * up, weights)
        (there, turned), (higher, _) = (
            gradient(lambda: objective.loss(pairs, Whole(PAIRS, 1)).loss),
            gradient(lambda: objective.separation(pool)),
        )
        cosine = float(cosine_similarity(first, turned, dim=0))
        rows.append(f"| {eta:g} | {eta * float(up.norm()):.4f} | {higher:.3f} | {there:.3f} | {cosine:.2f} |")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pilot"))
    parser.add_argument("--seed", type=int, default=11)
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.out, 1000, ["early"], pilot=True)
    print("| eta | inner step | J there | loss there | cosine of the gradients |")
    for base in ("review-lm", str(bench.folder(given.seed, "plain"))):
        print(*steps(bench, given.seed, base), sep="\n", flush=True)


if __name__ == "__main__":
    main()
