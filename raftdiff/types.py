"""What passes between the parts: records, and the protocols that the parts fulfil.

Pictures and text share all of this. ``Media`` is ``PIL.Image.Image`` on the picture side and ``str`` on the text side.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32

Media = TypeVar("Media")
SelectionKind = Literal["weighted", "pairs", "ranked", "labelled", "advantages", "all"]
"""Items of one key with a positive weight; of two, better first; of several, best first; of one with a weight of 1
(good) or -1 (bad); of one with a signed advantage; of one."""
Source = Literal["policy", "teacher", "dataset", "human"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One line of a prompt file, with the three texts that decoupling keeps apart.

    Example: ``Prompt("cat", "a cartoon of a cat", sampling="a cartoon of a cat, high quality", learning="a cartoon of
    a cat")``.
    """

    id: str
    """Stable name from the prompt file; unique within a run."""
    caption: str
    """What the reward compares candidates with."""
    sampling: str
    """What the sampler reads: the caption, or a magic prompt built from it."""
    learning: str
    """What the model learns to answer: the caption, or with ``decouple: false`` what the sampler read."""
    negative: str = ""
    """The negative prompt; sampling only."""
    meta: Mapping[str, Any] = field(default_factory=dict)


class Key(NamedTuple):
    """The address of one sample within a run."""

    round: int
    prompt: str
    index: int  # type: ignore[assignment]  # a field here, as everywhere else; nobody searches a key


@dataclass(frozen=True, slots=True)
class Sample(Generic[Media]):
    """One candidate. ``aux`` holds what a fine-tuner wants beside the media: ``latent`` for pictures."""

    round: int
    prompt: Prompt
    index: int
    """Which of the prompt's K candidates, from 0."""
    seed: int
    source: Source
    media: Media
    aux: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.round, self.prompt.id, self.index)

    @property
    def cut(self) -> bool:
        """Whether it is an answer that was cut off before its end: ``aux`` holds ``cut`` then, whoever wrote it."""
        return "cut" in self.aux


@dataclass(frozen=True, slots=True)
class Scores:
    """A (prompts, candidates) table of the total reward, and every raw reward beside it. Higher is better, NaN means
    discarded. Rows follow ``prompts``; column k is the candidate with index k."""

    round: int
    prompts: tuple[str, ...]
    total: Float[np.ndarray, "prompts candidates"]
    raw: Mapping[str, Float[np.ndarray, "prompts candidates"]]
    unfit: int = 0
    """How many candidates nothing can be learnt from, such as pictures of one colour; no reward was shown them."""
    similarity: Float[np.ndarray, "prompts candidates candidates"] | None = None
    """Cosine of any two candidates of a prompt, 1 for equal ones, NaN where one is missing. It is not written with
    the scores: where a selector sees it, it is computed from the samples."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to learn from: one key (weighted), two (a pair, better first) or several (ranked, best first)."""

    keys: tuple[Key, ...]
    weight: float = 1.0
    scores: tuple[float, ...] = ()
    """The total reward of each key, for those who learn from more than the order: ties in a ranking say nothing."""


@dataclass(frozen=True, slots=True)
class Selection:
    kind: SelectionKind
    items: tuple[Item, ...]
    left_out: tuple[str, ...] = ()
    """Ids of prompts without one valid candidate."""


@dataclass(frozen=True, slots=True)
class Requires:
    """What a fine-tuner needs, checked when the recipe is read, before any model is loaded."""

    kinds: tuple[SelectionKind, ...]
    aux: tuple[str, ...] = ()
    """Names in ``Sample.aux`` that each sample must carry, e.g. ``latent``."""
    reference_model: bool = False
    fresh_samples: bool = False
    """Samples must come from the current policy (source ``policy``)."""


@dataclass(frozen=True, slots=True)
class Round:
    """A finished round, as the loop yields it."""

    index: int
    path: Path
    metrics: Mapping[str, Any]


State = Mapping[str, Mapping[str, torch.Tensor]]
"""File stem -> named tensors: ``{"adapter": {...}, "optimizer": {...}, "ema": {...}}``. The run writes safetensors."""


@runtime_checkable
class Sampler(Protocol[Media]):
    @property
    def source(self) -> Source: ...

    @property
    def provides(self) -> tuple[str, ...]:
        """Names in ``Sample.aux``."""
        ...

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: Set[tuple[str, int]]
    ) -> Iterator[Sample[Media]]:
        """Yield ``per_prompt`` candidates for each prompt, sample (p, k) with seed ``fold(seed, p.id, k)``, in whatever
        order; ``scoring.in_order`` restores that of the prompts.

        Batches are cut from the full list, so that work skipped because it is in ``done`` (prompt id, index) changes
        nothing in the rest, to the bit.
        """
        ...

    def network_evaluations(self) -> int:
        """Rows through the network since construction; a picture with guidance counts two a step."""
        ...


class Preview(NamedTuple):
    """What was seen of a candidate before it was drawn."""

    prompt: str
    index: int  # type: ignore[assignment]  # as in Key
    step: int
    """How many denoising steps lay behind."""
    total: float
    """By which it was ranked; NaN where a reward discarded it."""
    kept: bool
    """Whether it was drawn on."""


@runtime_checkable
class Prunes(Protocol):
    """A sampler that draws only some of the candidates to the end."""

    def kept(self, per_prompt: int) -> int:
        """How many of so many candidates of a prompt it yields."""
        ...

    def on_previews(self, told: Callable[[Sequence[Preview]], object]) -> None:
        """Tell ``told`` from now on what is seen of candidates, before those that are left of them are yielded."""
        ...


@runtime_checkable
class CutsBatches(Protocol):
    """A sampler that tells what it draws at once, so that work can be shared without tearing a batch."""

    def batches(self, prompts: Sequence[Prompt], *, per_prompt: int, round: int) -> list[list[tuple[str, int]]]:
        """(prompt id, index) of all candidates, batch by batch, in the order in which ``sample`` yields them."""
        ...


@runtime_checkable
class Reward(Protocol[Media]):
    """Higher is better; NaN = "discard this one"; batch-invariant; never mutates.

    One with ``whole_prompts = True`` scores a sample beside the other candidates of its prompt: each call brings all
    that there are of some prompts, and never a part of one. It is batch-invariant over whole prompts then, and says
    something of a candidate alone too, for the others may have been unfit.
    """

    @property
    def name(self) -> str: ...

    def score(self, samples: Sequence[Sample[Media]]) -> Float32[torch.Tensor, " samples"]: ...


@runtime_checkable
class Differentiable(Protocol):
    """A reward of pictures that has a gradient, for rules that follow it."""

    def graded(
        self, pixels: Float[torch.Tensor, "batch 3 height width"], prompts: Sequence["Prompt"]
    ) -> Float[torch.Tensor, " batch"]:
        """``score`` of pictures given as numbers from 0 to 1, RGB, with gradient; equal to it but for the rounding of
        pictures to bytes."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Whoever reads texts up to a length, and what is beyond it not at all: a text encoder, a reward of captions."""

    @property
    def token_limit(self) -> int | None:
        """Tokens of a text, those that begin and end it included; None for no limit."""
        ...

    def reads_whole(self, text: str) -> bool:
        """Whether all of a text is read."""
        ...


@runtime_checkable
class KeepsReplies(Protocol):
    """A reward that asks somebody who is slow or dear, and need not ask twice."""

    def keep_replies(self, file: Path) -> None:
        """Keep replies in this file from now on, and ask for none that is there already."""
        ...

    def forget(self) -> None:
        """Ask again for what was asked before: for whoever wants to know whether the answers are the same."""
        ...


class Reason(NamedTuple):
    """Why a sample has no higher score."""

    kind: str
    """One of the few of its reward, by which reasons are counted: "too few"."""
    text: str
    """What it was here: "expected cat>=2, found 1"."""


class Explained(NamedTuple):
    """A score and why it is no higher; no reason where nothing is wrong."""

    score: float
    reasons: tuple[Reason, ...] = ()


@runtime_checkable
class Explains(Protocol[Media]):
    """A reward that knows what is wrong with a sample."""

    def explained(self, samples: Sequence[Sample[Media]]) -> list[Explained]:
        """What ``score`` says of each, with the reasons."""
        ...


@runtime_checkable
class ChoosesPrompts(Protocol):
    """A reward that can say something of some prompts' answers alone."""

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: it knows one of the prompts not at all; told before anything is sampled.
        """
        ...


@runtime_checkable
class AsksServer(Protocol):
    """A reward or a sampler behind which stands a server."""

    def check_server(self) -> None:
        """
        Raises:
            UserError: nobody answers there, or nobody of the name that is asked for; told before anything is sampled.
        """
        ...


@runtime_checkable
class Selector(Protocol):
    """Pure: a (prompts, candidates) table in, what to learn from out.

    One with ``sees_similarity = True`` gets ``Scores.similarity`` too.
    """

    @property
    def kind(self) -> SelectionKind: ...

    def select(self, scores: Scores) -> Selection: ...


@runtime_checkable
class FineTuner(Protocol[Media]):
    @property
    def requires(self) -> Requires: ...

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[Media]], *, seed: int, report: "Report"
    ) -> Mapping[str, float]:
        """Learn from the selection; returns figures such as ``loss``, ``steps``, ``network_evaluations``."""
        ...

    def state_dict(self) -> State: ...

    def load_state_dict(self, state: State) -> None: ...


@runtime_checkable
class Report(Protocol):
    """Where long work says how far it is: ``report(done, total)``; raises nothing, returns at once."""

    def __call__(self, done: int, total: int) -> None: ...


def silent(done: int, total: int) -> None:
    """A ``Report`` that says nothing."""
    del done, total
