"""Text accuracy: does the picture show the words that its prompt asks for, letter by letter?"""

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import UserError
from raftdiff.recipes.config import RewardConfig
from raftdiff.rewards.ocr_readers import RapidConfig, Read, ReaderConfig, glance
from raftdiff.types import AsksServer, KeepsReplies, Prompt, Sample

COLUMN = "text"
"""Of the prompt file, for what should be read where the caption does not quote it."""
QUOTED = re.compile(r'"([^"]+)"|[“„]([^“”]+)[“”]')


class OcrConfig(RewardConfig):
    type: Literal["ocr"] = "ocr"
    name: str = "ocr"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    without_text: float | None = None
    """The score of pictures whose prompt asks for no text; null discards them."""
    reader: ReaderConfig = RapidConfig()
    """Who reads: rapidocr, an OCR library; or vlm, a vision-language model, here or behind a server."""

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "OcrReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        read = self.reader.build(device=device, resolve=resolve)
        return OcrReward(read, without_text=self.without_text, name=self.name)


@final
class OcrReward:
    """1 - edit distance / length, of the text read in the picture to that asked for: 0 to 1. Higher is better.

    Asked for is what the caption has in double quotes, or the prompt's column ``text``: one text or a list. Spaces and
    case do not count. A text that stands in the picture as it should scores 1 whatever else is read there; else the
    distance counts all that is read, up to the text's length, which is a score of 0. Of several texts those that are
    there are taken out first, and the rest is compared in the order of the prompt. NaN, or ``without_text``, where
    none is asked for.

    Source: the reward of Flow-GRPO, Liu et al. 2025, arXiv:2505.05470 (github.com/yifan123/flow_grpo, MIT), after the
    OCR measures of TextDiffuser, Chen et al. 2023, arXiv:2305.10855. Departures: read by PP-OCRv6 in place of PaddleOCR
    2.9, in RapidOCR's package (Apache-2.0, the weights too), or by a vision-language model that the recipe names, under
    its own licence; other Unicode forms of a letter are the letter (NFKC); where a caption quotes several texts all
    count, in place of the first; what the reader raises is an error, in place of a score of 0.

    Raises:
        UserError: the column ``text`` holds something else.
    """

    def __init__(self, read: Read, *, without_text: float | None = None, name: str = "ocr") -> None:
        self.name = name
        self._read, self._without = read, math.nan if without_text is None else without_text
        if isinstance(read, KeepsReplies):
            self.keep_replies, self.forget = read.keep_replies, read.forget
        if isinstance(read, AsksServer):
            self.check_server = read.check_server

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: no prompt asks for a text, and ``without_text`` is not given: every picture would be discarded.
        """
        if prompts and math.isnan(self._without) and not any(texts(prompt) for prompt in prompts):
            raise UserError(
                f"the reward '{self.name}': not one of {len(prompts)} prompts asks for a text, such as "
                f"'{prompts[0].caption:.60}', so every picture would be discarded. Put what should be read in double "
                f"quotes in the caption, or in the prompt file's column '{COLUMN}'; without_text is the score of "
                "pictures whose prompt asks for none."
            )

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        wanted = [texts(sample.prompt) for sample in samples]
        said = iter(self._read([sample.media for sample, asked in zip(samples, wanted, strict=True) if asked]))
        scores = [accuracy(next(said), asked) if asked else self._without for asked in wanted]
        return torch.tensor(scores, dtype=torch.float32)


def texts(prompt: Prompt) -> list[str]:
    """What a picture of a prompt should say; nothing where no text is asked for.

    Raises:
        UserError: the column is no text and no list of texts.
    """
    told: Any = prompt.meta.get(COLUMN)
    if told is None:
        found = [one or other for one, other in QUOTED.findall(prompt.caption)]
    else:
        found = [told] if isinstance(told, str) else told
        if not isinstance(found, Sequence) or not all(isinstance(one, str) for one in found):
            raise UserError(
                f"ocr: the column '{COLUMN}' of the prompt '{prompt.id}' holds {told!r:.80}, where a text or a list of "
                "texts is expected. Without the column, what the caption has in double quotes is looked for."
            )
    return [one for one in found if plain(one)]


def accuracy(read: str, wanted: Sequence[str]) -> float:
    """
    >>> accuracy("OPEN 24h", ["open"]), accuracy("OPAN", ["open"]), accuracy("", ["open"])
    (1.0, 0.75, 0.0)
    >>> accuracy("go STOP", ["stop", "go"])
    1.0
    """
    left, target = left_over(read, wanted)
    wrong = min(edit_distance(left, target), len(target)) if target else 0
    return 1 - wrong / sum(len(plain(one)) for one in wanted)


def left_over(read: str, wanted: Sequence[str]) -> tuple[str, str]:
    """What was read beside the texts that stand there as they should, and of those what does not, both plain.

    >>> left_over("Go, OPEN 24h", ["open", "stop"])
    ('go,24h', 'stop')
    """
    left, parts = plain(read), [plain(one) for one in wanted]
    missing = set(range(len(parts)))
    for place in sorted(missing, key=lambda place: -len(parts[place])):  # or a short one is found within a long one
        if parts[place] in left:
            left = left.replace(parts[place], "", 1)
            missing.remove(place)
    return left, "".join(parts[place] for place in sorted(missing))


def unasked(samples: Sequence[Sample[Image.Image]]) -> list[int] | None:
    """How many letters and digits are read in each picture beyond those that its prompt asks for, at a glance; letters
    of a text that is asked for and misspelt are none. None where no OCR is at hand."""
    found = glance([sample.media for sample in samples])
    return None if found is None else [beyond(read, sample.prompt) for read, sample in zip(found, samples, strict=True)]


def beyond(read: str, prompt: Prompt) -> int:
    """
    >>> beyond("a cat OPAN 7", Prompt("p", 'a cat, "open"', "", ""))
    5
    """
    try:
        wanted = texts(prompt)
    except UserError:  # a column of this name that is no text: nothing of it could be drawn
        wanted = []
    left, target = left_over(read, wanted)
    return max(0, sum(map(str.isalnum, left)) - sum(map(str.isalnum, target)))


def plain(text: str) -> str:
    """Without spaces, in lower case, each letter in one form.

    >>> plain(" Straße Ａ！")
    'strassea!'
    """
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def edit_distance(one: str, other: str) -> int:
    """How many letters are put in, left out or changed (Levenshtein 1966).

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, start=1):
        above, row = row, [place]
        for (corner, over), there in zip(itertools.pairwise(above), other, strict=True):
            row.append(min(corner + (letter != there), over + 1, row[-1] + 1))
    return row[-1]
