"""The vLLM sampler against a stand-in with vLLM's names, arguments and checks: it cannot run without a GPU."""

import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.llm.sampling.vllm import VllmSampler, VllmSamplerConfig
from raftdiff.seeds import fold
from raftdiff.testing.conformance import check_sampler
from raftdiff.types import Prompt, Sampler

PROMPTS = [Prompt("why", "Why?", "Why?", "Why?"), Prompt("how", "How?", "Kindly: how?", "How?")]
EOS = 0


@dataclass
class SamplingParams:
    """vllm.SamplingParams: the keys that are used here, and what it refuses of them."""

    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    stop_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 2 or self.top_k < -1 or not 0 < self.top_p <= 1:
            raise ValueError("SamplingParams")


@dataclass
class LoRARequest:
    """vllm.lora.request.LoRARequest."""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""

    def __post_init__(self) -> None:
        if self.lora_int_id < 1:
            raise ValueError(f"lora_int_id must be > 0, got {self.lora_int_id}")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]


class LLM:
    """vllm.LLM: answers with tokens made from the seed, the last of them the end."""

    made: list["LLM"] = []  # noqa: RUF012  (every engine of a test)

    def __init__(self, model: str, **options: Any) -> None:
        self.model, self.options = model, options
        self.calls: list[Any] = []
        LLM.made.append(self)

    def generate(
        self,
        prompts: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[RequestOutput]:
        assert isinstance(sampling_params, list)
        self.calls.append((list(prompts), sampling_params, use_tqdm, lora_request))
        return [self._answer(k, one) for k, one in enumerate(sampling_params)]

    def _answer(self, number: int, params: SamplingParams) -> RequestOutput:
        assert params.seed is not None
        tokens = () if params.max_tokens == 1 else (2 + params.seed % 50, 3 + params.seed % 7, EOS)
        # the likeliest token stands first, the drawn one after it, as in a real reply with logprobs=0
        logprobs = [{99: Logprob(-0.1, 1), token: Logprob(-float(token) - 1, 2)} for token in tokens]
        reason = "length" if params.max_tokens == 1 else "stop"
        text = " " + " ".join(f"w{token}" for token in tokens[:-1]) + " "
        return RequestOutput(str(number), [CompletionOutput(0, text, tokens, None, logprobs, reason)])


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[LLM]:
    vllm, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest  # type: ignore[attr-defined]
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "made", [])
    return LLM.made


def render(prompt: Prompt) -> list[int]:
    return [len(word) for word in prompt.sampling.split()]


def build(**options: Any) -> VllmSampler:
    return VllmSamplerConfig(**options).build("team/model", render, revision="abc", ends=(EOS, 9))


def sample(sampler: VllmSampler, per_prompt: int = 2, done: frozenset[tuple[str, int]] = frozenset()) -> list[Any]:
    return list(sampler.sample(PROMPTS, per_prompt=per_prompt, seed=7, round=1, done=done))


def test_it_keeps_its_contract(engines: list[LLM]) -> None:
    sampler = build(batch_size=3)
    assert isinstance(sampler, Sampler)
    check_sampler(sampler, PROMPTS, per_prompt=4).demand()
    assert len(engines) == 1


def test_token_ids_go_in_and_seeds_are_per_sample(engines: list[LLM]) -> None:
    decoding = DecodingConfig(temperature=0.85, top_p=0.9, top_k=5, max_new_tokens=8, min_new_tokens=2, stop=["\n"])
    sampler = build(decoding=decoding, batch_size=3)
    assert engines == []  # nothing is loaded before it is needed
    sample(sampler)
    (engine,) = engines
    (first, params, use_tqdm, lora), (second, *_) = engine.calls
    assert first == [{"prompt_token_ids": [4]}, {"prompt_token_ids": [4]}, {"prompt_token_ids": [7, 4]}]
    assert second == [{"prompt_token_ids": [7, 4]}]
    assert (use_tqdm, lora) == (False, None)
    assert params[1] == SamplingParams(
        temperature=0.85,
        top_p=0.9,
        top_k=5,
        seed=fold(7, "why", 1),
        stop=["\n"],
        max_tokens=8,
        min_tokens=2,
        logprobs=0,
        stop_token_ids=[EOS, 9],
    )
    assert engine.model == "team/model"
    assert engine.options["logprobs_mode"] == "raw_logprobs"
    assert (engine.options["revision"], engine.options["enable_lora"]) == ("abc", True)
    assert engine.options["trust_remote_code"] is False


def test_texts_go_in_as_they_are(engines: list[LLM]) -> None:
    sampler = VllmSamplerConfig().build("m", lambda prompt: prompt.sampling)
    sample(sampler, per_prompt=1)
    assert engines[0].calls[0][0] == ["Why?", "Kindly: how?"]


def test_the_drawn_tokens_log_probabilities_are_kept_not_the_likeliest_ones(engines: list[LLM]) -> None:
    del engines
    first = sample(build())[0]
    tokens = first.aux["tokens"]
    assert tokens.dtype == torch.int64
    assert tokens[-1] == EOS
    assert first.aux["logprobs"].dtype == torch.float32
    assert first.aux["logprobs"].tolist() == [-float(token) - 1 for token in tokens]
    assert first.media == f"w{tokens[0]} w{tokens[1]}"


def test_an_empty_answer_has_whole_numbers_for_tokens(engines: list[LLM]) -> None:
    del engines
    first = sample(build(decoding=DecodingConfig(max_new_tokens=1)))[0]
    assert first.cut
    assert not sample(build())[0].cut
    assert (first.aux["tokens"].dtype, first.aux["tokens"].shape) == (torch.int64, (0,))
    assert first.media == ""


def test_tokens_are_counted_and_greedy_has_no_temperature(engines: list[LLM]) -> None:
    sampler = build(decoding=DecodingConfig(strategy="greedy"))
    sample(sampler)
    assert sampler.network_evaluations() == 4 * 3
    _, params, _, _ = engines[0].calls[0]
    assert (params[0].temperature, params[0].top_k) == (0.0, -1)


def test_a_batch_that_is_done_is_not_drawn_and_others_are_drawn_whole(engines: list[LLM]) -> None:
    whole = {(s.prompt.id, s.index): s.media for s in sample(build(batch_size=2))}
    rest = sample(build(batch_size=2), done=frozenset({("why", 0), ("why", 1), ("how", 0)}))
    assert [(s.prompt.id, s.index, s.media) for s in rest] == [("how", 1, whole["how", 1])]
    assert [len(call[0]) for call in engines[1].calls] == [2]


def test_each_adapter_has_a_number_of_its_own(engines: list[LLM], tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    sampler = build()
    for _ in range(2):
        sampler.use(tmp_path)
        sample(sampler, per_prompt=1)
    used = [call[3] for call in engines[0].calls]
    assert [(request.lora_int_id, request.lora_path) for request in used] == [(1, str(tmp_path)), (2, str(tmp_path))]
    assert used[0].lora_name != used[1].lora_name
    with pytest.raises(UserError, match="there is no LoRA adapter in this folder"):
        sampler.use(tmp_path / "none")


def test_what_vllm_does_not_offer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="vLLM offers sample and greedy here, not diverse_beam"):
        build(decoding=DecodingConfig(strategy="diverse_beam"))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"vLLM is not installed. It needs a GPU: pip install 'raftdiff\[vllm\]'"):
        sample(build())
