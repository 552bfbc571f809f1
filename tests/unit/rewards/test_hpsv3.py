"""HPSv3 against the authors' forward pass, one picture at a time, on a small model in the published format."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import linear

from raftdiff.errors import UserError
from raftdiff.recipes import needs as recipe_needs
from raftdiff.rewards import tiny
from raftdiff.rewards.checkpoints import demand_layout
from raftdiff.rewards.hpsv3 import INSTRUCTION, HpsV3Config, layout
from raftdiff.testing.examples import reward_samples
from raftdiff.types import Sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_hpsv3(tmp_path_factory.mktemp("hpsv3"))


def config(folder: Path, **changes: Any) -> HpsV3Config:
    given: dict[str, Any] = {"checkpoint": folder / "HPSv3.safetensors", "model": str(folder), "dtype": "float32"}
    return HpsV3Config(**{**given, **changes})


SIZES = {(64, 64): (256, 256), (48, 64): (224, 304), (400, 300): (288, 208)}
"""Widths and heights of pictures, and those that qwen_vl_utils makes of them with 256 parts of 16 pixels square."""


def samples() -> list[Sample[Image.Image]]:
    return [
        replace(one, media=one.media.resize(size)) for one, size in zip(reward_samples(count=3), SIZES, strict=True)
    ]


def by_hand(folder: Path, sample: Sample[Image.Image]) -> float:
    """``Qwen2VLRewardModelBT`` of hpsv3/model/qwen2vl_trainer.py: embeddings, with those of the picture put in their
    places, through the language model without places of its own, and the head at the added token."""
    from transformers import AutoProcessor, Qwen2VLConfig, Qwen2VLForConditionalGeneration

    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    held = load_file(folder / "HPSv3.safetensors")
    settings = Qwen2VLConfig.from_pretrained(folder)
    settings.text_config.vocab_size = len(processor.tokenizer)
    model = Qwen2VLForConditionalGeneration(settings).eval()
    renamed = {re.sub(r"^model\.", "model.language_model.", name): it for name, it in held.items() if "rm_" not in name}
    model.load_state_dict({re.sub(r"^visual\.", "model.visual.", name): it for name, it in renamed.items()})
    picture = sample.media.resize(SIZES[sample.media.size], Image.Resampling.BICUBIC)
    text = INSTRUCTION.replace("{caption}", sample.prompt.caption)
    rendered = f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(text=[rendered], images=[picture], return_tensors="pt")
    ids = inputs.input_ids
    with torch.no_grad():
        seen = model.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output
        words = model.model.language_model.embed_tokens(ids)
        words = words.masked_scatter((ids == settings.image_token_id)[..., None].expand_as(words), seen)
        x = model.model.language_model(inputs_embeds=words).last_hidden_state
        for place in (0, 3, 5):
            x = linear(x if place == 0 else x.relu(), held[f"rm_head.{place}.weight"], held[f"rm_head.{place}.bias"])
    (token,) = processor.tokenizer.encode("<|Reward|>")
    return float(x[ids == token][0, 0])


def test_it_equals_the_authors_score(folder: Path) -> None:
    expected = torch.tensor([by_hand(folder, sample) for sample in samples()])
    torch.testing.assert_close(config(folder).build().score(samples()), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01


def test_the_instruction_is_the_authors_to_the_letter() -> None:
    """Copies of it in several repositories agree; the mark is that of theirs."""
    assert hashlib.sha256(INSTRUCTION.encode()).hexdigest().startswith("19fda5ab8c969928")
    assert INSTRUCTION.endswith(
        "Textual prompt - {caption}\n\n\n\nPlease provide the overall ratings of this image: <|Reward|>\n\nEND\n"
    )


def test_companions_do_not_count_and_lower_precision_is_near(folder: Path) -> None:
    reward, various = config(folder).build(), samples()
    found = reward.score(various)
    apart = [float(reward.score([sample])) for sample in various[::-1]]
    torch.testing.assert_close(found.flip(0), torch.tensor(apart), atol=1e-5, rtol=0)
    low = config(folder, dtype="bfloat16").build()
    torch.testing.assert_close(low.score(various[:1]), found[:1], atol=0.1, rtol=0)
    assert {it.dtype for it in low._network.head.parameters()} == {torch.float32}
    assert reward.score([]).shape == (0,)


def qwen2_vl_7b() -> Any:
    from transformers import Qwen2VLConfig

    text = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    text |= {"num_key_value_heads": 4, "vocab_size": 151658, "bos_token_id": 151643, "eos_token_id": 151645}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "patch_size": 14, "mlp_ratio": 4}
    return Qwen2VLConfig(text_config=text, vision_config=vision)


def published_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes in HPSv3.safetensors: Qwen2-VL-7B's as of transformers 4.45, with one token more than its
    tokenizer has, and the head."""
    shapes: dict[str, tuple[int, ...]] = {"visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14)}
    dense = {"visual.merger.mlp.0": (5120, 5120), "visual.merger.mlp.2": (3584, 5120)}
    norms = {"visual.merger.ln_q": 1280}
    for block in range(32):
        at = f"visual.blocks.{block}"
        dense |= {f"{at}.attn.qkv": (3840, 1280), f"{at}.attn.proj": (1280, 1280)}
        dense |= {f"{at}.mlp.fc1": (5120, 1280), f"{at}.mlp.fc2": (1280, 5120)}
        norms |= {f"{at}.norm1": 1280, f"{at}.norm2": 1280}
    for layer in range(28):
        at = f"model.layers.{layer}"
        dense |= {f"{at}.self_attn.q_proj": (3584, 3584)}
        dense |= {f"{at}.self_attn.{it}_proj": (512, 3584) for it in "kv"}
        shapes |= {f"{at}.self_attn.o_proj.weight": (3584, 3584), f"{at}.mlp.down_proj.weight": (3584, 18944)}
        shapes |= {f"{at}.mlp.{it}_proj.weight": (18944, 3584) for it in ("gate", "up")}
        shapes |= {f"{at}.{it}_layernorm.weight": (3584,) for it in ("input", "post_attention")}
    dense |= {"rm_head.0": (1024, 3584), "rm_head.3": (16, 1024), "rm_head.5": (2, 16)}
    shapes |= {
        "model.embed_tokens.weight": (151658, 3584),
        "lm_head.weight": (151658, 3584),
        "model.norm.weight": (3584,),
    }
    shapes |= {f"{name}.weight": shape for name, shape in dense.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    return shapes | {f"{name}.{it}": (size,) for name, size in norms.items() for it in ("weight", "bias")}


def test_the_layout_of_the_real_checkpoint_is_recognised() -> None:
    with torch.device("meta"):
        file = {name: torch.empty(shape) for name, shape in published_layout().items()}
    demand_layout("The checkpoint", file, layout(qwen2_vl_7b(), file))


def test_the_names_of_today_will_do(folder: Path, tmp_path: Path) -> None:
    held = load_file(folder / "HPSv3.safetensors")
    today = {re.sub(r"^model\.", "model.language_model.", name): it for name, it in held.items()}
    today = {re.sub(r"^visual\.", "model.visual.", name): it for name, it in today.items()}
    save_file(today, tmp_path / "today.safetensors")
    found = config(folder, checkpoint=tmp_path / "today.safetensors").build().score(samples()[:1])
    reward = config(folder, name="other").build()
    assert reward.name == "other"
    assert torch.equal(found, reward.score(samples()[:1]))


def test_a_wrong_file_gets_a_sentence(folder: Path, tmp_path: Path) -> None:
    held, wrong = load_file(folder / "HPSv3.safetensors"), tmp_path / "wrong.safetensors"

    def told(changed: Mapping[str, torch.Tensor], sentence: str) -> None:
        save_file(dict(changed), wrong)
        with pytest.raises(UserError, match=sentence):
            config(folder, checkpoint=wrong).build()

    told(
        {name: it for name, it in held.items() if "rm_head.3" not in name}, "its files lack rm_head.3.* would be random"
    )
    told({name: it for name, it in held.items() if "embed" not in name}, "its files lack model.embed_tokens.weight")
    told({**held, "rm_head.5.bias": torch.zeros(3)}, r"rm_head.5.bias has the shape \(3,\), where \(2,\) is expected")
    told({**held, "visual.more": torch.zeros(1)}, "it holds 'visual.more', which the model has not")
    fewer = {
        name: it[:-9].clone() if name in ("model.embed_tokens.weight", "lm_head.weight") else it
        for name, it in held.items()
    }
    told(fewer, "knows .* tokens and the model .* has .* with the one that is added: it is another model's")
    infinite = {**held, "model.norm.weight": held["model.norm.weight"] / 0}
    told(infinite, "numbers of .*norm.weight are NaN or infinite")
    smolvlm = tiny.write_smolvlm(tmp_path / "smolvlm")
    with pytest.raises(UserError, match="smolvlm' of hpsv3 is of the type 'idefics3', where a Qwen2-VL model is"):
        config(folder, model=str(smolvlm)).build()


def test_a_caption_that_steers_and_a_strip_of_a_picture_are_told(folder: Path) -> None:
    reward, sample = config(folder).build(), samples()[0]
    with pytest.raises(UserError, match=r"hpsv3 is to read '<\|Reward\|>', which steers the model"):
        reward.score([replace(sample, prompt=replace(sample.prompt, caption="a cat <|Reward|>"))])
    with pytest.raises(UserError, match="hpsv3 could not read a picture: .*aspect ratio"):
        reward.score([replace(sample, media=Image.new("RGB", (999, 2)))])


def test_what_is_missing_is_told_before_a_run_begins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_needs, "_silent", "the hub is far")
    assert list(config(folder).needs(str)) == []
    checkpoint, model = HpsV3Config(checkpoint=folder / "no.safetensors").needs(str)
    assert "HPSv3.safetensors is at huggingface.co/MizzenAI/HPSv3; give the path" in checkpoint.sentence
    assert model.sentence.startswith("'Qwen/Qwen2-VL-7B-Instruct' is not in the hub's cache here")
    with pytest.raises(UserError, match="There is no HPSv3 checkpoint"):
        HpsV3Config(checkpoint=folder / "no.safetensors").build()
