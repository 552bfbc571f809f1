"""How much eight pictures of a caption differ, on several features, and how much eight painted ones do.

    OMP_NUM_THREADS=1 python tests/benchmarks/variety.py --art build/art

Painted scenes are right in all that the caption says and free in all that it leaves open, so that they are what a model
could reach. The features: ``scene-clip``'s, which the card's figures are on; pixels at 16 x 16, less their mean; and
where something stands, whatever it is, by the pixels that are not the ground's, at 20 x 20. Vendi of the eight, the
mean over the captions, with half a 95% interval over them. ``--art`` is where ``npm pack`` puts the art.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from raftdiff.diffusion.assembly import build_ranker
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.embedded import folder
from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.measure import SEED, to_images
from raftdiff.embedded.scenes.rows import to_rows
from raftdiff.embedded.scenes.world import Scene, draw
from raftdiff.measures.pictures import coarse
from raftdiff.measures.statistics import vendi
from raftdiff.recipes.prompts import build
from raftdiff.records.provenance import provenance
from raftdiff.types import Sample

PICTURES, STEPS = 8, 12
NEAR = 0.15
"""How far, of 1, a colour may be from the border's to be the ground."""
Features = Float[np.ndarray, "pictures values"]


def drawn(captions: Sequence[str], guidance: float) -> list[Image.Image]:
    """Of each caption so many, one after another."""
    model = load(ModelConfig(base=str(folder("scene-sd")), device="cpu", channels_last=True))
    sampler = DiffusionSamplerConfig(steps=STEPS, guidance=guidance, batch_size=16).build(model)
    prompts = build(load_recipe("demo", _asked(captions)).prompts)
    found = list(sampler.sample(prompts, per_prompt=PICTURES, seed=1000, round=0, done=frozenset()))
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    found.sort(key=lambda one: (places[one.prompt.id], one.index))
    return [one.media for one in found]


def painted(scenes: Sequence[Scene], art: Path) -> list[Image.Image]:
    painter = Painter(art_sheet(art), seed=SEED)
    return to_images(painter.paint(to_rows([scene for scene in scenes for _ in range(PICTURES)])).pictures)


def places(picture: Image.Image) -> Float[np.ndarray, " values"]:
    """Where what is not the ground stands, at 20 x 20 and unit length."""
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    there = np.abs(pixels - np.median(border, axis=0)).max(axis=-1) > NEAR
    small = np.asarray(Image.fromarray(there.astype(np.uint8) * 255).resize((20, 20), Image.Resampling.BOX))
    values = small.reshape(-1).astype(np.float32)
    return values / max(float(np.linalg.norm(values)), 1e-6)


def reward() -> Callable[[Sequence[Image.Image]], Features]:
    ranker = build_ranker(load_recipe("demo"), device="cpu")
    own: Any = ranker.rewards[0][0]
    prompt = build(load_recipe("demo").prompts)[0]

    def features(pictures: Sequence[Image.Image]) -> Features:
        samples = [Sample(0, prompt, place, 0, "policy", it) for place, it in enumerate(pictures)]
        return np.asarray(own.tower.image_features(samples).float().cpu())

    return features


def within(features: Features) -> str:
    """Vendi within a caption: the mean and half its 95% interval."""
    each = np.array([vendi(part) for part in features.reshape(-1, PICTURES, features.shape[-1])])
    return f"{each.mean():.2f} ± {1.96 * each.std(ddof=1) / np.sqrt(len(each)):.2f}"


def _asked(captions: Sequence[str]) -> list[str]:
    return ["prompts.file=null", f"prompts.captions={json.dumps(list(captions))}", "prompts.magic=null"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--art", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=48)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    scenes = draw(given.captions, seed=SEED, held_out=False)
    seen = reward()
    print("| pictures | scene-clip's features | pixels at 16 x 16 | where something stands |\n|---|--:|--:|--:|")
    captions = [scene.caption for scene in scenes]
    for name in (*given.guidance, "painted"):
        pictures = painted(scenes, given.art) if isinstance(name, str) else drawn(captions, name)
        tables = [seen(pictures), *(np.stack([one(it) for it in pictures]) for one in (coarse, places))]
        told = name if isinstance(name, str) else f"drawn, guidance {name:g}"
        print(f"| {told} | {' | '.join(within(table) for table in tables)} |", flush=True)
    print(json.dumps(provenance()))


if __name__ == "__main__":
    main()
