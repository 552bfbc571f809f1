"""Measure the models that ship, and print the figures of their cards as JSON.

    python -m raftdiff.embedded.emoji.measure base --prompts 240 --seeds 0 1 2 --guidance 3 4 5
    python -m raftdiff.embedded.emoji.measure world --cache build/embedded

``base`` samples emoji-sd and lets emoji-judge look; ``world`` asks what the judge, the reward and the autoencoder
make of the art itself, which it needs, so it wants the cache of the training scripts.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from raftdiff.embedded import folder
from raftdiff.embedded.emoji.judge import EmojiJudge, Verdicts
from raftdiff.embedded.emoji.world import (
    HIGH_QUALITY,
    Concept,
    all_concepts,
    draw,
    held_out_concepts,
    training_concepts,
)
from raftdiff.seeds import fold

BATCH = 60
Record = dict[str, float | int | str]


def shares(verdicts: Verdicts) -> dict[str, float]:
    """Each verdict's share of pictures judged right, in 0..1, to three digits."""
    return {name: round(float(right.mean()), 3) for name, right in verdicts.items()}


def sample(
    pipeline: Any,
    captions: Sequence[str],
    *,
    steps: int,
    guidance: float,
    seed: int,
    negative: str = "",
    at_once: int = BATCH,
) -> list[Image.Image]:
    """One picture for each caption, each from a seed of its own."""
    images: list[Image.Image] = []
    for start in range(0, len(captions), at_once):
        batch = list(captions[start : start + at_once])
        seeds = [fold(seed, "measure", start + row) for row in range(len(batch))]
        images += pipeline(
            prompt=batch,
            negative_prompt=[negative] * len(batch),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(number) for number in seeds],
        ).images
    return images


def open_pipeline(path: Path, device: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A pipeline's folder, opened; bfloat16, the default, samples faster than float32 on a CPU with AVX-512."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(path, torch_dtype=dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def base(given: argparse.Namespace) -> Iterator[Record]:
    """A record for each combination of concepts, wording, steps and guidance; means over all prompts and seeds."""
    pipeline = open_pipeline(given.model or folder("emoji-sd"), given.device)
    judge = EmojiJudge(folder("emoji-judge"), given.device)
    sources = {"training": training_concepts(), "held-out": held_out_concepts()}
    wordings = {"plain": "", "high quality": HIGH_QUALITY}
    chosen = product(given.concepts, given.wording, given.steps, given.guidance)
    for concepts, wording, steps, guidance in chosen:
        plain = [concept.caption for concept in draw(sources[concepts], given.prompts, seed=given.draw)]
        asked = [caption + wordings[wording] for caption in plain]
        begun, images = time.monotonic(), []
        for seed in given.seeds:
            images += sample(pipeline, asked, steps=steps, guidance=guidance, seed=seed, negative=given.negative)
        rate = len(images) * steps * 2 / (time.monotonic() - begun)
        settings: Record = {"concepts": concepts, "wording": wording, "steps": steps, "guidance": guidance}
        right = shares(judge.judge(images, plain * len(given.seeds)))
        yield {
            **settings,
            "negative": given.negative,
            "pictures": len(images),
            **right,
            "evaluations_per_s": round(rate),
        }
        if given.grid:
            grid(images).save(given.grid)


def grid(images: Sequence[Image.Image], columns: int = 20) -> Image.Image:
    """The pictures side by side, in rows."""
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures in -1..1 as 8-bit RGB."""
    pixels = ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


@torch.no_grad()
def world(given: argparse.Namespace) -> Iterator[Record]:
    """Judge and reward on the art, on its passage through the autoencoder, and on spoilt art."""
    from diffusers import AutoencoderKL

    from raftdiff.embedded.emoji.art import art_sheet
    from raftdiff.embedded.emoji.data import World, indices

    judge = EmojiJudge(folder("emoji-judge"), given.device)
    vae = AutoencoderKL.from_pretrained(folder("emoji-sd") / "vae").float().eval()
    concepts = draw(all_concepts(), given.prompts, seed=given.draw)
    captions = [concept.caption for concept in concepts]
    rows = indices(concepts)
    made = World(art_sheet(given.cache), seed=given.draw)
    art = made.paint(*rows.unbind(1), upright=True)
    rebuilt = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in torch.split(art, BATCH)])
    kinds = {
        "art": art,
        "rebuilt by the autoencoder": rebuilt.clamp(-1, 1),
        "spoilt": made.degrade(art),
        "photocopied": made.discolour(art),
    }
    for kind, pictures in kinds.items():
        images = to_images(pictures)
        yield {
            "pictures of": kind,
            "count": len(images),
            **shares(judge.judge(images, captions)),
            **_clip(images, concepts),
        }


def _clip(images: Sequence[Image.Image], shown: Sequence[Concept]) -> Record:
    """How often the reward ranks a picture's own caption first, among the captions of all concepts."""
    import open_clip

    name = f"local-dir:{folder('emoji-clip')}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokenizer = open_clip.get_tokenizer(name)
    every = all_concepts()
    texts = model.eval().encode_text(tokenizer([concept.caption for concept in every]), normalize=True)
    pixels = torch.stack([transform(image) for image in images])
    features = torch.cat([model.encode_image(part, normalize=True) for part in torch.split(pixels, BATCH)])
    best = (features @ texts.T).argmax(dim=1).tolist()
    return {
        "clip_top1": round(float(np.mean([every[b] == concept for b, concept in zip(best, shown, strict=True)])), 3)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["base", "world"])
    parser.add_argument("--model", type=Path, help="another folder in the place of emoji-sd")
    parser.add_argument("--cache", type=Path, default=Path("build/embedded"), help="the art (default: %(default)s)")
    parser.add_argument("--concepts", nargs="+", choices=["training", "held-out"], default=["training", "held-out"])
    parser.add_argument("--wording", nargs="+", choices=["plain", "high quality"], default=["plain", "high quality"])
    parser.add_argument("--prompts", type=int, default=240, help="concepts, drawn evenly over the objects")
    parser.add_argument("--draw", type=int, default=0, help="seed of that draw")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="sampling seeds")
    parser.add_argument("--steps", type=int, nargs="+", default=[14])
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0])
    parser.add_argument("--negative", default="", help='a negative prompt, such as "low quality"')
    parser.add_argument("--grid", type=Path, help="where to keep the last pictures, as one sheet")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    for record in {"base": base, "world": world}[given.what](given):
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
