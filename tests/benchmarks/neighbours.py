"""Does a reward rank better that asks whether a picture shows its caption *rather than* one that differs in one thing?

    python tests/benchmarks/neighbours.py --captions 96 --guidance 1 2.5

``scene-sd`` draws 8 pictures of each caption, all of kinds that it never saw, and ``scene-clip`` ranks them: by the
cosine, as it ships, and by how much likelier the caption is than all others that differ from it in one thing (the
softmax that the reward was trained with, at several scales), than the likeliest of these, or than the mean of them.
The judge says which are right. What is common to caption and neighbours, a cleaner ground say, cancels in all but the
first; a reward that is hacked by it would be mended so, if it ranked as well.
"""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from PIL.Image import Image
from torch import Tensor

from raftdiff.embedded import folder
from raftdiff.embedded.scenes.judge import SceneJudge
from raftdiff.embedded.scenes.measure import CANDIDATES, candidates
from raftdiff.embedded.scenes.training.neighbours import neighbours
from raftdiff.embedded.scenes.world import Scene, draw

SEED = 123
"""Of the captions; those that the card measures are others."""
STEPS, AT_ONCE = 10, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=96)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.5])
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    pipeline: Any = DiffusionPipeline.from_pretrained(folder("scene-sd"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    judge, scenes = SceneJudge(folder("scene-judge")), draw(given.captions, seed=SEED, held_out=True)
    for guidance in given.guidance:
        captions = [scene.caption for scene in scenes]
        images, each = candidates(pipeline, captions, steps=STEPS, guidance=guidance, at_once=AT_ONCE)
        right = judge.judge(images, each)["exact"].reshape(-1, CANDIDATES).astype(bool)
        print(
            f"\nguidance {guidance:g}: right {right.mean():.1%}, one of {CANDIDATES} {right.any(axis=1).mean():.1%}\n"
        )
        print(_table(right, _rankings(images, scenes)), flush=True)


@torch.no_grad()
def _rankings(
    images: Sequence[Image], scenes: Sequence[Scene]
) -> Mapping[str, Float[np.ndarray, "captions candidates"]]:
    """Each way's scores; higher is better."""
    name = f"local-dir:{folder('scene-clip')}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer, scale = open_clip.get_tokenizer(name), float(model.eval().logit_scale.exp())
    pixels = torch.stack([transform(image) for image in images]).split(256)
    pictures = torch.cat([model.encode_image(part, normalize=True) for part in pixels]).unflatten(0, (-1, CANDIDATES))
    found: dict[str, list[Tensor]] = {}
    for scene, shown in zip(scenes, pictures, strict=True):
        texts = model.encode_text(tokenizer([it.caption for it in (scene, *neighbours(scene))]), normalize=True)
        cosines = shown @ texts.T
        own, others = cosines[:, 0], cosines[:, 1:]
        ways = {
            "the cosine, as it ships": own,
            "less the largest of its neighbours'": own - others.amax(dim=1),
            "less their mean": own - others.mean(dim=1),
            **{
                f"log softmax among them, scale {by:.0f}": (by * cosines).log_softmax(dim=1)[:, 0]
                for by in (scale, scale / 2)
            },
        }
        for way, scores in ways.items():
            found.setdefault(way, []).append(scores)
    return {way: torch.stack(scores).numpy() for way, scores in found.items()}


def _table(
    right: Bool[np.ndarray, "captions candidates"],
    rankings: Mapping[str, Float[np.ndarray, "captions candidates"]],
) -> str:
    """Of each way: how often its best and its worst of a caption are right, and of the pairs of a right and a wrong
    picture of one caption the share in which the right one is above."""
    lines = ["| ranked by | best | worst | right above wrong |", "|---|--:|--:|--:|"]
    rows, pairs = np.arange(len(right)), right[:, :, None] & ~right[:, None, :]
    for way, scores in rankings.items():
        best, worst = right[rows, scores.argmax(axis=1)].mean(), right[rows, scores.argmin(axis=1)].mean()
        above = (scores[:, :, None] > scores[:, None, :])[pairs].mean()
        lines.append(f"| {way} | {best:.1%} | {worst:.1%} | {above:.1%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
