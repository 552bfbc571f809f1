"""What a run is doing and how it is faring, from its files alone: a copied folder tells as much as the original."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NamedTuple, TypeVar, final

from raftdiff.errors import UserError, counted
from raftdiff.measures import alarms as measures
from raftdiff.measures.alarms import Alarm, HeldOut
from raftdiff.records.changes import alike
from raftdiff.records.disk import damaged, read_json
from raftdiff.records.run import Run

Metrics = Mapping[str, Any]
Found = TypeVar("Found")

COLLAPSE = 0.7
"""Candidates less diverse than this share of the first round's are a warning."""
SPREAD = 1.1
"""Selected latents with more than this many times the first round's spread are a warning."""
DISCARDED = 0.25
"""More discarded candidates than this share are a warning."""
UNDECIDED = 0.5
"""Prompts whose candidates all scored the same are a warning from this share on; fewer are usual with rewards of few
steps, such as right or wrong."""
LONGER, LIKELIER, FAR, TAILED = 1.3, 0.7, 0.6, 0.75
"""Signs that a policy under PPO collapses (arXiv:2307.04964, section 5.2): answers this many times as long as the first
round's; perplexity under the base model below this share of the first round's; KL to the base above so many nats a
token; more than this share of the rewards' range above the median. Healthy runs show one or two of them: any that
learns makes its answers likelier."""
SIGNS = 3
"""So many of the four together are a warning."""
STRANGE = 3.0
"""Held-out answers this many times as perplexing to the base model as its own are a warning."""
RETRIES = 5


class Making(NamedTuple):
    """The round that is not finished yet."""

    round: int
    stage: Literal["sample", "score", "select", "tune"]
    """The stage that it is in, or that comes next."""
    drawn: int
    """Candidates on the disk."""
    idle: float
    """Seconds since anything in it changed."""


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run as it stood when it was read."""

    name: str
    rounds_planned: int
    metrics: tuple[Metrics, ...]
    """``metrics.json`` of the finished rounds."""
    making: Making | None
    seconds: float
    """Of all stages so far, evaluations of the run not included."""
    network_evaluations: int
    warnings: tuple[str, ...]

    @property
    def finished(self) -> bool:
        return len(self.metrics) >= self.rounds_planned


def snapshot(run: Run) -> Snapshot:
    """Read a run that another process may be writing.

    Raises:
        UserError: no run is there, or its recipe was changed by hand and is none.
    """
    recipe = Run.open(run.path).recipe()
    metrics, edited = steadily(run.metrics), run.edited(recipe)
    try:
        name, planned = str(recipe["name"]), int(recipe["loop"]["rounds"])
        making = steadily(lambda: _making(run, recipe, len(metrics)))
    except (KeyError, TypeError, ValueError):
        raise (UserError(edited) if edited else damaged(run.path / "recipe.yaml", "it is no recipe")) from None
    back, told = went_back(run), warnings(metrics)
    return Snapshot(
        name=name,
        rounds_planned=planned,
        metrics=tuple(metrics),
        making=making,
        seconds=float(sum(sum(it.get("seconds", {}).values()) for it in metrics)),
        network_evaluations=sum(sum(it.get("network_evaluations", {}).values()) for it in metrics),
        warnings=tuple(it for it in (edited, back, *(measures.after_going_back(told) if back else told)) if it),
    )


def steadily(read: Callable[[], Found]) -> Found:
    """``read()``, again where a file moved away under it: a round is renamed in the moment that it is finished."""
    for _ in range(RETRIES):
        try:
            return read()
        except FileNotFoundError:
            time.sleep(0.05)
    return read()


def warnings(rounds: Sequence[Metrics]) -> list[str]:
    """What to worry about, in sentences: signs of reward hacking, collapse and over-guided training."""
    return [*_signs(rounds).values()]


def new_warnings(rounds: Sequence[Metrics]) -> list[str]:
    """Those of the last round of whose kind the round before it had none."""
    known = _signs(rounds[:-1])
    return [told for kind, told in _signs(rounds).items() if kind not in known]


def _signs(rounds: Sequence[Metrics]) -> dict[str, str]:
    """By their kinds; the sentences have figures, which differ from round to round."""
    if not rounds:
        return {}
    first, last = rounds[0], rounds[-1]
    fall = _held_out_fall(rounds)
    found = {
        "held out": fall,
        **{it.what: it.told for it in alarms(rounds) if not (fall and it.what == f"reward {_sole(last)}")},
        "collapse": _collapse(first, last),
        "repetition": _repetition(first, last),
        "spreading": _spreading(alike(rounds)[0], last),
        "running off": _running_off(first, last),
        "estranged": _estranged(first, last),
        "undecided": _undecided(last),
        "discarded": _discarded(last),
        "not replayed": _not_replayed(last),
        "unfit": unfit_told(last),
        "left out": _left_out(last),
    }
    return {kind: told for kind, told in found.items() if told}


def alarms(rounds: Sequence[Metrics]) -> list[Alarm]:
    """What moved on the held-out prompts from the base to the last round as where a reward is hacked: the guard acts on
    it. Nothing where the base was not looked at with the same rewards and prompts."""
    same = alike(rounds)
    if not same or same[0].get("held_out_base") is None:
        return []
    return measures.alarms(HeldOut.of(same[0], "held_out_base"), HeldOut.of(same[-1], "held_out"))


def best_round(rounds: Sequence[Metrics], there: Callable[[int], bool] = lambda t: True) -> int | None:
    """The round to go back to, as ``measures.alarms.best``; None for the base. ``there`` says of which rounds the
    weights are still on the disk."""
    first = len(rounds) - len(alike(rounds))
    base = HeldOut.of(rounds[first], "held_out_base")
    gains = [
        measures.gain(base, HeldOut.of(it, "held_out")) if t >= first and there(t) else None
        for t, it in enumerate(rounds)
    ]
    return measures.best(gains, [t for t in range(first, len(rounds)) if alarms(rounds[: t + 1])])


def went_back(run: Run) -> str | None:
    """Where the run goes on from, if that is not its last round."""
    done = run.rounds_done()
    if (after := done - 1) not in run.rollbacks():
        return None
    to = run.origin(done)
    if to is None:
        return (
            f"After round {after} the guard went back to the base model, before any tuning: no round was better on the "
            "held-out prompts. A continued run begins from it; every round is still there, for --round."
        )
    return (
        f"After round {after} the guard went back to round {to}, which did best on the held-out prompts. That is what "
        "eval, draw, compare, export and a continued run use; every round is still there, for --round."
    )


def unfit_told(last: Metrics) -> str | None:
    """How many candidates of a round were discarded before any reward saw them, and what to do about it."""
    if blank := last.get("blank"):
        return (
            f"{blank} of {last['candidates']} pictures in the last round were blank, of one colour, as where a model "
            "computes NaN, and were discarded. Set model.dtype to bfloat16 or float32, or lower "
            "finetuner.learning_rate."
        )
    if long := last.get("too_long"):
        return (
            f"{long} of {last['candidates']} answers in the last round were longer, with their prompts, than the model "
            "can read, and were discarded. Have the sampler write shorter ones (max_new_tokens, max_tokens), or leave "
            "long prompts out (prompts.max_prompt_tokens)."
        )
    return None


def _discarded(last: Metrics) -> str | None:
    unfit = (last.get("blank") or 0) + (last.get("too_long") or 0)
    discarded = (last.get("discard_rate") or 0) - unfit / (last.get("candidates") or 1)
    if discarded <= DISCARDED:
        return None
    vetoed = [f"'{name}' {count}" for name, count in (last.get("mixing") or {}).get("vetoed", {}).items() if count]
    vetoes = f" Vetoes turned down: {', '.join(vetoed)} (at_least)." if vetoed else ""
    return f"The rewards discard {discarded:.0%} of the candidates.{vetoes}"


def _not_replayed(last: Metrics) -> str | None:
    if not (strangers := last.get("not_replayed")):
        return None
    return (
        f"{counted(strangers, 'earlier round')} selected '{last['not_replayed_kind']}', of which the last round's "
        "fine-tuner learns nothing: that was not replayed (loop.replay_rounds)."
    )


def _left_out(last: Metrics) -> str | None:
    if not (left_out := last.get("left_out")):
        return None
    return f"{len(left_out)} prompts had no valid candidate in the last round: {', '.join(left_out[:3])}."


def _held_out_fall(rounds: Sequence[Metrics]) -> str | None:
    """The reward of held-out prompts, drawn as the evaluation draws, fell below the base model's by more than chance:
    while that of the training prompts rose, or surely, though it did not."""
    same = alike(rounds)
    base, held_out = same[0].get("held_out_base"), same[-1].get("held_out")
    first, last = same[0].get("mean"), same[-1].get("mean")
    if base is None or held_out is None or first is None or last is None or held_out >= base:
        return None
    high = _least_fall(same[0].get("held_out_base_each"), same[-1].get("held_out_each"))
    if high is not None and high >= 0:
        return None
    surely = "" if high is None else f" (by {-high:.2g} or more, at 95%)"
    if last <= first:
        return surely and (
            f"The held-out reward fell from {base:.4g} to {held_out:.4g}{surely}, and that of the training prompts did "
            "not rise: this tuning does harm. Use a smaller learning rate, a rule that learns from differences "
            "(finetuner.learning), or an anchor."
        )
    return (
        f"The held-out reward fell from {base:.4g} to {held_out:.4g}{surely} while that of the training prompts rose: "
        "the model learns these prompts, or the reward's weaknesses. Use more prompts, fewer exposures, or stop "
        "earlier."
    )


def _least_fall(before: Sequence[float | None] | None, after: Sequence[float | None] | None) -> float | None:
    """The upper end of the 95% interval of the mean change from prompt to prompt; None where the rounds do not tell
    of each prompt, as those of older versions."""
    pairs = [(a, b) for a, b in zip(before or (), after or (), strict=False) if a is not None and b is not None]
    if len(pairs) < 2:
        return None
    changes = [b - a for a, b in pairs]
    return mean(changes) + 1.96 * stdev(changes) / math.sqrt(len(changes))


def _sole(last: Metrics) -> str | None:
    """The reward that alone makes the total; None for several."""
    weighed = [name for name, weight in (last.get("held_out_weights") or {}).items() if weight]
    return weighed[0] if len(weighed) == 1 else None


def _undecided(last: Metrics) -> str | None:
    """The selector took what came first, because nothing told the candidates apart."""
    alike, prompts = last.get("undecided") or 0, last.get("prompts") or 1
    if alike < UNDECIDED * prompts:
        return _constant(last)
    if last["per_prompt"] == 1 if "per_prompt" in last else last.get("candidates", 0) <= prompts:  # else an older run
        return (
            "There was one candidate a prompt in the last round, so no reward could choose. Set loop.candidates to 2 "
            "or more."
        )
    return (
        f"The rewards told nothing apart for {alike} of {prompts} prompts in the last round: all candidates scored the "
        "same, so that the first was taken, or nothing learnt. Look at the scores; use more candidates, or a reward "
        "of finer steps."
    )


def _constant(last: Metrics) -> str | None:
    """One of several rewards says the same of everything, which the total does not show."""
    if not (names := last.get("constant")):
        return None
    named = " and ".join(f"'{name}'" for name in names)
    return f"Of each candidate in the last round {named} said the same, and so had no part in what was selected."


def _collapse(first: Metrics, last: Metrics) -> str | None:
    before, after = ((it.get("diversity_all") or {}).get("pairwise_distance") for it in (first, last))
    if not before or after is None or after >= COLLAPSE * before:
        return None
    return (
        f"Candidates of one prompt lie {after / before:.0%} as far apart as in the first round: diversity is lost. "
        "Use a smaller learning rate, the guided loss, or an anchor."
    )


def _repetition(first: Metrics, last: Metrics) -> str | None:
    before, after = ((it.get("diversity_all") or {}).get("distinct_2") for it in (first, last))
    if not before or after is None or after >= COLLAPSE * before:
        return None
    return (
        f"Answers repeat themselves: {after:.0%} of their two-word phrases differ, {before:.0%} in the first round. "
        "Look at the answers; stop earlier, rank with the reward kl, or use a smaller learning rate."
    )


def _spreading(first: Metrics, last: Metrics) -> str | None:
    before, after = ((it.get("tune") or {}).get("latent_std") for it in (first, last))
    if not before or not after or after <= SPREAD * before:
        return None
    return (
        f"The selected latents spread {after / before:.2f} times as far as in the first round: guidance compounds. "
        "Use a lower sampler.guidance, a smaller learning rate, or a rule that learns from differences "
        "(finetuner.learning)."
    )


def _running_off(first: Metrics, last: Metrics) -> str | None:
    """The pattern of a policy that has found the reward's weaknesses; each sign alone is also one of learning."""
    before, after = (it.get("tune") or {} for it in (first, last))
    if not {"length", "perplexity", "kl_token", "reward_tail"} <= set(before) & set(after):
        return None
    length, perplexity = (after[name] / before[name] for name in ("length", "perplexity"))
    signs = {
        f"answers are {length:.1f} times as long": length > LONGER,
        f"their perplexity under the base model is {perplexity:.0%} of what it was": perplexity < LIKELIER,
        f"the KL to the base is {after['kl_token']:.2f} nats a token": after["kl_token"] > FAR,
        "a few rewards lie far above the rest": after["reward_tail"] > TAILED,
    }
    seen = [sign for sign, there in signs.items() if there]
    if len(seen) < SIGNS:
        return None
    return (
        f"The policy runs off, as before a collapse: {', '.join(seen[:-1])}, and {seen[-1]}. Read the answers; go back "
        "to an earlier round (loop.guard: rollback), raise finetuner.kl.beta, or lower finetuner.learning_rate."
    )


def _estranged(first: Metrics, last: Metrics) -> str | None:
    """The other way to collapse: a reward that likes what nobody would say, so that the answers grow unlikely."""
    before, after = (
        (it.get(name) or {}).get("perplexity")
        for it, name in ((first, "held_out_base_figures"), (last, "held_out_figures"))
    )
    if before is None or after is None or after <= STRANGE * before:
        return None
    return (
        f"The held-out answers leave the language of the base model: their perplexity under it is {after:.1f}, that of "
        f"its own {before:.1f}. Read them; go back to an earlier round (loop.guard: rollback), or lower "
        "finetuner.learning_rate."
    )


def _making(run: Run, recipe: Mapping[str, Any], index: int) -> Making | None:
    folder = run.unfinished(index)
    path = folder.path
    if not path.is_dir():
        return None
    rows = folder.rows()
    planned = recipe["loop"]
    prompts = planned["prompts_per_round"] or len(recipe["prompts"]["captions"])
    told = read_json(path / "metrics.json") if (path / "metrics.json").is_file() else {}
    sampled = "candidates" in told or 0 < prompts * planned["candidates"] <= len(rows)
    if not rows or not sampled:
        stage: Literal["sample", "score", "select", "tune"] = "sample"
    elif "total" not in rows[0]:
        stage = "score"
    else:
        stage = "tune" if (path / "selection.json").is_file() else "select"
    return Making(index, stage, len(rows), max(0.0, time.time() - _changed(path)))


def _changed(path: Path) -> float:
    """When anything of a round last changed; time since 1970."""
    files = [path / "samples" / "metadata.jsonl", path / "metrics.json", path / "selection.json"]
    return max(file.stat().st_mtime for file in [path, *files] if file.exists())
