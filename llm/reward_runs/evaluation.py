"""What a reward model says of labelled pairs: right or wrong, how sure, by length, by strength, and how it sees them.

Differences are r(chosen) - r(rejected), in logits: sigmoid of one is the probability that the chosen answer is the
better one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float

from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.reward_models.strength import by_decile
from raftdiff.llm.reward_models.tuner import features
from raftdiff.llm.reward_models.value_model import ValueModel
from raftdiff.llm.reward_runs.ensemble import truth
from raftdiff.llm.reward_runs.training import BINS, figures
from raftdiff.measures.calibration import accuracy, mixing, principal, reliability
from raftdiff.types import Report, silent

NEIGHBOURS = 10
"""Of each answer, for the figure ``mixing``."""
LEAST = 10
"""Pairs that a tenth is told of with; fewer than ten times as many are not cut into tenths."""

Values = Float[np.ndarray, " pairs"]


@final
@dataclass(frozen=True)
class Answers:
    """One side of the pairs, the chosen or the rejected answers, as a model sees them."""

    features: Float[np.ndarray, "pairs width"]
    """The last hidden state at the last token."""
    rewards: Values


@final
@dataclass(frozen=True)
class Looked:
    """A model's view of the pairs."""

    pairs: Sequence[Comparison]
    chosen: Answers
    rejected: Answers

    @property
    def differences(self) -> Values:
        found: Values = self.chosen.rewards - self.rejected.rewards
        return found


def look(model: ValueModel, pairs: Sequence[Comparison], *, batch_size: int, report: Report = silent) -> Looked:
    """Ask the model of every pair."""
    chosen, rejected = features(model, pairs, batch_size=batch_size, report=report)
    return Looked(pairs, _answers(model, chosen), _answers(model, rejected))


def evaluation(looked: Looked) -> dict[str, Any]:
    """Everything that the page shows of one model, as JSON.

    Beside what ``training.figures`` says:

    - `reliability`: confidence and accuracy in bins of confidence; `rewards`: mean and spread of both sides.
    - `length`: words of both sides; `longer_wins`: how often the longer answer was the chosen one, which is what length
      alone would get right; `prefers_longer`: how often the model prefers it; both 0.5 without a bias.
    - `deciles`: accuracy in each tenth by strength, where the pairs bring ``mu``; `truth`: accuracy against the true
      labels, where the data know them.
    - `features`: `mixing`, how far the chosen and the rejected overlap (1 fully mixed, 0 apart), and `explained`, the
      shares of the variance that the two axes of the picture show.
    """
    d = looked.differences
    return {
        **figures(d),
        "reliability": [one._asdict() for one in reliability(d, BINS)],
        "rewards": {"chosen": _spread(looked.chosen.rewards), "rejected": _spread(looked.rejected.rewards)},
        "length": length(looked.pairs, d),
        "deciles": _deciles(looked.pairs, d),
        "truth": _against_truth(looked.pairs, d),
        "features": {
            "mixing": mixing(looked.chosen.features, looked.rejected.features, NEIGHBOURS),
            "explained": principal(both(looked)).share.tolist(),
        },
    }


def both(looked: Looked) -> Float[np.ndarray, "answers width"]:
    """The features of all chosen, then of all rejected answers."""
    found: np.ndarray = np.concatenate([looked.chosen.features, looked.rejected.features])
    return found


def words(pairs: Sequence[Comparison]) -> tuple[Values, Values]:
    """How long the chosen and the rejected answers are, in words."""
    counted = np.array([(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs], dtype=np.float64)
    return counted[:, 0], counted[:, 1]


def length(pairs: Sequence[Comparison], d: Values) -> dict[str, Any]:
    """How far length alone tells the chosen answer, and how far the model goes by it."""
    chosen, rejected = words(pairs)
    longer = np.sign(chosen - rejected)
    differ = longer != 0
    return {
        "chosen": _spread(chosen),
        "rejected": _spread(rejected),
        "longer_wins": _estimate(longer),
        "prefers_longer": _estimate((d * longer)[differ]),
        "right_if_longer": _estimate(d[longer > 0]),
        "right_if_shorter": _estimate(d[longer < 0]),
    }


def _answers(model: ValueModel, found: Float[np.ndarray, "pairs width"]) -> Answers:
    with torch.no_grad():
        rewards = model.read(torch.from_numpy(found).to(model.lm.device)).cpu().numpy().astype(np.float64)
    return Answers(found, rewards)


def _estimate(d: Values) -> dict[str, Any] | None:
    """How often a difference is above 0, a tie counting half; None for none."""
    found = accuracy(d)
    return {"mean": found.mean, "ci95": list(found.ci95), "n": found.n} if found.n else None


def _spread(values: Values) -> dict[str, float]:
    return {"mean": float(values.mean()), "std": float(values.std())}


def _deciles(pairs: Sequence[Comparison], d: Values) -> list[dict[str, Any]]:
    """Accuracy by tenths of the strength, weakest first; nothing where a strength is missing, or pairs are few."""
    if len(pairs) < 10 * LEAST or any(pair.mu is None for pair in pairs):
        return []
    mu = np.array([pair.mu for pair in pairs], dtype=np.float64)
    right = np.where(d == 0, 0.5, d > 0)
    return [{"from": one.low, "to": one.high, "pairs": one.n, "accuracy": one.mean} for one in by_decile(mu, right)]


def _against_truth(pairs: Sequence[Comparison], d: Values) -> dict[str, Any] | None:
    right = truth(pairs)
    return None if right is None else _estimate(np.where(right > 0.5, d, -d))
