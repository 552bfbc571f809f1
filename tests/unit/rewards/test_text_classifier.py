"""Sequence classifiers in miniature, built here: the score is read where the answer ends, whatever stands beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.rewards.classifier import ClassifierConfig, ClassifierReward, values
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Prompt, Sample

TEXT = "<s> </s> <unk> [CLS] [SEP] how are you i am only a model very well thank Human : User Assistant kind"
WORDS = TEXT.split()
CHAT = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} </s> {% endfor %}"


def tokenizer(folder: Path, *, bert: bool = False, pad: str | None = None, chat: str | None = None) -> Any:
    """Words between spaces. ``pad`` is None for the many decoders that have none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bert:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", WORDS.index("[CLS]")), ("[SEP]", WORDS.index("[SEP]"))],
        )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | ({"pad_token": pad} if pad else {})
    inputs = ["input_ids", "token_type_ids", "attention_mask"] if bert else ["input_ids", "attention_mask"]
    fast = PreTrainedTokenizerFast(tokenizer_object=made, chat_template=chat, model_input_names=inputs, **names)
    fast.save_pretrained(folder)
    return fast


def config(family: str, **changes: Any) -> Any:
    import transformers

    size = {"vocab_size": len(WORDS), "num_labels": 1, "pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
    if family == "gpt2":
        return transformers.GPT2Config(
            **(size | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} | changes)
        )
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    kind = {"llama": transformers.LlamaConfig, "bert": transformers.BertConfig, "roberta": transformers.RobertaConfig}
    pad = {"bert": {"pad_token_id": 2}, "roberta": {"pad_token_id": 2, "type_vocab_size": 1}}.get(family, {})
    return kind[family](**(size | shape | {"max_position_embeddings": 64} | pad | changes))


def network(settings: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(settings)
        for parameter in model.parameters():  # wide enough that another token is another score
            torch.nn.init.normal_(parameter, std=0.3)
    return model


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A folder with a tiny classifier of a family and its tokenizer."""

    def build(family: str, *, pad: str | None = None, chat: str | None = None, **changes: Any) -> Path:
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        network(config(family, **changes)).save_pretrained(folder)
        tokenizer(folder, bert="bert" in family, pad=pad, chat=chat)
        return folder

    return build


def reward(folder: Path, **options: Any) -> ClassifierReward:
    return ClassifierConfig(model=str(folder), **{"template": "{prompt} {answer}", **options}).build()


def answers(*texts: str, **meta: Any) -> list[Sample[str]]:
    prompt = Prompt("p", "how are you", "", "", meta=meta)
    return [Sample(0, prompt, index, index, "policy", text) for index, text in enumerate(texts)]


ANSWERS = answers("very well", "i am only a model", "well", "i am very very well thank you", "kind", "model")


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
@pytest.mark.parametrize("pad", [None, "</s>", "<unk>"])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_padding_does_not_matter(make: Make, family: str, pad: str | None, batch_size: int) -> None:
    folder = make(family, pad=pad)
    found = reward(folder, batch_size=batch_size)
    report = check_reward(found, ANSWERS, tolerance=1e-4)
    assert all(check.passed for check in report.checks), str(report)
    singly = torch.cat([reward(folder, batch_size=1).score([sample]) for sample in ANSWERS])
    torch.testing.assert_close(found.score(ANSWERS), singly)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("pad", [None, "</s>"])
def test_a_decoder_is_read_at_the_last_token_even_if_it_is_eos(make: Make, family: str, pad: str | None) -> None:
    """Each position's score from the hidden states, by hand: transformers' own rule stops before a pad that is EOS."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = make(family, pad=pad, pad_token_id=1 if pad else None)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)
    wanted, naive = [], []
    for sample in ANSWERS:
        ids = torch.tensor([words(f"how are you {sample.media} </s>")["input_ids"]])
        with torch.inference_mode():
            hidden = model.base_model(ids).last_hidden_state
            wanted.append(float(model.score(hidden)[0, -1, 0]))
            naive.append(float(model(ids).logits[0, 0]))
    found = reward(folder, template="{prompt} {answer} </s>").score(ANSWERS)
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    if pad:
        assert abs(naive[-1] - wanted[-1]) > 1e-3, "the trap is there, and not fallen into"


def test_a_batch_that_uses_every_token_is_scored_row_by_row(make: Make) -> None:
    found = reward(make("llama"), template="{answer}")
    texts = [" ".join(WORDS[: len(WORDS) // 2]), " ".join(WORDS[len(WORDS) // 2 :]), "well"]
    singly = torch.cat([found.score(answers(text)) for text in texts])
    torch.testing.assert_close(found.score(answers(*texts)), singly)


def test_eos_is_appended_on_request(make: Make) -> None:
    folder = make("llama", pad="</s>")
    with_eos = reward(folder, append_eos=True).score(answers("very well"))
    torch.testing.assert_close(with_eos, reward(folder, template="{prompt} {answer} </s>").score(answers("very well")))
    for brought in ("very well </s>", "very well </s> </s>"):
        torch.testing.assert_close(with_eos, reward(folder, append_eos=True).score(answers(brought)))
    assert with_eos != reward(folder).score(answers("very well"))
    with pytest.warns(UserWarning, match="reads 1 of 1 texts.* without their beginnings"):
        long = reward(folder, append_eos=True, max_tokens=8).score(answers("i am only a model very well thank you"))
    torch.testing.assert_close(
        long, reward(folder, template="{answer} </s>").score(answers("only a model very well thank you"))
    )


def rows(found: ClassifierReward, *texts: str, **meta: Any) -> list[str]:
    """What the network reads."""
    seen: list[list[int]] = []
    found._model.register_forward_pre_hook(
        lambda _, __, given: seen.extend(given["input_ids"].tolist()), with_kwargs=True
    )
    for text in texts:
        found.score(answers(text, **meta))
    return [" ".join(WORDS[token] for token in row) for row in seen]


def test_eos_stands_once_whoever_writes_it(make: Make) -> None:
    said = ("very well", "very well </s>")
    closing = reward(make("bert"), append_eos=True)
    closing._tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    closed = ClassifierReward(closing._model, closing._tokenizer, template="{answer}", append_eos=True)
    assert rows(closed, "very well", "very well [SEP]") == ["[CLS] very well [SEP]"] * 2, "the tokenizer"
    assert rows(reward(make("llama"), template="{answer} </s> ", append_eos=True), *said) == ["very well </s>"] * 2
    template = "{% for m in messages %}{{ m['content'] }} </s>\n{% endfor %}"
    folder = make("llama", chat=template)
    assert rows(reward(folder, form="chat", append_eos=True), *said) == ["how are you </s> very well </s>"] * 2
    with pytest.warns(UserWarning, match="without their ends"):
        long = rows(reward(folder, form="chat", append_eos=True, max_tokens=8, truncate="right"), "kind " * 9)
    assert long == ["how are you </s> kind kind kind </s>"]


def test_a_turns_end_that_the_answer_brings_is_the_templates_alone(make: Make) -> None:
    folder = make("llama", chat="{% for m in messages %}{{ m['content'] }} [SEP] {% endfor %}")
    turns = [{"role": "user", "content": "kind"}, {"role": "assistant", "content": "thank you [SEP]"}]
    made = ClassifierConfig(model=str(folder)).build()._tokenizer
    made.add_tokens(["[SEP]"])  # no special one: it ends a turn all the same
    made.save_pretrained(folder)
    found = rows(reward(folder, form="chat"), "very well", "very well [SEP]", "very well [SEP] </s>", history=turns)
    assert found == ["kind [SEP] thank you [SEP] how are you [SEP] very well [SEP]"] * 3
    (text,) = rows(reward(folder, form="chat"), "very [SEP] well")
    assert text == "how are you [SEP] very <unk> <unk> well [SEP]"


def test_truncation_takes_the_side_that_was_said(make: Make) -> None:
    folder = make("llama")
    text = "i am only a model very well thank you"
    with pytest.warns(UserWarning, match=r"'classifier' reads 1 of 2 texts.* beginnings: they are .* max_tokens \(8\)"):
        left = reward(folder, max_tokens=8).score(answers(text, "well"))[:1]
    with pytest.warns(UserWarning, match="without their ends"):
        right = reward(folder, max_tokens=8, truncate="right").score(answers(text))
    plain = reward(folder, template="{answer}")
    torch.testing.assert_close(left, plain.score(answers("am only a model very well thank you")))
    torch.testing.assert_close(right, plain.score(answers("how are you i am only a model")))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "roberta"])
def test_a_text_longer_than_the_model_reads_is_truncated(make: Make, family: str) -> None:
    found, long = reward(make(family)), answers("well " * 500, "well " * 50 + "thank " * 450)
    with pytest.warns(UserWarning, match="reads 2 of 2 texts"):
        assert found.score(long).isfinite().all()


def test_the_answer_is_cut_at_the_next_turn(make: Make) -> None:
    folder = make("llama")
    cut = reward(folder, cut_at=["Human :", "Assistant :"]).score(answers("very well Human : how are you"))
    torch.testing.assert_close(cut, reward(folder).score(answers("very well ")))


def test_a_conversation_by_the_chat_template(make: Make) -> None:
    history = [{"role": "User", "content": "how are you"}, {"role": "Assistant", "content": "very well"}]
    folder = make("llama", chat=CHAT)
    found = reward(folder, form="chat").score(answers("thank you", history=history))
    text = "User how are you </s> Assistant very well </s> user how are you </s> assistant thank you </s>"
    torch.testing.assert_close(found, reward(folder, template=text).score(answers("")))
    said = [f"thank you {mark} user how" for mark in ("</s>", "? ?")]  # no token, whatever the vocabulary
    torch.testing.assert_close(*(reward(folder, form="chat").score(answers(one)) for one in said))
    with pytest.raises(UserError, match="the tokenizer has no chat template; use form: template"):
        reward(make("llama"), form="chat")


def test_prompt_and_answer_as_two_segments(make: Make) -> None:
    folder = make("bert")
    found = reward(folder, form="pair").score(answers("very well"))
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, words = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    encoded = words("how are you", "very well", return_tensors="pt")
    assert encoded["token_type_ids"].tolist() == [[0] * 5 + [1] * 3]
    with torch.inference_mode():
        torch.testing.assert_close(found, model(**encoded).logits[0])
    assert abs(float(found - reward(folder).score(answers("very well")))) > 1e-4


def test_log_odds_and_probability_of_a_label() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]])
    probability = logits.softmax(dim=1)
    torch.testing.assert_close(values(logits, 1, "probability"), probability[:, 1])
    torch.testing.assert_close(values(logits, 1, "log_odds"), (probability / (1 - probability)).log()[:, 1])
    torch.testing.assert_close(values(logits, 1, "log_odds", independent=True), logits[:, 1])
    torch.testing.assert_close(values(logits, 1, "probability", independent=True), logits[:, 1].sigmoid())
    torch.testing.assert_close(values(logits[:, :1], 0, "log_odds"), logits[:, 0])
    torch.testing.assert_close(values(logits[:, :1], 0, "probability"), logits[:, 0].sigmoid())


def test_labels_go_by_their_names(make: Make) -> None:
    labels = {
        "num_labels": 3,
        "id2label": {0: "sad", 1: "neutral", 2: "happy"},
        "label2id": {"sad": 0, "neutral": 1, "happy": 2},
    }
    folder = make("bert", **labels)
    found = [reward(folder, label=label, output="probability").score(ANSWERS) for label in ("sad", "neutral", "happy")]
    torch.testing.assert_close(sum(found), torch.ones(len(ANSWERS)))
    with pytest.raises(
        UserError, match=r"this model has several labels; say which is wanted. Known: happy, neutral, sad"
    ):
        reward(folder)
    with pytest.raises(UserError, match=r"'hapy' is no label of this model. Did you mean 'happy'\?"):
        reward(folder, label="hapy")
    both = reward(make("bert", **labels, problem_type="multi_label_classification"), label="sad", output="probability")
    torch.testing.assert_close(both.score(ANSWERS).logit(), found_logits(folder, ANSWERS)[:, 0], atol=1e-4, rtol=1e-4)


def found_logits(folder: Path, samples: Sequence[Sample[str]]) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, words = (
        AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    with torch.inference_mode():
        rows = [model(**words(f"how are you {sample.media}", return_tensors="pt")).logits[0] for sample in samples]
    return torch.stack(rows)


def test_nothing_to_read_is_discarded(make: Make) -> None:
    found = reward(make("llama"), template="{answer}").score(answers("", "well"))
    assert found.isnan().tolist() == [True, False]
    assert reward(make("llama"), template="{answer}").score([]).shape == (0,)


def test_half_precision_stays_near(make: Make) -> None:
    folder = make("llama")
    exact, half = (reward(folder, dtype=dtype).score(ANSWERS) for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, atol=0.1 * float(exact.abs().max()), rtol=0.1)


def test_a_score_that_is_not_finite_gets_a_sentence(make: Make) -> None:
    from transformers import AutoTokenizer

    folder = make("llama")
    model = network(config("llama"))
    torch.nn.init.constant_(model.score.weight, float("inf"))
    broken = ClassifierReward(model, AutoTokenizer.from_pretrained(folder))
    with pytest.raises(
        UserError, match=r"The reward 'classifier' gave (nan|inf|-inf) for an answer to prompt 'p'; set its"
    ):
        broken.score(answers("well"))


def test_a_model_without_a_trained_head_is_refused(make: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "base"
    AutoModelForCausalLM.from_config(config("llama")).save_pretrained(folder)
    tokenizer(folder)
    with pytest.raises(UserError, match="is no trained classifier: its files lack score.weight, which would be ran"):
        reward(folder)


def test_pickled_weights_are_not_read(make: Make) -> None:
    folder = make("llama")
    (folder / "model.safetensors").unlink()
    torch.save(network(config("llama")).state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot load .* It takes a folder or an id with safetensors weights"):
        reward(folder)


def test_a_folder_that_is_not_there_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="The reward 'classifier' cannot load '.*nowhere'"):
        reward(tmp_path / "nowhere")


def test_embedded_names_are_resolved(make: Make) -> None:
    folder = make("llama")
    found = ClassifierConfig(model="tiny-judge").build(
        resolve=lambda name: str(folder) if name == "tiny-judge" else name
    )
    assert found.score(answers("well")).isfinite().all()


def test_appending_what_is_not_there_gets_a_sentence(make: Make) -> None:
    from transformers import AutoTokenizer

    folder = make("llama")
    words = AutoTokenizer.from_pretrained(folder)
    words.eos_token = None
    with pytest.raises(UserError, match="the tokenizer has no EOS token to append; leave append_eos out"):
        ClassifierReward(network(config("llama")), words, append_eos=True)
