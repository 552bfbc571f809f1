"""Where contrast and MetaRM could show: thousands of pairs of the text world with wrong labels, five seeds, controls.

    python tests/benchmarks/contrast_meta.py --out runs/pilot --pilot --pairs 1000 --seeds 10 11 --arms plain ...
    python tests/benchmarks/contrast_meta.py --out runs/contrast_meta --arms plain ... --next plain ...

An arm is a way to train a reward model, on the same pairs, labels, head and order as every other arm of its seed:
`plain`; `dropout` (two views as contrast reads them, and no contrast); `simcse-direct-W-T`, `simcse-difference-W-T` and
`swav-...-W-P` (weight, temperature or prototypes); `meta-POLICY-ETA`, MetaRM with answers of a policy: `base`, the
control, or `early` and `late`, which RAFT against the plain arm made of it. `wide-ARM` is the same on a model of four
times the weights (``wider.py``). `--seen` asks arms of the moved policies' answers; `other` is the plain arm of the
next seed of five, which they were not tuned against. `--next` tunes a policy against arms, each from the base, and the
truth looks on. Every step leaves a file, and one that is there is not done again; the tables are of what there is.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from reward_models import TUNER as SMALL
from reward_models import comparisons, judged, read, rounded, train
from reward_models_table import across, agreed, of, ranked, right, separation, table
from wider import save_wider

from raftdiff.embedded import resolve
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.preferences import own_answers, preferences
from raftdiff.llm.assembly import assemble_text
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.data.prompts import DataConfig
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.llm.reward_models.contrast import SimcseConfig, SwavConfig
from raftdiff.llm.reward_models.meta import MetaConfig
from raftdiff.llm.reward_models.tuner import RewardTunerConfig
from raftdiff.llm.reward_models.value_model import ValueModel, load_value_model, save_value_model
from raftdiff.llm.reward_runs.policy_pool import Answered, answered
from raftdiff.llm.reward_runs.recipe import PolicyPoolConfig
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.measures.calibration import ece, mixing
from raftdiff.raft import raft
from raftdiff.recipes.files import locate
from raftdiff.records.disk import write_text
from raftdiff.records.run import Run
from raftdiff.seeds import fold
from raftdiff.types import Prompt, silent

NOISE, TEST, FAR = 0.25, 600, 0.5
"""Wrong labels; clean test pairs; and the least difference in true reward of those whose overlap is also told alone."""
OWN = {"train": 12, "test": 20}
"""Answers of review-lm to each prompt, which the pairs draw from."""
STAGES = {"early": 2, "late": 4}
"""Rounds of RAFT after which the policy is asked."""
ASKED = 2
"""Prompts a step for MetaRM, five answers each."""
TUNER = SMALL.model_copy(update={"epochs": 1.0})
WIDE = {"learning_rate": TUNER.learning_rate / 2}
"""Half the learning rate for twice the width."""


class Bench:
    """The files of one output folder."""

    def __init__(self, out: Path, pairs: int, stages: Sequence[str], *, pilot: bool = False) -> None:
        self.out, self.count, self.stages = out, pairs, stages
        prompts = {"train": world.training_prompts(), "test": world.held_out_prompts()}
        self.own = {use: self.cell(f"own-{use}", lambda u=use: own_answers(prompts[u], OWN[u])) for use in OWN}
        if pilot:  # settings are chosen on other prompts than are reported
            both, test = self.own["train"], prompts["train"][::5]
            self.own = {"train": {p: both[p] for p in both if p not in test}, "test": {p: both[p] for p in test}}

    def cell(self, name: str, make: Callable[[], Any]) -> Any:
        """What the file of this name holds, made first where there is none."""
        file = self.out / "cells" / f"{name}.json"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            began = time.process_time()
            found = make()
            spent = round(time.process_time() - began, 1)
            write_text(file, json.dumps(found | {"cpu_seconds": spent} if "d_test" in found else found))
            print(f"{time.strftime('%H:%M:%S')} {name} {spent} s", flush=True)
        return json.loads(file.read_text())

    # --- reward models

    def arm(self, seed: int, name: str) -> dict[str, Any]:
        """Train it, keep it, and say what it makes of the clean pairs."""

        def make() -> dict[str, Any]:
            pairs = comparisons(preferences(self.own["train"], self.count, seed=seed, noise=NOISE))
            kind, *rest = name.removeprefix("wide-").split("-")
            pool = self.answers(seed, rest[0], "pool") if kind == "meta" else []
            base = self.wide() if name.startswith("wide-") else "review-lm"
            model = train(pairs, seed, config=config(name), pool=pool, base=base)
            shutil.rmtree(self.folder(seed, name), ignore_errors=True)  # of a training that was killed here
            save_value_model(self.folder(seed, name), model, {})
            return told(model, self.test(seed))

        return self.cell(f"arm-{name}-{seed}", make)

    def seen(self, seed: int, name: str) -> dict[str, Any]:
        """What it says of answers of the base and of the policies that were tuned against the plain arm."""

        def make() -> dict[str, Any]:
            model = load_value_model(LMConfig(base=str(self.folder(*source)), device="cpu"), resolve)
            return {policy: judged(model, self.answers(seed, policy, "fresh")) for policy in ("base", *self.stages)}

        source = ((seed + 1) % 5, "plain") if name == "other" else (seed, name)
        self.arm(*source)
        return self.cell(f"seen-{name}-{seed}", make)

    def test(self, seed: int) -> list[Comparison]:
        return comparisons(preferences(self.own["test"], TEST, seed=fold(seed, "test")))

    def folder(self, seed: int, name: str) -> Path:
        return self.out / f"reward-{name}-{seed}"

    def wide(self) -> str:
        """The folder of the wider model."""
        folder = self.out / "wider"
        if not folder.is_dir():
            save_wider(folder)
        return str(folder)

    # --- policies

    def answers(self, seed: int, policy: str, use: str) -> list[Answered]:
        """Of the base or of a moved policy: for MetaRM to learn from, or others, on test prompts."""
        if policy != "base":
            self.tuned(seed, "plain", policy)
            return self.drawn(seed, "plain", policy, use)
        first = 3 * (seed % 5)  # the base's are there already; after the last comes the first
        own, (prompts, count) = self.own["train" if use == "pool" else "test"], self.asked(seed, use)
        return [Answered(Prompt(p, p, p, p), (own[p] * 2)[first : first + count]) for p in prompts]

    def asked(self, seed: int, use: str) -> tuple[list[str], int]:
        """Prompts, and how many answers to each."""
        return (list(self.own["train"])[seed % 4 :: 4], 5) if use == "pool" else (list(self.own["test"]), 6)

    def drawn(self, seed: int, arm: str, stage: str, use: str) -> list[Answered]:
        """Answers of the policy as it stands, or those that were drawn before."""
        prompts, count = self.asked(seed, use)
        run, decoding = str(self.run(seed, arm)), DecodingConfig(max_new_tokens=72)
        pool = PolicyPoolConfig(prompts=DataConfig(captions=prompts), run=run, decoding=decoding, batch_size=240)
        file = self.out / f"answers-{arm}-{stage}-{use}-{seed}.jsonl"
        return answered(file, pool, count=count, seed=fold(seed, use), report=silent)

    def run(self, seed: int, arm: str) -> Path:
        return self.out / f"raft-{arm}-{seed}"

    def tuned(self, seed: int, arm: str, stage: str) -> dict[str, float]:
        """RAFT from review-lm against an arm, and what the truth says of its answers after a stage: their mean reward,
        and the share that do not parse. They are drawn at once, since the run may go on from there."""

        def make() -> dict[str, float]:
            self.arm(seed, arm)
            self.go_on(seed, arm, STAGES[stage])
            for use in ("fresh", "pool") if arm == "plain" else ("fresh",):
                self.drawn(seed, arm, stage, use)
            return truth(self.drawn(seed, arm, stage, "fresh"))

        return self.cell(f"tuned-{arm}-{stage}-{seed}", make)

    def go_on(self, seed: int, arm: str, rounds: int) -> None:
        """The run up to so many rounds."""
        model = json.dumps(str(self.folder(seed, arm).resolve()))
        words = [
            f"ranker.rewards=[{{type: reward_model, name: learnt, model: {model}}}]",
            *(f"loop.{one}" for one in (f"rounds={max(STAGES.values())}", "prompts_per_round=48", f"seed={seed}")),
            *("evaluation.every_round=0", "logging.tracker=null"),
        ]
        recipe = load_text_recipe(locate("raft"), words)
        run = Run.create(self.run(seed, arm), recipe, seed=seed)
        if run.rounds_done() < rounds:
            with run.locked(recipe):
                for _ in raft(run, assemble_text(recipe).parts):
                    if run.rounds_done() >= rounds:
                        break


def config(name: str) -> RewardTunerConfig:
    """How an arm is trained."""
    kind, *rest = name.split("-")
    if kind == "wide":
        return config("-".join(rest)).model_copy(update=WIDE)
    if kind == "plain":
        return TUNER
    if kind == "dropout":
        return TUNER.model_copy(update={"contrast": SimcseConfig(weight=0)})
    if kind == "meta":
        return TUNER.model_copy(update={"meta": MetaConfig(eta=float(rest[1]), batch_size=ASKED)})
    form, weight, number = rest[0], float(rest[1]), float(rest[2])
    contrast = (
        SimcseConfig(form=form, weight=weight, temperature=number)  # type: ignore[arg-type]
        if kind == "simcse"
        else SwavConfig(form=form, weight=weight, prototypes=int(number))  # type: ignore[arg-type]
    )
    return TUNER.model_copy(update={"contrast": contrast})


def truth(answers: Sequence[Answered]) -> dict[str, float]:
    found = np.array([world.reward(prompt.caption, text) for prompt, texts in answers for text in texts])
    return {"true": float(found.mean()), "broken": float((found == -1).mean())}


def told(model: ValueModel, test: Sequence[Comparison]) -> dict[str, Any]:
    d, chosen, rejected = read(model, test)
    far = np.array([pair.meta["gap"] >= FAR for pair in test])
    return {
        "d_test": rounded(d),
        "overlap": mixing(chosen, rejected),
        "overlap_far": mixing(chosen[far], rejected[far]),
        "known": known(np.concatenate([chosen, rejected]), np.concatenate(truths(test))),
    }


def truths(test: Sequence[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """The true rewards of the chosen and of the rejected answers."""
    sides = ([(one.prompt.caption, text) for text in (one.chosen, one.rejected)] for one in test)
    found = np.array([[world.reward(*side) for side in both] for both in sides])
    return found[:, 0], found[:, 1]


def known(features: np.ndarray, true: np.ndarray) -> float:
    """R^2 of the true reward by the best straight line through the features: fitted on half, told of the other half."""
    x = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    fitted, other = np.arange(len(x)) % 2 == 0, np.arange(len(x)) % 2 == 1
    a = x[fitted].T @ x[fitted] + 1e-1 * np.eye(x.shape[1])
    left = true[other] - x[other] @ np.linalg.solve(a, x[fitted].T @ true[fitted])
    return float(1 - left.var() / true[other].var())


def bounds(test: Sequence[Comparison]) -> dict[str, float]:
    """The overlap of features that are the true reward and nothing else: the least that a model can be asked for."""
    far = np.array([pair.meta["gap"] >= FAR for pair in test])
    chosen, rejected = (np.stack([np.cos(side), np.sin(side)], axis=1) for side in truths(test))  # nearness by angle
    return {"overlap": mixing(chosen, rejected), "overlap_far": mixing(chosen[far], rejected[far])}


# --- tables

Figure = tuple[str, str, Callable[[Any], float], float, int]
"""Its column, the cell that it is of, how it is read, its factor and decimals."""


def figures(stages: Sequence[str]) -> list[Figure]:
    found: list[Figure] = [
        ("clean test, %", "arm", lambda c: right(c["d_test"]), 100, 1),
        ("calibration error, points", "arm", lambda c: ece(np.array(c["d_test"])), 100, 1),
        ("overlap", "arm", lambda c: c["overlap"], 1, 3),
        ("overlap, far apart", "arm", lambda c: c["overlap_far"], 1, 3),
        ("R² of a line", "arm", lambda c: c["known"], 1, 3),
    ]
    for policy in ("base", *stages):
        for name, read_by, scale, digits in (("J", separation, 1, 3), ("accuracy, %", agreed, 100, 1)):
            found.append((f"{policy}: {name}", "seen", lambda c, p=policy, f=read_by: f(c[p]), scale, digits))
        found.append((f"{policy}: rank correlation", "seen", lambda c, p=policy: ranked(c[p]), 1, 3))
    return found


def arms_table(folder: Path, seeds: Sequence[int], arms: Sequence[str], stages: Sequence[str]) -> str:
    """Every arm, and every arm less the plain one of its size, seed by seed."""

    def value(one: Figure, arm: str, seed: int) -> float | None:
        file = folder / "cells" / f"{one[1]}-{arm}-{seed}.json"
        return of(json.loads(file.read_text()) if file.is_file() else None, one[2])

    def apart(one: Figure, arm: str, other: str, seed: int) -> float | None:
        found = value(one, arm, seed), value(one, other, seed)
        return None if None in found else found[0] - found[1]  # type: ignore[operator]

    columns, rows = figures(stages), []
    for arm in arms:
        rows.append([arm, *(across(lambda s, a=arm, o=one: value(o, a, s), seeds, *one[3:]) for one in columns)])
    pairs = [(arm, "wide-plain" if arm.startswith("wide-") else "plain") for arm in arms if not arm.endswith("plain")]
    metas = [arm for arm in arms if arm.startswith("meta-") and not arm.startswith("meta-base")]
    pairs += [(arm, f"meta-base-{arm.split('-', 2)[2]}") for arm in metas]
    for arm, other in pairs:
        cells = (across(lambda s, a=arm, b=other, o=one: apart(o, a, b, s), seeds, *one[3:]) for one in columns)
        rows.append([f"{arm} less {other}", *cells])
    return table(["trained", *(one[0] for one in columns)], rows)


def policies_table(folder: Path, seeds: Sequence[int], arms: Sequence[str], stages: Sequence[str]) -> str:
    """What the truth says of policies tuned against the arms, each less the one tuned against the plain arm too."""
    heads = [(stage, what) for stage in stages for what in ("true", "broken")]

    def value(arm: str, seed: int, head: tuple[str, str]) -> float | None:
        file = folder / "cells" / f"tuned-{arm}-{head[0]}-{seed}.json"
        return json.loads(file.read_text())[head[1]] if file.is_file() else None

    def apart(arm: str, seed: int, head: tuple[str, str]) -> float | None:
        found = value(arm, seed, head), value("plain", seed, head)
        return None if None in found else found[0] - found[1]  # type: ignore[operator]

    rows = [[arm, *(across(lambda s, a=arm, h=h: value(a, s, h), seeds, 1, 3) for h in heads)] for arm in arms]
    for arm in (one for one in arms if one != "plain"):
        rows.append([f"{arm} less plain", *(across(lambda s, a=arm, h=h: apart(a, s, h), seeds, 1, 3) for h in heads)])
    return table(["tuned against", *(": ".join(head) for head in heads)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/contrast_meta"))
    parser.add_argument("--pilot", action="store_true", help="test prompts are a fifth of the training prompts")
    parser.add_argument("--pairs", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=[], help="reward models to train and to ask of the clean pairs")
    parser.add_argument("--seen", nargs="+", default=[], help="those to ask of the answers of moved policies, too")
    parser.add_argument("--stages", nargs="+", default=["early"], choices=STAGES, help="of the moved policies")
    parser.add_argument("--next", nargs="+", default=[], help="those to tune a policy against")
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.out, given.pairs, given.stages, pilot=given.pilot)
    for seed in given.seeds:
        for name in given.arms:
            bench.arm(seed, name)
        for name in given.seen:
            bench.seen(seed, name)
        for name in given.next:
            for stage in given.stages:
                bench.tuned(seed, name, stage)
    floors = [bounds(bench.test(seed)) for seed in given.seeds]
    print("overlap of the truth:", *(f"{name} {np.mean([one[name] for one in floors]):.3f}" for name in floors[0]))
    files = [file for kind in ("arm", "seen") for file in (given.out / "cells").glob(f"{kind}-*.json")]
    found = {file.stem.partition("-")[2].rsplit("-", 1)[0] for file in files}
    arms = sorted(found, key=lambda name: (name != "plain", name))
    print("the base:", [truth(bench.answers(seed, "base", "fresh")) for seed in given.seeds])
    print(arms_table(given.out, given.seeds, arms, given.stages))
    print(policies_table(given.out, given.seeds, arms, given.stages))


if __name__ == "__main__":
    main()
