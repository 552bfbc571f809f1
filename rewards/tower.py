"""One CLIP model, loaded once, whose single image pass feeds every reward that shares it.

CLIP score, the aesthetic heads and the diversity figures all start from the same image embedding. ``open_tower`` gives
two callers that name the same weights the same object, and the tower remembers the pictures it has seen, so that the
second reward of a recipe costs no forward.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Float32
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.rewards.clip_weights import Identity, Precision, identify, load
from raftdiff.types import Sample

WITH_GRADIENT = {"Resize", "CenterCrop", "Normalize", "FitWhole"}
"""Of the transforms by which a model's pictures are prepared, those that take tensors."""
FOR_PILLOW = {"MaybeConvertMode", "MaybeToTensor", "ToTensor"}
"""Those that make a tensor of a picture."""
_RAMP = Image.linear_gradient("L")
REMEMBERED = 16_384
"""Pictures whose features a tower keeps: several rounds of a large run, about 50 MB at 768 numbers each."""


@final
class Tower:
    """The image and text towers of one CLIP model.

    Features are L2-normalised float32, those without gradient on the CPU, whatever the device and precision of the
    model. A picture is converted to RGB, then resized, cropped and normalised as the model's own configuration says.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Any,
        width: int,
        *,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
    ) -> None:
        self.name = name
        self.width = width
        """Numbers in an embedding."""
        self.batch_size = batch_size
        self._model = model.eval().requires_grad_(False)
        self._preprocess, self._tokenizer = preprocess, tokenizer
        self._device, self._dtype = device, dtype
        self._texts: dict[str, torch.Tensor] = {}
        self._seen: OrderedDict[bytes, torch.Tensor] = OrderedDict()

    def image_features(
        self, images: Sequence[Image.Image] | Sequence[Sample[Image.Image]]
    ) -> Float32[torch.Tensor, "images width"]:
        """Embeddings of pictures, or of the pictures of samples."""
        pictures = [_picture(image).convert("RGB") for image in images]
        digests = [pixel_digest(picture) for picture in pictures]
        fresh = {digest: picture for digest, picture in zip(digests, pictures, strict=True) if digest not in self._seen}
        known = {digest: self._seen[digest] for digest in digests if digest not in fresh}
        known.update(zip(fresh, self._encode(list(fresh.values())), strict=True))
        for digest, features in known.items():
            self._seen[digest] = features
            self._seen.move_to_end(digest)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return torch.stack([known[digest] for digest in digests]) if digests else torch.empty(0, self.width)

    def pixel_features(self, pixels: Float[torch.Tensor, "batch 3 high wide"]) -> Float[torch.Tensor, "batch width"]:
        """Embeddings of pictures given as numbers from 0 to 1, RGB, with gradient, on the model's device; nothing is
        remembered. They are resized as pictures are, but for the rounding to bytes.

        Raises:
            UserError: the model prepares its pictures in a way that has no gradient here.
        """
        pixels = prepared(f"The CLIP model '{self.name}'", self._preprocess, pixels)
        return _normalised(self._encoder("encode_image")(pixels.to(self._device, self._dtype)))

    def text_features(self, texts: Sequence[str]) -> Float32[torch.Tensor, "texts width"]:
        """Embeddings of captions, each computed once. Words beyond ``limit`` are not read; ``fits`` says of which.

        Each caption goes through alone: its embedding then depends on nothing but itself, to the bit, and a resumed
        run, which meets the captions in another order, gets the same scores.
        """
        for text in texts:
            if text not in self._texts:
                tokens = self._tokenizer([text]).to(self._device)
                with torch.no_grad():
                    self._texts[text] = _unit(self._encoder("encode_text")(tokens))[0]
        return torch.stack([self._texts[text] for text in texts]) if texts else torch.empty(0, self.width)

    @cached_property
    def mark(self) -> Float32[torch.Tensor, " width"]:
        """The embedding of one pattern, by which weights are known again whatever they are called: the cosine with that
        of the same ones in another precision is near 1, with that of others far below."""
        pattern = Image.merge("RGB", [_RAMP, Image.radial_gradient("L"), _RAMP.rotate(90)])
        with torch.no_grad():
            pixels = self._preprocess(pattern)[None].to(self._device, self._dtype)
            return _unit(self._encoder("encode_image")(pixels))[0]

    @property
    def logit_scale(self) -> float:
        """The factor with which the model was trained to multiply its cosines; 100 in many."""
        scale: torch.Tensor = self._model.logit_scale  # type: ignore[assignment]
        return float(scale.float().exp())

    @property
    def token_limit(self) -> int:
        """Tokens of a caption, those that begin and end it included; 77 for most."""
        return int(self._tokenizer.context_length)

    def reads_whole(self, text: str) -> bool:
        """Whether all of a caption is read: with more room it has the same tokens, but for begin, end and filling."""
        other = {0, *getattr(getattr(self._tokenizer, "tokenizer", self._tokenizer), "all_special_ids", ())}
        room = self.token_limit + len(text.encode())
        read, whole = (
            self._tokenizer([text], context_length=length)[0].tolist() for length in (self.token_limit, room)
        )
        return [token for token in read if token not in other] == [token for token in whole if token not in other]

    def _encode(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Every forward has ``batch_size`` rows, the last filled up with zeros.

        The same shape takes the same kernels, so an embedding does not depend on its companions: to the bit on a CPU,
        where rows of 1 and of 32 would differ by 1e-6.
        """
        features = [torch.empty(0, self.width)]
        for start in range(0, len(pictures), self.batch_size):
            chunk = pictures[start : start + self.batch_size]
            pixels = torch.stack([self._preprocess(picture) for picture in chunk])
            missing = torch.zeros(self.batch_size - len(chunk), *pixels.shape[1:])
            with torch.no_grad():
                rows = self._encoder("encode_image")(torch.cat([pixels, missing]).to(self._device, self._dtype))
            features.append(_unit(rows)[: len(chunk)])
        return torch.cat(features)

    def _encoder(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return cast(Callable[[torch.Tensor], torch.Tensor], getattr(self._model, name))


Prepare = Callable[[Any], Any]
"""Another preparation of pictures, from a model's own."""
_towers: WeakValueDictionary[tuple[Identity, str, str, Prepare | None], Tower] = WeakValueDictionary()
"""Weak, so that a tower leaves memory with the last reward that uses it."""


def open_tower(
    model: str,
    pretrained: str | None = None,
    *,
    device: str = "cpu",
    dtype: Precision = "float32",
    quick_gelu: bool | None = None,
    batch_size: int = 32,
    prepare: Prepare | None = None,
) -> Tower:
    """The tower of these weights, loaded on first use and shared from then on.

    Main arguments:
        model: an open_clip model name (``ViT-L-14``), a folder, ``hf-hub:organisation/name``, or, for a model of
            transformers on the hub, ``transformers:organisation/name``.
        pretrained: for a model name, whose weights: an open_clip tag (``openai``) or a checkpoint file.
    Other arguments:
        device, dtype: where and in which precision the model runs; part of what is shared.
        quick_gelu: read only where ``pretrained`` is a file; elsewhere the weights themselves say it.
        prepare: how pictures become numbers, where it is not as the weights' own configuration says; shared too.
        batch_size: pictures per forward; the smallest that any sharer asked for holds.

    Raises:
        UserError: unknown model or tag, a missing or unsuitable folder or file, or no network where one is needed.
    """
    identity = identify(model, pretrained, quick_gelu)
    key = (identity, device, dtype, prepare)
    tower = _towers.get(key)
    if tower is None:
        parts = load(identity, device, dtype)
        if prepare is not None:
            parts = parts._replace(preprocess=prepare(parts.preprocess))
        run = {"device": device, "dtype": getattr(torch, dtype), "batch_size": batch_size}
        tower = _towers[key] = Tower(*parts, name=identity.name, **run)
    tower.batch_size = min(tower.batch_size, batch_size)
    return tower


def prepared(
    what: str, preprocess: Any, pixels: Float[torch.Tensor, "batch 3 high wide"]
) -> Float[torch.Tensor, "batch 3 side side"]:
    """Pictures given as numbers from 0 to 1, as a preparation of Pillow's pictures would make them, with gradient.

    Raises:
        UserError: there is a step in it that has no gradient here; ``what`` begins the sentence.
    """
    for transform in getattr(preprocess, "transforms", [preprocess]):
        kind = type(transform).__name__
        if kind in WITH_GRADIENT:
            pixels = transform(pixels)
            pixels = pixels.clamp(0, 1) if kind == "Resize" else pixels  # as Pillow does, which ends at 0 and 255
        elif kind not in FOR_PILLOW:
            raise UserError(
                f"{what} prepares its pictures with {kind}, through which no gradient is known. Take a model with "
                "resize_mode squash, or shortest and a square, or a rule that needs no gradient."
            )
    return pixels


def _unit(features: Any) -> torch.Tensor:
    return _normalised(features).cpu()


def _normalised(features: Any) -> torch.Tensor:
    normalised: torch.Tensor = torch.nn.functional.normalize(features.float(), dim=-1)
    return normalised


def _picture(image: Image.Image | Sample[Image.Image]) -> Image.Image:
    return image.media if isinstance(image, Sample) else image


def pixel_digest(picture: Image.Image) -> bytes:
    """Names an RGB picture by its pixels: the same one read from disk again is the same one."""
    digest = hashlib.blake2b(str(picture.size).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()
