"""Language models and their tokenizers, and how a prompt is written for them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from pydantic import Field
from torch.nn import ModuleList

from raftdiff.errors import Need, UserError
from raftdiff.llm.model.adapters import Source, source, with_adapter
from raftdiff.llm.model.turns import ALPACA, Turns
from raftdiff.recipes.config import Config
from raftdiff.recipes.needs import model_at, near, refuse
from raftdiff.training import sharded
from raftdiff.training.devices import ByMachine, DType, device_needs, find_device, find_dtype
from raftdiff.training.tokenizers import check_tokenizer, nameless, table_rows, within
from raftdiff.training.weights import demand_all, demand_finite, reading
from raftdiff.types import Prompt

WHERE = (
    "It can be a folder in transformers' format or a hub id, such as HuggingFaceTB/SmolLM2-135M from huggingface.co."
)
"""What a model may be, and where to get one."""


class LMConfig(Config):
    """Which language model, and how it is held in memory."""

    base: str
    """A model that ships (review-lm), a transformers folder, a Hugging Face id, or the folder of a LoRA in PEFT's
    format, which is put into the weights of its base."""
    gguf_file: str | None = None
    """Read this GGUF file of the folder instead; its weights are taken out of their quantization."""
    revision: str | None = None
    """A commit, branch or tag of a Hugging Face id."""
    dtype: DType | ByMachine = "float32"
    """What the frozen weights are held in, and what sampling computes in: float32, bfloat16, float16, or "auto",
    bfloat16 where the device computes in it and else float32. Another machine may then give other answers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    template: str = "auto"
    """How a prompt is written for the model: "chat" (the tokenizer's own template), "plain" (as it is), "alpaca", or a
    text with "{prompt}" in it. "auto" takes chat where the tokenizer has a template."""
    max_prompt_tokens: int = Field(default=512, ge=1)
    """Longer prompts are an error."""
    layers: int | None = Field(default=None, ge=1)
    """How many of its layers are kept, the lowest ones; all by default. A reward model of fewer reads for less, and it
    remembers them; a language model so cut writes nonsense."""
    sharded: bool = False
    """Where several processes share a run, each holds a part of every block's weights, and the whole of one while it
    computes: for what does not fit on one card. A LoRA is trained then."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        yield from model_at("base", resolve(self.base), where=WHERE)
        yield from device_needs(self.device, self.dtype)


@final
@dataclass(frozen=True)
class LM:
    """A causal language model, its tokenizer, and how prompts are written for it."""

    name: str
    model: Any
    tokenizer: Any
    device: torch.device
    dtype: torch.dtype
    template: str
    max_prompt_tokens: int = 512

    @cached_property
    def turns(self) -> Turns:
        """Where its texts begin, and where turns and texts end."""
        found: list[int] = []
        writes = getattr(self.model, "generation_config", None)  # an encoder has none
        for ids in (self.tokenizer.eos_token_id, getattr(writes, "eos_token_id", None)):
            found += [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
        return Turns(self.name, self.tokenizer, self.template, tuple(found), encoder=writes is None)

    @property
    def eos(self) -> tuple[int, ...]:
        """The ids that end an answer; the first is the one that answers are taught with."""
        return self.turns.ends

    @property
    def pad(self) -> int:
        """What fills rows up. It may be the end token itself: masks are made by counting, never by looking for it. So a
        filling that was added to the tokenizer alone, past the model's table, is not needed either."""
        pad = self.tokenizer.pad_token_id
        return int(self.eos[0] if pad is None or pad >= table_rows(self.model) else pad)

    @cached_property
    def nameless(self) -> list[int]:
        """Ids without a text: the rows that a table is filled up with. They are never drawn."""
        return nameless(self.tokenizer, self.model)

    @property
    def positions(self) -> int | None:
        """How many tokens, prompt and answer together, the model is made for; None where it does not say."""
        found = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return found if isinstance(found, int) and found > 0 else None

    def prompt_ids(self, prompt: Prompt, text: str) -> list[int]:
        """The tokens that an answer follows: ``text`` (what is sampled or learnt) with the prompt's system text and
        earlier turns, written as the model expects.

        Raises:
            UserError: they are none, or more than ``max_prompt_tokens``, or the chat template takes no such turns.
        """
        ids = self._known(self.turns.prompt(prompt, text))
        if not ids:
            raise UserError(f"The prompt '{prompt.id}' is empty, and the model needs a token to go on from.")
        if len(ids) > self.max_prompt_tokens:
            raise UserError(
                f"The prompt '{prompt.id}' is {len(ids)} tokens long, more than model.max_prompt_tokens "
                f"({self.max_prompt_tokens}); leave it out, shorten it, or raise the limit."
            )
        return ids

    def answer_ids(self, text: str, *, ended: bool = True) -> list[int]:
        """The tokens of an answer that somebody else wrote, its end included unless it was cut short."""
        return self._known(self.turns.answer(text, ended=ended))

    def text(self, ids: Sequence[int]) -> str:
        """The answer that tokens spell, without special tokens."""
        bare = self.turns.without_end(ids)
        return str(self.tokenizer.decode(bare, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _known(self, ids: list[int]) -> list[int]:
        within(f"A text for '{self.name}'", self.tokenizer, ids, table_rows(self.model))
        return ids


def load(config: LMConfig, resolve: Callable[[str], str]) -> LM:
    """The model that a recipe names, frozen and ready to answer.

    Raises:
        UserError: it is not there, is no causal language model, lacks an end token or the chat template asked for.
    """
    found, place = sources(config, resolve), _place(config)
    return _held(config, place, *_read(config, found, "AutoModelForCausalLM", place.dtype))


def load_encoder(config: LMConfig, resolve: Callable[[str], str]) -> LM:
    """An encoder such as BERT, frozen, held like a language model: a row is [CLS] prompt [SEP] answer [SEP].

    Its pooler, which a value head takes the place of, is left out.

    Raises:
        UserError: as ``load``.
    """
    found, place = sources(config, resolve), _place(config)
    tokenizer, model = _read(config, found, "AutoModel", place.dtype)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
    return _held(config, place, tokenizer, model)


def is_encoder(config: LMConfig, resolve: Callable[[str], str]) -> bool:
    """Whether the model that a recipe names reads a text from both sides, and can write none.

    Raises:
        UserError: it is not there, or reads with one network and writes with another.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    where, gguf_file, _ = sources(config, resolve)
    if gguf_file:
        return False
    with reading(f"model.base: cannot load '{config.base}'"):
        known = {"revision": config.revision} if config.revision else {}
        told = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **known)
    if getattr(told, "is_encoder_decoder", False):
        raise UserError(
            f"model.base: '{config.base}' reads with one network and writes with another; use a causal language model "
            "or an encoder."
        )
    masked = told.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return masked and not getattr(told, "is_decoder", False)


def sources(config: LMConfig, resolve: Callable[[str], str]) -> Source:
    """Where the model's weights lie.

    Raises:
        UserError: there is no such folder, or it is a LoRA whose base is not there.
    """
    where = resolve(config.base)
    if where.startswith("~"):
        where = str(Path(where).expanduser())
    _check_folder(config, where)
    return source(config.base, where, config.gguf_file)


class _Place(NamedTuple):
    device: torch.device
    dtype: torch.dtype


def _place(config: LMConfig) -> _Place:
    """Where the model is held, and in what."""
    device = find_device(config.device)
    return _Place(device, find_dtype(config.dtype, device))


def _held(config: LMConfig, place: _Place, tokenizer: Any, model: Any) -> LM:
    model.eval().requires_grad_(False)
    if sharded.wanted(config.sharded):
        sharded.split(model, _blocks(model), place.device)
    else:
        model.to(place.device)
    template = _template(config, tokenizer)
    lm = LM(config.base, model, tokenizer, place.device, place.dtype, template, config.max_prompt_tokens)
    if not lm.eos:
        raise UserError(f"model.base: the tokenizer of '{config.base}' has no end token, so answers could not end.")
    return lm


def _blocks(model: Any) -> list[Any]:
    """Those of a network, in the order in which they are asked."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def _read(config: LMConfig, found: Source, kind: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Tokenizer and model, of one ``kind`` of transformers' Auto classes. A weight that the files lack would be filled
    with noise, so that is an error here."""
    import transformers

    known = {"revision": config.revision, "gguf_file": found.gguf_file, "trust_remote_code": False}
    options = {name: value for name, value in known.items() if value is not None}
    safe: Mapping[str, Any] = {} if found.gguf_file else {"use_safetensors": True}
    called = f"'{config.base}'" if found.adapter is None else f"'{found.root}', of which '{config.base}' is a LoRA,"
    with reading(f"model.base: cannot load the tokenizer of {called.rstrip(',')}"):
        own = found.adapter is not None and (found.adapter / "tokenizer_config.json").is_file()
        folder, chosen = (str(found.adapter), {"trust_remote_code": False}) if own else (found.root, options)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **chosen)
    with reading(f"model.base: cannot load {called} as {_NOUNS[kind][0]}"):
        model, told = getattr(transformers, kind).from_pretrained(
            found.root, dtype=dtype, output_loading_info=True, **options, **safe
        )
    missing = [key for key in told["missing_keys"] if not key.startswith("pooler.")]
    demand_all(f"model.base: {called} is no {_NOUNS[kind][1]}", missing, told["unexpected_keys"])
    if getattr(model, "peft_config", None):
        raise UserError(f"model.base: '{config.base}' is a LoRA on a hub; fetch it, and name the folder that it is in.")
    if found.gguf_file:
        model.hf_quantizer, model.is_quantized = None, False  # else it could be neither cast nor saved
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    if found.adapter is not None:
        model = with_adapter(model, found.adapter)
    if config.layers is not None:
        _keep(model, config)
    demand_finite(f"model.base: '{config.base}'", model)
    check_tokenizer(f"model.base: '{config.base}'", tokenizer, table_rows(model))
    return tokenizer, model


_NOUNS = {
    "AutoModelForCausalLM": ("a language model", "causal language model"),
    "AutoModel": ("an encoder", "encoder"),
}


def _keep(model: Any, config: LMConfig) -> None:
    """Cut the network off above its lowest layers; its last norm then follows another one."""
    inner, told = model.base_model, model.config.get_text_config()
    known = isinstance(getattr(inner, "layers", None), ModuleList) and hasattr(told, "num_hidden_layers")
    have = len(inner.layers) if known else 0
    if not known or config.layers is None or config.layers > have:
        what = f"has {have}" if known else "keeps them under another name than 'layers'"
        raise UserError(f"model.layers: {config.layers} of the layers of '{config.base}' are asked for, which {what}.")
    inner.layers, told.num_hidden_layers = inner.layers[: config.layers], config.layers
    if getattr(told, "layer_types", None):
        told.layer_types = told.layer_types[: config.layers]


def _template(config: LMConfig, tokenizer: Any) -> str:
    has_chat = getattr(tokenizer, "chat_template", None) is not None
    if config.template == "auto":
        return "chat" if has_chat else "plain"
    if config.template == "chat" and not has_chat:
        raise UserError(f"model.template: the tokenizer of '{config.base}' has no chat template; use plain or alpaca.")
    if config.template == "alpaca":
        return ALPACA
    if config.template not in ("chat", "plain") and "{prompt}" not in config.template:
        raise UserError(
            f"model.template: '{config.template}' is neither auto, chat, plain nor alpaca, and lacks {{prompt}}."
        )
    return config.template


def _check_folder(config: LMConfig, where: str) -> None:
    """A name that looks like a folder should be one, before a library asks the network for it."""
    looks_local = where.startswith((".", "/", "~")) or where.count("/") > 1
    if looks_local and not Path(where).expanduser().is_dir():
        raise UserError(f"model.base: there is no folder '{config.base}'. {near(where)}".strip())
    refuse("model", model_at("base", where))
