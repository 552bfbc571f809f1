"""Look at a folder of trained weights: figures as JSON, and contact sheets.

    python -m raftdiff.embedded.scenes.measure RESULTS --sheet contact.png --prompts 48

``RESULTS`` holds what the training scripts wrote. Figures: what the judge makes of the art and of its passage through
the autoencoder; and of the model's pictures, seen and held-out captions apart, 8 candidates a caption: the mean, the
share of captions with a right one, and the share with all right, for each guidance and each seed. Where there is a
reward: how often its best and its worst of 8 are right, and the Vendi score within a caption.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from raftdiff.embedded.scenes.art import art_sheet
from raftdiff.embedded.scenes.clip import WEIGHTS as CLIP
from raftdiff.embedded.scenes.clip import assemble as assemble_clip
from raftdiff.embedded.scenes.data import Painter
from raftdiff.embedded.scenes.flow import LACKING
from raftdiff.embedded.scenes.flow import assemble as assemble_flow
from raftdiff.embedded.scenes.judge import SceneJudge, Verdicts, right_of
from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.embedded.scenes.networks import VAE, assemble, load_vae
from raftdiff.embedded.scenes.rows import to_rows
from raftdiff.embedded.scenes.world import KINDS, Scene, draw
from raftdiff.measures.statistics import vendi
from raftdiff.seeds import fold

Record = dict[str, Any]
CANDIDATES = 8
MODELS: dict[str, tuple[Any, dict[str, None]]] = {"scene-sd": (assemble, {}), "emoji-flow": (assemble_flow, LACKING)}
"""What draws: how its files become a folder, and which components its pipeline is told to do without."""
SEED = 40
"""Of the captions that are measured; the training draws its own."""


def open_pipeline(results: Path, device: str, dtype: torch.dtype, name: str = "scene-sd") -> Any:
    """The weights of ``results`` as the pipeline that will ship."""
    from diffusers import DiffusionPipeline

    with tempfile.TemporaryDirectory() as scratch:
        write, lacking = MODELS[name]
        folder = write(results, Path(scratch) / name)
        pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, **lacking).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample(
    pipeline: Any, captions: Sequence[str], *, steps: int, guidance: float, seed: int, at_once: int
) -> list[Image.Image]:
    """One picture for each caption, each from a seed of its own."""
    images: list[Image.Image] = []
    for start in range(0, len(captions), at_once):
        batch = list(captions[start : start + at_once])
        seeds = [fold(seed, "measure", start + row) for row in range(len(batch))]
        images += pipeline(
            prompt=batch,
            negative_prompt=[""] * len(batch),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(number) for number in seeds],
        ).images
    return images


@dataclass(frozen=True, slots=True)
class Seen:
    """What the reward makes of pictures and their captions."""

    features: np.ndarray
    """(pictures, d), of unit length."""
    scores: np.ndarray
    """Cosine of picture and caption; higher is better."""


@final
class Reward:
    """The scene-clip of a folder of results."""

    def __init__(self, results: Path, device: str) -> None:
        import open_clip

        with tempfile.TemporaryDirectory() as scratch:
            name = f"local-dir:{assemble_clip(results, Path(scratch) / 'scene-clip')}"
            model, _, self._transform = open_clip.create_model_and_transforms(name)
            self._tokenizer = open_clip.get_tokenizer(name)
        self._model, self._device = model.to(device).float().eval(), device

    @torch.no_grad()
    def look(self, images: Sequence[Image.Image], captions: Sequence[str]) -> Seen:
        features, texts = [], []
        for start in range(0, len(images), 256):
            pixels = torch.stack([self._transform(image) for image in images[start : start + 256]])
            features.append(self._model.encode_image(pixels.to(self._device), normalize=True))
            tokens = self._tokenizer(list(captions[start : start + 256])).to(self._device)
            texts.append(self._model.encode_text(tokens, normalize=True))
        one, other = torch.cat(features), torch.cat(texts)
        return Seen(one.cpu().numpy(), (one * other).sum(dim=1).cpu().numpy())


def candidates(
    pipeline: Any,
    captions: Sequence[str],
    *,
    steps: int,
    guidance: float,
    at_once: int,
    seed: int = 0,
    count: int = CANDIDATES,
) -> tuple[list[Image.Image], list[str]]:
    """``count`` pictures for each caption, and the caption of each picture; a caption's stand together."""
    each = [caption for caption in captions for _ in range(count)]
    return sample(pipeline, each, steps=steps, guidance=guidance, seed=seed, at_once=at_once), each


def spread(verdicts: Verdicts, count: int = CANDIDATES) -> dict[str, float]:
    """Of the pictures of each caption: how many are right, is one, are all."""
    exact = verdicts["exact"].reshape(-1, count)
    means = {"mean": exact.mean(), "one of 8": exact.any(axis=1).mean(), "all 8": exact.all(axis=1).mean()}
    return {name: round(float(value), 4) for name, value in means.items()}


def chosen(verdicts: Verdicts, seen: Seen, count: int = CANDIDATES) -> dict[str, float]:
    """How often the reward's best and worst of a caption's pictures are right, and how much these differ.

    ``closed``: the share of the way from the mean to the captions with a right picture that its best goes.
    """
    exact, scores = verdicts["exact"].reshape(-1, count), seen.scores.reshape(-1, count)
    rows = np.arange(len(exact))
    best, worst = exact[rows, scores.argmax(axis=1)].mean(), exact[rows, scores.argmin(axis=1)].mean()
    way = exact.any(axis=1).mean() - exact.mean()
    within = np.mean([vendi(part) for part in seen.features.reshape(len(exact), count, -1)])
    found = {"best": best, "worst": worst, "vendi": within}
    if way:
        found["closed"] = (best - exact.mean()) / way
    return {name: round(float(value), 4) for name, value in found.items()}


def by_kind(verdicts: Verdicts, scenes: Sequence[Scene], count: int = CANDIDATES) -> dict[str, float]:
    """``exact`` for each kind of caption: ``singles``, ``counts``, ``relations``, ``pairs``."""
    exact, kinds = verdicts["exact"].reshape(-1, count), np.array([scene.kind for scene in scenes])
    return {f"{kind}s": round(float(exact[kinds == kind].mean()), 4) for kind in KINDS if (kinds == kind).any()}


def model(
    pipeline: Any,
    judge: SceneJudge,
    reward: Reward | None,
    *,
    prompts: int,
    guidance: Sequence[float],
    steps: int,
    at_once: int,
    seeds: Sequence[int] = (0,),
) -> Iterator[Record]:
    """A record for each seed, choice of captions and guidance."""
    for seed, held_out, strength in product(seeds, (False, True), guidance):
        scenes = draw(prompts, seed=SEED, held_out=held_out)
        captions = [scene.caption for scene in scenes]
        images, each = candidates(pipeline, captions, steps=steps, guidance=strength, at_once=at_once, seed=seed)
        found = judge.judge(images, each)
        settings = {"captions": "held out" if held_out else "seen", "guidance": strength, "steps": steps, "seed": seed}
        ranked = chosen(found, reward.look(images, each)) if reward else {}
        yield {**settings, **spread(found), **ranked, **right_of(found), **by_kind(found, scenes)}


@torch.no_grad()
def art(cache: Path, results: Path, judge: SceneJudge, *, prompts: int, device: str) -> Iterator[Record]:
    """What the judge makes of painted scenes, and of the same rebuilt by the autoencoder."""
    scenes = draw(prompts, seed=SEED + 1, held_out=None)
    painter = Painter(art_sheet(cache), seed=SEED, device=device, held_out=True)
    painted = painter.paint(to_rows(scenes)).pictures
    vae = load_vae(results / VAE, device)
    parts = torch.split(painted.contiguous(memory_format=torch.channels_last), 256)
    rebuilt = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in parts])
    captions = [scene.caption for scene in scenes]
    error = (rebuilt - painted).abs().mean().item() * 127.5
    for kind, pictures in {"art": painted, "rebuilt": rebuilt.clamp(-1, 1)}.items():
        found = right_of(judge.judge(to_images(pictures), captions))
        yield {"pictures": kind, **found, "error": round(error, 3) if kind == "rebuilt" else 0.0}


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures in -1..1 as 8-bit RGB."""
    pixels = ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int = 8) -> Image.Image:
    """The pictures, doubled, each above its caption."""
    side, text = 2 * SIZE, 50
    sheet = Image.new("RGB", (columns * (side + 8), -(-len(images) // columns) * (side + text)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left, top = index % columns * (side + 8), index // columns * (side + text)
        sheet.paste(image.resize((side, side), Image.Resampling.BICUBIC), (left + 4, top))
        pen.text((left + 4, top + side + 2), _wrapped(caption.replace(" background", "")), fill="black")
    return sheet


def _wrapped(caption: str, width: int = 27) -> str:
    lines = [""]
    for word in caption.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def sheet_of(pipeline: Any, *, count: int, steps: int, guidance: float, at_once: int) -> Image.Image:
    """A picture of each of ``count`` captions, seen ones first, then held-out ones."""
    scenes = [*draw(count - count // 4, seed=SEED), *draw(count // 4, seed=SEED, held_out=True)]
    captions = [scene.caption for scene in scenes]
    images = sample(pipeline, captions, steps=steps, guidance=guidance, seed=1, at_once=at_once)
    return contact_sheet(images, captions)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="the folder of weights")
    parser.add_argument("--cache", type=Path, default=Path("build/embedded"), help="the art (default: %(default)s)")
    parser.add_argument("--prompts", type=int, default=48, help="captions of each choice (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 3.0, 5.0, 7.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the sampling")
    parser.add_argument("--sheet", type=Path, help="where a contact sheet of 64 captions goes")
    parser.add_argument("--model", choices=MODELS, default="scene-sd", help="what draws (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the pipeline goes, as a folder that raftdiff loads")
    parser.add_argument("--only", choices=["art", "model", "sheet"], help="no more than this")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    if given.folder:
        MODELS[given.model][0](given.results, given.folder)
    drawing = given.only != "art"
    pipeline = open_pipeline(given.results, given.device, torch.float32, given.model) if drawing else None
    how: dict[str, Any] = {"steps": given.steps, "at_once": 64}
    if given.sheet:
        sheet_of(pipeline, count=64, guidance=4.0, **how).save(given.sheet)
    if given.only == "sheet":
        return
    judge = SceneJudge(given.results, given.device)
    if given.only != "model":
        count = max(256, given.prompts)
        tell(art(given.cache, given.results, judge, prompts=count, device=given.device))
    if given.only != "art":
        reward = Reward(given.results, given.device) if (given.results / CLIP).is_file() else None
        chosen_by = {"prompts": given.prompts, "guidance": given.guidance, "seeds": given.seeds}
        tell(model(pipeline, judge, reward, **chosen_by, **how))


def tell(records: Iterator[Record]) -> None:
    for record in records:
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
