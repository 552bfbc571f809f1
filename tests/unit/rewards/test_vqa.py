"""Rewards that ask a vision-language model, against the model's own forward pass on one picture at a time."""

import base64
import io
import json
import math
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes import needs as recipe_needs
from raftdiff.recipes.config import check
from raftdiff.recipes.prompts import PromptsConfig, build, inline
from raftdiff.rewards import tiny
from raftdiff.rewards.questions import Question, spellings
from raftdiff.rewards.soft_tifa import SoftTifaConfig, SoftTifaReward
from raftdiff.rewards.vlm import LocalVlm, load
from raftdiff.rewards.vlm_server import likeliest
from raftdiff.rewards.vqa import VqaConfig
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples
from raftdiff.testing.servers import server
from raftdiff.types import KeepsReplies, Prompt, Sample

FAMILIES = {"smolvlm": tiny.write_smolvlm, "qwen2_vl": tiny.write_qwen2_vl}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    place = tmp_path_factory.mktemp("vlm")
    return {name: write(place / name) for name, write in FAMILIES.items()}


@cache
def read(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)


def first(folder: Path, picture: Image.Image, text: str) -> dict[str, float]:
    """The probabilities of the first token of a greedy answer, as GenEval 2's script reads them: one picture, with
    ``generate``."""
    processor, model = read(folder)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": text}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    options = {"max_new_tokens": 1, "do_sample": False, "output_scores": True, "return_dict_in_generate": True}
    probabilities = model.generate(**inputs, **options).scores[0][0].softmax(dim=-1).tolist()
    words = processor.tokenizer.batch_decode([[token] for token in range(len(probabilities))])
    return dict(zip(words, probabilities, strict=True))


def various() -> list[Sample[Image.Image]]:
    """Pictures of three sizes, captions of several lengths."""
    sizes = [(64, 64), (48, 64), (64, 64), (90, 40), (64, 64)]
    return [
        replace(one, media=one.media.resize(size)) for one, size in zip(reward_samples(count=5), sizes, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_vqascore_equals_the_models_own_answer(folders: Mapping[str, Path], family: str) -> None:
    reward, samples, expected = VqaConfig(model=str(folders[family])).build(), various(), []
    for sample in samples:
        text = f'Does this figure show "{sample.prompt.caption}"? Please answer yes or no.'
        said = first(folders[family], sample.media, text)
        expected.append(said["Yes"] + said["yes"] + said[" Yes"] + said[" yes"])
    torch.testing.assert_close(reward.score(samples), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    assert np.std(expected) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_tifa_equals_the_published_mean(folders: Mapping[str, Path], family: str) -> None:
    samples = [asked(one, ["Is it red?", "Yes"], ["How many?", "two"], ["Is it wet?", "no"]) for one in various()[2:5]]
    reward, expected = SoftTifaConfig(model=str(folders[family])).build(), []
    for sample in samples:
        red, many, wet = (
            first(folders[family], sample.media, f"{text} Answer in one word.")
            for text in ("Is it red?", "How many?", "Is it wet?")
        )
        parts = [
            sum(red[word] for word in ("Yes", "yes", " Yes", " yes")),
            sum(many[word] for word in ("two", "Two", " two", " Two", "2")),  # " 2" is two tokens of this tokenizer
            sum(wet[word] for word in ("No", "no", " No", " no")),
        ]
        expected.append(math.prod(parts) ** (1 / 3))
    torch.testing.assert_close(reward.score(samples), torch.tensor(expected), atol=1e-6, rtol=1e-4)


def asked(sample: Sample[Image.Image], *pairs: list[str], **meta: Any) -> Sample[Image.Image]:
    return replace(sample, prompt=replace(sample.prompt, meta={"vqa_list": list(pairs), **meta}))


@pytest.mark.parametrize(("kind", "family"), [(VqaConfig, "qwen2_vl"), (SoftTifaConfig, "smolvlm")])
def test_the_contract_holds_whatever_the_batch(folders: Mapping[str, Path], family: str, kind: Any) -> None:
    reward = kind(model=str(folders[family]), batch_size=2).build()
    report = check_reward(reward, various(), direction=type(reward).__doc__)
    assert all(found.passed for found in report.checks), str(report)
    assert not isinstance(reward, KeepsReplies)
    assert reward.score([]).shape == (0,)


def test_two_rewards_on_one_model_share_it(folders: Mapping[str, Path]) -> None:
    where = str(folders["qwen2_vl"])
    network = load(where)
    assert load(f"{where}/../qwen2_vl") is network
    assert load(where, dtype="bfloat16") is not network


def test_lower_precision_is_near(folders: Mapping[str, Path]) -> None:
    where, samples = str(folders["smolvlm"]), various()
    low, full = (VqaConfig(model=where, dtype=it).build().score(samples) for it in ("bfloat16", "float32"))
    torch.testing.assert_close(low, full, atol=0, rtol=0.1)
    assert low.dtype == torch.float32


def test_pictures_are_seen_as_they_are_looked_at(folders: Mapping[str, Path]) -> None:
    reward, sample = VqaConfig(model=str(folders["smolvlm"])).build(), reward_samples(count=1)[0]
    clear = Image.new("RGBA", sample.media.size, (255, 0, 0, 0))
    white = Image.new("RGB", sample.media.size, "white")
    found = reward.score([replace(sample, media=clear), replace(sample, media=white)])
    assert float(found[0]) == pytest.approx(float(found[1]), rel=1e-5)


def test_the_question_can_be_put_in_other_words(folders: Mapping[str, Path]) -> None:
    where, samples = str(folders["smolvlm"]), reward_samples(count=2)
    other = VqaConfig(model=where, question="Is {caption} here?", answer="no").build().score(samples)
    said = first(folders["smolvlm"], samples[0].media, f"Is {samples[0].prompt.caption} here?")
    assert float(other[0]) == pytest.approx(said["No"] + said["no"] + said[" No"] + said[" no"], rel=1e-4)
    with pytest.raises(UserError, match=r"the template lacks \{caption\}"):
        check(VqaConfig, {"model": where, "question": "Is it good?"})


def test_what_cannot_be_asked_gets_a_sentence(folders: Mapping[str, Path]) -> None:
    vlm, picture = LocalVlm(load(str(folders["smolvlm"]))), Image.new("RGB", (64, 64))

    def told(text: str, answer: str, sentence: str) -> None:
        with pytest.raises(UserError, match=sentence):
            vlm.probabilities([Question(picture, text, answer)])

    told("Is it?", "sunglasses", "has no single token for the answer 'sunglasses'.* is yes, no, or a number up to ten.")
    told(
        "An <image>?",
        "yes",
        r"smolvlm' is to read '<image>', which steers the model. Take it out of the prompt: An <image>\?",
    )


def test_a_model_that_thinks_or_has_no_template_gets_a_sentence(folders: Mapping[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["smolvlm"], tmp_path / "other"))
    samples = reward_samples(count=1)
    template = folder / "chat_template.jinja"
    written = template.read_text()
    template.write_text(written.replace("assistant\n", "assistant\n<think>\n"))
    with pytest.raises(UserError, match="other' thinks before it answers. Take an instruct model"):
        VqaConfig(model=str(folder)).build().score(samples)
    template.write_text(written.replace("assistant\n", "assistant\n{% if enable_thinking %}<think>{% endif %}"))
    assert VqaConfig(model=str(folder), dtype="bfloat16").build().score(samples)[0] > 0
    template.unlink()
    with pytest.raises(UserError, match="has no chat template that can be used: .* Take an instruction-tuned model."):
        VqaConfig(model=str(folder), dtype="float16").build().score(samples)


def test_only_safetensors_are_read_and_all_of_them(folders: Mapping[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(folders["qwen2_vl"], tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    gone = {name: weight for name, weight in weights.items() if not name.endswith("norm.weight")}
    save_file(gone, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="its files lack .*norm.weight.*, which would be random"):
        load(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="The vision-language model '.*model' cannot be read: .*safetensors"):
        load(str(folder))


def test_another_kind_of_model_and_code_in_its_folder_are_refused(tmp_path: Path) -> None:
    pickscore = tiny.write_pickscore(tmp_path / "pickscore")
    with pytest.raises(
        UserError, match="'.*pickscore' is a model of the type 'clip', which answers no questions. It takes"
    ):
        load(str(pickscore))
    settings = {"model_type": "odd", "auto_map": {"AutoProcessor": "odd.Odd", "AutoConfig": "odd.Config"}}
    (pickscore / "config.json").write_text(json.dumps(settings))
    (pickscore / "odd.py").write_text("raise SystemExit('run')")
    with pytest.raises(UserError, match="'.*pickscore' has no configuration that can be read: "):
        load(str(pickscore))


def test_what_is_missing_is_told_before_a_run_begins(
    folders: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_needs, "_silent", "the hub is far")
    assert list(VqaConfig(model=str(folders["smolvlm"])).needs(str)) == []
    (far,) = VqaConfig(model="HuggingFaceTB/SmolVLM-500M-Instruct").needs(str)
    assert (far.key, far.fetched) == ("model", False)
    assert "is not in the hub's cache here, and the hub is far" in far.sentence
    with pytest.raises(UserError, match="there is no folder or file './nowhere' here.* or with 'server'"):
        VqaConfig(model="./nowhere").build()
    (key,) = SoftTifaConfig(model="x", server="http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY").needs(str)
    assert key.sentence == "the environment variable NO_SUCH_KEY is not set; export it before the run."


def test_spellings_are_those_of_geneval_2() -> None:
    assert set(spellings("three")) == {"three", "Three", " three", " Three", "3", " 3"}
    assert set(spellings("3")) == {"3", " 3", "three", " three", "Three", " Three"}
    assert set(spellings("yes")) == set(spellings("Yes")) == {"Yes", "yes", " yes", " Yes"}


class TestQuestions:
    def test_they_come_from_the_prompt_file_as_published(self, folders: Mapping[str, Path], tmp_path: Path) -> None:
        row = {
            "prompt": "two metal toys",
            "atom_count": 3,
            "vqa_list": [["How many toys are in the image?", "two"], ["Are the toys metal?", "Yes"]],
            "skills": ["count", "attribute"],
        }
        (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
        (prompt,) = build(inline(PromptsConfig(file="data.jsonl"), tmp_path))
        reward, sample = SoftTifaConfig(model=str(folders["smolvlm"])).build(), reward_samples(count=1)[0]
        found = reward.score([replace(sample, prompt=prompt)])
        by_hand = reward.score([asked(sample, *row["vqa_list"])])  # type: ignore[misc]
        as_text = replace(sample, prompt=replace(prompt, meta={"vqa_list": json.dumps(row["vqa_list"])}))
        assert 0 < found[0] == by_hand[0] == reward.score([as_text])[0]

    @pytest.mark.parametrize(
        ("meta", "sentence"),
        [
            ({}, r"soft_tifa: the prompt 'p' has no questions. The prompt file's column 'vqa_list' holds pairs"),
            ({"vqa_list": []}, r"has questions that cannot be read: \[\]"),
            ({"vqa_list": "Is it red?"}, "has questions that cannot be read: 'broken'"),
            ({"vqa_list": [["Is it red?"]]}, "has questions that cannot be read"),
            ({"vqa_list": [["Is it red?", "Yes"], "Is it big?"]}, "has questions that cannot be read"),
            ({"vqa_list": [["Is it red?", True]]}, "has questions that cannot be read"),
            ({"vqa_list": [["Is it red?", " "]]}, "has questions that cannot be read"),
            ({"vqa_list": {"Is it red?": "Yes"}}, "has questions that cannot be read"),
        ],
    )
    def test_others_get_a_sentence(self, meta: Mapping[str, Any], sentence: str) -> None:
        sample = Sample(0, Prompt("p", "x", "x", "x", meta=meta), 0, 0, "policy", Image.new("RGB", (8, 8)))
        with pytest.raises(UserError, match=sentence):
            SoftTifaReward(Sure()).score([sample])
        with pytest.raises(UserError, match=sentence):  # before anything is drawn
            SoftTifaReward(Sure()).check_prompts([sample.prompt])

    def test_one_sure_mistake_takes_all(self) -> None:
        sample = reward_samples(count=1)[0]
        pairs = (["Is it red?", "Yes"], ["Is it big?", "No"])
        assert SoftTifaReward(Sure()).score([asked(sample, *pairs)]).tolist() == [0.0]
        assert SoftTifaReward(Sure()).score([asked(sample, pairs[0])]).tolist() == [1.0]


class Sure:
    """Answers Yes to all."""

    def probabilities(self, questions: list[Question]) -> torch.Tensor:
        return torch.tensor([float(question.answer == "Yes") for question in questions])


class TestServer:
    """A stand-in that says Yes the surer the redder the picture is."""

    def test_the_first_tokens_probabilities_are_read(self) -> None:
        with answering() as (url, seen):
            samples = [
                replace(one, media=filled(level)) for one, level in zip(various()[:3], (51, 204, 0), strict=True)
            ]
            found = VqaConfig(model="m", server=url, workers=2).build().score(samples)
        torch.testing.assert_close(found, torch.tensor([0.2, 0.8, 0.0]), atol=1e-6, rtol=0)
        body = next(one for one in seen if "red circle" in one["messages"][0]["content"][1]["text"])
        settings = {name: body[name] for name in ("model", "max_tokens", "temperature", "logprobs", "top_logprobs")}
        assert settings == {"model": "m", "max_tokens": 1, "temperature": 0.0, "logprobs": True, "top_logprobs": 20}
        picture, text = body["messages"][0]["content"]
        assert text["text"] == 'Does this figure show "a red circle"? Please answer yes or no.'
        assert opened(picture).tobytes() == samples[0].media.tobytes()

    def test_nothing_is_asked_twice_not_even_after_a_kill(self, tmp_path: Path) -> None:
        with answering() as (url, seen):
            reward = VqaConfig(model="m", server=url).build()
            assert isinstance(reward, KeepsReplies)
            reward.keep_replies(tmp_path / "replies.jsonl")
            samples = various()
            found = reward.score(samples)
            assert torch.equal(reward.score(samples[::-1]), found.flip(0))
            later = SoftTifaConfig(model="m", server=url).build()
            again = VqaConfig(model="m", server=url).build()
            again.keep_replies(tmp_path / "replies.jsonl")
            assert len(seen) == 5
            assert torch.equal(again.score(samples), found)
            assert len(seen) == 5
            later.score(samples)
            assert len(seen) == 15
            again.forget()
            again.score(samples)
            assert len(seen) == 20

    def test_further_keys_go_along(self) -> None:
        extra = {"chat_template_kwargs": {"enable_thinking": False}, "top_logprobs": 5}
        with answering() as (url, seen):
            VqaConfig(model="m", server=url, extra=extra).build().score(reward_samples(count=1))
        assert (seen[0]["chat_template_kwargs"], seen[0]["top_logprobs"]) == ({"enable_thinking": False}, 5)

    @pytest.mark.parametrize(
        "reply",
        [
            {"choices": [{"message": {"content": "Yes"}}]},
            {"choices": [{"message": {"content": "Yes"}, "logprobs": None}]},
            {"choices": [{"logprobs": {"content": []}}]},
            {"choices": [{"logprobs": {"content": [{"token": "Yes", "top_logprobs": []}]}}]},
            {"choices": [{"logprobs": {"content": [{"token": "Y", "top_logprobs": [{"token": 7, "logprob": -1}]}]}}]},
            {"choices": [{"logprobs": {"content": [{"token": "Y", "top_logprobs": [{"token": "Y", "logprob": 2}]}]}}]},
            [],
        ],
    )
    def test_a_reply_without_them_is_a_sentence(self, reply: Any) -> None:
        with pytest.raises(UserError, match="The server at here sent a reply without .*top_logprobs, from which"):
            likeliest(reply, "here")

    def test_a_model_that_thinks_is_told(self) -> None:
        first = {"token": "<think>\x1b[2J", "top_logprobs": [{"token": "<think>", "logprob": 0.0}]}
        told = r"behind here begins its answer with '<think>\\x1b\[2J'.*enable_thinking: false"
        with pytest.raises(UserError, match=told):
            likeliest({"choices": [{"logprobs": {"content": [first]}}]}, "here")

    def test_a_dead_server_and_a_wrong_address_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("raftdiff.chat.server.sleep", lambda seconds: None)
        with answering() as (url, _):
            pass
        with pytest.raises(UserError, match=r"gave no answer \(.*\), after 2 tries. Is it running"):
            VqaConfig(model="m", server=url, retries=1).build().score(reward_samples(count=1))
        with pytest.raises(UserError, match="'localhost:1' is not an http or https address"):
            VqaConfig(model="m", server="localhost:1").build()
        with pytest.raises(UserError, match="api_key_env takes the name of an environment variable") as caught:
            check(VqaConfig, {"model": "m", "server": "http://127.0.0.1:1/v1", "api_key_env": "sk-secret"})
        assert "sk-secret" not in str(caught.value)


def filled(red: int) -> Image.Image:
    return Image.new("RGB", (9, 5), (red, 0, 0))


def opened(part: Mapping[str, Any]) -> Image.Image:
    kind, data = part["image_url"]["url"].split(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@contextmanager
def answering() -> Iterator[tuple[str, list[Any]]]:
    seen: list[Any] = []
    lock = threading.Lock()

    def reply(body: Mapping[str, Any]) -> Any:
        with lock:
            seen.append(body)
        sure = opened(body["messages"][0]["content"][0]).getpixel((0, 0))[0] / 255  # type: ignore[index]
        tops = [(" Yes", sure / 2), ("yes", sure / 2), ("No", 1 - sure)]
        tops = [(token, value) for token, value in tops if value]
        first = [{"token": token, "logprob": math.log(value)} for token, value in tops]
        return {"choices": [{"logprobs": {"content": [{"token": first[0]["token"], "top_logprobs": first}]}}]}

    with server(reply) as url:
        yield url, seen
