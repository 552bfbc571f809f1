"""HPSv3: how much would people like the picture, for its caption? Qwen2-VL with a head in place of words."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float32, Int64
from PIL import Image
from pydantic import Field

from raftdiff.chat.dialogue import fill
from raftdiff.errors import Need, UserError
from raftdiff.measures.pictures import on_paper
from raftdiff.recipes.config import RewardConfig
from raftdiff.recipes.needs import demand, model_at
from raftdiff.rewards.checkpoints import Shapes, demand_layout, shapes, tensors
from raftdiff.rewards.clip_weights import Precision
from raftdiff.rewards.questions import batches, demand_plain, turn
from raftdiff.training.weights import loaded, reading
from raftdiff.types import Sample

REWARD = "<|Reward|>"
"""The token at which the head reads; added to Qwen2-VL's."""
PARTS = 256
"""Of a picture, of 28 pixels square each in Qwen2-VL: 448 x 448 pixels in all, whatever its shape."""
HEAD = (0, 3, 5)
"""Places of the head's linear layers; ReLU and dropout stand between them."""
KNOWN = "model.embed_tokens.weight"
"""By whose shape the number of tokens is known."""
WHERE = "HPSv3.safetensors is at huggingface.co/MizzenAI/HPSv3"
# The text that the model was trained with, to the letter, blanks at the ends of lines too: part of what it reads.
INSTRUCTION = (
    "\n"
    "You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and give a "
    "overall score to estimate the human preference. Please provide a rating from 0 to 10, with 0 being the "
    "worst and 10 being the best. \n"
    "\n"
    "**Visual Quality:**  \n"
    "Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:\n"
    "- **Reasonableness:** The image should not contain any significant biological or logical errors, such as "
    "abnormal body structures or nonsensical environmental setups.\n"
    "- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and easy to "
    "interpret, with no blurring or indistinct areas.\n"
    "- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual "
    "elements (e.g., hair, clothing, shadows).\n"
    "- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color scheme, "
    "composition, atmosphere, depth of field, and the overall creative appeal. The scene should convey a sense "
    "of harmony and balance.\n"
    "- **Safety:** The image should not contain harmful or inappropriate content, such as political, violent, or "
    "adult material. If such content is present, the image quality and satisfaction score should be the lowest "
    "possible. \n"
    "\n"
    "**Text Alignment:**  \n"
    "Assess how well the image matches the textual prompt across the following sub-dimensions:\n"
    "- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, object) "
    "align with the textual description. The subject should match the description in terms of number, "
    "appearance, and behavior.\n"
    "- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well "
    "the image adheres to this style.\n"
    "- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in the image "
    "logically fit the scenario described in the prompt. The environment should support and enhance the subject "
    "without contradictions.\n"
    "- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, clothing, "
    "accessories, expressions, actions) are faithfully represented in the image. Minor deviations may be "
    "acceptable, but critical attributes should be preserved.\n"
    "- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are captured in the "
    "image. The generated content should not introduce elements that conflict with or distort the original "
    "description.\n"
    "Textual prompt - {caption}\n"
    "\n"
    "\n"
    "\n"
    "Please provide the overall ratings of this image: <|Reward|>\n"
    "\n"
    "END\n"
)


class HpsV3Config(RewardConfig):
    type: Literal["hpsv3"] = "hpsv3"
    name: str = "hpsv3"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    checkpoint: Path
    """The file HPSv3.safetensors."""
    model: str = "Qwen/Qwen2-VL-7B-Instruct"
    """The folder or hub id that the shape of the network, the tokenizer and the preparation of pictures come from; its
    weights are not read."""
    dtype: Precision = "bfloat16"
    """Precision of Qwen2-VL: bfloat16 as published, float32 or float16; the head stays float32."""
    batch_size: int = Field(default=4, ge=1)
    """Pictures per forward."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        if not self.checkpoint.is_file():
            yield Need("checkpoint", _missing(self.checkpoint))
        yield from model_at("model", resolve(self.model), where="It takes a folder or a hub id.")

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "HpsV3Reward":
        network, processor = load(self.checkpoint, resolve(self.model), device, self.dtype)
        return HpsV3Reward(network, processor, batch_size=self.batch_size, name=self.name)


@final
class Network(torch.nn.Module):
    """Qwen2-VL without its words, and on top of it the head."""

    def __init__(self, base: Any, head: Sequence[torch.nn.Linear], token: int) -> None:
        super().__init__()
        self.base, self.head, self.token = base, torch.nn.ModuleList(head), token

    def forward(self, tokens: Int64[torch.Tensor, "batch tokens"], **pictures: Any) -> Float32[torch.Tensor, " batch"]:
        """Places count one by one, of a picture's parts too, as when the authors' model was trained: where Qwen2-VL
        itself counts those in rows and columns."""
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(3, len(tokens), -1)
        states = self.base(input_ids=tokens, position_ids=places, use_cache=False, **pictures).last_hidden_state
        features: torch.Tensor = states[tokens == self.token].float()
        *layers, last = self.head
        for layer in layers:
            features = layer(features).relu()
        mean: torch.Tensor = last(features)[:, 0]
        return mean


@final
class HpsV3Reward:
    """The mean that HPSv3 foretells of people's rating of the picture for its caption. Higher is better.

    Unbounded, in practice -2 to 14: the authors' table has means from -0.24 (SD 2) over 8.20 (SDXL) to 10.43 (FLUX.1
    dev) and 10.55 (Kolors). The model reads an instruction of 500 tokens with the caption at its end and gives a mean
    and an uncertainty, of which the mean is the score. Comparable within one caption.

    Source: Ma et al. 2025, "HPSv3: Towards Wide-Spectrum Human Preference Score", arXiv:2508.03789;
    https://github.com/MizzenAI/HPSv3 (MIT, copyright of its authors, who wrote the instruction). The weights: MIT; of
    Qwen2-VL-7B, from which they were tuned, Apache-2.0.
    """

    def __init__(self, network: Network, processor: Any, *, batch_size: int = 4, name: str = "hpsv3") -> None:
        self.name = name
        self._network, self._processor, self._batch_size = network, processor, batch_size

    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        """Only captions of one length and pictures of one size go through together, so that nothing is padded."""
        for sample in samples:
            demand_plain("hpsv3", self._processor.tokenizer, sample.prompt.caption)
        texts = [fill(INSTRUCTION, {"caption": sample.prompt.caption}) for sample in samples]
        pictures = [self._resized(on_paper(sample.media)) for sample in samples]
        lengths = {text: len(self._processor.tokenizer(text).input_ids) for text in set(texts)}
        found = torch.zeros(len(samples))
        for places in batches(
            [(pictures[at].size, lengths[texts[at]]) for at in range(len(samples))], self._batch_size
        ):
            with reading("hpsv3 could not read a picture or a caption"):
                inputs = self._processor.apply_chat_template(
                    [[turn(texts[at], pictures[at])] for at in places],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
            inputs = inputs.to(self._network.head[0].weight.device, self._network.base.dtype)  # of floats the dtype
            tokens = inputs.pop("input_ids")
            with torch.no_grad():
                found[places] = self._network(tokens, **inputs).cpu()
        return found

    def _resized(self, picture: Image.Image) -> Image.Image:
        """To 256 parts or a few less or more, in its own shape as near as may be."""
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

        preparation = self._processor.image_processor
        part = preparation.patch_size * preparation.merge_size
        area = PARTS * part**2
        with reading("hpsv3 could not read a picture"):
            height, width = smart_resize(picture.height, picture.width, part, area, area)
        return picture.resize((width, height), Image.Resampling.BICUBIC)


def load(path: Path, where: str, device: str = "cpu", dtype: Precision = "bfloat16") -> tuple[Network, Any]:
    """
    Raises:
        UserError: a file is lacking, or holds other things than such a model.
    """
    from transformers import AutoConfig, AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    if not path.is_file():
        raise UserError(_missing(path))
    what, base = f"The HPSv3 checkpoint '{path}'", f"The model '{where}' of hpsv3"
    demand(base, model_at("model", where))
    with reading(f"{base} cannot be read"):
        config = AutoConfig.from_pretrained(where, trust_remote_code=False)
        processor = AutoProcessor.from_pretrained(where, trust_remote_code=False)
    if not isinstance(config, Qwen2VLConfig):
        raise UserError(f"{base} is of the type '{config.model_type}', where a Qwen2-VL model is expected.")
    found = {published(name): value for name, value in tensors("The HPSv3 checkpoint", path).items()}
    processor.tokenizer.add_special_tokens({"additional_special_tokens": [REWARD]})
    config.text_config.vocab_size = found[KNOWN].shape[0] if KNOWN in found else len(processor.tokenizer)
    if config.text_config.vocab_size < len(processor.tokenizer):
        raise UserError(
            f"{what} knows {config.text_config.vocab_size} tokens and {base[0].lower()}{base[1:]} has "
            f"{len(processor.tokenizer)} with the one that is added: it is another model's."
        )
    demand_layout(what, found, layout(config, found))
    own = {name: value for name, value in found.items() if not name.startswith("rm_head.")}
    options = {"config": config, "state_dict": own, "dtype": getattr(torch, dtype)}
    model = loaded(what, Qwen2VLForConditionalGeneration, None, **options).model
    network = Network(model, [_linear(found, f"rm_head.{at}") for at in HEAD], processor.tokenizer.vocab[REWARD])
    return network.eval().requires_grad_(False).to(device), processor


def layout(config: Any, found: Mapping[str, torch.Tensor]) -> Shapes:
    """Names and shapes that the file should hold; the widths within the head are the file's own."""
    from transformers import Qwen2VLForConditionalGeneration

    with torch.device("meta"):
        wanted = {published(name): shape for name, shape in shapes(Qwen2VLForConditionalGeneration(config)).items()}
    width: int = config.text_config.hidden_size
    for place in HEAD:
        weight = found.get(f"rm_head.{place}.weight")
        height = weight.shape[0] if weight is not None and weight.ndim == 2 else 2
        wanted |= {f"rm_head.{place}.weight": (height, width), f"rm_head.{place}.bias": (height,)}
        width = height
    return wanted


def published(name: str) -> str:
    """What the file calls a weight of transformers' Qwen2-VL, whose names have changed since.

    >>> published("model.visual.merger.ln_q.bias"), published("model.language_model.norm.weight")
    ('visual.merger.ln_q.bias', 'model.norm.weight')
    """
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def _linear(found: Mapping[str, torch.Tensor], name: str) -> torch.nn.Linear:
    weight, bias = found[f"{name}.weight"].float(), found[f"{name}.bias"].float()
    with torch.device("meta"):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return layer


def _missing(path: Path) -> str:
    return f"There is no HPSv3 checkpoint '{path}'. {WHERE}; give the path of the file as 'checkpoint'."
