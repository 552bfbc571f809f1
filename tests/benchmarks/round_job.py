"""One round of best of K and tuning, the same for every way that ``rounds.py`` compares."""

import json
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import open_clip
import torch
from PIL import Image


@dataclass(frozen=True)
class Job:
    """What is drawn and learnt: every way has the same prompts, seeds and settings."""

    model: str
    """A folder in diffusers' format."""
    clip: str
    """A folder in open_clip's."""
    captions: tuple[str, ...]
    seeds: tuple[tuple[int, ...], ...]
    """Of each prompt's candidates."""
    steps: int
    """Denoising steps, of DPM-Solver++."""
    guidance: float
    side: int
    """Pixels."""
    tuning_steps: int
    batch: int
    """Pictures of an optimizer step."""
    rank: int
    learning_rate: float

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path


def read(path: Path) -> Job:
    held = json.loads(path.read_text())
    return Job(**{**held, "captions": tuple(held["captions"]), "seeds": tuple(map(tuple, held["seeds"]))})


class Spent(NamedTuple):
    """Seconds of the clock, and of all processors: of this process, and of those that it started and that ended."""

    wall: float
    processor: float


def timed(work: Callable[[], Any]) -> tuple[Any, Spent]:
    wall, busy = time.perf_counter(), _processor()
    found = work()
    return found, Spent(time.perf_counter() - wall, _processor() - busy)


def _processor() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


class Scorer:
    """100 times the cosine of picture and caption, by open_clip as its own examples use it. Captions are read once."""

    def __init__(self, job: Job) -> None:
        self.model, self.preprocess = open_clip.create_model_from_pretrained(f"local-dir:{job.clip}")
        self.model.eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{job.clip}")(list(job.captions))
        with torch.no_grad():
            self.captions = torch.nn.functional.normalize(self.model.encode_text(tokens), dim=-1)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[int]) -> list[float]:
        """``prompts``: which caption each picture is compared with. All go through the tower at once."""
        pixels = torch.stack([self.preprocess(picture) for picture in pictures])
        images = torch.nn.functional.normalize(self.model.encode_image(pixels), dim=-1)
        scores: list[float] = (100 * (images * self.captions[list(prompts)]).sum(dim=-1)).tolist()
        return scores


def best(scores: Sequence[float], of: int) -> list[int]:
    """Which of each prompt's ``of`` candidates scores highest."""
    rows = [scores[start : start + of] for start in range(0, len(scores), of)]
    return [row.index(max(row)) for row in rows]


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet() -> None:
    """No progress bars of the libraries, whose printing would be timed too."""
    import diffusers
    import transformers

    os.environ["TQDM_DISABLE"] = "1"
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
