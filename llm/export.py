"""The tuned weights in the formats that others read: a PEFT adapter, or a whole transformers folder."""

import warnings
from pathlib import Path
from typing import Literal

from raftdiff.errors import UserError
from raftdiff.llm.learning.finetuner import LMFineTuner
from raftdiff.llm.model.adapters import is_adapter
from raftdiff.llm.model.loading import LM
from raftdiff.llm.ppo.finetuner import PpoFineTuner
from raftdiff.records.disk import together, vacant, written
from raftdiff.training.trainable import merged

Format = Literal["peft", "merged"]


def export(finetuner: LMFineTuner | PpoFineTuner, format: Format, out: Path) -> Path:
    """Write the policy as it stands to the folder ``out``, with the tokenizer; safetensors.

    Raises:
        UserError: an adapter is asked for where every weight was trained or the base is one itself, ``out`` has a
            file's name, something else lies there, or it cannot be written.
        OSError: the disk is full.
    """
    lm = finetuner.lm
    if out.suffix == ".safetensors":
        raise UserError(f"{out}: {format} is a folder, and this names a file; leave .safetensors out.")
    if out.exists() and (not out.is_dir() or not vacant(out)):
        raise UserError(f"{out}: something lies there already; name another folder with --out.")
    if format == "peft" and finetuner.config.adapter != "lora":
        raise UserError("--format peft: every weight was trained (finetuner.adapter: full); export it as merged.")
    if format == "peft" and is_adapter(Path(lm.model.name_or_path)):
        raise UserError(
            f"--format peft: '{lm.name}', which this run began with, is a LoRA itself, and two are not one. Export it "
            "with --format merged."
        )
    with written("the export", out), together(out) as aside:
        _write(lm, format, aside)
    return out


def _write(lm: LM, format: Format, out: Path) -> None:
    if format == "peft":
        config = lm.model.peft_config["default"]
        config.base_model_name_or_path, config.task_type = _base(lm), "CAUSAL_LM"  # peft needs both
        with warnings.catch_warnings():  # the table of tokens is the base's own, whether or not PEFT finds a config
            warnings.filterwarnings("ignore", message="Could not find a config file")
            lm.model.save_pretrained(out, safe_serialization=True)
    else:
        model = merged(lm.model).to(lm.dtype)
        known = model.generation_config.eos_token_id
        if lm.eos[0] not in (known if isinstance(known, list) else [known]):  # else others would not stop where it ends
            model.generation_config.eos_token_id = list(lm.eos)
        model.save_pretrained(out, safe_serialization=True)
    lm.tokenizer.save_pretrained(out)


def _base(lm: LM) -> str:
    """The base as the recipe names it; the folder of a GGUF file in full: it holds no config, and by a word alone PEFT
    would look for it on the hub."""
    named = Path(lm.model.name_or_path)
    return str(named.resolve()) if named.is_dir() and not (named / "config.json").is_file() else lm.model.name_or_path
