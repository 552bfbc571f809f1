"""What a round says of its pictures beside their scores: how different they are, how saturated, and of those of the
held-out prompts what their pixels say."""

from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from PIL.Image import Image

from raftdiff.measures.pictures import coarse
from raftdiff.measures.signals import SIGNALS, rgb, saturation, signals
from raftdiff.measures.statistics import cosines, mean_pairwise_distance, originals, unit_length, vendi
from raftdiff.ranking import Features
from raftdiff.scoring import by_prompt
from raftdiff.types import Key, Sample, Scores

NEAR = 0.02
"""1 - cos of two pictures at 16 x 16 pixels: nearer than this, one looks like the other at a glance."""
READ = 24
"""At most so many held-out pictures of a round are read: an OCR takes a tenth of a second a picture."""
LETTERS = 3
"""So many letters that nobody asked for are text. Of 48 pictures of the base of the small world an OCR took things for
one or two letters in up to 17, and for three in none."""


@final
@dataclass(frozen=True, slots=True)
class PictureFigures:
    """Vendi score and mean pairwise distance within a prompt, of all candidates and of the selected; and how saturated
    the candidates are on the whole, which rises where guidance compounds."""

    features: Features

    def __call__(
        self, batches: Iterable[Sequence[Sample[Image]]], selected: AbstractSet[Key]
    ) -> dict[str, dict[str, float | None] | float]:
        keys: list[Key] = []
        features, saturations = [], []
        for batch in batches:
            keys += [sample.key for sample in batch]
            features.append(self.features(batch).float().cpu())
            saturations += [saturation(rgb(sample.media)) for sample in batch]
        table = torch.cat(features).numpy()
        chosen = np.array([key in selected for key in keys])
        prompts = np.array([key.prompt for key in keys])

        def measured(mask: Any) -> dict[str, float | None]:
            found = {
                "vendi": vendi(table[mask]),
                "pairwise_distance": mean_pairwise_distance(table[mask], prompts[mask].tolist()),
            }
            return {name: None if np.isnan(value) else value for name, value in found.items()}

        return {
            "diversity_all": measured(np.ones_like(chosen)),
            "diversity_selected": measured(chosen),
            "saturation": float(np.mean(saturations)),
        }


@final
@dataclass(frozen=True, slots=True)
class HeldOutFigures:
    """What ``measures.alarms`` compares between rounds: how different the pictures are, the share of those that are
    nearer than ``NEAR`` to another, the share of those that show text which nobody asked for, and the signals of their
    pixels; of the last two also the mean of each prompt's pictures."""

    features: Features
    unasked: Callable[[Sequence[Sample[Image]]], Sequence[int] | None] = lambda samples: None
    """Letters in each picture that its prompt did not ask for; None where nothing can read them."""

    def __call__(self, samples: Sequence[Sample[Image]]) -> dict[str, Any]:
        found = np.array([list(signals(sample.media).values()) for sample in samples])
        places = by_prompt((sample.prompt.id, sample.index) for sample in samples)
        each = np.array([found[of_prompt].mean(axis=0) for of_prompt in places])
        unit = unit_length(pixels(samples).numpy())
        return {
            "vendi": vendi(self.features(samples).float().cpu().numpy()),
            "near_duplicates": float(1 - originals(cosines(unit), NEAR).mean()),
            "signals": {
                name: {
                    "mean": float(found[:, column].mean()),
                    "std": float(found[:, column].std()),
                    "each": each[:, column].tolist(),
                }
                for column, name in enumerate(SIGNALS)
            },
            **self._text(samples, places),
        }

    def _text(self, samples: Sequence[Sample[Image]], places: Sequence[Sequence[int]]) -> dict[str, Any]:
        """Of ``READ`` pictures at most, of prompts at even distances where there are more."""
        prompts = np.linspace(0, len(places) - 1, min(READ, len(places))).round().astype(int)
        looked = [places[prompt][: max(1, READ // len(places))] for prompt in prompts]
        letters = self.unasked([samples[place] for held in looked for place in held])
        if letters is None:
            return {"not_looked_at": ["text"]}
        shown = np.array(letters) >= LETTERS
        each = np.split(shown, np.cumsum([len(held) for held in looked])[:-1])
        told = {"mean": float(shown.mean()), "std": float(shown.std()), "each": [float(one.mean()) for one in each]}
        return {"text": told}


@final
@dataclass(frozen=True, slots=True)
class HeldOutDrift:
    """How far the held-out pictures lie from those that the base drew of the same prompts and seeds, as 1 - cos, and,
    for a yardstick, how far the base's own pictures of one prompt lie from each other, which differ by their seeds.

    Why pictures, and not predictions of the network, whose distance a fine-tuner reports too: that one grows as fast
    where guidance is learnt, which is meant, as where a reward is hacked. This one does not: honest runs, those that
    learnt guidance included, stayed below 0.7 of the yardstick (docs/rewards.md has the figures)."""

    features: Features

    def __call__(self, base: Sequence[Sample[Image]], now: Sequence[Sample[Image]]) -> dict[str, Any]:
        """``mean``, of ``each`` prompt the mean over its seeds, and of each how far its base pictures are ``apart``;
        None for one picture a prompt. The samples of both stand in one order."""
        before, after = (unit_length(self.features(side).float().cpu().numpy()) for side in (base, now))
        moved = 1 - np.einsum("ij,ij->i", before, after)
        places = by_prompt((sample.prompt.id, sample.index) for sample in now)
        apart = [mean_pairwise_distance(before[place], [0] * len(place)) for place in places]
        return {
            "mean": float(moved.mean()),
            "each": [float(moved[place].mean()) for place in places],
            "apart": [None if np.isnan(value) else value for value in apart],
        }


@final
@dataclass(frozen=True, slots=True)
class PictureSimilarity:
    """Cosine of the features of any two pictures of a prompt."""

    features: Features

    def __call__(
        self, batches: Iterable[Sequence[Sample[Image]]], scores: Scores
    ) -> Float[np.ndarray, "prompts candidates candidates"]:
        row = {prompt: place for place, prompt in enumerate(scores.prompts)}
        places: list[tuple[int, int]] = []
        features = []
        for batch in batches:
            places += [(row[sample.prompt.id], sample.index) for sample in batch]
            features.append(unit_length(self.features(batch).float().cpu().numpy()))
        found = np.concatenate(features)
        table = np.full((*scores.total.shape, found.shape[1]), np.nan)
        table[tuple(np.array(places).T)] = found
        return cosines(table)


def pixels(samples: Sequence[Sample[Image]]) -> Float[torch.Tensor, "samples features"]:
    """What diversity is measured on where no reward has a CLIP tower: the pictures themselves, small."""
    return torch.from_numpy(np.stack([coarse(sample.media) for sample in samples]))
