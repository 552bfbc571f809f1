"""Which CLIP weights are meant, whether they are on this machine, and reading them: open_clip's and transformers'.

``tower`` keeps what is read here, once for all who name the same weights.
"""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from raftdiff.errors import Need, UserError
from raftdiff.recipes.needs import demand, from_hub, near
from raftdiff.rewards import transformers_clip
from raftdiff.rewards.transformers_clip import Parts
from raftdiff.training.tokenizers import check_tokenizer, check_vocabulary
from raftdiff.training.weights import WRAPPERS, demand_finite, wrapper

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: Mapping[Precision, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""As open_clip spells them."""


class Identity(NamedTuple):
    """Which weights, spelt in one way only: two names of the same weights have one identity."""

    model: str
    """What open_clip calls it: a model name, ``hf-hub:...`` or ``local-dir:...``; else ``transformers:...``."""
    pretrained: str | None
    """A tag or a file, for a model name only: hub and folder carry their own weights."""
    quick_gelu: bool
    """Whether QuickGELU must be forced, because the name alone would build another activation than was trained."""

    @property
    def name(self) -> str:
        """For people."""
        bare = self.model.removeprefix("local-dir:").removeprefix(transformers_clip.PREFIX)
        return f"{bare} {self.pretrained}" if self.pretrained else bare


def openai_weights(model: str) -> str | None:
    """OpenAI's tag for a name of open_clip, which says nothing of whose weights; None for a folder or hub id, which has
    its own."""
    import open_clip

    return "openai" if model.replace("/", "-") in open_clip.list_models() else None


def clip_needs(model: str, pretrained: str | None, quick_gelu: bool | None) -> Iterator[Need]:
    """What of a CLIP model is not on this machine."""
    try:
        identity = identify(model, pretrained, quick_gelu)
    except UserError as error:
        yield Need("model", str(error))
        return
    yield from _hub_needs(identity)


def _hub_needs(identity: Identity) -> Iterator[Need]:
    if identity.model.startswith(transformers_clip.PREFIX):
        yield from transformers_clip.needs(identity.model)
        return
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
    of_transformers = model.startswith(transformers_clip.PREFIX) or transformers_clip.lies_in(folder)
    if not (of_transformers or model.startswith("hf-hub:") or folder.is_dir()):
        raise UserError(_unknown(model, folder, known))
    if pretrained:
        raise UserError(f"'{model}' carries its own weights; remove 'pretrained: {pretrained}'.")
    if of_transformers:
        return Identity(transformers_clip.spelled(model), None, False)
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
        quick, pretrained = bool(quick_gelu), str(Path(pretrained).resolve())
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


def load(identity: Identity, device: str, dtype: Precision) -> Parts:
    """
    Raises:
        UserError: they are not here, are another model's, or damaged.
    """
    demand(f"The CLIP model {_spelled(identity)}", _hub_needs(identity))
    if identity.model.startswith(transformers_clip.PREFIX):
        parts = transformers_clip.load(identity.model, device=device, dtype=getattr(torch, dtype))
    else:
        parts = _of_open_clip(identity, device, dtype)
    _check_parts(identity, parts.model, parts.tokenizer)
    return parts


def _of_open_clip(identity: Identity, device: str, dtype: Precision) -> Parts:
    import open_clip

    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            identity.model,
            identity.pretrained,
            precision=PRECISIONS[dtype],
            device=device,
            force_quick_gelu=identity.quick_gelu,
        )
        width = int(open_clip.get_model_config(identity.model)["embed_dim"])
        return Parts(model, preprocess, open_clip.get_tokenizer(identity.model), width)
    except Exception as error:
        raise UserError(_failed(identity, error)) from error


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
