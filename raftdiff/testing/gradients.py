"""Does the gradient of a reward belong to its score?"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from raftdiff.scoring import numbers
from raftdiff.types import Differentiable, Reward, Sample

NEAR = 0.05
"""So far apart, of the scores' range, ``graded`` and ``score`` of one picture may lie: where it is resized first, one
of them rounds it to bytes."""


def gradient(reward: Reward[Any], samples: Sequence[Sample[Any]]) -> tuple[bool, str] | None:
    """Whether ``graded`` says what ``score`` says, and every picture has a gradient, in a sentence; None of a reward
    without one. The pictures are tried in the size of the smallest, as they are of one size in training."""
    if not isinstance(reward, Differentiable) or not all(isinstance(one.media, Image.Image) for one in samples):
        return None
    side = min(min(sample.media.size) for sample in samples)
    alike = [replace(sample, media=sample.media.convert("RGB").resize((side, side))) for sample in samples]
    rows = np.stack([np.asarray(sample.media) for sample in alike])
    pixels = (torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255).requires_grad_()
    try:
        found = reward.graded(pixels, [sample.prompt for sample in alike])
        (slope,) = torch.autograd.grad(found.sum(), pixels)
    except Exception as error:  # whatever a plug-in raises is a finding
        return (
            False,
            f"graded() raised {type(error).__name__}: {error}; it should return numbers that hang on the pixels.",
        )
    score = torch.from_numpy(numbers(reward.score(alike), len(alike), "score()")).double()
    if found.shape != score.shape:
        return (
            False,
            f"graded() should return {len(alike)} numbers for as many pictures; it returned {tuple(found.shape)}.",
        )
    known = ~score.isnan()
    near = NEAR * float(score[known].max() - score[known].min()) if known.any() else 0.0
    if (apart := (found.detach().cpu().double() - score)[known].abs()).numel() and float(apart.max()) > near:
        return False, (
            f"graded() and score() differ by up to {float(apart.max()):.3g}; they should agree on pictures given as "
            "numbers from 0 to 1, RGB."
        )
    if not bool((slope.abs().amax(dim=(1, 2, 3)) > 0)[known].all()):
        return False, "graded() has no gradient for some picture; it should hang on the pixels of each."
    return True, "graded() says what score() says, and every picture has a gradient."
