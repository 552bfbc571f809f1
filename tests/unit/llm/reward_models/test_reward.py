"""A trained reward model as a reward: of answers and of captions, from a run or a folder, and what else is refused."""

import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.llm.data.preferences import Comparison
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.reward_models.reward import CaptionRewardConfig, RewardModelConfig
from raftdiff.llm.reward_models.strength import plain
from raftdiff.llm.reward_models.tuner import RewardTuner, RewardTunerConfig, differences
from raftdiff.llm.reward_models.value_model import HEAD, load_value_model, save_value_model
from raftdiff.recipes.config import Config, check
from raftdiff.records.run import Run
from raftdiff.testing.conformance import check_reward
from raftdiff.types import Prompt, Sample, silent

WORDS = ("the", "film", "was", "good", "bad", "dull", "fine", "long", "user", "assistant", "system")
TEXTS = ("good", "the film was dull and long", "", "fine fine", "bad film", "it was good")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trained a little, in the folder of a run; what it says of two pairs beside it."""
    folder = tmp_path_factory.mktemp("rm")
    lm = tiny.write(folder / "lm", WORDS, chat=True)
    model = load_value_model(LMConfig(base=str(lm), device="cpu"), str)
    prompt = Prompt("p", "was the film long", "", "", meta={"history": [{"role": "user", "content": "the film"}]})
    pairs = [Comparison("a", prompt, "good", "bad film"), Comparison("b", prompt, "fine fine", "")]
    config = RewardTunerConfig(adapter="full", learning_rate=1e-2)
    RewardTuner(config, model, total_rounds=1, seed=0).fit(pairs, plain(2), seed=0, report=silent)
    Run.create(folder / "run", Config(), seed=0)
    save_value_model(folder / "run" / "model", model, {})
    return folder / "run", pairs, differences(model, pairs, batch_size=4)


def answers(prompt, texts=TEXTS):
    return [Sample(0, prompt, k, k, "policy", text) for k, text in enumerate(texts)]


def pictures(captions):
    colours = [(40 * k, 10, 200) for k in range(len(captions))]
    return [
        Sample(0, Prompt(f"p{k}", caption, "", ""), 0, k, "policy", Image.new("RGB", (8, 8), colour))
        for k, (caption, colour) in enumerate(zip(captions, colours, strict=True))
    ]


def test_it_gives_what_the_training_left_from_the_run_or_from_its_folder(trained):
    run, pairs, d = trained
    for place in (run, run / "model"):
        reward = RewardModelConfig(model=str(place), name="helpful").build()
        assert reward.name == "helpful"
        for pair, wanted in zip(pairs, d, strict=True):
            chosen, rejected = reward.score(answers(pair.prompt, (pair.chosen, pair.rejected))).tolist()
            assert chosen - rejected == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("size", [1, 4, 64])
def test_it_keeps_the_contract_whatever_its_batch_size(trained, size):
    run, pairs, _ = trained
    reward = RewardModelConfig(model=str(run), batch_size=size).build(device="cpu", resolve=str)
    samples = answers(pairs[0].prompt)
    check_reward(reward, samples).demand()
    wanted = RewardModelConfig(model=str(run)).build().score(samples)
    torch.testing.assert_close(reward.score(samples), wanted, rtol=0, atol=1e-5)


def test_the_earlier_turns_and_the_caption_are_read_and_nothing_else_of_the_prompt(trained):
    reward = RewardModelConfig(model=str(trained[0])).build()

    def of(caption, **more):
        meta = {name: value for name, value in more.items() if name in ("history", "system")}
        texts = {"sampling": "", "learning": ""} | {name: value for name, value in more.items() if name not in meta}
        return float(reward.score(answers(Prompt("p", caption, **texts, meta=meta), ("good",))))

    plain_prompt = of("the film")
    assert of("the film", sampling="long", learning="bad") == plain_prompt
    assert of("the long film") != plain_prompt
    assert of("the film", history=[{"role": "user", "content": "bad"}]) != plain_prompt
    assert of("the film", system="dull") != plain_prompt


def test_a_shipped_name_is_resolved(trained):
    reward = RewardModelConfig(model="my-rm").build(resolve={"my-rm": str(trained[0])}.__getitem__)
    assert reward.score(answers(trained[1][0].prompt)).isfinite().all()


def test_folders_that_hold_no_reward_model_are_sentences(trained, tmp_path):
    def refuses(place):
        return pytest.raises(UserError, match=place)

    with refuses(r"reward_model: there is no folder '.*nowhere'; name a run of raftdiff llm rm train"):
        RewardModelConfig(model=str(tmp_path / "nowhere")).build()
    with refuses(rf"reward_model: '.*lm' is no reward model: it has no {HEAD}"):
        RewardModelConfig(model=str(trained[0].parent / "lm")).build()
    Run.create(tmp_path / "run", Config(), seed=0)
    for config in (RewardModelConfig, CaptionRewardConfig):
        with refuses(r"reward_model: the run '.*run' holds no reward model; .*finish it: raftdiff llm rm train .*run"):
            config(model=str(tmp_path / "run")).build()
    with refuses("recipe: model: this key is required"):
        check(RewardModelConfig, {"type": "reward_model"})


def test_an_answer_that_is_too_long_is_discarded_and_counted_or_cut(trained):
    prompt, long = trained[1][0].prompt, "good " * 1100
    reward = RewardModelConfig(model=str(trained[0])).build()
    with pytest.warns(UserWarning, match=r"discards 1 of 2 answers \(NaN\): .*; too_long: cut has it read their begin"):
        found = reward.score(answers(prompt, (long, "good")))
    assert found.isnan().tolist() == [True, False]
    cut = RewardModelConfig(model=str(trained[0]), too_long="cut").build().score(answers(prompt, (long, "good")))
    assert cut.isfinite().all()
    torch.testing.assert_close(cut[1], found[1])
    with pytest.raises(UserError, match=r"'reward_model': The prompt 'p' is \d+ tokens long, more than model"):
        reward.check_prompts([replace(prompt, caption=long)])


# Pictures


def tell(images):
    """By how red a picture is."""
    return ["good film" if image.getpixel((0, 0))[0] > 50 else "bad" for image in images]


def ramble(images):
    return ["good"] + ["good " * 1100] * (len(images) - 1)


def scribble(images):
    for image in images:
        image.paste((0, 0, 0), (0, 0, 8, 8))
    return ["good"] * len(images)


def refuse(images):
    raise ValueError(f"cannot look at {len(images)}")


@pytest.fixture
def captioner(monkeypatch):
    module = type(sys)("captioners")
    for function in (tell, ramble, scribble, refuse):
        setattr(module, function.__name__, function)
    module.one = lambda images: "good"
    module.few = lambda images: ["good"]
    module.numbers = lambda images: [1.0 for _ in images]
    monkeypatch.setitem(sys.modules, "captioners", module)
    return module


def by_text(trained, prompts, texts):
    reward = RewardModelConfig(model=str(trained[0])).build()
    samples = [Sample(0, prompt, 0, 0, "policy", text) for prompt, text in zip(prompts, texts, strict=True)]
    return reward.score(samples)


def test_a_picture_is_scored_by_its_prompts_own_caption(trained):
    samples = pictures(("the film", "good", "bad film", "dull", "long film"))
    reward = CaptionRewardConfig(model=str(trained[0])).build()
    captions = [one.prompt.caption for one in samples]
    wanted = by_text(trained, [one.prompt for one in samples], captions)
    torch.testing.assert_close(reward.score(samples), wanted)
    check_reward(reward, samples).demand()


def test_what_a_captioner_says_at_too_great_a_length_is_discarded_and_counted(trained, captioner):
    reward = CaptionRewardConfig(model=str(trained[0]), captioner="captioners:ramble").build()
    with pytest.warns(UserWarning, match=r"discards 2 of 3 answers \(NaN\): .*; have the captioner say less"):
        assert reward.score(pictures(("the film",) * 3)).isnan().tolist() == [False, True, True]


def test_a_captioner_says_what_each_picture_shows(trained, captioner):
    samples = pictures(("the film",) * 4)
    reward = CaptionRewardConfig(model=str(trained[0]), captioner="captioners:tell", batch_size=2).build()
    said = ["bad", "bad", "good film", "good film"]
    wanted = by_text(trained, [one.prompt for one in samples], said)
    torch.testing.assert_close(reward.score(samples), wanted)
    assert float(wanted[0]) != float(wanted[2])
    check_reward(reward, samples).demand()


def test_a_captioner_that_draws_on_the_pictures_harms_nobody(trained, captioner):
    reward = CaptionRewardConfig(model=str(trained[0]), captioner="captioners:scribble").build()
    assert check_reward(reward, pictures(("the film", "good", "bad", "dull"))).passed


def test_captioners_that_say_something_else_are_sentences(trained, captioner):
    samples = pictures(("the film", "good"))
    for name in ("one", "few", "numbers"):
        reward = CaptionRewardConfig(model=str(trained[0]), captioner=f"captioners:{name}").build()
        with pytest.raises(UserError, match=f"The captioner 'captioners:{name}' should return a list of 2 texts"):
            reward.score(samples)
    with pytest.raises(ValueError, match="cannot look at 2") as raised:
        CaptionRewardConfig(model=str(trained[0]), captioner="captioners:refuse").build().score(samples)
    assert raised.value.__notes__ == ["This was raised by the captioner 'captioners:refuse'."]
    with pytest.raises(UserError, match=r"reward_model\.captioner: the module 'captioners' has no 'nothing'"):
        CaptionRewardConfig(model=str(trained[0]), captioner="captioners:nothing").build()
    captioner.word = "good"
    with pytest.raises(UserError, match="The captioner 'captioners:word' is a str, which cannot be called"):
        CaptionRewardConfig(model=str(trained[0]), captioner="captioners:word").build()
