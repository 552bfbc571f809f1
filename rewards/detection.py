"""Objects in a picture, by detectors of transformers: which classes, where, and how sure.

Three kinds are told apart by their config.json, and all read a folder or a hub id, from safetensors:

- Mask2Former and MaskFormer, trained on instances: masks, and boxes around them;
- detectors of fixed classes (DETR, RT-DETR, ...): boxes;
- detectors that are asked by words (OWL-ViT, OWLv2, Grounding DINO): boxes, a class a question.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image

from raftdiff.errors import Need, UserError, nearest
from raftdiff.recipes.needs import demand, model_at
from raftdiff.rewards.geneval_rules import Box, Detection
from raftdiff.training.weights import loaded, reading

MASKS = ("mask2former", "maskformer")
BY_WORDS = ("owlv2", "owlvit", "grounding-dino", "mm-grounding-dino")
WHERE = (
    "It takes a folder or hub id of a detector of transformers, such as facebook/mask2former-swin-small-coco-instance."
)
MOST = 100
"""Pairs of a query and a class that a mask model gives, the most probable first, as it is evaluated on COCO."""
LOWEST = 0.01
"""What is less sure is no detection; every threshold is above."""
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "computer mouse": ("mouse",),
    "tv remote": ("remote",),
    "computer keyboard": ("keyboard",),
    "motorcycle": ("motorbike",),
    "airplane": ("aeroplane",),
    "couch": ("sofa",),
    "tv": ("tvmonitor", "television"),
    "hair drier": ("hair dryer",),
}
"""How models trained on COCO call what GenEval's files call otherwise; spaces and case are no difference."""


@runtime_checkable
class Detector(Protocol):
    """What finds objects."""

    @property
    def by_words(self) -> bool:
        """Whether it is asked by words; else it knows a list of classes."""
        ...

    def detect(self, picture: Image.Image, labels: Sequence[str]) -> list[Detection]:
        """The objects of these classes in an RGB picture, in no order.

        Raises:
            UserError: it does not know one of the classes.
        """
        ...


@final
class Network:
    """A model on its device, and its preparation of pictures and texts."""

    def __init__(self, model: Any, processor: Any, device: str) -> None:
        self.model, self.processor, self._device = model.eval().to(device), processor, device

    def said_of(self, picture: Image.Image, **asked: Any) -> tuple[Any, Any]:
        """What the model was given of a picture, and what it says."""
        inputs = self.processor(images=picture, return_tensors="pt", **asked).to(self._device)
        return inputs, self.model(**inputs)


@final
class MaskDetector:
    """Mask2Former or MaskFormer: the probability of a class times the mean probability of its mask's own pixels.

    Cheng et al. 2022, arXiv:2112.01527, as mmdetection evaluates instances: the ``MOST`` most probable pairs of a query
    and a class; a pixel belongs to a mask where its logit is above 0; the box is the smallest around the mask.
    """

    by_words = False

    def __init__(self, network: Network, places: "Places") -> None:
        self._network, self._places = network, places

    @torch.no_grad()
    def detect(self, picture: Image.Image, labels: Sequence[str]) -> list[Detection]:
        places = self._places.of(labels)
        inputs, read = self._network.said_of(picture)
        high, wide = inputs["pixel_values"].shape[-2:]
        filled = inputs["pixel_mask"][0].bool() if "pixel_mask" in inputs else torch.ones(high, wide, dtype=torch.bool)
        rows, columns = int(filled.any(dim=1).sum()), int(filled.any(dim=0).sum())
        whole = torch.nn.functional.interpolate(
            read.masks_queries_logits.float(), size=(high, wide), mode="bilinear", align_corners=False
        )[..., :rows, :columns]
        masks = torch.nn.functional.interpolate(
            whole, size=(picture.height, picture.width), mode="bilinear", align_corners=False
        )[0]
        return instances(read.class_queries_logits[0].float().cpu(), masks.cpu(), places)


def instances(
    classes: Float[torch.Tensor, "queries classes_and_none"],
    masks: Float[torch.Tensor, "queries height width"],
    places: Mapping[str, int],
) -> list[Detection]:
    """The objects that a mask model's logits tell of; ``places`` are those of the wanted classes, and the last class is
    none at all. An empty mask is no object."""
    probabilities = classes.softmax(dim=-1)[:, :-1]
    flat = probabilities.flatten()
    found = []
    names = {place: label for label, place in places.items()}
    for pair in flat.topk(min(MOST, len(flat))).indices.tolist():
        query, place = divmod(pair, probabilities.shape[1])
        if place not in names or float(flat[pair]) < LOWEST:
            continue
        mask = masks[query] > 0
        if mask.any():
            sure = float(flat[pair] * masks[query].sigmoid()[mask].mean())
            array = mask.numpy()
            found.append(Detection(names[place], sure, around(array), array))
    return found


def around(mask: Bool[np.ndarray, "height width"]) -> Box:
    """The smallest box around the pixels of a mask; its right and lower edges lie behind the last ones.

    >>> around(np.eye(4, dtype=bool)[:, :3])
    (0.0, 0.0, 3.0, 3.0)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@final
class BoxDetector:
    """A detector of fixed classes that gives boxes."""

    by_words = False

    def __init__(self, network: Network, places: "Places") -> None:
        self._network, self._places = network, places

    @torch.no_grad()
    def detect(self, picture: Image.Image, labels: Sequence[str]) -> list[Detection]:
        names = {place: label for label, place in self._places.of(labels).items()}
        _, read = self._network.said_of(picture)
        sizes = [(picture.height, picture.width)]
        (said,) = self._network.processor.post_process_object_detection(read, threshold=LOWEST, target_sizes=sizes)
        return [
            Detection(names[place], score, _box(box))
            for place, score, box in zip(*(said[key].tolist() for key in ("labels", "scores", "boxes")), strict=True)
            if place in names
        ]


@final
class WordDetector:
    """A detector that is asked by words, one class at a time: boxes that it finds for others do not compete."""

    by_words = True

    def __init__(self, network: Network) -> None:
        self._network = network

    @torch.no_grad()
    def detect(self, picture: Image.Image, labels: Sequence[str]) -> list[Detection]:
        found = []
        for label in labels:
            # OWL's models read a phrase, Grounding DINO sentences in lower case with a full stop.
            phrase = self._network.model.config.model_type.startswith("owl")
            _, read = self._network.said_of(picture, text=[[f"a photo of a {label}"]] if phrase else f"a {label}.")
            (said,) = self._network.processor.post_process_grounded_object_detection(
                read, threshold=LOWEST, target_sizes=[(picture.height, picture.width)]
            )
            found += [
                Detection(label, score, _box(box))
                for score, box in zip(said["scores"].tolist(), said["boxes"].tolist(), strict=True)
            ]
        return found


def _box(edges: Sequence[float]) -> Box:
    left, top, right, bottom = map(float, edges)
    return left, top, right, bottom


@final
class Places:
    """The classes of a model, by what prompt files call them."""

    def __init__(self, names: Mapping[int, str], model: str) -> None:
        self._names = {_plain(name): int(place) for place, name in names.items()}
        self._model = model

    def of(self, labels: Sequence[str]) -> dict[str, int]:
        """
        Raises:
            UserError: the model has no such class.
        """
        found = {}
        for label in labels:
            spelled = [_plain(label), *map(_plain, SPELLINGS.get(label, ()))]
            place = next((self._names[name] for name in spelled if name in self._names), None)
            if place is None:
                raise UserError(
                    f"The detector '{self._model}' knows no class '{label}', which a prompt asks for. "
                    f"{nearest(label, self._names)} Take one that was trained on COCO, or one that is asked by words."
                )
            found[label] = place
        return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def detector_needs(name: str) -> Iterator[Need]:
    """What of a detector is not on this machine."""
    yield from model_at("detector", name, where=WHERE)


def open_detector(name: str, *, device: str = "cpu") -> Detector:
    """The detector in a folder or of a hub id, loaded.

    Raises:
        UserError: it is not there, is another model, or lacks weights.
    """
    import transformers

    what = f"The detector '{name}'"
    demand(what, detector_needs(name))
    with reading(f"{what} cannot be read", WHERE):
        config = transformers.AutoConfig.from_pretrained(name)
        kind = str(config.model_type)
        known = transformers.models.auto.modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING
    if kind in BY_WORDS:
        model = loaded(what, transformers.AutoModelForZeroShotObjectDetection, name, use_safetensors=True)
        return WordDetector(Network(model, _processor(what, transformers.AutoProcessor, name), device))
    if kind in MASKS:
        with without_scipy():
            model = loaded(what, transformers.AutoModelForUniversalSegmentation, name, use_safetensors=True)
        network = Network(model, _processor(what, transformers.AutoImageProcessor, name), device)
        return MaskDetector(network, Places(model.config.id2label, name))
    if type(config) in known:
        model = loaded(what, transformers.AutoModelForObjectDetection, name, use_safetensors=True)
        network = Network(model, _processor(what, transformers.AutoImageProcessor, name), device)
        return BoxDetector(network, Places(model.config.id2label, name))
    raise UserError(f"{what} is a model of the type '{kind}', and no detector that is known here. {WHERE}")


@contextmanager
def without_scipy() -> Iterator[None]:
    """Within, the mask models of transformers ask for no scipy, which their losses alone would use."""
    from transformers.models.mask2former import modeling_mask2former
    from transformers.models.maskformer import modeling_maskformer

    held = [(module, module.requires_backends) for module in (modeling_mask2former, modeling_maskformer)]
    try:
        for module, _ in held:
            module.requires_backends = lambda *_: None
        yield
    finally:
        for module, own in held:
            module.requires_backends = own


def _processor(what: str, kind: Any, name: str) -> Any:
    with reading(f"{what} lacks its preparation of pictures (preprocessor_config.json)"):
        return kind.from_pretrained(name)
