"""The weights that ship load offline, from their folders, in the formats of the libraries that read them."""

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff import embedded
from raftdiff.embedded.emoji.judge import EmojiJudge, ground_by_pixel
from raftdiff.embedded.emoji.world import BACKGROUNDS, Concept, all_concepts
from raftdiff.errors import UserError

CAPTION = Concept("cat", "cartoon", "red").caption


def test_all_weights_together_stay_small() -> None:
    files = [path for name in embedded.names() for path in embedded.folder(name).rglob("*") if path.is_file()]
    sizes = {path: path.stat().st_size for path in files}
    assert sum(sizes.values()) < 60 * 2**20
    # as long as two worlds of pictures ship; either of them alone stays below what is wanted of all
    for other in ("emoji-", "scene-"):
        assert sum(size for path, size in sizes.items() if other not in str(path)) < 48 * 2**20


@pytest.mark.parametrize("name", [name for name in embedded.names() if name.startswith("emoji-")])
def test_every_model_has_a_card(name: str) -> None:
    card = (embedded.folder(name) / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\n")
    assert all(word in card for word in ("Twemoji", "CC BY 4.0", "Apache-2.0", "MIT", "seed"))


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_the_ground_is_told_by_pixel_colour_alone(name: str) -> None:
    picture = Image.new("RGB", (64, 64), BACKGROUNDS[name])
    picture.paste((0, 0, 0), (12, 12, 52, 52))
    assert ground_by_pixel(picture) == name
    verdict = EmojiJudge(embedded.folder("emoji-judge")).judge([picture], [Concept("cat", "cartoon", name).caption])
    assert verdict["background_pixel"].tolist() == [True]


def test_exact_is_all_three_verdicts_of_the_network() -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(8)]
    verdict = EmojiJudge(embedded.folder("emoji-judge")).judge(pictures, [CAPTION] * 8)
    assert (verdict["exact"] == (verdict["object"] & verdict["style"] & verdict["background"])).all()


def test_the_judge_refuses_a_caption_of_another_world() -> None:
    with pytest.raises(UserError, match="The judge knows only captions such as"):
        EmojiJudge(embedded.folder("emoji-judge")).judge([Image.new("RGB", (64, 64))], ["a photo of Paris"])


@pytest.mark.filterwarnings("ignore")
def test_the_pipeline_has_zero_terminal_snr_and_predicts_velocity() -> None:
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(embedded.folder("emoji-sd"), torch_dtype=torch.float32)
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert float(DDPMScheduler.from_config(config).alphas_cumprod[-1]) < 1e-6
    assert pipeline.safety_checker is None
    assert not pipeline.config.requires_safety_checker
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(CAPTION, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (64, 64)


@pytest.mark.filterwarnings("ignore")
def test_the_tokenizer_takes_every_caption_and_spells_out_other_words() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(embedded.folder("emoji-sd") / "tokenizer")
    lengths = [len(tokenizer(concept.caption + ", high quality").input_ids) for concept in all_concepts()[::7]]
    assert max(lengths) <= tokenizer.model_max_length
    ids = tokenizer("a griffin").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a griffin"


@pytest.mark.filterwarnings("ignore")
def test_the_reward_loads_with_open_clip() -> None:
    import open_clip

    name = f"local-dir:{embedded.folder('emoji-clip')}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)([CAPTION])
    with torch.no_grad():
        image = model.eval().encode_image(transform(Image.new("RGB", (64, 64)))[None])
        text = model.encode_text(tokens)
    assert image.shape == text.shape == (1, 128)
