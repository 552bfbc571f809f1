"""Reward models in miniature, random and in the formats in which the real ones are published, for tests.

They read lower-case letters, each a token.
"""

import itertools
import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raftdiff.rewards.detection import without_scipy

ENDS = ("<|startoftext|>", "<|endoftext|>")
CLIP: Mapping[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""A model of open_clip's, as its configurations describe them."""
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
ANSWERS = ("Yes", "yes", "No", "no", "two", "Two")
VLM_TOKENS = ("<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>")
QWEN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TEMPLATE = """{% for turn in messages %}<|im_start|>{{ turn['role'] }}
{% for part in turn['content'] %}{{ 'IMAGE' if part['type'] == 'image' else part['text'] }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def write_pickscore(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP model of transformers with tokenizer and preparation of pictures, such as yuvalkirstain/PickScore_v1."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), *ENDS]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 16
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu"}
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16}
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    ends = {"bos_token_id": 0, "eos_token_id": 2}  # as the published configuration has them
    config = CLIPConfig(text_config={**text, **shape, **ends}, vision_config={**vision, **shape}, projection_dim=24)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(4.6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_hps(file: Path, *, seed: int = 0) -> Path:
    """A checkpoint of ``CLIP``, as HPS_v2.1_compressed.pt is one of open_clip's ViT-H-14: half precision, in a
    ``state_dict``."""
    import open_clip

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        weights = open_clip.CLIP(**CLIP).state_dict()
    torch.save({"state_dict": {name: weight.half() for name, weight in weights.items()}}, file)
    return file


def write_image_reward(folder: Path, *, seed: int = 0) -> Path:
    """ImageReward.pt and, under ``tokenizer``, BERT's one: of letters alone."""
    from transformers import BertTokenizer

    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters]
    BertTokenizer(vocab={word: place for place, word in enumerate(words)}).save_pretrained(folder / "tokenizer")
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in image_reward_layout().items()}
    for name in weights:
        if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight")):
            weights[name] += 1
    weights["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    torch.save(weights, folder / "ImageReward.pt")
    return folder


def image_reward_layout(
    *,
    side: int = 32,
    patch: int = 8,
    image: tuple[int, int] = (128, 2),
    text: tuple[int, int] = (64, 2),
    tokens: int = 59,
    positions: int = 40,
    shared: int = 16,
    head: tuple[int, ...] = (64, 20, 12, 8, 6, 1),
) -> dict[str, tuple[int, ...]]:
    """Names and shapes in ImageReward.pt, but for one buffer of whole numbers; ``image`` and ``text`` are width and
    layers, ``shared`` the width of BLIP's projections, which the score does not read."""
    (wide, blocks), (width, layers) = image, text
    linear: dict[str, tuple[int, int]] = {"blip.vision_proj": (shared, wide), "blip.text_proj": (shared, width)}
    norms = {"blip.visual_encoder.norm": wide, "blip.text_encoder.embeddings.LayerNorm": width}
    for block in range(blocks):
        at = f"blip.visual_encoder.blocks.{block}"
        linear |= {f"{at}.attn.qkv": (3 * wide, wide), f"{at}.attn.proj": (wide, wide)}
        linear |= {f"{at}.mlp.fc1": (4 * wide, wide), f"{at}.mlp.fc2": (wide, 4 * wide)}
        norms |= {f"{at}.norm1": wide, f"{at}.norm2": wide}
    for layer in range(layers):
        at = f"blip.text_encoder.encoder.layer.{layer}"
        for attention, read in (("attention", width), ("crossattention", wide)):
            linear |= {f"{at}.{attention}.self.query": (width, width)}
            linear |= {f"{at}.{attention}.self.{it}": (width, read) for it in ("key", "value")}
            linear |= {f"{at}.{attention}.output.dense": (width, width)}
            norms |= {f"{at}.{attention}.output.LayerNorm": width}
        linear |= {f"{at}.intermediate.dense": (4 * width, width), f"{at}.output.dense": (width, 4 * width)}
        norms |= {f"{at}.output.LayerNorm": width}
    linear |= {f"mlp.layers.{at}": (head[n + 1], head[n]) for n, at in enumerate((0, 2, 4, 6, 7))}
    return {
        "blip.visual_encoder.cls_token": (1, 1, wide),
        "blip.visual_encoder.pos_embed": (1, (side // patch) ** 2 + 1, wide),
        "blip.visual_encoder.patch_embed.proj.weight": (wide, 3, patch, patch),
        "blip.visual_encoder.patch_embed.proj.bias": (wide,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (tokens, width),
        "blip.text_encoder.embeddings.position_embeddings.weight": (positions, width),
        **{f"{name}.weight": shape for name, shape in linear.items()},
        **{f"{name}.bias": shape[:1] for name, shape in linear.items()},
        **{f"{name}.{kind}": (size,) for name, size in norms.items() for kind in ("weight", "bias")},
    }


def write_image_classifier(folder: Path, labels: Sequence[str], *, seed: int = 0) -> Path:
    """A ViT with a head of these labels, such as Falconsai/nsfw_image_detection."""
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = dict(enumerate(labels))
    config = ViTConfig(
        image_size=32, patch_size=8, id2label=names, label2id={name: at for at, name in names.items()}, **sizes
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight)  # as initialised, it would call all pictures nearly alike
        model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def write_mask2former(folder: Path, labels: Sequence[str], *, seed: int = 0) -> Path:
    """An instance model on a Swin backbone, such as facebook/mask2former-swin-small-coco-instance, of these classes."""
    from transformers import (
        Mask2FormerConfig,
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessor,
        SwinConfig,
    )

    stages = [f"stage{number}" for number in range(1, 5)]
    heads = {"depths": [1] * 4, "num_heads": [1] * 4}
    swin = SwinConfig(image_size=32, embed_dim=8, window_size=2, out_features=stages, **heads)
    sizes = {"feature_size": 32, "mask_feature_size": 32, "hidden_dim": 32, "num_attention_heads": 2, "num_queries": 6}
    layers = {"encoder_layers": 1, "decoder_layers": 2, "encoder_feedforward_dim": 16, "dim_feedforward": 16}
    names = dict(enumerate(labels))
    config = Mask2FormerConfig(
        backbone_config=swin, id2label=names, label2id={name: at for at, name in names.items()}, **sizes, **layers
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with without_scipy():
            model = Mask2FormerForUniversalSegmentation(config)
        model.save_pretrained(folder)
    Mask2FormerImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder


def write_owlv2(folder: Path, *, seed: int = 0) -> Path:
    """A detector that is asked by words, such as google/owlv2-base-patch16-ensemble."""
    from transformers import CLIPTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor

    words = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), *ENDS]
    tokenizer = CLIPTokenizer(vocab={word: place for place, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 16
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    text = {"vocab_size": len(words), "max_position_embeddings": 16, **ends, **shape}
    vision = {"image_size": 64, "patch_size": 16, **shape}
    config = Owlv2Config(text_config=text, vision_config=vision, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        Owlv2ForObjectDetection(config).save_pretrained(folder)
    processor = Owlv2ImageProcessor(size={"height": 64, "width": 64})
    Owlv2Processor(image_processor=processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def write_smolvlm(folder: Path, *, seed: int = 0) -> Path:
    """An Idefics3 model, as SmolVLM is one: pictures of 64 pixels in four parts of 32, and as a whole."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3ImageProcessor, Idefics3Processor

    tokenizer = _bytes(VLM_TOKENS)
    config = Idefics3Config(
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        text_config={"model_type": "llama", **_llama(tokenizer)},
        vision_config={**SHAPE, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    pictures = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    template = TEMPLATE.replace("IMAGE", "<image>")
    processor = Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=template)
    return _write_vlm(folder, Idefics3ForConditionalGeneration, config, processor, seed)


def write_qwen2_vl(folder: Path, *, seed: int = 0, most: int = 64**2) -> Path:
    """A Qwen2-VL model: pictures in parts of 16 pixels, as many as there are in ``most`` pixels."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessor, Qwen2VLProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    tokenizer = _bytes(QWEN_TOKENS)
    numbers = {f"{it}_token_id": tokenizer.convert_tokens_to_ids(f"<|{it}|>") for it in ("vision_start", "vision_end")}
    numbers |= {f"{it}_token_id": tokenizer.convert_tokens_to_ids(f"<|{it}_pad|>") for it in ("image", "video")}
    turning = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]}
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "mlp_ratio": 2}
    ends = {"bos_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.pad_token_id}
    text = {**_llama(tokenizer), **ends, "rope_parameters": turning}
    config = Qwen2VLConfig(text_config=text, vision_config=vision, **numbers)
    pictures = Qwen2VLImageProcessor(patch_size=8, min_pixels=16**2, max_pixels=most)
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = Qwen2VLProcessor(pictures, tokenizer, Qwen2VLVideoProcessor(patch_size=8), chat_template=template)
    return _write_vlm(folder, Qwen2VLForConditionalGeneration, config, processor, seed)


def write_hpsv3(folder: Path, *, seed: int = 0) -> Path:
    """HPSv3.safetensors, beside the Qwen2-VL model that it was tuned from: weights under the names of transformers
    4.45, one token more, and the head."""
    from safetensors.torch import load_file, save_file

    base = load_file(write_qwen2_vl(folder, seed=seed, most=2**20) / "model.safetensors")
    generator = torch.Generator().manual_seed(seed)
    weights = {re.sub(r"^model\.language_model\.", "model.", name): weight for name, weight in base.items()}
    weights = {name.removeprefix("model.") if "model.visual." in name else name: it for name, it in weights.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        more = torch.randn(1, weights[name].shape[1], generator=generator)
        weights[name] = torch.cat([weights[name], 0.1 * more])
    widths = (32, 24, 16, 2)
    for at, (read, told) in zip((0, 3, 5), itertools.pairwise(widths), strict=True):
        weights[f"rm_head.{at}.weight"] = 0.3 * torch.randn(told, read, generator=generator)
        weights[f"rm_head.{at}.bias"] = 0.3 * torch.randn(told, generator=generator)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "HPSv3.safetensors")
    return folder


def _llama(tokenizer: Any) -> dict[str, Any]:
    return {**SHAPE, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}


def _bytes(special: tuple[str, ...]) -> Any:
    """A tokenizer of single bytes, but for a few answers, each a token, with a space before it and without."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [(word[:end], word[end]) for word in ANSWERS for end in range(1, len(word))]
    merges = list(dict.fromkeys([*merges, *(("Ġ", word) for word in ANSWERS)]))
    words = list(dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]))
    bytewise = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, merges))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    return tokenizer


def _write_vlm(folder: Path, kind: Any, config: Any, processor: Any, seed: int) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config)
    for weight in model.parameters():  # so that pictures and questions tell
        weight.data.mul_(4 if weight.ndim > 1 else 1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
