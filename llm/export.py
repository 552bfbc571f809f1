"""The tuned weights in the formats that others read: a PEFT adapter, or a whole transformers folder."""

from pathlib import Path
from typing import Literal

from raftdiff.errors import UserError
from raftdiff.llm.finetuner import LMFineTuner
from raftdiff.trainable import merged

Format = Literal["peft", "merged"]


def export(finetuner: LMFineTuner, format: Format, out: Path) -> Path:
    """Write the policy as it stands to the folder ``out``, with the tokenizer; safetensors.

    Raises:
        UserError: an adapter is asked for where every weight was trained, or something else lies at ``out``.
    """
    lm = finetuner.lm
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: something lies there already; name another folder with --out.")
    if format == "peft":
        if finetuner.config.adapter != "lora":
            raise UserError("--format peft: every weight was trained (finetuner.adapter: full); export it as merged.")
        lm.model.peft_config["default"].base_model_name_or_path = lm.name
        lm.model.save_pretrained(out, safe_serialization=True)
    else:
        merged(lm.model).to(lm.dtype).save_pretrained(out, safe_serialization=True)
    lm.tokenizer.save_pretrained(out)
    return out
