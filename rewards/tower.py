"""One CLIP model, loaded once, whose single image pass feeds every reward that shares it.

CLIP score, the aesthetic heads and the diversity figures all start from the same image embedding. ``open_tower`` gives
two callers that name the same weights the same object, and the tower remembers the pictures it has seen, so that the
second reward of a recipe costs no forward.
"""

import difflib
import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float32
from PIL import Image

from raftdiff.errors import Need, UserError
from raftdiff.recipes.needs import from_hub, near
from raftdiff.training.tokenizers import check_tokenizer, check_vocabulary
from raftdiff.training.weights import WRAPPERS, demand_finite, wrapper
from raftdiff.types import Sample

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: Mapping[Precision, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""As open_clip spells them."""

REMEMBERED = 16_384
"""Pictures whose features a tower keeps: several rounds of a large run, about 50 MB at 768 numbers each."""


class Identity(NamedTuple):
    """Which weights, spelt in one way only: two names of the same weights have one identity."""

    model: str
    """What open_clip calls it: a model name, ``hf-hub:...`` or ``local-dir:...``."""
    pretrained: str | None
    """A tag or a file, for a model name only: hub and folder carry their own weights."""
    quick_gelu: bool
    """Whether QuickGELU must be forced, because the name alone would build another activation than was trained."""


@final
class Tower:
    """The image and text towers of one CLIP model.

    Features are L2-normalised float32 on the CPU, whatever the device and precision of the model. A picture is
    converted to RGB, then resized, cropped and normalised as the model's own configuration says.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        preprocess: Callable[[Image.Image], torch.Tensor],
        tokenizer: Any,
        *,
        name: str,
        width: int,
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
        digests = [_digest(picture) for picture in pictures]
        fresh = {digest: picture for digest, picture in zip(digests, pictures, strict=True) if digest not in self._seen}
        known = {digest: self._seen[digest] for digest in digests if digest not in fresh}
        known.update(zip(fresh, self._encode(list(fresh.values())), strict=True))
        for digest, features in known.items():
            self._seen[digest] = features
            self._seen.move_to_end(digest)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return torch.stack([known[digest] for digest in digests]) if digests else torch.empty(0, self.width)

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


_towers: WeakValueDictionary[tuple[Identity, str, str], Tower] = WeakValueDictionary()
"""Weak, so that a tower leaves memory with the last reward that uses it."""


def open_tower(
    model: str,
    pretrained: str | None = None,
    *,
    device: str = "cpu",
    dtype: Precision = "float32",
    quick_gelu: bool | None = None,
    batch_size: int = 32,
) -> Tower:
    """The tower of these weights, loaded on first use and shared from then on.

    Main arguments:
        model: an open_clip model name (``ViT-L-14``), a folder, or ``hf-hub:organisation/name``.
        pretrained: for a model name, whose weights: an open_clip tag (``openai``) or a checkpoint file.
    Other arguments:
        device, dtype: where and in which precision the model runs; part of what is shared.
        quick_gelu: read only where ``pretrained`` is a file; elsewhere the weights themselves say it.
        batch_size: pictures per forward; the smallest that any sharer asked for holds.

    Raises:
        UserError: unknown model or tag, a missing or unsuitable folder or file, or no network where one is needed.
    """
    identity = identify(model, pretrained, quick_gelu)
    key = (identity, device, dtype)
    tower = _towers.get(key)
    if tower is None:
        tower = _towers[key] = _load(identity, device, dtype, batch_size)
    tower.batch_size = min(tower.batch_size, batch_size)
    return tower


def tower_needs(model: str, pretrained: str | None, quick_gelu: bool | None) -> Iterator[Need]:
    """What of a CLIP model is not on this machine."""
    try:
        identity = identify(model, pretrained, quick_gelu)
    except UserError as error:
        yield Need("model", str(error))
        return
    yield from _hub_needs(identity)


def _hub_needs(identity: Identity) -> Iterator[Need]:
    if identity.model.startswith("hf-hub:"):
        hub = identity.model.removeprefix("hf-hub:")
    else:
        import open_clip

        hub = open_clip.get_pretrained_cfg(identity.model, identity.pretrained or "").get("hf_hub", "").rstrip("/")
    if hub:
        yield from from_hub("model", hub)


def identify(model: str, pretrained: str | None = None, quick_gelu: bool | None = None) -> Identity:
    """Which weights are meant, checked without loading them.

    OpenAI's weights, and those of a few others, were trained with QuickGELU; open_clip builds GELU for the bare model
    name and only warns, and the embeddings are wrong in silence. Here the tag decides, and for a file, where nothing
    can be known, the question is asked.
    """
    import open_clip

    known, name = set(open_clip.list_models()), model.replace("/", "-")
    if not model.startswith(("hf-hub:", "local-dir:")) and name in known:
        return _named(name, pretrained, quick_gelu, known)
    folder = Path(model.removeprefix("local-dir:")).expanduser()
    if not model.startswith("hf-hub:") and not folder.is_dir():
        raise UserError(_unknown(model, folder, known))
    if pretrained:
        raise UserError(f"'{model}' carries its own weights; remove 'pretrained: {pretrained}'.")
    if model.startswith("hf-hub:"):
        return Identity(model, None, False)
    _check_folder(folder)
    return Identity(f"local-dir:{folder.resolve()}", None, False)


def _named(name: str, pretrained: str | None, quick_gelu: bool | None, known: set[str]) -> Identity:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    some = f"Its weights: {', '.join(tags)}; or a checkpoint file." if tags else "Name a checkpoint file."
    if not pretrained:
        raise UserError(f"The model '{name}' needs 'pretrained': without it the weights would be random. {some}")
    twin = f"{name}-quickgelu"
    tag = open_clip.get_pretrained_cfg(name, pretrained)
    if not tag and not Path(pretrained).is_file():
        close = difflib.get_close_matches(pretrained, tags, n=1, cutoff=0.5)
        hint = f"Did you mean '{close[0]}'? " if close else ""
        raise UserError(f"'{pretrained}' is neither weights of '{name}' nor a file. {hint}{some}")
    if tag:
        quick = bool(tag.get("quick_gelu"))
    elif quick_gelu is None and twin in known:
        raise UserError(
            f"'{pretrained}' is a file, and '{name}' is trained with GELU by some and with QuickGELU by others; the "
            "wrong one gives wrong scores in silence. Say 'quick_gelu: true' for OpenAI's, MetaCLIP's and DFN's "
            "weights, 'quick_gelu: false' for LAION's and DataComp's."
        )
    else:
        quick = bool(quick_gelu)
    if quick and twin in known:
        return Identity(twin, pretrained, False)
    return Identity(name, pretrained, quick and not name.endswith("-quickgelu"))


def _unknown(model: str, folder: Path, known: set[str]) -> str:
    if model.startswith(("local-dir:", ".", "~", "/")):
        return f"There is no folder '{folder}' to load a CLIP model from. {near(str(folder))}".strip()
    close = difflib.get_close_matches(model, sorted(known), n=3, cutoff=0.5) or ["ViT-B-32", "ViT-L-14", "ViT-H-14"]
    return (
        f"'{model}' is neither a CLIP model that open_clip knows nor a folder. Nearest names: {', '.join(close)}. "
        "A model on the hub is written hf-hub:organisation/name."
    )


def _check_folder(folder: Path) -> None:
    """An open_clip folder with weights: open_clip itself would start from random ones without a word."""
    config = folder / "open_clip_config.json"
    if not config.is_file():
        kinds = {
            "model_index.json": " It holds a diffusers pipeline.",
            "config.json": " It holds a transformers model.",
        }
        kind = next((said for name, said in kinds.items() if (folder / name).is_file()), "")
        raise UserError(f"'{folder}' is not an open_clip folder: it has no open_clip_config.json.{kind}")
    try:
        complete = "embed_dim" in json.loads(config.read_text(encoding="utf-8"))["model_cfg"]
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise UserError(f"'{config}' does not describe an open_clip model: it needs 'model_cfg' with 'embed_dim'.")
    if not any(path.suffix in {".safetensors", ".bin", ".pth"} for path in folder.iterdir()):
        raise UserError(f"'{folder}' has no weights: it needs open_clip_model.safetensors, or a .bin or .pth file.")


def _load(identity: Identity, device: str, dtype: Precision, batch_size: int) -> Tower:
    import open_clip

    if lacking := [need for need in _hub_needs(identity) if not need.fetched]:
        raise UserError(f"The CLIP model {_spelled(identity)}: {lacking[0].sentence}")
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            identity.model,
            identity.pretrained,
            precision=PRECISIONS[dtype],
            device=device,
            force_quick_gelu=identity.quick_gelu,
        )
        tokenizer = open_clip.get_tokenizer(identity.model)
        width = int(open_clip.get_model_config(identity.model)["embed_dim"])
    except Exception as error:
        raise UserError(_failed(identity, error)) from error
    _check_parts(identity, model, tokenizer)
    return Tower(
        model,
        preprocess,
        tokenizer,
        name=" ".join(filter(None, [identity.model.removeprefix("local-dir:"), identity.pretrained])),
        width=width,
        device=device,
        dtype=getattr(torch, dtype),
        batch_size=batch_size,
    )


def _failed(identity: Identity, error: Exception) -> str:
    name = _spelled(identity)
    if wrapped := wrapper(re.findall(r'"([^"]+)"', str(error))):  # as PyTorch lists keys that do not fit
        key, mark = wrapped
        return f"The CLIP model {name}: it holds '{key}': the '{mark}' is not the model's, {WRAPPERS[mark]}."
    reason = str(error).strip().partition("\n")[0][:200]
    local = identity.model.startswith("local-dir:") or Path(identity.pretrained or "").is_file()
    if not local:
        return (
            f"The weights of the CLIP model {name} could not be fetched ({reason}). Without a network, download them "
            "elsewhere and give the folder as 'model', or the file as 'pretrained'."
        )
    return f"The CLIP model {name} could not be loaded: are the weights another model's, or damaged? ({reason})"


def _check_parts(identity: Identity, model: torch.nn.Module, tokenizer: Any) -> None:
    """
    Raises:
        UserError: a weight is no number, or the tokenizer is another model's, as where a folder lacks its own.
    """
    what = f"The CLIP model {_spelled(identity)}"
    demand_finite(what, model)
    texts = getattr(model, "text", model)
    table = next((part for part in texts.modules() if isinstance(part, torch.nn.Embedding)), None)
    if table is None:
        return
    inner = getattr(tokenizer, "tokenizer", None)
    if hasattr(inner, "get_added_vocab"):
        check_tokenizer(what, inner, table.num_embeddings)
    elif hasattr(tokenizer, "encoder"):  # open_clip's own
        check_vocabulary(what, tokenizer.encoder, added=tokenizer.all_special_ids, rows=table.num_embeddings)


def _spelled(identity: Identity) -> str:
    return f"'{identity.model}'" + (f" with '{identity.pretrained}'" if identity.pretrained else "")


def _unit(features: Any) -> torch.Tensor:
    normalised: torch.Tensor = torch.nn.functional.normalize(features.float(), dim=-1).cpu()
    return normalised


def _picture(image: Image.Image | Sample[Image.Image]) -> Image.Image:
    return image.media if isinstance(image, Sample) else image


def _digest(picture: Image.Image) -> bytes:
    """Names an RGB picture by its pixels: the same one read from disk again is the same one."""
    digest = hashlib.blake2b(str(picture.size).encode(), digest_size=16)
    digest.update(picture.tobytes())
    return digest.digest()
