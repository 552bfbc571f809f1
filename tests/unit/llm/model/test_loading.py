"""Which folders are language models, how a prompt is written for them, and what is said when something is missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from raftdiff.chat.dialogue import messages
from raftdiff.errors import UserError
from raftdiff.llm.model import loading, tiny
from raftdiff.llm.model.loading import LMConfig, load
from raftdiff.llm.model.turns import ALPACA
from raftdiff.llm.recipe import beside
from raftdiff.llm.sampling.generation import DecodingConfig, generate
from raftdiff.training.devices import find_dtype
from raftdiff.types import Prompt


def ask(text, **meta):
    return Prompt("p", text, text, text, meta=meta)


def spelled(lm, prompt, text=None):
    return lm.tokenizer.decode(lm.prompt_ids(prompt, prompt.sampling if text is None else text))


def written(lm, prompt):
    """The text that is tokenized."""
    return lm.turns.written(prompt, prompt.sampling)


def test_a_folder_is_loaded_frozen_in_evaluation_mode_and_in_the_dtype_asked_for(lm, lm_folder, open_lm):
    assert (lm.device.type, lm.dtype, lm.template, lm.name) == ("cpu", torch.float32, "plain", str(lm_folder))
    assert not lm.model.training
    assert not any(parameter.requires_grad for parameter in lm.model.parameters())
    half = open_lm(lm_folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}


def test_the_machine_is_asked_once_for_a_model(lm_folder, monkeypatch):
    asked = []

    def counted(name, device):
        asked.append((name, device))
        return find_dtype(name, device)

    monkeypatch.setattr(loading, "find_dtype", counted)
    assert load(LMConfig(base=str(lm_folder), device="cpu", dtype="bfloat16"), str).dtype == torch.bfloat16
    assert asked == [("bfloat16", torch.device("cpu"))]


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_precision_by_the_machine_is_bfloat16_where_the_cpu_has_it(tmp_path, open_lm, monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    found = open_lm(tiny.write(tmp_path / "tiny", ("the", "film")), dtype="auto")
    assert found.dtype == dtype
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_that_only_imitates_bfloat16_computes_in_float32(monkeypatch, has, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: has or including_emulation)
    assert find_dtype("auto", torch.device("cuda")) == dtype
    assert find_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16


def test_a_name_is_resolved_and_a_home_folder_is_found(lm_folder, monkeypatch, tmp_path):
    assert load(LMConfig(base="some-name", device="cpu"), lambda name: str(lm_folder)).name == "some-name"
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(lm_folder, tmp_path / "lm")
    assert load(LMConfig(base="~/lm", device="cpu"), str).name == "~/lm"


def test_a_plain_prompt_begins_with_the_tokenizers_own_beginning(lm):
    assert lm.prompt_ids(ask("the film"), "the film") == [1, 4, 5]


def test_alpaca_and_custom_templates_wrap_the_prompt(lm_folder, open_lm):
    alpaca = open_lm(lm_folder, template="alpaca")
    assert written(alpaca, ask("Name a {colour}.")) == ALPACA.format(prompt="Name a {colour}.")
    assert written(alpaca, ask("x")).endswith("### Instruction:\nx\n\n### Response:")
    apart = Prompt("p", "x\n\na {film}", "x\n\na {film}", "x\n\na {film}", meta={"input": "a {film}"})
    assert written(alpaca, apart).endswith("### Instruction:\nx\n\n### Input:\na {film}\n\n### Response:")
    assert "paired with an input" in written(alpaca, apart)
    custom = open_lm(lm_folder, template="Human : {prompt} {prompt} yes")
    assert spelled(custom, ask("good")) == "<bos> Human : good good yes"


def test_without_a_chat_template_a_dialogue_says_who_speaks(lm, lm_folder, open_lm):
    turns = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]
    told = "bad\n\nUser:\nyes\n\nAssistant:\nno\n\nUser:\ngood"
    assert written(lm, ask("good", system="bad", history=turns)) == f"{told}\n\nAssistant:\n"
    custom = open_lm(lm_folder, template="{prompt} Human :")  # says itself how an answer begins
    assert written(custom, ask("good", system="bad", history=turns)) == f"{told} Human :"
    assert written(lm, ask("good", system="bad")) == "bad\n\ngood"


def test_a_chat_template_is_taken_by_itself_with_system_text_and_history(chat_folder, open_lm):
    lm = open_lm(chat_folder)
    assert lm.template == "chat"
    assert spelled(lm, ask("the film")) == "user the film assistant"
    turns = [{"role": "user", "content": "yes"}, {"role": "assistant", "content": "no"}]
    prompt = ask("good", system="dull", history=turns)
    assert spelled(lm, prompt) == "system dull user yes assistant no user good assistant"
    assert spelled(lm, prompt, "bad").endswith("user bad assistant")
    assert messages(ask("good", system=None, history=None), "good") == [{"role": "user", "content": "good"}]


def test_a_chat_template_may_be_passed_by(chat_folder, open_lm):
    assert spelled(open_lm(chat_folder, template="plain"), ask("the film")) == "<bos> the film"


def test_a_chat_template_that_refuses_its_turns_is_a_sentence(chat_folder, changed, open_lm):
    folder = changed(chat_folder, "tokenizer_config.json")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}yes"
    (folder / "chat_template.jinja").write_text(refusing)
    lm = open_lm(folder)
    assert spelled(lm, ask("good")) == "yes"
    with pytest.raises(UserError, match="The prompt 'p': the chat template of .* refuses it .no system here.; change"):
        lm.prompt_ids(ask("good", system="dull"), "good")
    (folder / "chat_template.jinja").write_text("{{ 'a' + 1 }}")
    with pytest.raises(UserError, match="The prompt 'p': the chat template of .* refuses it .can only concatenate"):
        open_lm(folder).prompt_ids(ask("good"), "good")


def test_a_prompt_that_is_too_long_or_empty_is_a_sentence(lm_folder, gpt2, open_lm):
    lm = open_lm(lm_folder, max_prompt_tokens=3)
    assert len(lm.prompt_ids(ask("the film"), "the film")) == 3
    with pytest.raises(UserError, match="The prompt 'p' is 4 tokens long, more than model.max_prompt_tokens .3.;"):
        lm.prompt_ids(ask("x"), "the film was")
    silent = replace(gpt2, template="chat", tokenizer=Blank(gpt2.tokenizer))
    with pytest.raises(UserError, match="The prompt 'p' is empty, and the model needs a token to go on from."):
        silent.prompt_ids(ask(""), "")


class Blank:
    """A tokenizer whose template writes nothing."""

    added_tokens_decoder, bos_token, eos_token_id = {}, None, 2

    def __init__(self, inner):
        self._inner = inner

    def apply_chat_template(self, turns, **options):
        return ""

    def __call__(self, text, **options):
        return self._inner(text, **options)


def test_an_answer_of_somebody_else_ends_and_a_text_is_without_special_tokens(lm, pad_is_eos):
    assert lm.answer_ids("good film") == [7, 5, 2]
    assert lm.answer_ids("") == [2]
    assert lm.text([1, 7, 5, 2, 0]) == "good film"
    assert (lm.pad, pad_is_eos.pad, pad_is_eos.eos) == (0, 2, (2,))


def test_a_tokenizer_without_padding_pads_with_the_end(gpt2):
    assert gpt2.tokenizer.pad_token_id is None
    assert gpt2.pad == 2


def test_end_tokens_are_those_of_the_tokenizer_and_of_the_model(lm_folder, changed, open_lm):
    lm = open_lm(changed(lm_folder, "generation_config.json", eos_token_id=[7, 2, 9]))
    assert lm.eos == (2, 7, 9)
    assert lm.answer_ids("bad")[-1] == 2


def test_the_model_says_how_many_tokens_it_is_made_for(lm, gpt2):
    assert (lm.positions, gpt2.positions) == (1024, 40)


def test_a_model_without_an_end_token_is_refused(lm_folder, changed, open_lm):
    folder = changed(lm_folder, "tokenizer_config.json", eos_token=None)
    assert open_lm(folder).eos == (2,)  # the model still knows one
    for file in ("config.json", "generation_config.json"):
        told = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(told | {"eos_token_id": None}))
    with pytest.raises(UserError, match="the tokenizer of '.*' has no end token, so answers could not end."):
        open_lm(folder)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_a_sentence(name):
    with pytest.raises(UserError, match=f"model.base: there is no folder '{name}'."):
        load(LMConfig(base=name, device="cpu"), str)


def test_a_hub_name_that_cannot_be_reached_is_a_sentence():
    with pytest.raises(UserError, match="model.base: 'nobody/nothing' is not in the hub's cache here, and"):
        load(LMConfig(base="nobody/nothing", device="cpu"), str)


def test_a_model_may_keep_its_lowest_layers_alone(lm, lm_folder, open_lm):
    whole = lm.model.base_model
    cut = open_lm(lm_folder, layers=1)
    assert len(whole.layers) > len(cut.model.base_model.layers) == cut.model.config.num_hidden_layers == 1
    ids = torch.tensor([[1, 5, 6]])
    lower = whole(ids, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(cut.model.base_model(ids).last_hidden_state, whole.norm(lower))
    with pytest.raises(UserError, match=r"model\.layers: 99 of the layers of '.*' are asked for, which has \d"):
        open_lm(lm_folder, layers=99)


def test_a_chat_template_that_is_missing_is_a_sentence(lm_folder, open_lm):
    with pytest.raises(UserError, match="model.template: the tokenizer of '.*' has no chat template; use plain or"):
        open_lm(lm_folder, template="chat")
    with pytest.raises(UserError, match="model.template: 'Answer:' is neither auto, chat, plain nor alpaca, and lacks"):
        open_lm(lm_folder, template="Answer:")


def test_a_folder_without_a_tokenizer_or_without_weights_is_a_sentence(lm_folder, changed, open_lm):
    folder = changed(lm_folder, "config.json")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")  # a pickle is never read
    with pytest.raises(UserError, match="cannot load '.*' as a language model: .*safetensors"):
        open_lm(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="model.base: cannot load the tokenizer of '.*': "):
        open_lm(folder)


def test_damaged_weights_and_weights_of_another_size_are_a_sentence(lm_folder, changed, open_lm):
    folder = changed(lm_folder, "config.json")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    with pytest.raises(UserError, match="cannot load '.*' as a language model: "):
        open_lm(folder)
    with pytest.raises(UserError, match="cannot load '.*' as a language model: "):
        open_lm(changed(lm_folder, "config.json", hidden_size=16))


def test_what_is_no_causal_language_model_is_refused_rather_than_given_a_random_head(lm, lm_folder, open_lm, tmp_path):
    """The library loads a reward model as a language model, and fills the head that it lacks with noise."""
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForSequenceClassification,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4}
    models = {
        "reward": LlamaForSequenceClassification(LlamaConfig(**small, **heads, num_labels=1)),
        "encoder": BertModel(BertConfig(**small, **heads)),
        "translator": T5ForConditionalGeneration(T5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=32, num_layers=1)),
    }
    sentences = {
        "reward": "is no causal language model: its files lack lm_head.weight.",
        "encoder": "is no causal language model: its files lack cls.predictions",
        "translator": "cannot load '.*' as a language model: Unrecognized configuration class",
    }
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        lm.tokenizer.save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=sentences[name]):
            open_lm(tmp_path / name)


def test_tied_weights_are_no_missing_ones(lm, gpt2):
    for one in (lm, gpt2):
        assert one.model.get_output_embeddings().weight is one.model.get_input_embeddings().weight


def test_a_gguf_file_is_taken_out_of_its_quantization(lm, tmp_path, open_lm):
    """Written with the gguf package, float32: the same probabilities as the folder that it was made from."""
    folder = write_gguf(lm, tmp_path / "gguf")
    found = open_lm(folder, gguf_file="tiny.gguf")
    ids = torch.tensor([[1, 4, 5, 6, 7, 8]])
    torch.testing.assert_close(found.model(ids).logits, lm.model(ids).logits, rtol=0, atol=1e-4)
    assert found.eos[0] == 2
    assert found.text([7, 5, 2]) == "good film"
    ((tokens, logprobs),) = generate(found, [[1, 4, 5]], [0], DecodingConfig(max_new_tokens=4))
    assert len(tokens) == len(logprobs) > 0
    found.model.save_pretrained(tmp_path / "out")  # no longer tied to its file
    found.tokenizer.save_pretrained(tmp_path / "out")
    assert torch.equal(open_lm(tmp_path / "out").model(ids).logits, found.model(ids).logits)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_tuned_gguf_model_leaves_as_a_folder(lm, tmp_path, open_lm, adapter):
    from raftdiff.llm.export import export
    from raftdiff.llm.learning.finetuner import LMFineTunerConfig

    found = open_lm(write_gguf(lm, tmp_path / "gguf"), gguf_file="tiny.gguf")
    tuner = LMFineTunerConfig(adapter=adapter, rank=2).build(found, total_rounds=1, max_tokens=8, seed=0)
    for weight in tuner.trainable.live.values():
        weight.add_(0.02)
    tuner.trainable.rest(None)
    ids = torch.tensor([[1, 4, 5, 6, 7, 8]])
    out = export(tuner, "merged", tmp_path / "out")
    torch.testing.assert_close(open_lm(out).model(ids).logits, found.model(ids).logits, rtol=0, atol=1e-4)


def test_a_lora_of_a_gguf_model_goes_on(lm, tmp_path, open_lm):
    from raftdiff.llm.export import export
    from raftdiff.llm.learning.finetuner import LMFineTunerConfig

    folder = write_gguf(lm, tmp_path / "gguf")
    found = open_lm(folder, gguf_file="tiny.gguf")
    tuner = LMFineTunerConfig(adapter="lora", rank=2).build(found, total_rounds=1, max_tokens=8, seed=0)
    for weight in tuner.trainable.live.values():
        weight.add_(0.02)
    tuner.trainable.rest(None)
    lora = export(tuner, "peft", tmp_path / "lora")
    ids = torch.tensor([[1, 4, 5, 6, 7, 8]])
    again = open_lm(lora)  # the one GGUF file of its base is found
    torch.testing.assert_close(again.model(ids).logits, found.model(ids).logits, rtol=0, atol=1e-4)
    marks = beside([LMConfig(base=str(lora))])
    assert set(marks) == {str(folder / "tiny.gguf")}, "its folder holds nothing else to mark"
    with (folder / "tiny.gguf").open("ab") as file:
        file.write(b"1")
    assert beside([LMConfig(base=str(folder), gguf_file="tiny.gguf")])[str(folder / "tiny.gguf")] not in marks.values()
    (folder / "other.gguf").write_bytes(b"")
    with pytest.raises(UserError, match="holds 2 GGUF files; name its own: model.gguf_file=other.gguf"):
        open_lm(lora)


def write_gguf(lm, folder: Path) -> Path:
    import gguf

    folder.mkdir()
    config, weights = lm.model.config, lm.model.state_dict()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = [lm.tokenizer.convert_ids_to_tokens(number) for number in range(config.vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token if number < 4 else f"▁{token}" for number, token in enumerate(tokens)])
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([3, 3, 3, 2] + [1] * (len(tokens) - 4))
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(3)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for theirs, ours in names.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            if ours in ("attn_q", "attn_k"):  # llama.cpp turns neighbouring pairs, transformers the two halves
                heads = config.num_attention_heads if ours == "attn_q" else config.num_key_value_heads
                rows, columns = weight.shape
                weight = weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
            writer.add_tensor(f"blk.{layer}.{ours}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


@pytest.fixture
def rewritten(lm_folder, tmp_path):
    """A copy of the tiny model whose weights ``change`` has changed."""

    def write(change):
        folder = shutil.copytree(lm_folder, tmp_path / "changed")
        save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
        return folder

    return write


@pytest.mark.parametrize("mark", ["_orig_mod.", "module."])
def test_what_a_training_wrapped_names_its_wrapper(rewritten, open_lm, mark):
    folder = rewritten(lambda weights: {f"{mark}{name}": it for name, it in weights.items()})
    with pytest.raises(UserError, match=rf"its files lack .* but hold '{mark}model.*: the '{mark}' is not the model's"):
        open_lm(folder)


def test_a_model_that_was_saved_with_its_adapter_on(rewritten, open_lm):
    folder = rewritten(lambda w: {name.replace("q_proj.", "q_proj.base_layer."): it for name, it in w.items()})
    with pytest.raises(UserError, match="the 'base_layer.' is not the model's, PEFT puts it there"):
        open_lm(folder)


def test_weights_that_are_no_numbers(rewritten, open_lm):
    with pytest.raises(UserError, match=r"1 of the \d+ numbers of model.norm.weight are NaN or infinite"):
        open_lm(rewritten(lambda w: {**w, "model.norm.weight": w["model.norm.weight"].index_fill(0, ZERO, torch.inf)}))


ZERO = torch.tensor([0])


def with_tokens(folder, path, **special):
    """A copy of ``folder`` whose tokenizer alone has further tokens."""
    from transformers import AutoTokenizer

    shutil.copytree(folder, path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(path)
    return path


def test_a_filling_past_the_models_table_is_not_used(lm_folder, open_lm, tmp_path):
    lm = open_lm(with_tokens(lm_folder, tmp_path / "it", pad_token="[PAD]"))
    assert lm.tokenizer.pad_token_id >= lm.model.get_input_embeddings().num_embeddings
    assert lm.pad == lm.eos[0]
    prompts = [lm.prompt_ids(ask(text), text) for text in ("the", "the film was")]
    assert len(generate(lm, prompts, [0, 1], DecodingConfig(max_new_tokens=3))) == 2


def test_a_token_past_the_models_table_is_named_where_a_text_holds_it(lm_folder, open_lm, tmp_path):
    lm = open_lm(lm_folder)
    lm.tokenizer.add_tokens(["<tool>"])
    with pytest.raises(UserError, match=r"it holds '<tool>', a token that was added to the tokenizer \(id 16\)"):
        lm.prompt_ids(ask("the <tool>"), "the <tool>")
    with pytest.raises(UserError, match=r"it holds '<tool>'.* the network does not know \(16 tokens\); take it out"):
        lm.answer_ids("<tool> good")
    special = open_lm(with_tokens(lm_folder, tmp_path / "it", additional_special_tokens=["<tool>"]))
    assert special.answer_ids("<tool> good") == [3, 3, 7, 2]  # a special one is never meant by a text


def test_an_end_past_the_models_table_is_refused(lm_folder, open_lm, tmp_path):
    with pytest.raises(UserError, match=r"the tokenizer's eos token '<end>' has the id 16, and the network knows 16"):
        open_lm(with_tokens(lm_folder, tmp_path / "it", eos_token="<end>"))


def test_a_tokenizer_of_another_model_or_without_a_vocabulary(lm_folder, chat_folder, open_lm, tmp_path):
    other = shutil.copytree(lm_folder, tmp_path / "other")
    shutil.copy(chat_folder / "tokenizer.json", other / "tokenizer.json")
    with pytest.raises(UserError, match="the tokenizer knows 19 tokens, the network only 16; it is another model's"):
        open_lm(other)
    empty = shutil.copytree(lm_folder, tmp_path / "empty")
    told = json.loads((empty / "tokenizer.json").read_text())
    told["model"]["vocab"] = {word: at for word, at in told["model"]["vocab"].items() if at < 4}
    (empty / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match="the tokenizer has no vocabulary, only 4 special tokens"):
        open_lm(empty)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_configs_that_are_no_objects(lm_folder, open_lm, tmp_path, file):
    folder = shutil.copytree(lm_folder, tmp_path / "it")
    (folder / file).write_text("[]")
    with pytest.raises(UserError, match=r"model.base: cannot load .*: "):
        open_lm(folder)


def test_a_size_that_is_a_text_is_a_sentence(lm_folder, changed, open_lm):
    with pytest.raises(UserError, match="model.base: cannot load .* 'hidden_size'.* expected int, got str"):
        open_lm(changed(lm_folder, "config.json", hidden_size="wide"))


def test_a_shard_index_that_names_a_pickle_is_a_sentence(lm_folder, open_lm, tmp_path):
    folder = shutil.copytree(lm_folder, tmp_path / "it")
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "pytorch_model-00001.bin")
    (folder / "model.safetensors").rename(folder / "pytorch_model-00001.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(UserError, match="cannot load '.*' as a language model: "):
        open_lm(folder)
