"""A vision-language model of transformers, asked about pictures: how probable is an answer, or what does it say?

Any that ``AutoModelForImageTextToText`` reads and that has a chat template: SmolVLM, Qwen2-VL to Qwen3-VL, Gemma 3,
LLaVA, InternVL. Its weights are safetensors, and no code of theirs is run.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, final
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field, model_validator

from raftdiff.chat.presence import demand_model
from raftdiff.chat.server import check_address, demand_variable, key_in, key_needs, post
from raftdiff.errors import Need, UserError
from raftdiff.measures.pictures import on_paper
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import demand, model_at
from raftdiff.rewards.clip_weights import Precision
from raftdiff.rewards.questions import THINKING, Question, batches, demand_plain, spellings, turn
from raftdiff.rewards.vlm_server import ServedVlm
from raftdiff.training.weights import loaded, reading

WHERE = "It takes a folder or a hub id, such as HuggingFaceTB/SmolVLM-500M-Instruct, or with 'server' its model's name."


class VlmConfig(Config):
    """Which model is asked, here or behind a server."""

    model: str
    """The folder or hub id of a vision-language model of transformers, such as Qwen/Qwen3-VL-8B-Instruct; with `server`
    the name that it has there."""
    server: str | None = None
    """Address of an OpenAI-compatible server that is asked instead, for example http://127.0.0.1:8000/v1. It must tell
    log-probabilities, as vLLM, SGLang and llama.cpp do."""
    api_key_env: str | None = None
    """Of a server: the environment variable that holds the key, for example OPENAI_API_KEY; never the key itself."""
    timeout: float = Field(default=120.0, gt=0)
    """Of a server: seconds without a byte before a try counts as failed; a whole reply may take ten times as many."""
    retries: int = Field(default=4, ge=0)
    """Of a server: further tries, after pauses that double."""
    workers: int = Field(default=8, ge=1)
    """Of a server: requests at a time."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Of a server: further keys of the request, for example chat_template_kwargs."""
    dtype: Precision = "float32"
    """Precision of a model here: float32, bfloat16 or float16."""
    batch_size: int = Field(default=8, ge=1)
    """Pictures per forward of a model here."""

    @model_validator(mode="after")  # not of the field: its mistakes are told with the value, which may be a key
    def _key_by_name(self) -> "VlmConfig":
        demand_variable(self.api_key_env)
        return self

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        if self.server is None:
            yield from model_at("model", resolve(self.model), where=WHERE)
            return
        yield from key_needs(self.api_key_env)

    def vlm(self, device: str, resolve: Callable[[str], str]) -> "LocalVlm | ServedVlm":
        """
        Raises:
            UserError: the model cannot be read, or the address or the key's variable cannot be used.
        """
        if self.server is None:
            return LocalVlm(load(resolve(self.model), device, self.dtype), batch_size=self.batch_size)
        check_address(self.server)
        key_in(self.api_key_env)
        how: dict[str, Any] = {"api_key_env": self.api_key_env, "timeout": self.timeout, "retries": self.retries}
        return ServedVlm(
            partial(post, self.server, "chat/completions", **how),
            where=self.server,
            model=self.model,
            extra=self.extra,
            workers=self.workers,
            check=partial(demand_model, self.server, self.model, extra=self.extra, **how),
        )


@final
class Network:
    """A model and its processor, which turns pictures and texts into what the model reads."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model, processor, name


@final
class LocalVlm:
    """What a model in this process says.

    The picture comes before the question in one turn of a user, in the model's own chat template. Probabilities are
    those of the first token of the assistant's, by softmax over the whole vocabulary in float32. An answer is the
    likeliest token at each step, whatever the model's own settings say of drawing. Only questions of one length about
    pictures of one size go through the network together, so that nothing is padded and what is said of a picture does
    not depend on its companions, but for rounding.

    Raises:
        UserError: the model has no chat template, thinks before it answers, or has no single token for an answer; or a
            question holds a token that steers the model.
    """

    def __init__(self, network: Network, *, batch_size: int = 8) -> None:
        self._network, self._batch_size = network, batch_size
        self._known: dict[str, list[int]] = {}

    def probabilities(self, questions: Sequence[Question]) -> Float32[torch.Tensor, " questions"]:
        """See ``questions.Vlm``."""
        answers = [self._tokens(question.answer) for question in questions]
        texts = {text: self._length(text) for text in {question.text for question in questions}}
        alike = [(question.picture.size, texts[question.text]) for question in questions]
        found = torch.zeros(len(questions))
        for some in batches(alike, self._batch_size):
            said = self._first([questions[place] for place in some])
            for place, probabilities in zip(some, said, strict=True):
                found[place] = probabilities[answers[place]].sum()
        return found

    def answers(self, pictures: Sequence[Image.Image], text: str, *, max_tokens: int) -> list[str]:
        """See ``questions.Answers``."""
        self._length(text)
        found = [""] * len(pictures)
        for some in batches([picture.size for picture in pictures], self._batch_size):
            inputs = self._inputs([Question(pictures[place], text, "") for place in some])
            with torch.no_grad():
                said = self._network.model.generate(**inputs, max_new_tokens=max_tokens)
            bare = self._network.processor.tokenizer.batch_decode(
                said[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            for place, answer in zip(some, map(str.strip, bare), strict=True):
                if answer.startswith(THINKING):
                    raise UserError(self._thinks())
                found[place] = answer
        return found

    def _first(self, questions: Sequence[Question]) -> Float32[torch.Tensor, "questions vocabulary"]:
        """The probabilities of all tokens as the first of the answers, on the CPU."""
        inputs = self._inputs(questions)
        with torch.no_grad():
            logits: torch.Tensor = self._network.model(**inputs, logits_to_keep=1).logits[:, -1]
        return logits.float().softmax(dim=-1).cpu()

    def _inputs(self, questions: Sequence[Question]) -> Any:
        """What the model reads."""
        asked = [[turn(question.text, on_paper(question.picture))] for question in questions]
        with reading(f"{self._network.name} could not read a picture"):
            inputs = self._rendered(asked, tokenize=True, return_dict=True, return_tensors="pt")
        return inputs.to(self._network.model.device, self._network.model.dtype)  # of floats alone the dtype

    def _length(self, text: str) -> int:
        """Tokens of a question in its template, the picture one of them."""
        tokenizer = self._network.processor.tokenizer
        demand_plain(self._network.name, tokenizer, text)
        with reading(f"{self._network.name} has no chat template that can be used", "Take an instruction-tuned model."):
            rendered = self._rendered([turn(text, None)], tokenize=False)
        if rendered.rstrip().endswith(f"{THINKING}>"):
            raise UserError(self._thinks())
        return len(tokenizer(rendered, add_special_tokens=False).input_ids)

    def _thinks(self) -> str:
        return f"{self._network.name} thinks before it answers. Take an instruct model that does not."

    def _rendered(self, turns: Any, **options: Any) -> Any:
        """In the model's chat template, up to where its answer begins."""
        processor = self._network.processor
        if "enable_thinking" in str(processor.chat_template):
            options["enable_thinking"] = False
        return processor.apply_chat_template(turns, add_generation_prompt=True, **options)

    def _tokens(self, answer: str) -> list[int]:
        """Of an answer's spellings those that are one token."""
        if answer not in self._known:
            tokenizer = self._network.processor.tokenizer
            read = [tokenizer(one, add_special_tokens=False).input_ids for one in spellings(answer)]
            self._known[answer] = sorted({ids[0] for ids in read if len(ids) == 1} - {tokenizer.unk_token_id})
        if not self._known[answer]:
            raise UserError(
                f"{self._network.name} has no single token for the answer '{answer}', whose probability is read from "
                "the first token. Ask so that the answer is yes, no, or a number up to ten."
            )
        return self._known[answer]


_networks: WeakValueDictionary[tuple[str, str, Precision], Network] = WeakValueDictionary()
"""Weak, so that a network leaves memory with the last reward that uses it."""


def load(where: str, device: str = "cpu", dtype: Precision = "float32") -> Network:
    """The model in a folder or on the hub, read on first use and shared from then on.

    Raises:
        UserError: it is not there, no vision-language model, lacks weights, or has none in safetensors.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    folder = Path(where).expanduser()
    key = (str(folder.resolve()) if folder.is_dir() else where, device, dtype)
    network = _networks.get(key)
    if network is None:
        name = f"The vision-language model '{where}'"
        demand(name, model_at("model", where, where=WHERE))
        safe: Mapping[str, Any] = {"trust_remote_code": False}
        with reading(f"{name} has no configuration that can be read"):
            config = AutoConfig.from_pretrained(key[0], **safe)
        if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            raise UserError(f"{name} is a model of the type '{config.model_type}', which answers no questions. {WHERE}")
        with reading(f"{name} has no processor that can be read"):
            processor = AutoProcessor.from_pretrained(key[0], **safe)
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True, **safe}
        model = loaded(name, AutoModelForImageTextToText, key[0], **options)
        model = model.eval().requires_grad_(False).to(device)
        model.generation_config = _greedy(model.generation_config, processor.tokenizer)
        network = _networks[key] = Network(model, processor, name)
    return network


def _greedy(own: Any, tokenizer: Any) -> Any:
    """The likeliest token at each step, up to where the model or its tokenizer ends an answer: its own settings may say
    to draw, or punish what is said twice."""
    from transformers import GenerationConfig

    told = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
    ends = sorted({end for end in (*told, tokenizer.eos_token_id) if end is not None})
    pad = next((one for one in (own.pad_token_id, tokenizer.pad_token_id, *ends) if one is not None), None)
    return GenerationConfig(do_sample=False, eos_token_id=ends or None, pad_token_id=pad, bos_token_id=own.bos_token_id)
