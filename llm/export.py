"""The tuned weights in the formats that others read: a PEFT adapter, or a whole transformers folder."""

from pathlib import Path
from typing import Literal

from safetensors import SafetensorError

from raftdiff.errors import UserError
from raftdiff.llm.learning.finetuner import LMFineTuner
from raftdiff.llm.model.loading import LM
from raftdiff.llm.ppo.finetuner import PpoFineTuner
from raftdiff.training.trainable import merged

Format = Literal["peft", "merged"]


def export(finetuner: LMFineTuner | PpoFineTuner, format: Format, out: Path) -> Path:
    """Write the policy as it stands to the folder ``out``, with the tokenizer; safetensors.

    Raises:
        UserError: an adapter is asked for where every weight was trained, ``out`` has a file's name, something else
            lies there, or it cannot be written.
    """
    lm = finetuner.lm
    if out.suffix == ".safetensors":
        raise UserError(f"{out}: {format} is a folder, and this names a file; leave .safetensors out.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: something lies there already; name another folder with --out.")
    if format == "peft" and finetuner.config.adapter != "lora":
        raise UserError("--format peft: every weight was trained (finetuner.adapter: full); export it as merged.")
    try:
        _write(lm, format, out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{out}: the export cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    return out


def _write(lm: LM, format: Format, out: Path) -> None:
    if format == "peft":
        config = lm.model.peft_config["default"]
        config.base_model_name_or_path, config.task_type = lm.model.name_or_path, "CAUSAL_LM"  # peft needs both
        lm.model.save_pretrained(out, safe_serialization=True)
    else:
        merged(lm.model).to(lm.dtype).save_pretrained(out, safe_serialization=True)
    lm.tokenizer.save_pretrained(out)
