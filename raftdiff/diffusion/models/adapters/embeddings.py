"""Textual inversions (arXiv:2208.01618): words of somebody's own, as vectors that the text encoders know."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raftdiff.diffusion.families.family import Family, Modules
from raftdiff.diffusion.models.checkpoints import hub_files
from raftdiff.errors import Need, UserError, counted
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import model_at
from raftdiff.training.tokenizers import table_rows
from raftdiff.training.weights import reading

WHERE = "It can be a .safetensors, .pt or .bin file, a folder with learned_embeds.safetensors, or a hub id."
SAFE, PICKLED = "learned_embeds.safetensors", "learned_embeds.bin"
"""What diffusers calls them in a folder."""
FIRST, SECOND = ("clip_l", "text_encoders_0"), ("clip_g", "text_encoders_1")
"""What the vectors for the first and the second text encoder are called where there are two."""
NAMELESS = ("*", "emb_params", *FIRST, *SECOND)
"""Keys of vectors that are no word: files that hold them are called by it."""
NUMBER = re.compile(r"_\d+$")
"""Behind a token, where it has several vectors."""
OLD_END = 2
"""The end token in configs of CLIP that transformers wrote before it read them: it takes the highest token for the
end, which a word of somebody's own would be."""


class EmbeddingConfig(Config):
    """A textual inversion."""

    path: str
    """A .safetensors, .pt or .bin file (diffusers' or A1111's), a folder of diffusers', or a hub id."""
    token: str | None = None
    """What it is called in prompts; by default as the file says, else as the file is called."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        del resolve  # none ships
        yield from model_at("path", self.path, where=WHERE)


def teach(family: Family, modules: Modules, embeddings: Sequence[EmbeddingConfig]) -> None:
    """Teach tokenizers and text encoders the words, in place. Of several vectors the first is called by the token, the
    others by it with _1, _2 behind; ``families.shared.reading`` writes them all where a caption has the token.

    Raises:
        UserError: one cannot be read, is of another family, or its token is known already.
    """
    if not embeddings:
        return
    encoders = {encoder: name for name, (encoder, _) in family.tokenizers.items()}
    if not all(family.components[encoder].kind.startswith("CLIP") for encoder in encoders):
        raise UserError(
            f"model.embeddings: textual inversions are for models that read captions by CLIP alone, such as Stable "
            f"Diffusion 1.x and XL; {family.told} reads them by more. Leave it out."
        )
    for place, config in enumerate(embeddings):
        what = f"model.embeddings.{place}: {config.path}"
        token, vectors = read(config, what, list(encoders))
        _check(modules, vectors, what)
        for encoder, tokenizer in encoders.items():
            _unknown(modules[tokenizer], token, what)
            words = [token, *(f"{token}_{number}" for number in range(1, len(vectors[encoder])))]
            _put(modules[tokenizer], modules[encoder], words, vectors[encoder])


def read(config: EmbeddingConfig, what: str, encoders: Sequence[str]) -> tuple[str, dict[str, Tensor]]:
    """The token, and vectors by text encoder, a row each.

    Raises:
        UserError: the file is none, or not for as many text encoders.
    """
    path = _file(config.path, what)
    held, named = _vectors(path, what)
    own = named or next((key for key in held if key not in NAMELESS), path.stem)
    token = own if config.token is None else config.token
    if not token or any(letter.isspace() for letter in token):
        raise UserError(f"{what}: '{token}' is no token; give it a name without spaces as model.embeddings.*.token.")
    given = [held[key] for key in (*FIRST, *SECOND) if key in held] or list(held.values())
    if len(given) != len(held):
        raise UserError(f"{what} holds more than a textual inversion: {', '.join(held)}.")
    if len(given) != len(encoders):
        raise UserError(
            f"{what} holds {counted(len(given), 'table')} of vectors, and this model has "
            f"{counted(len(encoders), 'text encoder')}: it is of another family (SDXL's have clip_l and clip_g)."
        )
    return token, {name: _rows(one, what) for name, one in zip(encoders, given, strict=True)}


def without_words(family: Family, modules: Modules) -> dict[str, Any]:
    """The modules with text encoders that know no words but their tokenizers' first ones: programs that open a model in
    one file expect their tables so long, and read textual inversions from files of their own."""
    found = dict(modules)
    for name, (encoder, kind) in family.tokenizers.items():
        rows = table_rows(modules[encoder])
        added = sorted(place for place, word in modules[name].added_tokens_decoder.items() if not word.special)
        if kind == "CLIPTokenizer" and added and added == list(range(added[0], rows)):
            found[encoder] = copy.deepcopy(modules[encoder])
            _resize(found[encoder], modules[encoder].get_input_embeddings().weight.detach()[: added[0]])
    return found


def _check(modules: Modules, vectors: Mapping[str, Tensor], what: str) -> None:
    """
    Raises:
        UserError: vectors of another width or number, or numbers that are none.
    """
    for encoder, rows in vectors.items():
        width = modules[encoder].get_input_embeddings().embedding_dim
        if rows.shape[1] != width:
            raise UserError(
                f"{what}: its vectors have {rows.shape[1]} numbers, and those of this model's {encoder} {width}: it is "
                "of another family (768 in SD 1.x, 1024 in SD 2.x, 768 and 1280 in SDXL)."
            )
        if not bool(rows.isfinite().all()):
            raise UserError(f"{what}: numbers of it are NaN or infinite; the file is damaged.")
    if len({len(rows) for rows in vectors.values()}) > 1:
        counts = " and ".join(str(len(rows)) for rows in vectors.values())
        raise UserError(f"{what}: it has {counts} vectors for the two text encoders, which would not stand together.")


def _unknown(tokenizer: Any, token: str, what: str) -> None:
    """CLIP reads small letters alone: a token is met in captions however it is written there.

    Raises:
        UserError: the tokenizer knows the token, or one of its numbered ones.
    """
    known = tokenizer.get_vocab()
    added = {word.lower() for word in tokenizer.added_tokens_encoder}
    small = token.lower()
    words = {small, f"{small}_1", NUMBER.sub("", small)}
    if token in known or small in known or f"{small}</w>" in known or added & words:
        raise UserError(
            f"{what}: the tokenizer knows '{token}' already, and captions with that word would change their meaning. "
            "Name another as model.embeddings.*.token, such as <my-word>."
        )


def _put(tokenizer: Any, encoder: Any, words: Sequence[str], vectors: Tensor) -> None:
    tokenizer.add_tokens(list(words))
    places = tokenizer.convert_tokens_to_ids(list(words))
    old = encoder.get_input_embeddings().weight.detach()
    rows = max(len(old), max(places) + 1)
    new = torch.cat([old, old.new_zeros(rows - len(old), old.shape[1])])
    new[places] = vectors.to(new)
    _resize(encoder, new)
    for part in encoder.modules():
        if getattr(part, "eos_token_id", None) == OLD_END:
            part.eos_token_id = encoder.config.eos_token_id = tokenizer.eos_token_id


def _resize(encoder: Any, weight: Tensor) -> None:
    table = encoder.get_input_embeddings()
    table.weight, table.num_embeddings = nn.Parameter(weight), len(weight)
    encoder.config.vocab_size = len(weight)


def _file(name: str, what: str) -> Path:
    """
    Raises:
        UserError: nothing is there, or nothing of the kind.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = path if path.is_dir() else hub_files(name, (SAFE, PICKLED), what.partition(":")[0])
    if found := next((folder / file for file in (SAFE, PICKLED) if (folder / file).is_file()), None):
        return found
    held = sorted(folder.glob("*.safetensors"))
    if len(held) != 1:
        raise UserError(f"{what} holds no {SAFE}; name the file that is meant.")
    return held[0]


def _vectors(path: Path, what: str) -> tuple[dict[str, Tensor], str]:
    """Vectors by name, and what a file of A1111's calls itself. No pickled code is run."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        with reading(f"{what} is not a readable safetensors file"):
            return load_file(path), ""
    if path.suffix not in (".pt", ".bin"):
        raise UserError(f"{what}: a textual inversion is read from .safetensors, .pt or .bin.")
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # its words end in advice to run the code all the same
        raise UserError(
            f"{what} cannot be read as plain vectors. It may hold Python code, which raftdiff never runs; look for "
            "its .safetensors."
        ) from None
    if isinstance(found, Tensor):
        return {"*": found}, ""
    whole: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    held = whole.get("string_to_param", whole)
    if not (vectors := {str(key): it.detach() for key, it in held.items() if isinstance(it, Tensor)}):
        raise UserError(f"{what} holds no textual inversion.")
    return vectors, str(whole.get("name") or "") if "string_to_param" in whole else ""


def _rows(vectors: Tensor, what: str) -> Tensor:
    """One vector may come without a row of its own.

    Raises:
        UserError: it holds no vectors.
    """
    rows = vectors[None] if vectors.ndim == 1 else vectors
    if rows.ndim != 2 or not rows.numel() or not rows.is_floating_point():
        raise UserError(f"{what} holds no vectors, but numbers of the shape {tuple(vectors.shape)}.")
    return rows.float()
