"""Training a reward model on a folder: what is written, what a kill costs, and the ensemble that measures strength."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from raftdiff.errors import UserError
from raftdiff.llm.data import preferences
from raftdiff.llm.model import tiny
from raftdiff.llm.model.loading import LMConfig
from raftdiff.llm.reward_models.reward import MODEL, reward_folder
from raftdiff.llm.reward_models.tuner import differences
from raftdiff.llm.reward_models.value_model import load_value_model
from raftdiff.llm.reward_runs.ensemble import figures as strength_figures
from raftdiff.llm.reward_runs.ensemble import lines, measure, measured
from raftdiff.llm.reward_runs.evaluation import evaluation, length, look
from raftdiff.llm.reward_runs.recipe import RewardRecipe, load_reward_recipe, weights
from raftdiff.llm.reward_runs.report import Side, headline, remarks, write_evaluation
from raftdiff.llm.reward_runs.strength_report import write_strength
from raftdiff.llm.reward_runs.training import assemble_reward, figures, train
from raftdiff.progress import Quiet
from raftdiff.records.run import Run
from raftdiff.testing.toy import TOY_PAIR_WORDS, toy_pairs

RECIPE = """
media: preferences
name: words
model: {{base: {model}, device: cpu}}
pairs: {{data: {{file: pairs.jsonl}}}}
held_out_share: 0.25
tuner: {{adapter: full, learning_rate: 3.0e-3, epochs: 4, batch_size: 8}}
loop: {{rounds: 2}}
logging: {{tracker: null}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("lm") / "lm", TOY_PAIR_WORDS)


@pytest.fixture(scope="module")
def file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in toy_pairs(48, wrong=lambda place: place % 7 == 3))
    )
    (folder / "words.yaml").write_text(RECIPE.format(model=model))
    return folder / "words.yaml"


@pytest.fixture
def recipe(file: Path) -> RewardRecipe:
    return load_reward_recipe(file)


@pytest.fixture(scope="module")
def finished(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained in one go; not to be written to."""
    recipe = load_reward_recipe(file)
    run = Run.create(tmp_path_factory.mktemp("run") / "run", recipe, seed=0)
    assert [one.index for one in train(run, assemble_reward(recipe))] == [0, 1]
    return run


def weights_of(run: Run) -> Iterator[tuple[str, torch.Tensor]]:
    files = (*sorted(run.path.glob("rounds/*/state/*.safetensors")), *sorted((run.path / MODEL).glob("*.safetensors")))
    for path in files:
        for name, tensor in load_file(path).items():
            yield f"{path.relative_to(run.path)}/{name}", tensor


def assert_same_bits(one: Run, other: Run) -> None:
    first, second = dict(weights_of(one)), dict(weights_of(other))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_it_learns_and_says_so(finished: Run, recipe: RewardRecipe) -> None:
    last = finished.metrics()[-1]["held_out_pairs"]
    assert last["accuracy"] >= 0.75, "a seventh of the labels is wrong, and words are all there is to learn"
    assert last["loss"] < np.log(2)
    assert last["ci95"][0] <= last["accuracy"] <= last["ci95"][1]
    assert finished.metrics()[0]["pairs"] == 48 - last["pairs"]
    assert finished.metrics()[1]["seconds"]["tune"] > 0
    told = json.loads((finished.path / MODEL / "reward.json").read_text())
    assert told["notes"]["held_out"] == last
    assert told["notes"]["trained_on"] == 48 - last["pairs"]


def test_the_model_that_is_written_is_the_one_that_was_trained(finished: Run, recipe: RewardRecipe) -> None:
    parts = assemble_reward(recipe)
    state = finished.state()
    assert state is not None
    parts.tuner.load_state_dict(state)
    written = load_value_model(LMConfig(base=str(reward_folder(finished.path)), device="cpu"), str)
    trained = differences(parts.model, parts.held_out, batch_size=64)
    assert np.abs(trained).max() > 0.1
    np.testing.assert_allclose(differences(written, parts.held_out, batch_size=64), trained, atol=1e-5)


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    finished: Run, recipe: RewardRecipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", recipe, seed=0)
    first = train(run, assemble_reward(recipe))
    assert next(first).index == 0
    first.close()
    assert not (run.path / MODEL).exists()
    assert [one.index for one in train(run, assemble_reward(recipe))] == [1]
    assert_same_bits(run, finished)


def test_a_kill_before_the_model_was_written_costs_no_training(
    finished: Run, recipe: RewardRecipe, tmp_path: Path
) -> None:
    run = Run.create(tmp_path / "run", recipe, seed=0)
    stream = train(run, assemble_reward(recipe))
    assert [next(stream).index, next(stream).index] == [0, 1]
    stream.close()
    (run.path / f"{MODEL}.partial").mkdir()
    (run.path / f"{MODEL}.partial" / "half").touch()
    assert list(train(run, assemble_reward(recipe))) == []
    assert not (run.path / f"{MODEL}.partial").exists()
    assert_same_bits(run, finished)


def test_another_order_begins_from_the_same_weights(recipe: RewardRecipe, tmp_path: Path) -> None:
    other = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"order": 1})})
    one, two = assemble_reward(recipe), assemble_reward(other)
    assert torch.equal(one.model.head.weight, two.model.head.weight)
    assert [pair.id for pair in one.held_out] == [pair.id for pair in two.held_out]
    runs = [Run.create(tmp_path / name, recipe, seed=0) for name in ("one", "two")]
    losses = [next(train(run, parts)).metrics["tune"]["loss"] for run, parts in zip(runs, (one, two), strict=True)]
    assert losses[0] != losses[1]


def test_figures_are_those_of_the_worked_example() -> None:
    found = figures(np.array([0.5, -0.6, 0.4]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(0.67486, abs=2e-6)
    assert figures(np.array([-2000.0]))["loss"] == pytest.approx(2000.0), "no overflow"


def test_an_encoder_has_no_language_loss(recipe: RewardRecipe, file: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = AutoTokenizer.from_pretrained(recipe.model.base)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.sep_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "bert")
    words = [f"model.base={tmp_path / 'bert'}", "tuner.lm_weight=1"]
    with pytest.raises(UserError, match="is an encoder, which does not predict the next token"):
        assemble_reward(load_reward_recipe(file, words))


def test_meta_rm_draws_the_policy_s_answers_once(file: Path, model: Path, tmp_path: Path) -> None:
    policy = f"model: {{base: {model}, device: cpu}}, prompts: {{captions: [film, dog]}}"
    pool = f"policy_pool={{{policy}, decoding: {{max_new_tokens: 4}}}}"
    recipe = load_reward_recipe(file, ["tuner.meta={answers: 3, eta: 1e-3}", pool])
    assert set(weights(recipe)) == {str(model)}
    run = Run.create(tmp_path / "run", recipe, seed=0)
    stream = train(run, assemble_reward(recipe))
    assert 1 / 3 <= next(stream).metrics["tune"]["separation"] < 2 / 3, "J of three answers"
    stream.close()
    held = [json.loads(line) for line in (run.path / "pool.jsonl").read_text().splitlines()]
    assert [(line["prompt"], len(line["answers"])) for line in held] == [("film", 3), ("dog", 3)]
    before = (run.path / "pool.jsonl").stat().st_mtime_ns
    assert [one.index for one in train(run, assemble_reward(recipe))] == [1]
    assert (run.path / "pool.jsonl").stat().st_mtime_ns == before


def test_answers_of_the_policy_that_cannot_be_read_are_left_out_and_counted(
    file: Path, model: Path, tmp_path: Path
) -> None:
    pool = f"policy_pool={{model: {{base: {model}, device: cpu}}, prompts: {{captions: [film]}}}}"
    recipe = load_reward_recipe(file, ["tuner.meta={answers: 2}", pool, "tuner.epochs=0.2", "held_out_share=0"])
    run, long = Run.create(tmp_path / "run", recipe, seed=0), "good " * 1100
    said = {"film": ["good", long, "bad"], "dog": ["good", long], "it": [long, long]}
    held = [json.dumps({"id": name, "prompt": name, "answers": answers}) for name, answers in said.items()]
    (run.path / "pool.jsonl").write_text("\n".join(held) + "\n")
    parts = assemble_reward(recipe)
    with (
        pytest.warns(UserWarning, match="policy_pool: 4 of 7 rows were left out: 4 with prompt and answer together"),
        pytest.warns(UserWarning, match="policy_pool: 2 of 3 prompts have fewer than 2 answers that can be read, and"),
    ):
        assert "separation" in next(train(run, parts)).metrics["tune"]
    (run.path / "pool.jsonl").write_text(held[1] + "\n")
    with (
        pytest.warns(UserWarning, match="1 of 2 rows were left out"),
        pytest.raises(UserError, match="policy_pool: 1 of 1 prompts have fewer than 2 .* L"),
    ):
        next(train(run, parts))


def test_weights_that_changed_under_a_run_are_refused(recipe: RewardRecipe, tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipe, seed=0)
    run.bind(weights(recipe))
    with pytest.raises(UserError, match="begun with other weights"):
        run.bind(dict.fromkeys(weights(recipe), "others"))


def test_strength_is_the_mean_and_the_spread_over_the_models(recipe: RewardRecipe, tmp_path: Path) -> None:
    folder = tmp_path / "members"
    stream = measure(recipe, folder, 3, Quiet())
    assert next(stream).place == 0
    stream.close()
    before = (folder / "000.json").stat().st_mtime_ns
    done = list(measure(recipe, folder, 3, Quiet()))
    assert [member.place for member in done] == [0, 1, 2]
    assert (folder / "000.json").stat().st_mtime_ns == before, "a finished model is not trained again"
    assert sorted(path.name for path in folder.iterdir()) == ["000.json", "001.json", "002.json", "recipe.yaml"]

    found = measured(recipe, folder, 3)
    assert found.differences.shape == (48, 3), "nothing is held out"
    assert len({tuple(column) for column in found.differences.T.tolist()}) == 3, "each saw another order"
    written = lines(found)
    assert [line["id"] for line in written] == [row["id"] for row in toy_pairs(48)]
    assert {"prompt", "chosen", "rejected", "truth", "mu", "sigma"} <= set(written[0])
    assert written[5]["mu"] == pytest.approx(found.differences[5].mean(), abs=1e-6)
    assert written[5]["sigma"] == pytest.approx(found.differences[5].std(ddof=0), abs=1e-6)

    told = strength_figures(found)
    assert told["auc"] > 0.95, "the wrong labels are the weak ones"
    assert told["deciles"][0]["truth"] < told["deciles"][-1]["truth"]
    page = write_strength(tmp_path / "page.html", "words", found, told).read_text()
    assert page.count("<svg") == 4
    assert f"in {told['mu']['below_0']:.0%} of 48 pairs" in page

    (tmp_path / "strong.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
    again = preferences.build(
        recipe.pairs.model_copy(
            update={
                "data": recipe.pairs.data.model_copy(update={"file": str(tmp_path / "strong.jsonl"), "sha256": None})
            }
        ),
        Path(),
        "pairs",
    )
    assert [pair.mu for pair in again] == [line["mu"] for line in written]


def test_pairs_that_are_too_long_to_read_are_told_left_out_or_cut(file: Path, model: Path, tmp_path: Path) -> None:
    rows = toy_pairs(8)
    rows[2] = {**rows[2], "chosen": "good " * 1100}
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = [f"pairs.data.file={tmp_path / 'long.jsonl'}", "held_out_share=0", "loop.rounds=1", "tuner.epochs=1"]
    with pytest.raises(UserError, match=r"pairs.data: of '.*' the prompt is \d+ and an answer 1101 tokens long"):
        assemble_reward(load_reward_recipe(file, changes))
    skip = load_reward_recipe(file, [*changes, "pairs.data.broken=skip"])
    with pytest.warns(UserWarning, match="pairs.data: 1 of 8 rows were left out"):
        assert [pair.id for pair in assemble_reward(skip).pairs] == [row["id"] for row in rows if row != rows[2]]
    with pytest.warns(UserWarning, match="in 1 of 8 rows the model reads an answer without its end"):
        cut = assemble_reward(load_reward_recipe(file, [*changes, "pairs.data.too_long=cut"]))
    assert 1000 < len(cut.pairs[2].chosen.split()) < 1024
    with pytest.warns(UserWarning, match="pairs.data: 1 of 8 rows were left out"):
        list(measure(skip, tmp_path / "members", 1, Quiet()))
    found = measured(skip, tmp_path / "members", 1)
    assert len(lines(found)) == len(found.pairs) == 7, "each model's word stands beside the pair that it read"


def test_a_learning_rate_that_ruins_the_weights_in_one_step_writes_no_model(file: Path, tmp_path: Path) -> None:
    changes = ["tuner.learning_rate=1e20", "tuner.epochs=0.1", "loop.rounds=1", "held_out_share=0"]
    ruined = load_reward_recipe(file, changes)
    run = Run.create(tmp_path / "run", ruined, seed=0)
    with pytest.raises(UserError, match=r"tuner: the steps of this round made weights of 1e\+20 .* tuner.learn"):
        list(train(run, assemble_reward(ruined)))
    assert run.rounds_done() == 0
    assert not (run.path / MODEL).exists()


def test_members_of_another_recipe_are_not_counted_in(recipe: RewardRecipe, tmp_path: Path) -> None:
    next(measure(recipe, tmp_path, 1, Quiet()))
    other = recipe.model_copy(update={"tuner": recipe.tuner.model_copy(update={"learning_rate": 1e-3})})
    with pytest.raises(UserError, match="these keys differ: tuner.learning_rate"):
        next(measure(other, tmp_path, 1, Quiet()))


def test_length_alone_is_told_apart_from_what_the_model_knows() -> None:
    pairs = preferences.from_data(
        preferences.DataConfig(
            captions=[
                {"prompt": "a", "chosen": "x x x", "rejected": "x"},
                {"prompt": "b", "chosen": "x x", "rejected": "x"},
                {"prompt": "c", "chosen": "x", "rejected": "x x"},
                {"prompt": "d", "chosen": "x y", "rejected": "y x"},
            ]
        ),
        Path(),
        "pairs.data",
    )
    found = length(pairs, np.array([1.0, -1.0, -1.0, 1.0]))
    assert found["longer_wins"]["mean"] == pytest.approx(2.5 / 4), "as long counts half"
    assert (found["prefers_longer"]["mean"], found["prefers_longer"]["n"]) == (pytest.approx(2 / 3), 3)
    assert found["right_if_longer"]["mean"] == 0.5
    assert found["right_if_shorter"]["mean"] == 0.0
    assert found["chosen"]["mean"] == 2.0


def test_the_page_shows_one_model_or_two(finished: Run, recipe: RewardRecipe, tmp_path: Path) -> None:
    pairs = preferences.build(recipe.pairs, Path(), "pairs")
    sides = []
    for name, folder in (("before", recipe.model.base), ("after", str(reward_folder(finished.path)))):
        looked = look(load_value_model(LMConfig(base=folder, device="cpu"), str), pairs, batch_size=8)
        sides.append(Side(name, looked, evaluation(looked)))
    before, after = (side.evaluation for side in sides)
    assert after["accuracy"] > before["accuracy"]
    assert after["truth"]["mean"] > 0.9
    assert 0 <= after["features"]["mixing"] < before["features"]["mixing"]
    assert json.loads(json.dumps(after)) == after
    assert "before in" in headline(sides)
    assert remarks({**after, "reliability": [{"confidence": 0.9, "accuracy": 0.7, "n": 5}]}) == [
        "It is surer than it is right, by 20% on average."
    ]
    alone = write_evaluation(tmp_path / "one.html", "words", sides[1:], trained_on=36).read_text()
    both = write_evaluation(tmp_path / "two.html", "words", sides).read_text()
    assert both.count("<svg") > alone.count("<svg") >= 5
    assert "36 of which after was trained on" in alone
    assert "http://" not in both.replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in both


def test_a_prompt_with_markup_is_shown_and_not_obeyed(recipe: RewardRecipe, tmp_path: Path) -> None:
    told = {"prompt": "film <script>alert(1)</script>", "chosen": "good", "rejected": "bad"}
    pairs = preferences.from_data(
        preferences.DataConfig(captions=[told, {**told, "prompt": "dog"}]), Path(), "pairs.data"
    )
    looked = look(assemble_reward(recipe).model, pairs, batch_size=8)
    page = write_evaluation(tmp_path / "page.html", "words", [Side("m", looked, evaluation(looked))]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
