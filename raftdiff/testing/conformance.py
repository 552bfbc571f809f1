"""Does my reward, sampler or fine-tuner keep its contract?

Each ``check_*`` runs the part as the loop would and returns a ``CheckReport``: a sentence for everything that was
checked, which names the method and, where it failed, the fix. In a test: ``check_reward(mine, samples).demand()``.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.scoring import by_prompt, demand_reward, described, numbers, sees_prompts
from raftdiff.seeds import fold
from raftdiff.testing.gradients import gradient
from raftdiff.types import (
    FineTuner,
    KeepsReplies,
    Key,
    Media,
    Prompt,
    Reward,
    Sample,
    Sampler,
    Selection,
    State,
    silent,
)

SHOWN = 60
"""So much of a text stands beside its score."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    """What was looked at, in a word: ``shape``, ``seeds``, ``round trip``."""
    passed: bool
    sentence: str
    advice: bool = False
    """A failed advice is worth reading, but breaks nothing."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    subject: str
    checks: tuple[Check, ...]
    scores: tuple[tuple[str, float], ...] = ()
    """Of a reward: what it scored, and how."""

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not (check.passed or check.advice))

    def demand(self) -> None:
        """Raises:
        UserError: something failed; a line for each.
        """
        if self.failures:
            lines = [f"  {check.name}: {check.sentence}" for check in self.failures]
            raise UserError("\n".join([f"{self.subject} does not keep its contract:", *lines]))

    def __str__(self) -> str:
        marks = {(True, False): "ok  ", (True, True): "ok  ", (False, False): "FAIL", (False, True): "note"}
        rows = [f"{marks[check.passed, check.advice]}  {check.name}: {check.sentence}" for check in self.checks]
        return "\n".join([self.subject, *map(_line, self.scores), *rows])


def _line(scored: tuple[str, float]) -> str:
    told = " ".join(scored[0].split())
    return f"  {scored[1]:>10.4g}  {told if len(told) <= SHOWN else told[: SHOWN - 3] + '...'}"


def check_reward(
    reward: Reward[Media], samples: Sequence[Sample[Media]], *, tolerance: float = 1e-4, direction: str | None = None
) -> CheckReport:
    """Score ``samples`` (four or more different ones) together, again, one by one and in another order. One that
    compares the candidates of a prompt (``whole_prompts``) scores prompt by prompt in place of one by one; samples that
    are each of a prompt of their own are made candidates of two.

    Args:
        tolerance: relative to the largest score; what lower precision may need more of.
        direction: what to search for "higher" where the class has no docstring of its own, such as a function's.
    """
    subject = f"The reward {getattr(reward, 'name', None) or type(reward).__name__!r}"
    whole, given = sees_prompts(reward), samples
    samples = _of_two(samples) if whole else samples
    before = [_frozen(sample) for sample in samples]
    try:
        demand_reward(reward)
        returned: Any = reward.score(samples)
    except UserError as error:
        return CheckReport(subject, (Check("runs", False, str(error)),))
    except Exception as error:  # whatever a plug-in raises is a finding
        sentence = f"score() raised {type(error).__name__}: {error}"
        return CheckReport(subject, (Check("runs", False, sentence),))
    form, together = _form(reward, returned, len(samples))
    checks = [*form, _unchanged(before, samples)]
    if together is None or not all(check.passed or check.advice for check in checks):
        return CheckReport(subject, tuple(checks), _shown(given, together))
    near = _near(together, tolerance)
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    try:
        again = _batch(reward, samples)
        singly = _apart(reward, samples, whole)
        permuted = _batch(reward, [samples[place] for place in order])
    except Exception as error:  # likewise
        sentence = f"score() of another batch of the same samples failed: {error}; keep the batch axis, and no state."
        found = (*checks, Check("batch-invariant", False, sentence))
        return CheckReport(subject, found, _shown(given, together))
    text = described(reward) if direction is None else direction
    subjects = "prompt got the same scores" if whole else "sample got the same score"
    alone = near(singly) and _near(together[order], tolerance)(permuted)
    several = len(samples) < 2 or len(set(together[~together.isnan()].tolist())) > 1
    checks += [
        _check(
            "deterministic",
            near(again),
            "the same samples got the same scores again.",
            "score() should give the same samples the same scores; fix its seed, or set the model to eval().",
        ),
        _check(
            "batch-invariant",
            alone,
            f"each {subjects} alone and in another order.",
            f"score() should give a {'prompt its scores' if whole else 'sample the score it would have'} alone and in "
            "any order; do not normalise over the batch, and set the model to eval().",
        ),
        _check(
            "varied",
            several,
            "the samples are told apart.",
            "score() should tell the samples apart: a constant reward selects at random.",
            advice=True,
        ),
        _check(
            "direction",
            "higher" in text.lower(),
            "the docstring says what higher scores mean.",
            "the docstring should say what higher scores mean, with unit and range; higher is better, so negate a "
            "distance.",
            advice=True,
        ),
    ]
    if found_of := gradient(reward, samples):
        checks.append(Check("gradient", *found_of))
    return CheckReport(subject, tuple(checks), _shown(given, together))


def _of_two(samples: Sequence[Sample[Media]]) -> Sequence[Sample[Media]]:
    """The samples as candidates of two prompts, where none has two already."""
    if len({sample.prompt.id for sample in samples}) < len(samples) or len(samples) < 2:
        return samples
    half = (len(samples) + 1) // 2
    return [
        replace(sample, prompt=samples[half * (place // half)].prompt, index=place % half)
        for place, sample in enumerate(samples)
    ]


def _apart(reward: Reward[Media], samples: Sequence[Sample[Media]], whole: bool) -> torch.Tensor:
    """What is said of each sample alone. Of a reward that compares candidates, of each prompt's alone; and a candidate
    whose companions were all unfit gets a number too."""
    alone = torch.cat([_batch(reward, [sample]) for sample in samples])
    if not whole:
        return alone
    for places in by_prompt((sample.prompt.id, sample.index) for sample in samples):
        alone[places] = _batch(reward, [samples[place] for place in places])
    return alone


def _shown(samples: Sequence[Sample[Any]], scores: torch.Tensor | None) -> tuple[tuple[str, float], ...]:
    """What each sample got, by its media where that is a text, else by its prompt."""
    if scores is None:
        return ()
    told = [it.media if isinstance(it.media, str) else f"{it.prompt.id}: {it.prompt.caption}" for it in samples]
    return tuple(zip(told, scores.tolist(), strict=True))


def _batch(reward: Reward[Media], samples: Sequence[Sample[Media]]) -> torch.Tensor:
    """
    Raises:
        UserError: something else than one number a sample comes back.
    """
    if isinstance(reward, KeepsReplies):
        reward.forget()
    return torch.from_numpy(numbers(reward.score(samples), len(samples), f"score() of {len(samples)}"))


def check_sampler(
    sampler: Sampler[Media], prompts: Sequence[Prompt], *, per_prompt: int = 2, seed: int = 0, round: int = 3
) -> CheckReport:
    """Sample ``per_prompt`` candidates for each of the ``prompts`` (two or more) twice, then again with half done."""

    def run(done: AbstractSet[tuple[str, int]] = frozenset()) -> list[Sample[Media]]:
        return list(sampler.sample(prompts, per_prompt=per_prompt, seed=seed, round=round, done=done))

    evaluations = sampler.network_evaluations()
    full = run()
    after = sampler.network_evaluations()
    wanted = {(prompt.id, index) for prompt in prompts for index in range(per_prompt)}
    got = [(sample.prompt.id, sample.index) for sample in full]
    done = frozenset(sorted(wanted)[::2])
    rest = run(done)
    fresh = {sample.key: _frozen(sample) for sample in full}
    by_id = {prompt.id: prompt for prompt in prompts}
    checks = (
        Check("keys", len(set(got)) == len(got), "sample() should yield each (prompt id, index) once."),
        Check(
            "counts",
            set(got) == wanted,
            f"sample() should yield {per_prompt} candidates for each of {len(prompts)} prompts, index 0 to "
            f"{per_prompt - 1}; it yielded {len(full)}.",
        ),
        Check(
            "seeds",
            all(sample.seed == fold(seed, sample.prompt.id, sample.index) for sample in full),
            "sample() should draw candidate k of a prompt with the seed fold(seed, prompt.id, k), and record it.",
        ),
        Check(
            "labels",
            all(s.round == round and s.source == sampler.source and by_id.get(s.prompt.id) == s.prompt for s in full),
            "sample() should record the round and the prompt as given, and the sampler's own source.",
        ),
        Check(
            "provides",
            all(set(sample.aux) - {"cut"} == set(sampler.provides) for sample in full),
            f"aux should hold exactly what provides says ({', '.join(sampler.provides) or 'nothing'}) for each sample.",
        ),
        Check(
            "deterministic",
            [_frozen(sample) for sample in run()] == [_frozen(sample) for sample in full],
            "sample() should draw the same from the same seeds; take no randomness from anywhere else.",
        ),
        Check(
            "done",
            {(s.prompt.id, s.index) for s in rest} == wanted - done
            and all(fresh.get(sample.key) == _frozen(sample) for sample in rest),
            "sample() should skip what is in done and change nothing in the rest, to the bit; cut the batches from "
            "the full list, then skip.",
        ),
        Check(
            "network evaluations",
            isinstance(after, int) and after >= evaluations >= 0,
            "network_evaluations() should count up, in whole rows through the network.",
        ),
    )
    return CheckReport(f"The sampler {type(sampler).__name__!r}", checks)


def check_finetuner(
    build: Callable[[], FineTuner[Media]],
    selection: Selection,
    samples: Mapping[Key, Sample[Media]],
    *,
    seed: int = 0,
    tolerance: float = 0.0,
) -> CheckReport:
    """Fit twice from scratch, then once more from a restored state.

    Args:
        build: makes a fine-tuner of an untrained model, the same one each time.
        selection, samples: of a kind that it can learn from, with everything that it ``requires`` in ``aux``.
        tolerance: largest difference of a state tensor that still counts as equal; 0 on a CPU.
    """

    def fit(finetuner: FineTuner[Media], given: Mapping[Key, Sample[Media]] = samples) -> Mapping[str, float]:
        return finetuner.fit(selection, given, seed=seed, report=silent)

    first, second, restored, frugal = build(), build(), build(), build()
    start = _cloned(first.state_dict())
    before = {key: _frozen(sample) for key, sample in samples.items()}
    figures = fit(first)
    pure = before == {key: _frozen(sample) for key, sample in samples.items()}
    learnt = _cloned(first.state_dict())
    fit(second)
    restored.load_state_dict(learnt)
    returned = _cloned(restored.state_dict())
    fit(first)
    fit(restored)
    aux = (*first.requires.aux, "cut")
    fit(frugal, {k: replace(s, aux={name: s.aux[name] for name in aux if name in s.aux}) for k, s in samples.items()})
    checks = (
        Check(
            "kinds",
            selection.kind in first.requires.kinds,
            f"requires.kinds should name every kind of selection that fit() learns from; this one is {selection.kind}.",
        ),
        Check("figures", _numbers(figures), "fit() should return names and plain finite numbers, such as loss."),
        Check("learns", not _same(start, learnt, 0.0), "fit() should change what state_dict() returns."),
        Check("pure", pure, "fit() should leave the samples as they were; work on copies."),
        Check(
            "deterministic",
            _same(learnt, second.state_dict(), tolerance),
            "fit() should learn the same from the same seed; take no randomness from anywhere else.",
        ),
        Check(
            "round trip",
            _same(learnt, returned, 0.0),
            "load_state_dict() should take up exactly what state_dict() returned.",
        ),
        Check(
            "resumes",
            _same(first.state_dict(), restored.state_dict(), tolerance),
            "state_dict() should hold all that the next fit() depends on: optimizer, schedule, averages, counters.",
        ),
        Check(
            "requires",
            _same(learnt, frugal.state_dict(), tolerance),
            f"fit() should use no more of aux than requires says ({', '.join(aux) or 'nothing'}).",
        ),
    )
    return CheckReport(f"The fine-tuner {type(first).__name__!r}", checks)


def _form(reward: Reward[Any], returned: Any, count: int) -> tuple[list[Check], torch.Tensor | None]:
    """What is said of the form of the scores, and the scores themselves, where they are some."""
    name = getattr(reward, "name", None)
    checks = [Check("name", isinstance(name, str) and bool(name), f"the column of its scores is headed {name!r}.")]
    try:
        scores = torch.from_numpy(numbers(returned, count, "score()"))
    except UserError as error:
        return [*checks, Check("numbers", False, str(error))], None
    plain = isinstance(returned, torch.Tensor) and (tuple(returned.shape), returned.dtype) == ((count,), torch.float32)
    usual = f"a float32 tensor of shape ({count},)"
    checks += [
        Check("numbers", True, f"score() returned one number for each of {count} samples."),
        _check(
            "dtype",
            plain,
            f"score() returned {usual}.",
            f"what score() returned will do; rewards usually return {usual}.",
            advice=True,
        ),
        _check(
            "finite",
            not bool(scores.isnan().all()),
            f"no score is infinite, and {int(scores.isnan().sum())} of {count} are NaN (discard).",
            "score() should be finite, or NaN to discard a sample, and not NaN for all of them.",
        ),
    ]
    return checks, scores


def _unchanged(before: Sequence[Any], samples: Sequence[Sample[Any]]) -> Check:
    return _check(
        "pure",
        list(before) == [_frozen(sample) for sample in samples],
        "score() left the samples as they were.",
        "score() should leave the samples as they were; draw on a copy, media.copy().",
    )


def _check(name: str, passed: bool, found: str, wanted: str, *, advice: bool = False) -> Check:
    return Check(name, passed, found if passed else wanted, advice)


def _near(wanted: torch.Tensor, tolerance: float) -> Callable[[Any], bool]:
    scale = float(wanted.nan_to_num().abs().max()) if wanted.numel() else 0.0
    limit = tolerance * max(scale, 1e-3)
    return lambda given: bool(torch.allclose(given, wanted, rtol=0.0, atol=limit, equal_nan=True))


def _frozen(sample: Sample[Any]) -> Any:
    """Everything about a sample, to compare by value."""
    media = sample.media
    content = (media.mode, media.size, media.tobytes()) if isinstance(media, Image.Image) else media
    aux = {name: (tensor.dtype, tensor.shape, tensor.tolist()) for name, tensor in sample.aux.items()}
    return sample.key, sample.prompt, sample.seed, sample.source, content, aux


def _cloned(state: State) -> State:
    return {stem: {name: tensor.detach().clone() for name, tensor in part.items()} for stem, part in state.items()}


def _same(one: State, other: State, tolerance: float) -> bool:
    if set(one) != set(other) or any(set(one[stem]) != set(other[stem]) for stem in one):
        return False
    pairs = [(one[stem][name], other[stem][name]) for stem in one for name in one[stem]]
    if tolerance == 0:
        return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)
    return all(torch.allclose(a.float(), b.float(), rtol=0.0, atol=tolerance) for a, b in pairs)


def _numbers(figures: Any) -> bool:
    if not isinstance(figures, Mapping):
        return False
    return all(isinstance(k, str) and isinstance(v, int | float) and bool(np.isfinite(v)) for k, v in figures.items())
