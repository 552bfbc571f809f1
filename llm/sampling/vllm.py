"""A policy sampler on vLLM: the same interface, many times the speed, a GPU needed. Install with raftdiff[vllm]."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, final

import torch
from pydantic import Field

from raftdiff.chat.dialogue import untorn
from raftdiff.errors import UserError
from raftdiff.llm.model.loading import LM
from raftdiff.llm.sampling.generation import DecodingConfig
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample, Source

Render = Callable[[Prompt], Sequence[int] | str]
"""What the model reads of a prompt: token ids, or a text for vLLM's own tokenizer."""


class VllmSamplerConfig(Config):
    """The model that is tuned answers, through vLLM."""

    type: Literal["vllm"] = "vllm"
    decoding: DecodingConfig = DecodingConfig()
    """Of the strategies, sample and greedy. The repetition penalty counts the prompt's tokens too, as vLLM has it."""
    batch_size: int = Field(default=512, ge=1)
    """Answers asked for at once; vLLM schedules them itself."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    gpu_memory: float = Field(default=0.4, gt=0, le=1)
    """Share of the GPU's memory that vLLM takes; the rest is for training."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one model."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens of prompt and answer together; the model's own limit by default."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = 64
    """At least the rank of the adapter that is tuned."""

    def build(
        self, model: str, render: Render, *, revision: str | None = None, ends: Sequence[int] = ()
    ) -> "VllmSampler":
        """``model``: a folder or hub id; ``render``: what it reads of a prompt; ``ends``: ids that end an answer beside
        those that the model's own files name.

        Raises:
            UserError: the decoding strategy is one that vLLM does not offer here.
        """
        return VllmSampler(self, model, render, revision=revision, ends=ends)


@final
class VllmSampler:
    """Answers of the model, with the adapter that ``use`` named last; the engine starts with the first sample.

    ``aux`` carries ``tokens`` (n,), int64, with the end token where it came, and ``logprobs`` (n,), float32, log p of
    each under the model at temperature 1 and before top-k, top-p and penalties (vLLM's ``raw_logprobs``); and ``cut``
    where the answer reached its longest before it ended.
    Each candidate has a seed of its own, and batches are drawn whole; but vLLM schedules as it sees fit, and its
    arithmetic depends on what is computed together, so that a repetition can differ in the last digits and then in a
    token. Its log-probabilities differ from the trainer's in the same way.
    """

    source: Source = "policy"
    provides: tuple[str, ...] = ("tokens", "logprobs")

    def __init__(
        self,
        config: VllmSamplerConfig,
        model: str,
        render: Render,
        *,
        revision: str | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        if config.decoding.strategy not in ("sample", "greedy"):
            raise UserError(
                f"sampler.decoding.strategy: vLLM offers sample and greedy here, not {config.decoding.strategy}; "
                "take the policy sampler for it."
            )
        self.config = config
        self._model, self._revision, self._render, self._ends = model, revision, render, list(ends)
        self._engine: Any = None
        self._adapter: Any = None
        self._adapters = 0
        self._tokens = 0

    def use(self, adapter: Path) -> None:
        """Answer with this LoRA adapter (a PEFT folder) from now on. Its weights are read when it is first used.

        Raises:
            UserError: the folder holds no adapter, or vLLM is not installed.
        """
        if not (adapter / "adapter_config.json").is_file():
            raise UserError(f"{adapter}: there is no LoRA adapter in this folder (no adapter_config.json).")
        _installed()
        from vllm.lora.request import LoRARequest

        self._adapters += 1  # vLLM keeps adapters by this number: a new one each time, or it would answer with the old
        self._adapter = LoRARequest(f"adapter-{self._adapters}", self._adapters, str(adapter))

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        """Batches are cut from the full list of candidates; one with any candidate left to draw is drawn whole.

        Raises:
            UserError: vLLM is not installed.
        """
        jobs = [(prompt, index) for prompt in prompts for index in range(per_prompt)]
        for start in range(0, len(jobs), self.config.batch_size):
            batch = jobs[start : start + self.config.batch_size]
            if all((prompt.id, index) in done for prompt, index in batch):
                continue
            seeds = [fold(seed, prompt.id, index) for prompt, index in batch]
            drawn = self._draw([prompt for prompt, _ in batch], seeds)
            for (prompt, index), own, output in zip(batch, seeds, drawn, strict=True):
                if (prompt.id, index) not in done:
                    text = untorn(output.text) if output.finish_reason == "length" else output.text
                    yield Sample(round, prompt, index, own, self.source, text.strip(), _aux(output))

    def network_evaluations(self) -> int:
        """Tokens drawn since construction."""
        return self._tokens

    def _draw(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Any]:
        rendered = [self._render(prompt) for prompt in prompts]
        inputs = [one if isinstance(one, str) else {"prompt_token_ids": list(one)} for one in rendered]
        requests = self._started().generate(
            inputs, [self._parameters(seed) for seed in seeds], use_tqdm=False, lora_request=self._adapter
        )
        outputs = [request.outputs[0] for request in requests]
        self._tokens += sum(len(output.token_ids) for output in outputs)
        return outputs

    def _parameters(self, seed: int) -> Any:
        from vllm import SamplingParams

        decoding = self.config.decoding
        return SamplingParams(
            n=1,
            temperature=decoding.temperature if decoding.strategy == "sample" else 0.0,
            top_p=decoding.top_p,
            top_k=decoding.top_k or -1,
            repetition_penalty=decoding.repetition_penalty,
            seed=seed,
            stop=list(decoding.stop) or None,
            stop_token_ids=self._ends or None,
            max_tokens=decoding.max_new_tokens,
            min_tokens=decoding.min_new_tokens,
            logprobs=0,  # of the drawn token alone
        )

    def _started(self) -> Any:
        if self._engine is None:
            config = self.config
            self._engine = _installed().LLM(
                model=self._model,
                revision=self._revision,
                dtype=config.dtype,
                tensor_parallel_size=config.tensor_parallel,
                gpu_memory_utilization=config.gpu_memory,
                max_model_len=config.max_length,
                enable_lora=True,
                max_lora_rank=config.max_lora_rank,
                logprobs_mode="raw_logprobs",
                trust_remote_code=False,
            )
        return self._engine


def _installed() -> Any:
    try:
        import vllm
    except ImportError:
        raise UserError(
            "sampler: vLLM is not installed. It needs a GPU: pip install 'raftdiff[vllm]'; or take the policy sampler."
        ) from None
    return vllm


def _aux(output: Any) -> dict[str, torch.Tensor]:
    """A position may hold the likeliest token beside the drawn one: it is looked up, not taken as the first."""
    tokens = list(output.token_ids)
    logprobs = [at[token].logprob for token, at in zip(tokens, output.logprobs, strict=True)]
    cut = {"cut": torch.tensor(True)} if output.finish_reason == "length" else {}
    return cut | {
        "tokens": torch.tensor(tokens, dtype=torch.int64),
        "logprobs": torch.tensor(logprobs, dtype=torch.float32),
    }


@final
class Following:
    """A vLLM sampler that takes up the LoRA of the model that is tuned, as it stands, before it draws."""

    source: Source = "policy"
    provides: tuple[str, ...] = ("tokens", "logprobs")

    def __init__(self, sampler: VllmSampler, lm: LM) -> None:
        self._sampler, self._lm = sampler, lm

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[str]]:
        with tempfile.TemporaryDirectory(prefix="raftdiff-adapter-") as folder:
            self._lm.model.save_pretrained(folder, safe_serialization=True)
            self._sampler.use(Path(folder))
            yield from self._sampler.sample(prompts, per_prompt=per_prompt, seed=seed, round=round, done=done)

    def network_evaluations(self) -> int:
        """Tokens drawn since construction."""
        return self._sampler.network_evaluations()
