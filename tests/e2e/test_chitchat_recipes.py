"""Pairs out of rated talk, a reward model of them and a policy tuned by it, on made-up talk and a tiny model."""

import importlib.util
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from raftdiff.cli.main import main
from raftdiff.llm.data.prompts import read_prompts
from raftdiff.llm.model import tiny
from raftdiff.llm.recipe import load_text_recipe
from raftdiff.recipes.files import recipes
from raftdiff.records.disk import read_json_lines

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "chitchat.py"
QUESTIONS = ("What is your favourite smell?", "What if pigs could fly?")
GOOD, BAD = "I love that, it is fun, tell me more", "no I do not know about that, it is"
SMALL = ("model.device=cpu", "logging.tracker=null")


@pytest.fixture(scope="module")
def chitchat() -> ModuleType:
    spec = importlib.util.spec_from_file_location("chitchat", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["chitchat"] = module
    spec.loader.exec_module(module)
    return module


def talk(number: int, people: tuple[int, int]) -> dict[str, Any]:
    """A conversation of ten turns: rated high with kind words, low without."""
    liked = number % 2 == 0
    said = (GOOD if liked else BAD).split()
    turns = [[{"text": " ".join([*said, f"t{turn}"]), "sender": f"p{people[turn % 2]}"}] for turn in range(10)]
    ratings = dict.fromkeys(("witty", "interesting", "upbeat"), 10 if liked else 3)
    return {"messages": turns, "ratings": ratings, "prompt": QUESTIONS[number // 2 % 2], "start": ""}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    talks = {f"c{k:03d}": talk(k, tuple(rng.choice(40, 2, replace=False))) for k in range(160)}
    talks["untouched"] = {**talk(0, (1, 2)), "ratings": {"witty": 5, "interesting": 5, "upbeat": 5}}
    talks["alone"] = talk(0, (1, 1))
    talks["short"] = {**talk(0, (1, 2)), "messages": talk(0, (1, 2))["messages"][:4]}
    talks["unrated"] = {name: value for name, value in talk(0, (1, 2)).items() if name != "ratings"}
    path = tmp_path_factory.mktemp("wheel") / "chitchat.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("chitchat_dataset/dataset.json", json.dumps(talks))
    return path


@pytest.fixture(scope="module")
def pairs(chitchat: ModuleType, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["chitchat.py", "pairs", str(wheel), "--out", str(out)])
        chitchat.main()
    return out


def test_only_rated_talks_of_two_people_are_read(chitchat: ModuleType, wheel: Path) -> None:
    known = chitchat.conversations(wheel)
    assert {one.id for one in known} == {f"c{k:03d}" for k in range(160)}


def test_nobody_who_is_held_out_is_in_a_talk_that_is_trained_on(chitchat: ModuleType, wheel: Path) -> None:
    known = {one.id: one for one in chitchat.conversations(wheel)}
    train, held = chitchat.divided(list(known.values()), 0.3, 0)
    apart = {cut.speaker for cut in held}
    everybody = {person for one in known.values() for person in one.people}
    assert len(apart) == int(0.3 * (len(everybody) - chitchat.ALWAYS_TRAINED))
    assert not any(known[cut.conversation].people & apart for cut in train)
    assert {cut.part for cut in held} == {"beginning"}, "fifty words of each in a talk: one excerpt, and no more"


def test_pairs_are_of_like_length_about_one_question_and_use_an_excerpt_once(chitchat: ModuleType, wheel: Path) -> None:
    train, _ = chitchat.divided(chitchat.conversations(wheel), 0.3, 0)
    found = chitchat.paired(train, 0)
    assert len(found) >= 20
    for better, worse in found:
        assert (better.question, better.part) == (worse.question, worse.part)
        assert (better.rating, worse.rating) == (10, 3)
        assert abs(better.words - worse.words) <= 2
        assert 30 <= worse.words <= 50
    cuts = [(cut.conversation, cut.speaker, cut.part) for pair in found for cut in pair]
    assert len(cuts) == len(set(cuts))


def test_the_reward_model_and_the_policy_run(pairs: Path, tmp_path: Path) -> None:
    words = sorted({*" ".join((*QUESTIONS, GOOD, BAD)).split(), *(f"t{turn}." for turn in range(10))})
    model = tiny.write(tmp_path / "lm", words, chat=True)
    rated, tuned = tmp_path / "rm", tmp_path / "policy"
    files = [f"{part}.data.file={pairs / name}.jsonl" for part, name in (("pairs", "train"), ("held_out", "held_out"))]
    more = ["tuner.learning_rate=1e-2", "tuner.epochs=3", "pairs.limit=48", "held_out.limit=16"]
    arguments = [f"model.base={model}", *files, *more, *SMALL]
    assert main(["llm", "rm", "train", "rm_chitchat_smollm2", "--out", str(rated), *arguments]) == 0
    last = json.loads((rated / "rounds/000/metrics.json").read_text())
    assert last["held_out_pairs"]["accuracy"] >= 0.9, "kind words can be told from unkind ones"
    words = [
        f"model.base={model}",
        f"ranker.rewards.0.model={rated}",
        "prompts.limit=3",
        "sampler.decoding.max_new_tokens=8",
        "loop={rounds: 1, prompts_per_round: 2, candidates: 4}",
        "evaluation.prompts.limit=2",
        *SMALL,
    ]
    assert main(["train", "chitchat_smollm2", "--out", str(tuned), *words]) == 0
    assert main(["eval", str(tuned)]) == 0
    assert "liked" in json.loads((tuned / "eval/eval.json").read_text())["rewards"]
    assert len(read_json_lines(tuned / "eval/answers.jsonl")) == 4


def test_the_policys_prompts_share_none_with_those_it_is_measured_on() -> None:
    recipe = load_text_recipe(recipes()["chitchat_smollm2"])
    train, held_out = (
        {one.caption for one in read_prompts(part, Path(), "prompts")}
        for part in (recipe.prompts, recipe.evaluation.prompts)
    )
    assert not train & held_out
    trained = {reward.name for reward in recipe.ranker.rewards}
    assert not trained & {reward.name for reward in recipe.evaluation.rewards}, "onlookers are not trained on"
