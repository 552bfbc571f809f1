"""What the ways to train a reward model are worth where the truth is known: preference pairs of the text world.

    python tests/benchmarks/reward_models.py --out runs/reward_models --seeds 0 1 2
    python tests/benchmarks/reward_models_table.py --out runs/reward_models --seeds 0 1 2 > FILE.md

Pairs as in ``raftdiff.embedded.reviews.preferences``; a seed is other pairs, other wrong labels, another test set and
another head. The test set is clean and on prompts that review-lm was never trained on. Every training (a cell) leaves a
JSON file, and one that is there is not done again, so the script continues where it was stopped; the second script
writes what there is.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raftdiff.embedded import resolve
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.preferences import own_answers, preferences
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.data.prompts import DataConfig
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.model.rows import Row
from raftdiff.llm.reward_models.contrast import SimcseConfig, SwavConfig
from raftdiff.llm.reward_models.meta import MetaConfig
from raftdiff.llm.reward_models.strength import (
    Annotation,
    FlipConfig,
    FlipMarginConfig,
    MarginConfig,
    SmoothConfig,
    SoftMarginConfig,
    plain,
    strength,
)
from raftdiff.llm.reward_models.tuner import RewardTuner, RewardTunerConfig, features
from raftdiff.llm.reward_models.value_model import ValueModel, load_value_model, save_value_model, score_rows, value_row
from raftdiff.llm.reward_runs.policy_pool import Answered, answered
from raftdiff.llm.reward_runs.recipe import PolicyPoolConfig
from raftdiff.measures.calibration import mixing
from raftdiff.records.disk import write_text
from raftdiff.seeds import fold
from raftdiff.types import Prompt, silent

PAIRS, TEST, EPOCHS, LONG = 400, 400, 3, 8
TUNER = RewardTunerConfig(
    adapter="full", learning_rate=3e-3, lr_schedule="linear", warmup_steps=5, epochs=EPOCHS, batch_size=16
)
METHODS = {
    "smoothing": SmoothConfig(),
    "flip": FlipConfig(),
    "margin": MarginConfig(),
    "flip_margin": FlipMarginConfig(),
    "soft_margin": SoftMarginConfig(),
}
CONTRASTS = {
    "simcse_direct": SimcseConfig(form="direct"),
    "simcse_difference": SimcseConfig(form="difference"),
    "swav_direct": SwavConfig(form="direct", weight=0.1, prototypes=50),
    "swav_difference": SwavConfig(form="difference"),
}
ETAS = (3e-3, 0.1, 0.5)
"""MetaRM's step: equal to the learning rate as in the paper, and two that move the weights further."""
ARMS = ("removed", "flipped", "top", "bottom")
"""What becomes of the lowest tenth by strength; or the highest tenth alone, the lowest two alone."""


class Bench:
    """The cells of one output folder."""

    def __init__(self, out: Path, models: int) -> None:
        self.out, self.models = out, models
        prompts = {"train": (world.training_prompts(), 4), "test": (world.held_out_prompts(), 10)}
        self.own = {
            name: self.cell(f"own-{name}", lambda p=p, k=k: own_answers(p, k)) for name, (p, k) in prompts.items()
        }

    def cell(self, name: str, make: Callable[[], Any]) -> Any:
        """What the file of this name holds, made first where there is none."""
        file = self.out / "cells" / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            began = time.process_time()
            found = make()
            if isinstance(found, dict) and "d_test" in found:
                found["cpu_seconds"] = round(time.process_time() - began, 1)
            write_text(file, json.dumps(found))
            print(f"{time.strftime('%H:%M:%S')} {name} {time.process_time() - began:.1f} s", flush=True)
        return json.loads(file.read_text())

    # --- what is trained on, and how a training is told

    def pairs(self, seed: int, noise: float) -> list[Comparison]:
        return comparisons(preferences(self.own["train"], PAIRS, seed=seed, noise=noise))

    def test(self, seed: int) -> list[Comparison]:
        return comparisons(preferences(self.own["test"], TEST, seed=fold(seed, "test")))

    def told(self, model: ValueModel, seed: int, pairs: Sequence[Comparison]) -> dict[str, Any]:
        """What the model says of the test pairs and of those it was trained on."""
        d_test, chosen, rejected = read(model, self.test(seed))
        d_train, *_ = read(model, pairs)
        return {"d_test": rounded(d_test), "d_train": rounded(d_train), "mixing": mixing(chosen, rejected)}

    def trained(self, seed: int, noise: float, annotation: Annotation | None = None, **options: Any) -> dict[str, Any]:
        pairs = self.pairs(seed, noise)
        return self.told(train(pairs, seed, annotation, **options), seed, pairs)

    # --- cells

    def member(self, seed: int, noise: float, index: int) -> dict[str, Any]:
        """A model of the ensemble; the first of them is plain Bradley-Terry."""
        return self.cell(f"member-{noise}-{seed}-{index}", lambda: self.trained(seed, noise, order=index))

    def mu(self, seed: int, noise: float) -> np.ndarray:
        members = [self.member(seed, noise, index)["d_train"] for index in range(self.models)]
        return strength(np.array(members).T).mu

    def denoised(self, seed: int, noise: float, method: str, epochs: int = EPOCHS) -> dict[str, Any]:
        """The strengths are those of the ensemble, trained for ``EPOCHS``, also where this training is longer."""

        def make() -> dict[str, Any]:
            annotation = METHODS[method].annotate(self.mu(seed, noise), PAIRS)
            return self.trained(seed, noise, annotation, config=TUNER.model_copy(update={"epochs": epochs}))

        return self.cell(f"{'method' if epochs == EPOCHS else 'long'}-{noise}-{seed}-{method}", make)

    def contrasted(self, seed: int, noise: float, name: str) -> dict[str, Any]:
        changed = TUNER.model_copy(update={"contrast": CONTRASTS[name]})
        return self.cell(f"contrast-{noise}-{seed}-{name}", lambda: self.trained(seed, noise, config=changed))

    def curve(self, seed: int, noise: float) -> dict[str, Any]:
        """Plain training, looked at after every second epoch of a long one."""

        def make() -> dict[str, Any]:
            pairs, rows = self.pairs(seed, noise), []
            config = TUNER.model_copy(update={"epochs": LONG})
            train(pairs, seed, config=config, parts=LONG // 2, look=lambda m: rows.append(self.told(m, seed, pairs)))
            return {"epochs": list(range(2, LONG + 1, 2)), "rows": rows}

        return self.cell(f"curve-{noise}-{seed}", make)

    def part(self, seed: int, noise: float, arm: str) -> dict[str, Any]:
        """Trained with the lowest tenth by strength removed or flipped, or on a part alone, as many steps as all."""

        def make() -> dict[str, Any]:
            order, pairs = np.argsort(self.mu(seed, noise), kind="stable"), self.pairs(seed, noise)
            tenth, annotation = PAIRS // 10, None
            kept = {"removed": order[tenth:], "bottom": order[: 2 * tenth], "top": order[-tenth:]}.get(arm, order)
            if arm == "flipped":
                annotation = plain(PAIRS)._replace(flipped=np.arange(PAIRS) < tenth)
            config = TUNER.model_copy(update={"epochs": EPOCHS * PAIRS / len(kept)})
            chosen = [pairs[place] for place in kept]
            return self.told(train(chosen, seed, annotation, config=config), seed, chosen)

        return self.cell(f"part-{noise}-{seed}-{arm}", make)

    # --- MetaRM: a policy that a plain reward model moved

    def moved(self, seed: int) -> Path:
        """A run of RAFT from review-lm against a plain reward model, which is kept beside it."""
        model, run = self.out / f"reward-{seed}", self.out / f"raft-{seed}"
        if not model.is_dir():
            save_value_model(model, train(self.pairs(seed, 0.0), seed), {})
        changed = ["loop.rounds=4", "loop.prompts_per_round=48", f"loop.seed={seed}", "evaluation.every_round=0"]
        rewards = f"ranker.rewards=[{{type: reward_model, model: {model.resolve()}}}]"
        raftdiff("train", "raft", "finetuner.type=lm", rewards, *changed, "--out", run)
        return run

    def answers(self, seed: int, policy: str, use: str) -> list[Answered]:
        """Of the base or of the moved policy: for MetaRM to learn from, or fresh ones on held-out prompts."""
        prompts, count = (world.training_prompts()[seed::3], 5) if use == "pool" else (world.held_out_prompts(), 6)
        asked = DataConfig(captions=prompts)
        where = (
            {"run": str(self.moved(seed))} if policy == "moved" else {"model": LMConfig(base="review-lm", device="cpu")}
        )
        drawn = {"decoding": {"max_new_tokens": 72}, "batch_size": 240}
        pool = PolicyPoolConfig(prompts=asked, **where, **drawn)  # type: ignore[arg-type]
        file = self.out / f"answers-{policy}-{use}-{seed}.jsonl"
        return answered(file, pool, count=count, seed=fold(seed, use), report=silent)

    def meta(self, seed: int, eta: float) -> dict[str, Any]:
        """A reward model's word on the base's and on the moved policy's answers; with eta 0 trained plainly."""

        def make() -> dict[str, Any]:
            pool = self.answers(seed, "moved", "pool") if eta else []
            config = TUNER.model_copy(update={"meta": MetaConfig(eta=eta, batch_size=8) if eta else None})
            pairs = self.pairs(seed, 0.0)
            model = train(pairs, seed, config=config, pool=pool)
            seen = {policy: judged(model, self.answers(seed, policy, "fresh")) for policy in ("base", "moved")}
            return self.told(model, seed, pairs) | {"seen": seen}

        return self.cell(f"meta-{seed}-{eta}", make)

    def cells(self, seeds: Sequence[int]) -> Iterator[Any]:
        """Everything, the most telling first."""
        for noise in (0.2, 0.4):
            yield from self.ensembles(seeds, noise)
        yield from (self.member(seed, noise, 0) for noise in (0.0, 0.1, 0.3) for seed in seeds)
        yield from (self.part(seed, 0.2, arm) for arm in ARMS for seed in seeds)
        yield from (self.contrasted(seed, 0.2, name) for name in CONTRASTS for seed in seeds)
        yield from (self.meta(seed, eta) for eta in (0.0, *ETAS) for seed in seeds)
        yield from (self.curve(seed, 0.4) for seed in seeds)
        yield from (self.denoised(seed, 0.4, method, LONG) for method in METHODS for seed in seeds)
        yield from (self.curve(seed, noise) for noise in (0.2, 0.0) for seed in seeds)
        for noise in (0.0, 0.3, 0.1):
            yield from self.ensembles(seeds, noise)
        yield from (self.denoised(seed, 0.2, method, LONG) for method in METHODS for seed in seeds)

    def ensembles(self, seeds: Sequence[int], noise: float) -> Iterator[Any]:
        yield from (self.member(seed, noise, index) for index in range(self.models) for seed in seeds)
        yield from (self.denoised(seed, noise, method) for method in METHODS for seed in seeds)


def comparisons(rows: Sequence[dict[str, Any]]) -> list[Comparison]:
    return [
        Comparison(row["id"], Prompt(row["id"], *[row["prompt"]] * 3), row["chosen"], row["rejected"], meta=row)
        for row in rows
    ]


def train(
    pairs: Sequence[Comparison],
    seed: int,
    annotation: Annotation | None = None,
    *,
    order: int = 0,
    config: RewardTunerConfig = TUNER,
    pool: Sequence[Answered] = (),
    parts: int = 1,
    look: Callable[[ValueModel], Any] = id,
    base: str = "review-lm",
) -> ValueModel:
    """A reward model on ``base``; ``look`` is shown it after each part. Another ``order`` changes nothing else."""
    model = load_value_model(LMConfig(base=base, device="cpu"), resolve, seed=seed)
    tuner = RewardTuner(config, model, total_rounds=parts, seed=seed)
    rows: list[list[Row]] = [[value_row(model, one.prompt, text) for text in one.answers] for one in pool]
    for _ in range(parts):
        told = plain(len(pairs)) if annotation is None else annotation
        tuner.fit(pairs, told, pool=rows, seed=fold(seed, "order", order), report=silent)
        look(model)
    return model


def read(model: ValueModel, pairs: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r_c - r_r, and the features of both, in one pass."""
    chosen, rejected = features(model, pairs, batch_size=64)
    return (chosen - rejected) @ model.head.weight[0].detach().numpy(), chosen, rejected


def judged(model: ValueModel, asked: Sequence[Answered]) -> list[dict[str, list[float]]]:
    """Of each prompt the rewards of its answers and the true ones."""
    rows = [value_row(model, one.prompt, text) for one in asked for text in one.answers]
    given = iter(score_rows(model, rows, batch_size=64).tolist())
    return [
        {
            "given": [next(given) for _ in one.answers],
            "true": [world.reward(one.prompt.caption, text) for text in one.answers],
        }
        for one in asked
    ]


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in values]


def raftdiff(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "raftdiff", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reward_models"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", type=int, default=5, help="of an ensemble (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    for _ in Bench(given.out, given.models).cells(given.seeds):
        pass
    print(f"all cells there, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
