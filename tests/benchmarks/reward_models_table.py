"""The tables of ``reward_models.py`` beside this file, in Markdown, from the cells that are there.

    python tests/benchmarks/reward_models_table.py --out runs/reward_models --seeds 0 1 2 > FILE.md

Every figure is a mean over the seeds with half of the 95% t-interval; one that not all seeds have is left empty.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raftdiff.embedded.reviews.preferences import wrong_labels
from raftdiff.llm.reward_models.losses import meta_difference
from raftdiff.llm.reward_models.strength import FlipConfig, by_decile, roc, strength
from raftdiff.measures.calibration import ece
from raftdiff.measures.statistics import t_interval

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4)
METHODS = ("plain", "smoothing", "flip", "margin", "flip_margin", "soft_margin")
CONTRASTS = ("none", "simcse_direct", "simcse_difference", "swav_direct", "swav_difference")
ARMS = ("kept", "removed", "flipped", "top", "bottom")
Figure = Callable[[int], float | None]
"""Of a seed; None where its cell is missing."""


class Cells:
    """What the measuring has left so far."""

    def __init__(self, out: Path, models: int) -> None:
        self.folder, self.models = out / "cells", models

    def get(self, name: str) -> Any:
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def method(self, noise: float, method: str, seed: int) -> Any:
        return self.get(f"member-{noise}-{seed}-0" if method == "plain" else f"method-{noise}-{seed}-{method}")

    def truth(self, noise: float, seed: int) -> np.ndarray:
        """True where the label of the training pair is right."""
        count = len(self.get(f"member-{noise}-{seed}-0")["d_train"])
        wrong = wrong_labels(count, seed=seed, noise=noise)
        return np.array([place not in wrong for place in range(count)])

    def strengths(self, noise: float, seed: int) -> np.ndarray | None:
        found = [self.get(f"member-{noise}-{seed}-{index}") for index in range(self.models)]
        return None if None in found else np.array([one["d_train"] for one in found])


def across(figure: Figure, seeds: Sequence[int], scale: float = 1.0, digits: int = 1) -> str:
    """Mean and half of the 95% t-interval over the seeds."""
    found = [figure(seed) for seed in seeds]
    if any(value is None for value in found):
        return ""
    values = scale * np.array(found, dtype=float)
    low, high = t_interval(values)
    return f"{values.mean():.{digits}f} ± {(high - low) / 2:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows without any figure are left out."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *(row for row in rows if any(row[1:]))]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def right(d: Sequence[float]) -> float:
    values = np.array(d)
    return float(((values > 0) + 0.5 * (values == 0)).mean())


def of(cell: Any, figure: Callable[[Any], float]) -> float | None:
    return None if cell is None else figure(cell)


def noise_table(cells: Cells, seeds: Sequence[int], figure: Callable[[Any], float], scale: float, digits: int) -> str:
    rows = [
        [
            method.replace("_", " + "),
            *(
                across(lambda s, n=noise, m=method: of(cells.method(n, m, s), figure), seeds, scale, digits)
                for noise in LEVELS
            ),
        ]
        for method in METHODS
    ]
    return table(["wrong labels", *(f"{noise:.0%}" for noise in LEVELS)], rows)


def differences_table(cells: Cells, seeds: Sequence[int]) -> str:
    """Accuracy less that of plain training on the same pairs, in points."""

    def apart(noise: float, method: str, seed: int) -> float | None:
        one, other = cells.method(noise, method, seed), cells.method(noise, "plain", seed)
        return None if one is None or other is None else right(one["d_test"]) - right(other["d_test"])

    rows = [
        [m.replace("_", " + "), *(across(lambda s, n=n, m=m: apart(n, m, s), seeds, 100) for n in LEVELS)]
        for m in METHODS[1:]
    ]
    return table(["less plain, points", *(f"{noise:.0%}" for noise in LEVELS)], rows)


def curve_table(cells: Cells, seeds: Sequence[int]) -> str:
    rows, epochs = [], next(cells.get(file.stem)["epochs"] for file in cells.folder.glob("curve-*.json"))
    for noise in LEVELS:
        found = {seed: cells.get(f"curve-{noise}-{seed}") for seed in seeds}

        def at(what: Callable[[int, Any], float], place: int, found: Any = found) -> str:
            return across(lambda s: of(found[s], lambda cell: what(s, cell["rows"][place])), seeds, 100)

        def learnt(seed: int, row: Any, noise: float = noise) -> float:
            return right(np.array(row["d_train"])[~cells.truth(noise, seed)])

        places = range(len(epochs))
        rows.append([f"{noise:.0%}: clean test", *(at(lambda s, row: right(row["d_test"]), k) for k in places)])
        rows.append([f"{noise:.0%}: own labels", *(at(lambda s, row: right(row["d_train"]), k) for k in places)])
        if noise:
            rows.append([f"{noise:.0%}: wrong labels agreed with", *(at(learnt, k) for k in places)])
            rows.append(
                [
                    f"{noise:.0%}: calibration error",
                    *(at(lambda s, row: ece(np.array(row["d_test"])), k) for k in places),
                ]
            )
    return table(["after epoch", *map(str, epochs)], rows)


def long_table(cells: Cells, seeds: Sequence[int], noise: float) -> str:
    """The methods after a training as long as that of ``curve_table``."""

    def cell(method: str, seed: int) -> Any:
        if method != "plain":
            return cells.get(f"long-{noise}-{seed}-{method}")
        return of(cells.get(f"curve-{noise}-{seed}"), lambda found: found["rows"][-1])

    def apart(method: str, seed: int) -> float | None:
        one, other = cell(method, seed), cell("plain", seed)
        return None if one is None or other is None else right(one["d_test"]) - right(other["d_test"])

    rows = [
        [
            method.replace("_", " + "),
            across(lambda s, m=method: of(cell(m, s), lambda c: right(c["d_test"])), seeds, 100),
            across(lambda s, m=method: apart(m, s), seeds, 100) if method != "plain" else "",
            across(
                lambda s, m=method: of(cell(m, s), lambda c: right(np.array(c["d_train"])[~cells.truth(noise, s)])),
                seeds,
                100,
            ),
            across(lambda s, m=method: of(cell(m, s), lambda c: ece(np.array(c["d_test"]))), seeds, 100),
        ]
        for method in METHODS
    ]
    head = [f"at {noise:.0%}", "clean test, % ↑", "less plain, points", "wrong labels agreed with, % ↓"]
    return table([*head, "calibration error, points ↓"], rows)


def found_table(cells: Cells, seeds: Sequence[int]) -> str:
    """How well the wrong labels are found by their strength."""

    def auc(noise: float, seed: int, what: str) -> float | None:
        d = cells.strengths(noise, seed)
        if d is None:
            return None
        known, wrong = strength(d.T), ~cells.truth(noise, seed)
        if what == "one":
            return float(np.mean([roc(-single, wrong).auc for single in d]))
        return roc(-known.mu if what == "mu" else known.sigma, wrong).auc

    def share(noise: float, seed: int) -> float | None:
        """Of the labels right after the lowest 20% were turned round."""
        d = cells.strengths(noise, seed)
        if d is None:
            return None
        flipped = FlipConfig().annotate(strength(d.T).mu, d.shape[1]).flipped
        return float((cells.truth(noise, seed) != flipped).mean())

    def below(noise: float, seed: int) -> float | None:
        d = cells.strengths(noise, seed)
        return None if d is None else float((strength(d.T).mu < 0).mean())

    noisy = LEVELS[1:]
    rows = [
        ["AUC, one model alone", *(across(lambda s, n=n: auc(n, s, "one"), seeds, 1, 3) for n in noisy)],
        [f"AUC, {cells.models} models", *(across(lambda s, n=n: auc(n, s, "mu"), seeds, 1, 3) for n in noisy)],
        ["AUC of sigma", *(across(lambda s, n=n: auc(n, s, "sigma"), seeds, 1, 3) for n in noisy)],
        ["strength below 0, %", *(across(lambda s, n=n: below(n, s), seeds, 100) for n in noisy)],
        ["right labels after the flip, %", *(across(lambda s, n=n: share(n, s), seeds, 100) for n in noisy)],
    ]
    return table(["wrong labels", *(f"{noise:.0%}" for noise in noisy)], rows)


def decile_table(cells: Cells, seeds: Sequence[int], noise: float) -> str:
    def tenth(seed: int, place: int, what: str) -> float | None:
        d = cells.strengths(noise, seed)
        if d is None:
            return None
        mu = strength(d.T).mu
        found = by_decile(mu, cells.truth(noise, seed).astype(float))[place]
        return found.mean if what == "right" else (found.low + found.high) / 2

    rows = [
        ["right labels, %", *(across(lambda s, k=k: tenth(s, k, "right"), seeds, 100, 0) for k in range(10))],
        ["strength, middle", *(across(lambda s, k=k: tenth(s, k, "mu"), seeds, 1, 1) for k in range(10))],
    ]
    return table([f"tenth, at {noise:.0%}", *(str(k + 1) for k in range(10))], rows)


def part_table(cells: Cells, seeds: Sequence[int], noise: float) -> str:
    def cell(arm: str, seed: int) -> Any:
        return cells.get(f"member-{noise}-{seed}-0" if arm == "kept" else f"part-{noise}-{seed}-{arm}")

    names = (
        "all kept",
        "lowest tenth removed",
        "lowest tenth flipped",
        "highest tenth alone",
        "lowest two tenths alone",
    )
    rows = [
        [
            name,
            across(lambda s, a=arm: of(cell(a, s), lambda c: right(c["d_test"])), seeds, 100),
            across(lambda s, a=arm: of(cell(a, s), lambda c: right(c["d_train"])), seeds, 100),
            across(lambda s, a=arm: of(cell(a, s), lambda c: ece(np.array(c["d_test"]))), seeds, 100),
        ]
        for arm, name in zip(ARMS, names, strict=True)
    ]
    return table(["trained on", "clean test, %", "own labels, %", "calibration error, points"], rows)


def contrast_table(cells: Cells, seeds: Sequence[int], noise: float) -> str:
    def cell(name: str, seed: int) -> Any:
        return cells.get(f"member-{noise}-{seed}-0" if name == "none" else f"contrast-{noise}-{seed}-{name}")

    rows = [
        [
            name.replace("_", ", "),
            across(lambda s, a=name: of(cell(a, s), lambda c: right(c["d_test"])), seeds, 100),
            across(lambda s, a=name: of(cell(a, s), lambda c: c["mixing"]), seeds, 1, 3),
            across(lambda s, a=name: of(cell(a, s), lambda c: ece(np.array(c["d_test"]))), seeds, 100),
        ]
        for name in CONTRASTS
    ]
    return table(["contrast", "clean test, % ↑", "overlap ↓", "calibration error, points ↓"], rows)


def meta_table(cells: Cells, seeds: Sequence[int], etas: Sequence[float]) -> str:
    figures: dict[str, Callable[[Any], float]] = {"J": separation, "accuracy, %": agreed, "rank correlation": ranked}
    rows = []
    for eta in etas:
        found = {seed: cells.get(f"meta-{seed}-{eta}") for seed in seeds}
        row = [f"MetaRM, eta {eta:g}" if eta else "plain"]
        row.append(across(lambda s, f=found: of(f[s], lambda c: right(c["d_test"])), seeds, 100))
        for policy, (name, figure) in itertools.product(("base", "moved"), figures.items()):
            scale, digits = (100, 1) if "%" in name else (1, 3)
            row.append(
                across(lambda s, f=found, p=policy, g=figure: of(f[s], lambda c: g(c["seen"][p])), seeds, scale, digits)
            )
        rows.append(row)
    rows += [meta_apart(cells, seeds, eta, figures) for eta in etas if eta]
    named = [f"{policy}: {name}" for policy in ("base", "moved") for name in figures]
    return table(["trained", "clean test, %", *named], rows)


def meta_apart(cells: Cells, seeds: Sequence[int], eta: float, figures: dict[str, Callable[[Any], float]]) -> list[str]:
    """MetaRM less plain training of the same seed."""

    def apart(seed: int, figure: Callable[[Any], float]) -> float | None:
        one, other = cells.get(f"meta-{seed}-{eta}"), cells.get(f"meta-{seed}-0.0")
        return None if one is None or other is None else figure(one) - figure(other)

    row = [f"eta {eta:g} less plain", across(lambda s: apart(s, lambda c: right(c["d_test"])), seeds, 100)]
    for policy, (name, figure) in itertools.product(("base", "moved"), figures.items()):
        scale, digits = (100, 1) if "%" in name else (1, 3)
        row.append(across(lambda s, p=policy, g=figure: apart(s, lambda c: g(c["seen"][p])), seeds, scale, digits))
    return row


def policy_table(cells: Cells, seeds: Sequence[int]) -> str:
    """What RAFT against the plain reward model did to the policy: means over answers to held-out prompts."""

    def figure(seed: int, policy: str, what: str) -> float | None:
        cell = cells.get(f"meta-{seed}-0.0")
        return None if cell is None else float(np.mean([one[what] for one in cell["seen"][policy]]))

    def broken(seed: int, policy: str) -> float | None:
        cell = cells.get(f"meta-{seed}-0.0")
        return None if cell is None else float(np.mean([np.array(one["true"]) == -1 for one in cell["seen"][policy]]))

    rows = [
        ["true reward", *(across(lambda s, p=p: figure(s, p, "true"), seeds, 1, 3) for p in ("base", "moved"))],
        [
            "plain model's reward",
            *(across(lambda s, p=p: figure(s, p, "given"), seeds, 1, 2) for p in ("base", "moved")),
        ],
        ["true reward of -1, %", *(across(lambda s, p=p: broken(s, p), seeds, 100) for p in ("base", "moved"))],
    ]
    return table(["answers on held-out prompts", "base", "moved"], rows)


def separation(seen: Any) -> float:
    return float(meta_difference(torch.tensor([one["given"] for one in seen], dtype=torch.float64)))


def agreed(seen: Any) -> float:
    """Of two answers to one prompt whose true rewards differ by 0.1 or more, how often the better one scores higher."""
    found = []
    for one in seen:
        for (a, true), (b, other) in itertools.combinations(zip(one["given"], one["true"], strict=True), 2):
            if abs(true - other) >= 0.1:
                found.append(0.5 if a == b else float((a > b) == (true > other)))
    return float(np.mean(found))


def ranked(seen: Any) -> float:
    """Spearman's correlation with the true reward, mean over prompts whose answers differ in it."""
    found = []
    for one in seen:
        given, true = ranks(np.array(one["given"])), ranks(np.array(one["true"]))
        if given.std() and true.std():
            found.append(np.corrcoef(given, true)[0, 1])
    return float(np.mean(found))


def ranks(values: np.ndarray) -> np.ndarray:
    """Mean rank of equal values."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/reward_models"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", type=int, default=5, help="of an ensemble (default: %(default)s)")
    given = parser.parse_args()
    cells, seeds = Cells(given.out, given.models), given.seeds
    etas = sorted({float(file.stem.split("-", 2)[2]) for file in cells.folder.glob("meta-*.json")})
    parts = {
        "Accuracy on clean pairs, %": noise_table(cells, seeds, lambda c: right(c["d_test"]), 100, 1),
        "Against plain training": differences_table(cells, seeds),
        "Wrong labels found": found_table(cells, seeds),
        "By tenths of strength": "\n".join(decile_table(cells, seeds, noise) for noise in LEVELS[1:]),
        "Parts of the data": part_table(cells, seeds, 0.2),
        "Calibration error on clean pairs, points": noise_table(
            cells, seeds, lambda c: ece(np.array(c["d_test"])), 100, 1
        ),
        "Contrast": contrast_table(cells, seeds, 0.2),
        "The policy": policy_table(cells, seeds),
        "MetaRM": meta_table(cells, seeds, etas),
    }
    if any(cells.folder.glob("curve-*.json")):
        parts["Over the epochs, %"] = curve_table(cells, seeds)
        parts["Long training"] = "\n".join(long_table(cells, seeds, noise) for noise in (0.2, 0.4))
    for title, text in parts.items():
        print(f"### {title}\n\n{text}")


if __name__ == "__main__":
    main()
