"""The weights that ship load offline, from their folders, in the formats of the libraries that read them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff import embedded
from raftdiff.embedded.scenes.clip import WIDTH
from raftdiff.embedded.scenes.judge import SceneJudge, ground_by_pixel
from raftdiff.embedded.scenes.layout import SIZE
from raftdiff.embedded.scenes.tokens import words
from raftdiff.embedded.scenes.world import GROUNDS, HIGH_QUALITY, draw
from raftdiff.embedded.tokens import learn_merges
from raftdiff.errors import GONE, UserError
from raftdiff.recipes.files import locate, recipes

CAPTION = "a cat on a pink background"


def test_all_weights_together_stay_small() -> None:
    files = [path for name in embedded.names() for path in embedded.folder(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 48 * 2**20


def test_every_name_is_a_folder_and_every_folder_a_name() -> None:
    assert sorted(path.name for path in (Path(embedded.__file__).parent / "models").iterdir()) == sorted(
        embedded.names()
    )


def test_a_misspelt_model_gets_the_nearest_name() -> None:
    with pytest.raises(
        UserError, match=r"No model called 'scene-clop' ships with raftdiff\. Did you mean 'scene-clip'\?"
    ):
        embedded.folder("scene-clop")
    with pytest.raises(UserError, match=r"No model called 'Code_LM' .*, or lies here\. Did you mean 'code-lm'\?"):
        embedded.resolve("Code_LM")
    assert embedded.resolve("me/code-lm") == "me/code-lm", "a hub's"


@pytest.mark.parametrize("name", GONE)
def test_what_shipped_once_is_told_with_what_takes_its_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = "-" in name
    assert GONE[name] in (embedded.names() if model else recipes())
    for find in (embedded.folder, embedded.resolve) if model else (locate,):
        with pytest.raises(UserError, match=rf"^'{name}' is gone since 0\.1; '{GONE[name]}' takes its place\.$"):
            find(name)  # type: ignore[operator]
    (tmp_path / name).mkdir()
    if model:
        assert embedded.resolve(name) == name, "a folder that someone has called so"


@pytest.mark.parametrize("name", GROUNDS)
def test_the_ground_is_told_by_pixel_colour_alone(name: str) -> None:
    picture = Image.new("RGB", (SIZE, SIZE), GROUNDS[name])
    picture.paste((0, 0, 0), (12, 12, 68, 68))
    assert ground_by_pixel(picture) == name


def test_exact_is_all_verdicts_together() -> None:
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)) for _ in range(8)]
    verdict = SceneJudge(embedded.folder("scene-judge")).judge(pictures, [CAPTION] * 8)
    factors = [values for name, values in verdict.items() if name != "exact"]
    assert (verdict["exact"] == np.min(factors, axis=0)).all()


@pytest.mark.filterwarnings("ignore")
def test_the_pipeline_has_zero_terminal_snr_and_predicts_velocity() -> None:
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(embedded.folder("scene-sd"), torch_dtype=torch.float32)
    config = pipeline.scheduler.config
    assert (config.prediction_type, config.timestep_spacing) == ("v_prediction", "trailing")
    assert float(DDPMScheduler.from_config(config).alphas_cumprod[-1]) < 1e-6
    assert pipeline.safety_checker is None
    assert not pipeline.config.requires_safety_checker
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(CAPTION, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.size == (SIZE, SIZE)


@pytest.mark.filterwarnings("ignore")
def test_the_tokenizer_takes_every_caption_and_spells_out_other_words() -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(embedded.folder("scene-sd") / "tokenizer")
    captions = [scene.caption + HIGH_QUALITY for scene in draw(400, seed=6, held_out=None)]
    assert max(len(tokenizer(caption).input_ids) for caption in captions) <= tokenizer.model_max_length
    ids = tokenizer("a griffin").input_ids
    assert tokenizer.unk_token_id not in ids[1:-1]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "a griffin"


def test_the_vocabulary_is_the_same_every_time_and_has_every_word_of_the_captions() -> None:
    known = words()
    merges = learn_merges(known)
    assert merges == learn_merges(reversed(known))
    assert {f"{word}</w>" for word in known if len(word) > 1} <= {"".join(pair) for pair in merges}


@pytest.mark.filterwarnings("ignore")
def test_the_reward_loads_with_open_clip() -> None:
    import open_clip

    name = f"local-dir:{embedded.folder('scene-clip')}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)([CAPTION])
    with torch.no_grad():
        image = model.eval().encode_image(transform(Image.new("RGB", (SIZE, SIZE)))[None])
        text = model.encode_text(tokens)
    assert image.shape == text.shape == (1, WIDTH)
