"""A CLIP model in the format of transformers, taken apart into what a tower needs: as PickScore is published, and
OpenAI's and LAION's models on the hub."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int64

from raftdiff.errors import Need, UserError
from raftdiff.recipes.needs import model_at
from raftdiff.training.tokenizers import longest
from raftdiff.training.weights import loaded, reading

PREFIX = "transformers:"
"""Before a folder or hub id, says that it is such a model."""
FILES = {
    "weights": ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"),
    "a tokenizer": ("tokenizer.json", "vocab.json"),
    "the preparation of pictures": ("preprocessor_config.json", "processor_config.json"),
}
"""What a folder must hold beside config.json: of each line one."""
WHERE = "It takes a folder or a hub id, such as yuvalkirstain/PickScore_v1."
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, which the configuration has."""


class Parts(NamedTuple):
    model: torch.nn.Module
    preprocess: Any
    tokenizer: "Tokens"
    width: int
    """Numbers in an embedding."""


@final
class Encoders(torch.nn.Module):
    """A ``CLIPModel`` whose encoders are called as open_clip's are."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip, self.text = clip, clip.text_model
        self.logit_scale = clip.logit_scale.detach().clone()
        """No parameter: it stays float32 where the weights do not."""

    def encode_image(
        self, pixels: Float[torch.Tensor, "batch 3 height width"]
    ) -> Float[torch.Tensor, "batch features"]:
        found: torch.Tensor = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)
        return found

    def encode_text(self, tokens: Int64[torch.Tensor, "batch tokens"]) -> Float[torch.Tensor, "batch features"]:
        """What fills a row up stands behind its end, where this encoder does not look back from: it needs no mask."""
        found: torch.Tensor = self.clip.text_projection(self.clip.text_model(input_ids=tokens).pooler_output)
        return found


@final
class Tokens:
    """A tokenizer of transformers that is called as open_clip's are."""

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length

    def __call__(
        self, texts: Sequence[str], context_length: int | None = None
    ) -> Int64[torch.Tensor, "texts context_length"]:
        most = context_length or self.context_length
        read = self.tokenizer(list(texts), padding="max_length", truncation=True, max_length=most, return_tensors="pt")
        found: torch.Tensor = read.input_ids
        return found


def lies_in(folder: Path) -> bool:
    """Whether a folder holds a CLIP model of transformers, and none of open_clip, which would be preferred."""
    return not (folder / "open_clip_config.json").is_file() and _kind(folder) == "clip"


def _kind(folder: Path) -> str:
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def spelled(name: str) -> str:
    """One spelling for a folder or hub id, with the prefix or without.

    Raises:
        UserError: the folder holds something else, or lacks a file.
    """
    bare = name.removeprefix(PREFIX)
    folder = Path(bare).expanduser()
    if not folder.is_dir():
        return f"{PREFIX}{bare}"
    if (kind := _kind(folder)) != "clip":
        said = f"its config.json is of a model of the type '{kind}'" if kind else "it has no config.json that says so"
        raise UserError(f"'{folder}' holds no CLIP model of transformers: {said}. {WHERE}")
    for what, names in FILES.items():
        if not any((folder / one).is_file() for one in names):
            raise UserError(f"'{folder}' lacks {what}: {' or '.join(names[:2])}. Fetch the model's whole folder.")
    return f"{PREFIX}{folder.resolve()}"


def needs(name: str) -> Iterator[Need]:
    """What of a spelled name is not on this machine."""
    yield from model_at("model", name.removeprefix(PREFIX), where=WHERE)


def load(name: str, *, device: str, dtype: torch.dtype) -> Parts:
    """
    Raises:
        UserError: something cannot be read, is lacking, or prepares pictures in a way that is not known here.
    """
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    where = name.removeprefix(PREFIX)
    what = f"The CLIP model '{where}'"
    with reading(f"{what} has no tokenizer that can be read"):
        tokenizer = AutoTokenizer.from_pretrained(where)
    with reading(f"{what} says nothing readable of how pictures are prepared"):
        preprocess = preparation(what, AutoImageProcessor.from_pretrained(where))
    model = Encoders(loaded(what, CLIPModel, where, dtype=torch.float32))
    config = model.clip.config
    tokens = Tokens(tokenizer, longest(tokenizer, config.text_config) or config.text_config.max_position_embeddings)
    return Parts(model.to(device, dtype), preprocess, tokens, config.projection_dim)


def preparation(what: str, processor: Any) -> Any:
    """The same by torchvision's transforms, on Pillow's pictures as when these models were trained.

    Raises:
        UserError: it is another than resizing to the shorter edge, cropping to a square, and normalising.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    size, crop = dict(processor.size or {}), dict(processor.crop_size or {})
    edge = size.get("shortest_edge")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    usual = (
        edge and [crop.get("height"), crop.get("width")] == [edge, edge] and all(getattr(processor, it) for it in steps)
    )
    if not usual or int(processor.resample) not in INTERPOLATIONS or abs(255 * processor.rescale_factor - 1) > 1e-6:
        raise UserError(
            f"{what} prepares pictures in a way that is not known here (size {size}, crop_size {crop}, resample "
            f"{processor.resample}). Known is: the shorter edge to a length, a square of that length, values over 255, "
            "normalised."
        )
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    cfg = PreprocessCfg(size=edge, mean=mean, std=std, interpolation=INTERPOLATIONS[int(processor.resample)])
    return image_transform_v2(cfg, is_train=False)
