"""What was learnt leaves in the formats of peft and transformers, and says the same there."""

import errno
import json

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.export import export
from raftdiff.llm.learning.finetuner import LMFineTunerConfig
from raftdiff.llm.sampling.generation import DecodingConfig, generate
from raftdiff.types import Item, Prompt, Sample, Selection, silent

# peft asks transformers in words that its latest version deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

IDS = torch.tensor([[1, 4, 5, 6, 7, 8, 9, 2]])


def tuned(folder, open_lm, dtype="float32", **options):
    lm = open_lm(folder, dtype=dtype)
    config = LMFineTunerConfig(learning_rate=2e-2, batch_size=1, rank=4, alpha=8, **options)
    tuner = config.build(lm, total_rounds=1, max_tokens=8, seed=0)
    before = lm.model(IDS).logits
    samples = [Sample(0, Prompt(t, t, t, t), 0, 0, "dataset", f"{t} film") for t in ("good", "bad", "long")]
    store = {one.key: one for one in samples}
    tuner.fit(Selection("weighted", tuple(Item((key,)) for key in store)), store, seed=0, report=silent)
    assert (lm.model(IDS).logits - before).abs().max() > 0.05
    return tuner


def close(found, tuner, tolerance=1e-5):
    torch.testing.assert_close(found.eval()(IDS).logits, tuner.lm.model(IDS).logits, rtol=0, atol=tolerance)


def test_an_adapter_is_loaded_by_transformers_and_by_peft(lm_folder, open_lm, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tuner = tuned(lm_folder, open_lm)
    policy = tuner.lm.model(IDS).logits
    out = export(tuner, "peft", tmp_path / "out")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {f.name for f in out.iterdir()}
    assert not list(out.glob("model*.safetensors"))
    close(AutoModelForCausalLM.from_pretrained(out), tuner)
    close(AutoPeftModelForCausalLM.from_pretrained(out), tuner)
    close(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lm_folder), out), tuner)
    assert AutoTokenizer.from_pretrained(out)("good film")["input_ids"] == [1, 7, 5]
    assert torch.equal(tuner.lm.model(IDS).logits, policy)  # the run goes on as it was


def test_an_adapter_names_the_folder_of_its_base_and_not_the_name_in_the_recipe(lm_folder, tmp_path):
    """A model that ships has a name that only raftdiff knows."""
    from peft import AutoPeftModelForCausalLM

    from raftdiff.llm.model.loading import LMConfig, load

    tuner = tuned("review-lm", lambda base, **o: load(LMConfig(base=base, device="cpu", **o), lambda n: str(lm_folder)))
    out = export(tuner, "peft", tmp_path / "out")
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(lm_folder)
    close(AutoPeftModelForCausalLM.from_pretrained(out), tuner)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_merged_weights_are_an_ordinary_model(lm_folder, open_lm, tmp_path, adapter):
    from transformers import AutoModelForCausalLM

    tuner = tuned(lm_folder, open_lm, adapter=adapter)
    out = export(tuner, "merged", tmp_path / "out")
    assert not (out / "adapter_config.json").exists()
    close(AutoModelForCausalLM.from_pretrained(out), tuner)
    again = open_lm(out)
    close(again.model, tuner)
    how = DecodingConfig(max_new_tokens=8)
    mine, theirs = (generate(one, [[1, 4, 5]], [7], how)[0] for one in (tuner.lm, again))
    assert mine[0] == theirs[0]


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_half_precision_leaves_in_half_precision(lm_folder, open_lm, tmp_path, adapter):
    tuner = tuned(lm_folder, open_lm, dtype="bfloat16", adapter=adapter)
    out = export(tuner, "merged", tmp_path / "out")
    again = open_lm(out, dtype="bfloat16")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    close(again.model, tuner, tolerance=0.25 if adapter == "lora" else 0)  # merging rounds once more


def test_the_chat_template_and_the_models_own_generation_settings_leave_too(chat_folder, changed, open_lm, tmp_path):
    folder = changed(chat_folder, "generation_config.json", eos_token_id=2, top_k=7, do_sample=True)
    tuner = tuned(folder, open_lm)
    generate(tuner.lm, [[1, 4]], [0], DecodingConfig(max_new_tokens=2))
    again = open_lm(export(tuner, "merged", tmp_path / "out"))
    assert again.template == "chat"
    assert again.model.generation_config.top_k == 7


def test_others_stop_where_the_tuned_model_was_taught_to_end_its_turns(chat_folder, changed, open_lm, tmp_path):
    from transformers import AutoTokenizer

    folder = changed(chat_folder, "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["yes"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} yes {% endfor %}"
    tokenizer.save_pretrained(folder)
    tuner = tuned(folder, open_lm)
    yes = tokenizer.convert_tokens_to_ids("yes")
    assert tuner.lm.eos == (yes, 2)
    again = open_lm(export(tuner, "merged", tmp_path / "out"))
    assert again.model.generation_config.eos_token_id == [yes, 2]


def test_no_adapter_of_a_full_fine_tune_and_nothing_is_overwritten(lm_folder, open_lm, tmp_path):
    tuner = tuned(lm_folder, open_lm, adapter="full")
    with pytest.raises(UserError, match="every weight was trained .finetuner.adapter: full.; export it as merged."):
        export(tuner, "peft", tmp_path / "out")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="something lies there already; name another folder with --out."):
        export(tuner, "merged", tmp_path)
    with pytest.raises(UserError, match="something lies there already"):
        export(tuner, "merged", tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="thesis.txt/out: the export cannot be written: "):
        export(tuner, "merged", tmp_path / "thesis.txt" / "out")


@pytest.mark.parametrize("form", ["peft", "merged"])
def test_an_export_on_a_full_disk_is_a_sentence_and_leaves_nothing(lm_folder, open_lm, tmp_path, monkeypatch, form):
    tuner = tuned(lm_folder, open_lm)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(tuner.lm.tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device") as told:
        export(tuner, form, tmp_path / "out")
    assert told.value.filename == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()
