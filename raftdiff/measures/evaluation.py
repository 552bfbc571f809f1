"""Before against after on held-out prompts: scores, intervals, judge, diversity, drift.

Both sides draw the same prompts with the same seeds, so every difference is paired. ``Evaluation`` is what stands in
``eval/eval.json``: whatever reads one from disk can use it as it is.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NotRequired, TypedDict

import numpy as np
from jaxtyping import Float

from raftdiff.errors import UserError
from raftdiff.measures import statistics
from raftdiff.ranking import Features, scores
from raftdiff.recipes.config import flat
from raftdiff.scoring import in_order, numbers
from raftdiff.seeds import fold
from raftdiff.types import Media, Prompt, Report, Reward, Sample, Sampler, silent

Judge = Callable[[Sequence[Any], Sequence[str]], Mapping[str, np.ndarray]]
"""Media and their captions -> aspect (``object``, ``style``, ``background``, ``exact``, ...) -> right or not, a sample.
A float array may say NaN where an aspect does not apply to a caption."""

Table = Float[np.ndarray, "prompts samples"]


class Figure(TypedDict):
    """One mean with its interval, in the unit of what was measured."""

    mean: float
    std: float
    """Of the single samples."""
    ci95: list[float] | None
    """[low, high] of the mean: bootstrap over prompts, percentile method. None where one prompt of several has values,
    which tells nothing of the others, or one sample."""
    n: int
    """Samples with a valid value (NaN means discarded)."""
    prompts: int
    """Prompts with one; an earlier version wrote no such number."""


class Change(TypedDict):
    """One reward before and after. Higher is better."""

    before: Figure
    after: Figure
    difference: Figure
    """After less before, paired by prompt and seed."""
    win_rate: float
    """Share of pairs in which after scores higher, 0..1; a tie counts half."""


class Verdict(TypedDict):
    """One aspect of the held-out judge, as rates in 0..1. Higher is better."""

    before: float
    after: float
    before_ci95: list[float] | None
    after_ci95: list[float] | None
    difference: Figure


class Pair(TypedDict):
    """One figure before and after; None where it is not defined."""

    before: float | None
    after: float | None


class Diversity(TypedDict):
    """How different the samples are, by their features. Higher is more diverse; a fall is the sign of collapse."""

    vendi: Pair
    """Vendi score of all samples: the effective number of different ones. It also rises when prompts are told apart."""
    vendi_within: Pair
    """Vendi score of the samples of one prompt, mean over prompts: from 1 to ``samples_per_prompt``."""
    pairwise_distance: Pair
    """1 - cos between two samples of one prompt, mean over pairs and prompts; None with one sample a prompt."""
    ratio: dict[str, float | None]
    """After over before, for each of the three."""


class Drift(TypedDict):
    """How far the tuned model went from the base. Lower is closer to it."""

    picture: float | None
    """1 - cos between before and after at the same prompt and seed, on features; 0..2."""
    prediction: float | None
    """Mean squared difference of the two models' predictions on the same noised input, measured by the caller."""


class Strength(TypedDict):
    """Both sides drawn with one strength of guidance."""

    guidance: float
    evaluations: int
    """Of the network, for a picture."""
    figures: dict[str, Pair]
    """``judge.exact`` where there is a judge, each reward's mean (``reward.clip``), ``diversity.vendi_within``;
    higher is better."""


class Guidance(TypedDict):
    """Before and after over guidance. The evaluation that holds it compares each side at its own best strength."""

    curve: list[Strength]
    best: Pair
    """The strength at which each side is best by the first of the figures, the lower of equals. It is chosen on the
    prompts that are told of, for both sides alike."""


class Evaluation(TypedDict):
    """Everything that ``eval/eval.json`` carries."""

    prompts: int
    samples_per_prompt: int
    rewards: dict[str, Change]
    judge: dict[str, Verdict]
    diversity: Diversity | None
    drift: Drift
    seconds: float
    """Sampling, as the caller measured it, and scoring."""
    network_evaluations: int
    """Rows through the denoiser while both sides were drawn."""
    guidance: NotRequired[Guidance]
    """Where several strengths were asked for."""


def draw(
    sampler: Sampler[Media], prompts: Sequence[Prompt], *, per_prompt: int, seed: int, report: Report = silent
) -> list[Sample[Media]]:
    """What an evaluation looks at, prompt by prompt: each sample depends on its prompt, ``seed`` and place alone, so
    two models that are asked with one seed are compared on the same draws. ``report`` hears how many are done."""
    drawn: list[Sample[Media]] = []
    own = fold(seed, "evaluate")
    for sample in sampler.sample(prompts, per_prompt=per_prompt, seed=own, round=0, done=frozenset()):
        drawn.append(sample)
        report(len(drawn), len(prompts) * per_prompt)
    return in_order(drawn, prompts)


def draw_both(
    sampler: Sampler[Media],
    base_weights: Callable[[], AbstractContextManager[None]],
    prompts: Sequence[Prompt],
    *,
    per_prompt: int,
    seed: int,
    report: Report = silent,
) -> tuple[list[Sample[Media]], list[Sample[Media]]]:
    """The same draws of the base model, which stands in the network within ``base_weights``, and of the policy."""
    with base_weights():
        before = draw(
            sampler, prompts, per_prompt=per_prompt, seed=seed, report=lambda done, total: report(done, 2 * total)
        )
    after = draw(
        sampler, prompts, per_prompt=per_prompt, seed=seed, report=lambda done, total: report(total + done, 2 * total)
    )
    return before, after


def evaluate(
    prompts: Sequence[Prompt],
    before: Sequence[Sample[Any]],
    after: Sequence[Sample[Any]],
    *,
    rewards: Sequence[Reward[Any]],
    features: Features | None = None,
    judge: Judge | None = None,
    prediction_drift: float | None = None,
    seconds: float = 0.0,
    network_evaluations: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Score both sides and compare them pair by pair.

    **Main arguments:**

    - `before`, `after`: samples of the base and of the tuned model; entry i of both has the same prompt and seed, and
      every prompt has the same number of samples.
    - `rewards`: what to score with; the reward of the training, and better also others.
    - `features`: (n, d) features of samples, for diversity and drift; without them these are None.
    - `judge`: the held-out judge, never one of the rewards that were trained on.

    **Other arguments:**

    - `prediction_drift`, `seconds`, `network_evaluations`: what the caller measured, passed through.
    - `seed`: of the bootstrap. The intervals of one evaluation draw the same prompts where all have values.

    Raises:
        UserError: nothing to compare, the two sides do not match, or a reward, judge or feature returns a wrong shape,
            infinity, or NaN for everything.
    """
    start = time.perf_counter()
    grid = _grid(prompts, before, after)
    both = (before, after)
    if twice := [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]:
        raise UserError(f"Two rewards are called '{twice[0]}'; give one of them another name.")
    scored = {reward.name: [_scores(reward, side)[grid] for side in both] for reward in rewards}
    verdicts = [_verdicts(judge, side) for side in both] if judge else [{}, {}]
    vectors = [_vectors(features, side)[grid] for side in both] if features else None
    return Evaluation(
        prompts=grid.shape[0],
        samples_per_prompt=grid.shape[1],
        rewards={name: _change(name, old, new, seed) for name, (old, new) in scored.items()},
        judge={name: _verdict(verdicts[0][name][grid], verdicts[1][name][grid], seed) for name in verdicts[0]},
        diversity=_diversity(*vectors) if vectors else None,
        drift=Drift(
            picture=statistics.mean_distance(*(side.reshape(grid.size, -1) for side in vectors)) if vectors else None,
            prediction=prediction_drift,
        ),
        seconds=seconds + time.perf_counter() - start,
        network_evaluations=network_evaluations,
    )


def to_json(evaluation: Mapping[str, Any]) -> str:
    """The text of ``eval/eval.json``.

    Raises:
        UserError: a figure is no number, which JSON has no word for; with its key.
    """
    try:
        return json.dumps(evaluation, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    except ValueError:
        found = flat(evaluation)
    odd = {key: it for key, it in found.items() if isinstance(it, float) and not math.isfinite(it)}
    told = ", ".join(f"{key} ({it})" for key, it in odd.items())
    raise UserError(
        f"This evaluation has a figure that is no number: {told}. A figure named 'before' is of the base, 'after' or "
        "'drift' of the tuned model; of that, an earlier round may do, with --round."
    )


def finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """The same, with None for what is infinite or NaN, which JSON has no word for."""
    return {name: None if value is None or not math.isfinite(value) else value for name, value in figures.items()}


def _grid(prompts: Sequence[Prompt], before: Sequence[Sample[Any]], after: Sequence[Sample[Any]]) -> np.ndarray:
    """Positions of the samples in their lists, as a (prompts, samples) table; checks that both sides match."""
    if not prompts or not before:
        raise UserError("There is nothing to evaluate: give at least one prompt and one sample of it.")
    if len(before) != len(after):
        raise UserError(f"{len(before)} samples before but {len(after)} after; every sample needs its counterpart.")
    positions: dict[str, list[int]] = {prompt.id: [] for prompt in prompts}
    for position, (one, other) in enumerate(zip(before, after, strict=True)):
        if (one.prompt.id, one.index, one.seed) != (other.prompt.id, other.index, other.seed):
            raise UserError(
                f"Sample {position} is {_name(one)} before but {_name(other)} after; "
                f"both sides must have the same prompts and seeds in the same order."
            )
        if one.prompt.id not in positions:
            raise UserError(f"Sample {position} is of the prompt '{one.prompt.id}', which is not among the prompts.")
        positions[one.prompt.id].append(position)
    counts = {prompt: len(held) for prompt, held in positions.items()}
    if len(set(counts.values())) > 1:
        few, many = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        raise UserError(
            f"Every prompt needs the same number of samples, but '{few}' has {counts[few]} and '{many}' {counts[many]}."
        )
    return np.array(list(positions.values()))


def _name(sample: Sample[Any]) -> str:
    return f"'{sample.prompt.id}' number {sample.index} (seed {sample.seed})"


def _scores(reward: Reward[Any], samples: Sequence[Sample[Any]]) -> Float[np.ndarray, " samples"]:
    return _some_valid(f"The reward '{reward.name}'", scores(reward, samples))


def _verdicts(judge: Judge, samples: Sequence[Sample[Any]]) -> dict[str, np.ndarray]:
    found = judge([sample.media for sample in samples], [sample.prompt.caption for sample in samples])
    return {
        name: _some_valid(
            f"The judge's '{name}'",
            numbers(right, len(samples), f"The judge's '{name}'"),
        )
        for name, right in found.items()
    }


def _some_valid(who: str, values: np.ndarray) -> np.ndarray:
    if np.isnan(values).all():
        raise UserError(f"{who} is NaN (discard) for all {len(values)} samples, so there is nothing to compare.")
    return values


def _vectors(features: Features, samples: Sequence[Sample[Any]]) -> np.ndarray:
    vectors: np.ndarray = features(samples).detach().cpu().numpy().astype(np.float64)
    if vectors.ndim != 2 or len(vectors) != len(samples):
        raise UserError(
            f"The features have the shape {vectors.shape} for {len(samples)} samples; "
            f"expected ({len(samples)}, d): one vector a sample."
        )
    if not np.isfinite(vectors).all():
        raise UserError("The features hold NaN or infinity; diversity and drift cannot be measured with them.")
    return vectors


def _change(name: str, before: Table, after: Table, seed: int) -> Change:
    difference = statistics.paired_difference(before, after, seed)
    if not difference.n:
        raise UserError(f"The reward '{name}' has no sample that is valid both before and after.")
    return Change(
        before=_figure(statistics.mean_std_ci(before, seed)),
        after=_figure(statistics.mean_std_ci(after, seed)),
        difference=_figure(difference),
        win_rate=statistics.win_rate(before, after),
    )


def _verdict(before: Table, after: Table, seed: int) -> Verdict:
    one, other = statistics.mean_std_ci(before, seed), statistics.mean_std_ci(after, seed)
    return Verdict(
        before=one.mean,
        after=other.mean,
        before_ci95=_interval(one),
        after_ci95=_interval(other),
        difference=_figure(statistics.paired_difference(before, after, seed)),
    )


def _figure(estimate: statistics.Estimate) -> Figure:
    return Figure(
        mean=estimate.mean, std=estimate.std, ci95=_interval(estimate), n=estimate.n, prompts=estimate.prompts
    )


def _interval(estimate: statistics.Estimate) -> list[float] | None:
    return None if np.isnan(estimate.ci95).any() else list(estimate.ci95)


def _diversity(before: np.ndarray, after: np.ndarray) -> Diversity:
    """From features (prompts, samples, d) of both sides."""
    prompts = np.repeat(np.arange(before.shape[0]), before.shape[1]).tolist()

    def flat(side: np.ndarray) -> np.ndarray:
        return side.reshape(-1, side.shape[-1])

    measures: dict[str, Callable[[np.ndarray], float]] = {
        "vendi": lambda side: statistics.vendi(flat(side)),
        "vendi_within": lambda side: float(np.mean([statistics.vendi(prompt) for prompt in side])),
        "pairwise_distance": lambda side: statistics.mean_pairwise_distance(flat(side), prompts),
    }
    pairs = {name: Pair(before=_none(of(before)), after=_none(of(after))) for name, of in measures.items()}
    ratio = {name: it["after"] / it["before"] if it["before"] and it["after"] else None for name, it in pairs.items()}
    return Diversity(
        vendi=pairs["vendi"],
        vendi_within=pairs["vendi_within"],
        pairwise_distance=pairs["pairwise_distance"],
        ratio=ratio,
    )


def _none(value: float) -> float | None:
    return None if np.isnan(value) else value
