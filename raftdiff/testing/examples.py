"""What to try a reward on: pictures and answers that are there for nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample

ANSWERS = (
    "A wonderful, warm film. I loved every minute of it!",
    "It is dull and far too long. I hated it.",
    '{"title": "The Pirates", "stars": 4}',
    "```python\ndef double(x):\n    return 2 * x\n```",
    "def double(x):\n    return x * x",
    "",
    "The pirates sail home, and the film with them: quiet, patient, and in the end rather good.",
    "no",
)
"""Of different length and mood, one of them JSON, two of them code, one empty."""


def reward_samples(
    pictures: Sequence[Image.Image] = (),
    *,
    names: Sequence[str] | None = None,
    count: int = 8,
    side: int = 64,
) -> list[Sample[Image.Image]]:
    """What to try a reward on: the given pictures, captioned "a picture", by their ``names`` if there are some; or
    ``count`` coloured shapes, every other one over noise, with questions about them and a text in each prompt's
    ``meta``."""
    if not pictures:
        return [_example(index, side) for index in range(count)]
    called = names or [f"picture-{n}" for n in range(len(pictures))]
    prompts = [Prompt(name, "a picture", "a picture", "a picture") for name in called]
    return [
        Sample(0, prompt, 0, fold(0, prompt.id, 0), "dataset", picture)
        for prompt, picture in zip(prompts, pictures, strict=True)
    ]


def _example(index: int, side: int) -> Sample[Image.Image]:
    colours, shapes = ("red", "green", "blue", "orange", "purple"), ("circle", "square", "line")
    colour, shape = colours[index % 5], shapes[index % 3]
    noise = np.random.default_rng(index).integers(0, 256 if index % 2 else 1, (side, side, 3), dtype=np.uint8)
    picture = Image.fromarray(255 - noise)
    pen, low, high = ImageDraw.Draw(picture), side // 8 + index % 4, side * 3 // 4 - index % 7
    if shape == "circle":
        pen.ellipse((low, low, high, high), fill=colour)
    elif shape == "square":
        pen.rectangle((low, low, high, high), fill=colour)
    else:
        pen.line((low, low, high, high), fill=colour, width=1 + index % 4)
    caption = f"a {colour} {shape}"
    asked = [[f"Is the {shape} {colour}?", "Yes"], [f"How many {shape}s are in the image?", "one"]]
    prompt = Prompt(
        f"example-{index}", caption, sampling=caption, learning=caption, meta={"vqa_list": asked, "text": shape}
    )
    return Sample(0, prompt, 0, fold(0, prompt.id, 0), "dataset", picture)


def answer_samples(texts: Sequence[str] = (), *, count: int = 8) -> list[Sample[str]]:
    """The same for rewards on text: the given answers, or ``count`` of ours under two prompts. What the data of a task
    would bring, a reference, tests, scored answers, is in each prompt's ``meta``."""
    chosen = list(texts) or [ANSWERS[index % len(ANSWERS)] for index in range(count)]
    return [_answer(index, text) for index, text in enumerate(chosen)]


def _answer(index: int, text: str) -> Sample[str]:
    question = ("comedy about pirates :", "Write a function that doubles a number.")[index % 2]
    meta: dict[str, Any] = {
        "reference": "A warm film, and rather good.",
        "tests": ["assert double(2) == 4", "assert double(3) == 6"],
        "answers": [{"text": text, "score": float(index), "source": "dataset"}],
    }
    prompt = Prompt(f"example-{index}", question, sampling=question, learning=question, meta=meta)
    return Sample(0, prompt, 0, fold(0, prompt.id, 0), "dataset", text)
