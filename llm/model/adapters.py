"""A LoRA in PEFT's format as the model that a recipe begins with: put into the weights of its own base."""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from raftdiff.errors import UserError
from raftdiff.training.weights import reading

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


class Source(NamedTuple):
    """Where the weights of a language model lie."""

    root: str
    """The folder or hub id of the whole model."""
    gguf_file: str | None
    """The file of that folder that holds them, where they are in GGUF."""
    adapter: Path | None = None
    """The folder of a LoRA on top."""

    @property
    def beside(self) -> list[str]:
        """What its weights are read from beside the safetensors of the folder that ``model.base`` names."""
        file = [str(Path(self.root) / self.gguf_file)] if self.gguf_file else []
        return [*([self.root] if self.adapter else []), *file]


def source(base: str, where: str, gguf_file: str | None = None) -> Source:
    """What ``model.base``, which lies at ``where``, is made of. The base of a LoRA is looked for where its config says,
    from the current folder and from its own; the one GGUF file of a folder that holds no other model is found.

    Raises:
        UserError: the config of a LoRA names no base, or one that is not where it says.
    """
    folder = Path(where).expanduser()
    if not is_adapter(folder):
        return Source(where, gguf_file)
    with reading(f"model.base: {folder / CONFIG} cannot be read"):
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not named or not isinstance(named, str):
        raise UserError(f"model.base: '{base}' is a LoRA that does not name its base; add it to {CONFIG}.")
    places = [Path(named).expanduser(), folder / named, folder.parent / named]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        if named.startswith((".", "/", "~")) or named.count("/") != 1:  # a hub id has an owner and a name
            raise UserError(
                f"model.base: '{base}' is a LoRA of '{named}', which is no folder here. Start where it is, or write "
                f"where it lies into {folder / CONFIG} (base_model_name_or_path)."
            )
        return Source(named, gguf_file, folder)
    held = sorted(path.name for path in root.glob("*.gguf"))
    if gguf_file is None and held and not (root / "config.json").is_file():
        if len(held) > 1:
            raise UserError(
                f"model.base: '{base}' is a LoRA of '{root}', which holds {len(held)} GGUF files; name its own: "
                f"model.gguf_file={held[0]}"
            )
        gguf_file = held[0]
    return Source(str(root), gguf_file, folder)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a LoRA alone, and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with the LoRA of ``folder`` in its weights.

    Raises:
        UserError: it is damaged, pickled, or another model's.
    """
    import peft

    if not (folder / WEIGHTS).is_file():
        raise UserError(f"model.base: the LoRA in {folder} has no {WEIGHTS}, which alone is read; fetch or convert it.")
    with reading(f"model.base: the LoRA in {folder} cannot be put into its base"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT and transformers warn of each other's old names
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would be left at nothing
        merged = peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    merged.name_or_path = str(folder)
    return merged
