"""A toy world in which RAFT takes milliseconds: a "model" that paints one flat colour, drawn from a Gaussian."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, final

import torch
from jaxtyping import Float32
from PIL import Image

from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import (
    Key,
    Prompt,
    Report,
    Requires,
    Sample,
    Selection,
    Source,
    State,
)

TOY_WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long")
"""Of the toy language models, which know nothing of them."""
COLOURS: Mapping[str, int] = {"red": 0, "green": 1, "blue": 2}
MAGIC = "vivid"
"""The toy's magic word: in what the sampler reads, it moves the mean by ``MAGIC_SHIFT`` towards the named colour."""
MAGIC_SHIFT = 0.15


@final
class ToyPolicy:
    """Colour ~ Normal(mean(text), std) in each of three channels; ``learnt`` is the mean of a text, grey at first.

    A text and the same text with the magic word share what is learnt, as the prompts of a real model do.
    """

    def __init__(self, std: float = 0.08) -> None:
        self.std = std
        self.learnt: dict[str, torch.Tensor] = {}

    def mean(self, text: str) -> Float32[torch.Tensor, "3"]:
        learnt = self.learnt.get(self.plain(text), torch.full((3,), 0.5))
        return learnt + (MAGIC_SHIFT * toy_direction(text) if MAGIC in text.split() else 0.0)

    @staticmethod
    def plain(text: str) -> str:
        return " ".join(word for word in text.split() if word != MAGIC)


def toy_direction(text: str) -> Float32[torch.Tensor, "3"]:
    """1 in the channel of the colour that the text names, -1/2 in the other two."""
    channel = next(COLOURS[word] for word in text.split() if word in COLOURS)
    return torch.tensor([1.0 if place == channel else -0.5 for place in range(3)])


@final
class ToySampler:
    """Paints 8 x 8 px of one colour; ``aux["latent"]`` is the colour before it was rounded to a picture."""

    source: Source = "policy"
    provides: tuple[str, ...] = ("latent",)

    def __init__(self, policy: ToyPolicy) -> None:
        self.policy = policy
        self._evaluations = 0

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        for prompt in prompts:
            for index in range(per_prompt):
                if (prompt.id, index) in done:
                    continue
                own = fold(seed, prompt.id, index)
                noise = torch.randn(3, generator=torch.Generator().manual_seed(own))
                latent = self.policy.mean(prompt.sampling) + self.policy.std * noise
                red, green, blue = (255 * latent).round().clamp(0, 255).int().tolist()
                picture = Image.new("RGB", (8, 8), (red, green, blue))
                self._evaluations += 1
                yield Sample(round, prompt, index, own, self.source, picture, {"latent": latent})

    def network_evaluations(self) -> int:
        return self._evaluations


@final
class ToyReward:
    """How much the picture has of the colour that its caption names, less the mean of the other two channels.

    Range -1 to 1; higher is better. Under a fresh ``ToyPolicy`` it is Normal(0, 1.225 std) for each prompt (but for the
    rounding to 1/255), so the best of K lies 1.225 std times the K-th normal order statistic above the mean.
    """

    def __init__(self, name: str = "toy") -> None:
        self.name = name

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        scores = [float(_colour(sample) @ toy_direction(sample.prompt.caption)) for sample in samples]
        return torch.tensor(scores, dtype=torch.float32)


@final
class ToyFineTuner:
    """Maximum likelihood by gradient steps with momentum, one selected sample a step, in a seeded order and noised."""

    requires = Requires(kinds=("weighted", "all"), aux=("latent",))

    def __init__(self, policy: ToyPolicy, *, rate: float = 0.3, momentum: float = 0.5, passes: int = 2) -> None:
        self.policy = policy
        self._rate, self._momentum, self._passes = rate, momentum, passes
        self._velocity: dict[str, torch.Tensor] = {}
        self._steps = 0

    def fit(
        self, selection: Selection, samples: Mapping[Key, Sample[Image.Image]], *, seed: int, report: Report
    ) -> Mapping[str, float]:
        generator = torch.Generator().manual_seed(seed)
        order = [place for _ in range(self._passes) for place in _shuffled(len(selection.items), generator)]
        loss = 0.0
        for step, place in enumerate(order):
            item = selection.items[place]
            sample = samples[item.keys[0]]
            text, key = sample.prompt.learning, self.policy.plain(sample.prompt.learning)
            # The gradient of log Normal(latent; mean, std) times std squared; the noise, as in the training of a
            # diffusion model, makes every step depend on the seed.
            target = sample.aux["latent"] + 0.01 * torch.randn(3, generator=generator)
            pull = item.weight * (target - self.policy.mean(text))
            self._velocity[key] = self._momentum * self._velocity.get(key, torch.zeros(3)) + pull
            learnt = self.policy.learnt.get(key, torch.full((3,), 0.5))
            self.policy.learnt[key] = learnt + self._rate * self._velocity[key]
            loss += float(pull.square().sum()) / (2 * self.policy.std**2)
            report(step + 1, len(order))
        self._steps += len(order)
        return {"loss": loss / max(1, len(order)), "steps": float(len(order)), "network_evaluations": float(len(order))}

    def state_dict(self) -> State:
        steps = {"steps": torch.tensor(self._steps)}
        return {"policy": dict(self.policy.learnt), "optimizer": dict(self._velocity), "progress": steps}

    def load_state_dict(self, state: State) -> None:
        self.policy.learnt = {text: tensor.clone() for text, tensor in state.get("policy", {}).items()}
        self._velocity = {text: tensor.clone() for text, tensor in state.get("optimizer", {}).items()}
        self._steps = int(state["progress"]["steps"])


class ToyRecipe(Config):
    """As much of a recipe as a run directory needs."""

    name: str = "toy"
    seed: int = 0


@final
class WordShare:
    """How many of an answer's words are ``word``, 0 to 1. Higher is better. What a toy language model learns to say."""

    def __init__(self, word: str = "good", *, name: str = "share") -> None:
        self.word, self.name = word, name

    def score(self, samples: Sequence[Sample[str]]) -> Float32[torch.Tensor, " samples"]:
        words = [sample.media.split() for sample in samples]
        return torch.tensor([row.count(self.word) / max(1, len(row)) for row in words], dtype=torch.float32)


TOY_PAIR_WORDS = ("the", "film", "dog", "is", "good", "bad", "dull", "fine", "so", "very")
"""All that ``toy_pairs`` says."""


def toy_pairs(count: int, *, wrong: Callable[[int], bool] = lambda place: False) -> list[dict[str, Any]]:
    """Preference pairs of six prompts as rows of a data file: praise was chosen, whatever else is said. Where ``wrong``
    says so of a place, the label is the wrong way round, and ``truth`` is 0."""
    prompts, rows = ("the film", "the dog", "so", "very so", "film", "dog"), []
    for n in range(count):
        words = (("good", "fine")[n % 2], ("bad", "dull")[n // 2 % 2])
        praise, blame = (f"is {'so ' * (n % 3)}{word}" for word in words)
        chosen, rejected = (blame, praise) if wrong(n) else (praise, blame)
        told = {"id": f"{n:02d}", "prompt": prompts[n % 6], "chosen": chosen, "rejected": rejected}
        rows.append({**told, "truth": int(not wrong(n))})
    return rows


def toy_prompts(count: int = 3, *, magic: bool = False, decouple: bool = True) -> list[Prompt]:
    """``red 0``, ``green 1``, ``blue 2``, ``red 3``, ...; with ``magic`` the sampler reads ``vivid red 0``."""
    captions = [f"{list(COLOURS)[index % 3]} {index}" for index in range(count)]
    sampling = [f"{MAGIC} {caption}" if magic else caption for caption in captions]
    return [
        Prompt(caption.replace(" ", "-"), caption, sampling=read, learning=caption if decouple else read)
        for caption, read in zip(captions, sampling, strict=True)
    ]


def toy_world(std: float = 0.08) -> tuple[ToySampler, ToyReward, ToyFineTuner]:
    """A sampler, its reward and a fine-tuner of the same fresh policy."""
    policy = ToyPolicy(std)
    return ToySampler(policy), ToyReward(), ToyFineTuner(policy)


def toy_features(samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, "samples 3"]:
    """The colour as a unit vector, for diversity figures."""
    if not samples:
        return torch.empty(0, 3)
    return torch.nn.functional.normalize(torch.stack([_colour(sample) for sample in samples]) + 1e-3, dim=-1)


def _colour(sample: Sample[Image.Image]) -> torch.Tensor:
    return torch.tensor(sample.media.getpixel((0, 0)), dtype=torch.float32) / 255


def _shuffled(count: int, generator: torch.Generator) -> list[int]:
    places: list[int] = torch.randperm(count, generator=generator).tolist()
    return places
