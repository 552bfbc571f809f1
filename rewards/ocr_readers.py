"""What reads the text in pictures: an OCR library, or a vision-language model that is asked for it."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeAlias, final

import torch
from PIL import Image
from pydantic import Field

from raftdiff.errors import Need
from raftdiff.measures.pictures import on_paper
from raftdiff.recipes.config import Config
from raftdiff.rewards.questions import Answers
from raftdiff.rewards.texts import extra, extra_needs
from raftdiff.rewards.vlm import VlmConfig
from raftdiff.types import AsksServer, KeepsReplies

Read = Callable[[Sequence[Image.Image]], Sequence[str]]
"""What is read in each picture, its lines behind each other."""
PACKAGES = ("rapidocr", "onnxruntime")
GLANCED = 320
"""Pixels of a picture's longer side: letters a thirtieth of it high are read still."""
QUIET = {"Global.log_level": "critical"}
"""RapidOCR warns of each picture without text."""
NOTHING = "no text"
"""What a model is to say of a picture without any."""
QUESTION = (
    "Write down all text that stands in this picture, letter by letter as it is written, with its mistakes, and "
    f"nothing else. If there is no text in it, answer: {NOTHING}"
)


class RapidConfig(Config):
    type: Literal["rapidocr"] = "rapidocr"

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve
        for module in PACKAGES:
            yield from extra_needs(module, brings="rewards")

    def build(self, *, device: str, resolve: Callable[[str], str]) -> Read:
        """
        Raises:
            UserError: the extra ``raftdiff[rewards]`` is not installed.
        """
        del device, resolve  # it reads on the CPU, with weights that its package brings
        for module in PACKAGES:
            extra(module, "ocr", brings="rewards")
        return rapid


class VlmReaderConfig(VlmConfig):
    type: Literal["vlm"] = "vlm"
    question: str = Field(default=QUESTION, pattern=r"\S")
    """What is asked of each picture. It does not tell what should stand there, lest the model see it. Of an answer
    "no text" nothing is taken for read."""
    max_tokens: int = Field(default=128, ge=1)
    """Length of an answer; what is beyond is not read."""

    def build(self, *, device: str, resolve: Callable[[str], str]) -> Read:
        """
        Raises:
            UserError: the model cannot be read, or the address or the key's variable cannot be used.
        """
        return VlmReader(self.vlm(device, resolve), question=self.question, max_tokens=self.max_tokens)


ReaderConfig: TypeAlias = Annotated[RapidConfig | VlmReaderConfig, Field(discriminator="type")]


@final
class VlmReader:
    """The text in pictures as a vision-language model writes it down. It is not told what should stand there.

    In the manner of OneIG-Bench, Chang et al. 2025, arXiv:2506.07977, which reads pictures with Qwen2.5-VL-7B; the
    question's words are ours.

    Raises:
        UserError: as the model does.
    """

    def __init__(self, vlm: Answers, *, question: str = QUESTION, max_tokens: int = 128) -> None:
        self._vlm, self._question, self._max_tokens = vlm, question, max_tokens
        if isinstance(vlm, KeepsReplies):
            self.keep_replies, self.forget = vlm.keep_replies, vlm.forget
        if isinstance(vlm, AsksServer):
            self.check_server = vlm.check_server

    def __call__(self, pictures: Sequence[Image.Image]) -> list[str]:
        told = self._vlm.answers(pictures, self._question, max_tokens=self._max_tokens)
        return ["" if said.strip(" .\"'").casefold() == NOTHING else said for said in told]


def rapid(pictures: Sequence[Image.Image]) -> list[str]:
    """What RapidOCR reads, from top to bottom."""
    return ["".join(_reader()(on_paper(picture)).txts or ()) for picture in pictures]


@cache
def _reader() -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(params={**QUIET, "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads()})


def glance(pictures: Sequence[Image.Image]) -> list[str] | None:
    """What RapidOCR reads at a glance: pictures of at most ``GLANCED`` pixels, larger ones shrunk, about a tenth of a
    second each on one core. None where the extra ``raftdiff[rewards]`` is not installed, or cannot be loaded: who only
    looks on does without."""
    try:
        reader = _glancer()
    except ImportError:
        return None
    return ["".join(reader(_small(picture)).txts or ()) for picture in pictures]


def _small(picture: Image.Image) -> Image.Image:
    copy = on_paper(picture).copy()
    copy.thumbnail((GLANCED, GLANCED), Image.Resampling.LANCZOS)
    return copy


@cache
def _glancer() -> Any:
    from rapidocr import RapidOCR

    small = {"Det.limit_side_len": GLANCED // 2, "Det.limit_type": "min", "Global.use_cls": False}
    return RapidOCR(params={**QUIET, **small, "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads()})
