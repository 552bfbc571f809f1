"""The text encoder of the model that ships reads 28 tokens: what fits is read, and nothing else is."""

import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from raftdiff import embedded
from raftdiff.diffusion.families.sd import StableDiffusion
from raftdiff.diffusion.models.text import PromptEncoder
from raftdiff.diffusion.wording import unread
from raftdiff.training.devices import Idle

CAPTION = "a cartoon cat above a fox on a pink background"

NONE = Idle([], torch.device("cpu"))


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    folder = embedded.folder("scene-sd")
    modules = {
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "text_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder"),
    }
    return PromptEncoder(StableDiffusion(), modules, NONE, torch.device("cpu"))


def test_what_is_called_unread_changes_no_bit_and_the_word_before_it_does(encoder: PromptEncoder) -> None:
    text = " ".join([CAPTION] * 3)
    rest = unread(text, encoder.reads_whole)
    read = text.removesuffix(rest).rstrip()
    assert encoder.token_limit == 28
    assert rest.split() == text.split()[26:]  # of 28 tokens two are begin and end
    assert torch.equal(encoder.encode([read]).tokens, encoder.encode([text]).tokens)
    assert not torch.equal(encoder.encode([" ".join(read.split()[:-1])]).tokens, encoder.encode([text]).tokens)


def test_embeddings_come_to_where_they_are_wanted(encoder: PromptEncoder) -> None:
    there = PromptEncoder(StableDiffusion(), encoder._modules, NONE, torch.device("meta"))
    assert there([CAPTION]).device.type == there.encode([CAPTION]).device.type == "meta"


def test_embeddings_are_kept_until_they_are_too_many_and_forgotten_ones_are_made_again(
    encoder: PromptEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = PromptEncoder(StableDiffusion(), encoder._modules, NONE, torch.device("cpu"))
    first = ours(["cat", "fox", "cat"])
    monkeypatch.setattr("raftdiff.diffusion.models.text.CAPACITY", first[:2].nbytes)
    ours.remember(["owl", "cat", "dog", "cow"])
    assert set(ours._cache) == {"cat", "fox", "owl"}
    assert torch.equal(ours(["fox", "cat"]).tokens, first[torch.tensor([1, 0])].tokens)
    assert set(ours._cache) == {"cat", "fox", "owl"}  # nothing new was asked for: what is remembered is of use yet
    ours(["fox", "dog"])
    assert set(ours._cache) == {"fox", "dog"}
    assert len(ours(["owl", "dog", "cow"])) == 3
    assert torch.equal(ours(["owl", "cat"])[1:].tokens, first[:1].tokens)


@pytest.mark.parametrize(("words", "fits"), [(0, True), (26, True), (27, False), (500, False)])
def test_the_limit_holds_to_the_token(encoder: PromptEncoder, words: int, fits: bool) -> None:
    assert encoder.reads_whole(" ".join(["cat"] * words)) == fits


def test_text_that_the_tokenizer_does_not_know_is_read_as_far_as_it_goes(encoder: PromptEncoder) -> None:
    assert encoder.reads_whole("猫")
    assert encoder.reads_whole(CAPTION + " \n")
    rest = unread("猫 " * 200, encoder.reads_whole)
    assert set(rest) <= {"猫", " "}
