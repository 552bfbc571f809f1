"""Is a picture safe for work, by an image classifier of transformers? Made to veto."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, final

import torch
from jaxtyping import Float32
from PIL import Image
from pydantic import Field

from raftdiff.errors import Need, UserError, nearest
from raftdiff.measures.pictures import on_paper
from raftdiff.recipes.config import RewardConfig
from raftdiff.recipes.needs import demand, model_at
from raftdiff.rewards.classifier import values
from raftdiff.training.weights import loaded, reading
from raftdiff.types import Sample

WHERE = "It takes a folder or hub id of an image classifier of transformers, such as Falconsai/nsfw_image_detection."


class NsfwConfig(RewardConfig):
    type: Literal["nsfw"] = "nsfw"
    name: str = "nsfw"
    """The column of this reward in tables and logs."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """Factor in the total reward."""
    model: str = "Falconsai/nsfw_image_detection"
    """A folder or hub id of an image classifier, with safetensors weights and preprocessor_config.json."""
    label: str = "normal"
    """What the classifier calls pictures that are safe."""
    batch_size: int = Field(default=32, ge=1)
    """Pictures per forward; changes no score."""

    def needs(self, resolve: Callable[[str], str]) -> Iterator[Need]:
        """What is not on this machine; see ``recipes.needs``."""
        yield from model_at("model", resolve(self.model), where=WHERE)

    def build(self, *, device: str = "cpu", resolve: Callable[[str], str] = str) -> "NsfwReward":
        """The reward; ``resolve`` turns the name of a shipped model into its folder and leaves other names alone."""
        model, processor = load(resolve(self.model), device=device)
        return NsfwReward(model, processor, label=self.label, batch_size=self.batch_size, name=self.name)


@final
class NsfwReward:
    """The probability that a picture is safe for work, 0 to 1, of an image classifier: by softmax, or by sigmoid where
    its labels are independent. Higher is better. No caption is read.

    Source: the default is Falconsai/nsfw_image_detection (Apache-2.0), a ViT-B/16 (Dosovitskiy et al. 2020,
    arXiv:2010.11929) tuned on 80,000 pictures that were not published. Licence of other weights: see their card.

    Args:
        model: puts out logits of shape (batch, labels); becomes this reward's own, in evaluation mode.
        label: the one that safe pictures have.

    Raises:
        UserError: the model has no such label, or no other.
    """

    def __init__(self, model: Any, processor: Any, *, label: str, batch_size: int = 32, name: str = "nsfw") -> None:
        self.name = name
        self._model, self._processor, self._batch_size = model.eval(), processor, batch_size
        labels = {str(text): int(column) for column, text in model.config.id2label.items()}
        if label not in labels:
            raise UserError(
                f"The reward '{name}': '{label}' is no label of this model. {nearest(label, labels)} Say as 'label' "
                "what it calls pictures that are safe."
            )
        if len(labels) < 2:
            raise UserError(f"The reward '{name}': this model has one label alone, and tells nothing apart.")
        self._column = labels[label]

    @torch.inference_mode()
    def score(self, samples: Sequence[Sample[Image.Image]]) -> Float32[torch.Tensor, " samples"]:
        independent = self._model.config.problem_type == "multi_label_classification"
        scores = []
        for start in range(0, len(samples), self._batch_size):
            pictures = [on_paper(sample.media) for sample in samples[start : start + self._batch_size]]
            inputs = self._processor(images=pictures, return_tensors="pt").to(self._model.device)
            logits = self._model(**inputs).logits.float().cpu()
            scores.append(values(logits, self._column, "probability", independent=independent))
        return torch.cat(scores) if scores else torch.empty(0)


def load(name: str, *, device: str) -> tuple[Any, Any]:
    """The classifier in a folder or of a hub id, and its preparation of pictures, by Pillow as when such models were
    trained. Weights are read from safetensors only, and no code of the model's author is run.

    Raises:
        UserError: not there, another kind of model, or without a trained head.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    what = f"The image classifier '{name}'"
    demand(what, model_at("model", name, where=WHERE))
    model = loaded(what, AutoModelForImageClassification, name, use_safetensors=True)
    with reading(f"{what} lacks its preparation of pictures (preprocessor_config.json)"):
        processor = AutoImageProcessor.from_pretrained(name, backend="pil")
    return model.to(device), processor
