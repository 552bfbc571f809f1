"""Looking at a run from the command line, and drawing side by side, on a random model of a few thousand weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from raftdiff.apps import page
from raftdiff.cli.main import main
from raftdiff.diffusion.before_after.comparison import evaluation_prompts
from raftdiff.diffusion.before_after.sidebyside import Checkpoint, SideBySide
from raftdiff.diffusion.families.tiny.clip import TOKENS
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.recipe_files import recipe_of
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig
from raftdiff.records.labels import Ballot, candidate_pairs
from raftdiff.records.run import Run

RECIPE = {
    "name": "tiny",
    "model": {"base": "MODEL", "device": "cpu"},
    "prompts": {"captions": ["a cat", "a dog"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 4},
    "ranker": {
        "rewards": [{"type": "jpeg"}, {"type": "saturation", "role": "hold_out"}],
        "selector": {"type": "best_of_k"},
    },
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 4, "batch_size": 2, "learning_rate": 0.05},
    "loop": {"rounds": 2, "candidates": 3},
    "evaluation": {"prompts": {"captions": ["a bus"]}, "samples_per_prompt": 2, "every_round": 1},
    "logging": {"tracker": None},
}

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and evaluated run; not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    model = tiny.write_folder(folder / "sd15", "sd15")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(RECIPE).replace("MODEL", str(model)))
    assert main(["train", str(folder / "tiny.yaml"), "--out", str(folder / "run")]) == 0
    assert main(["eval", str(folder / "run")]) == 0
    return folder / "run"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_draw_with_the_evaluations_prompt_makes_the_evaluations_pictures(finished: Path, tmp_path: Path) -> None:
    assert main(["draw", str(finished), "a bus", "--out", str(tmp_path / "drawn")]) == 0
    for side in ("before", "after"):
        for name in ("a-bus-000.png", "a-bus-001.png"):
            np.testing.assert_array_equal(
                pixels(tmp_path / "drawn" / side / name), pixels(finished / "eval" / side / name)
            )
    lines = [json.loads(line) for line in (tmp_path / "drawn/metadata.jsonl").read_text().splitlines()]
    means = [np.mean([line["reward_jpeg"] for line in lines if line["side"] == side]) for side in ("before", "after")]
    told = json.loads((finished / "eval/eval.json").read_text())["rewards"]["jpeg"]
    assert means == pytest.approx([told["before"]["mean"], told["after"]["mean"]])


def test_a_prompt_file_is_evaluated_and_drawn_to_the_same_pictures(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "a fox", "id": "0007-x", "tag": "single"}, {"prompt": "a cat", "include": [{"class": "cat"}]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    assert main(["eval", str(run), "--prompts", str(file), "--name", "filed"]) == 0
    assert main(["draw", str(run), "--prompts", str(file), "a bus"]) == 0
    drawn = {path.name: path for path in (run / "drawn" / "after").iterdir()}
    assert sorted(drawn) == [f"{name}-00{k}.png" for name in ("0007-x", "a-bus", "a-cat") for k in range(2)]
    for path in (run / "eval" / "filed" / "after").iterdir():
        np.testing.assert_array_equal(pixels(path), pixels(drawn[path.name]))
    assert main(["draw", str(run)]) == 2
    assert "There is no prompt; type one" in capsys.readouterr().err


def test_what_a_file_says_of_a_prompt_goes_with_it(finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    told = [{"prompt": f"a fox {n}", "id": "a-bus" if n else "x", "tag": n} for n in range(200)]
    told = [{**row, "id": f"{row['id']}{n}" if n > 1 else row["id"]} for n, row in enumerate(told)]
    file.write_text("".join(json.dumps(row) + "\n" for row in told))
    beside = SideBySide([Run(finished)], file=str(file))
    assert beside.captions() == [*(row["prompt"] for row in told), "a bus", "a cat", "a dog"]
    found = beside.draw(Checkpoint(0, None), ["a fox 1", "a bus", "a mole"], replace(beside.settings, per_prompt=1))
    assert [(it.sample.prompt.id, dict(it.sample.prompt.meta)) for it in found] == [
        ("a-bus", {"tag": 1}),
        ("a-bus-2", {}),  # the run's own prompt of that id, beside the file's
        ("a-mole", {}),
    ]
    with pytest.raises(UserError, match="These are 400 pictures a side; 256 are the most"):
        beside.draw(Checkpoint(0, None), beside.captions()[:200], beside.settings)


def test_prompts_of_the_training_are_evaluated_with_all_that_is_known_of_them(finished: Path) -> None:
    recipe = recipe_of(Run(finished))
    own = PromptsConfig(captions=[{"caption": "a cat", "id": "x", "tag": "single", "sampling": "a cat, sharp"}])
    (prompt,) = evaluation_prompts(recipe.model_copy(update={"prompts": own}), "training")
    assert (prompt.id, prompt.sampling, prompt.meta) == ("x", "a cat", {"tag": "single"})


def test_what_was_drawn_loads_as_an_imagefolder_with_its_captions(finished: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for prompt in ("a bus", "a train to test"):
        assert main(["draw", str(finished), prompt, "--count", "1", "--out", str(tmp_path / "drawn")]) == 0
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "drawn"), cache_dir=str(tmp_path / "cache"))
    assert list(found) == ["train"]  # the one split that datasets gives to what names none
    rows = sorted((row["caption"], row["side"]) for row in found["train"].remove_columns("image"))
    assert rows == [(text, side) for text in ("a bus", "a train to test") for side in ("after", "before")]
    found["train"].to_parquet(str(tmp_path / "drawn.parquet"))


def test_going_back_to_an_earlier_model_gives_its_pictures_again(finished: Path) -> None:
    beside = SideBySide([Run(finished)])
    settings = beside.settings

    def drawn(round: int | None) -> list[bytes]:
        return [it.sample.media.tobytes() for it in beside.draw(Checkpoint(0, round), ["a cat"], settings)]

    first, base, last = drawn(0), drawn(None), drawn(1)
    assert first != base
    assert last not in (first, base)
    assert drawn(None) == base
    assert drawn(0) == first


def test_two_runs_stand_side_by_side(finished: Path) -> None:
    beside = SideBySide([Run(finished), Run(finished)])
    assert list(beside.checkpoints()) == [
        f"{model} of run ({number})" for number in (1, 2) for model in ("base", "round 0", "round 1")
    ]
    one, two = (beside.draw(Checkpoint(number, 1), ["a cat"], beside.settings) for number in (0, 1))
    assert [it.sample.media.tobytes() for it in one] == [it.sample.media.tobytes() for it in two]


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ([], "There is no prompt; type one"),
        (["  "], "There is no prompt; type one"),
        (["x" * 1001], "This prompt has 1001 characters; 1000 are the most."),
        ([f"a cat {n}" for n in range(129)], "These are 258 pictures a side; 256 are the most at once."),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(finished: Path, captions: list[str], sentence: str) -> None:
    beside = SideBySide([Run(finished)])
    with pytest.raises(UserError, match=sentence):
        beside.draw(Checkpoint(0, None), captions, beside.settings)


def test_what_is_not_read_of_a_free_prompt_is_told(finished: Path, tmp_path: Path) -> None:
    long = f"{'red ' * 90}(cat:1.3)"
    with pytest.warns(UserWarning) as told:  # noqa: PT030  (two warnings, each looked at below)
        assert main(["draw", str(finished), long, "--count", "1", "--out", str(tmp_path / "drawn")]) == 0
    beside = SideBySide([Run(finished)])
    limit, sign = beside.notes(0, [long], beside.settings)
    assert limit.startswith("these prompts: words beyond a reader's limit")
    assert f"the sampler reads {TOKENS} tokens, and 1 of 1 prompt is longer: of 'red red" in limit
    assert "'(cat:1.3)', a weight elsewhere" in sign
    assert {limit, sign} <= {str(one.message) for one in told}
    view = page.view(
        "comparison",
        cards=[{"caption": "", "pairs": []}],
        left="<l>",
        right="r",
        means=[],
        exact=(None, None),
        pairs=0,
        notes=[sign],
    )
    assert "(cat:1.3)" in view
    assert beside.notes(0, ["a cat"], beside.settings) == []


def test_a_run_without_a_round_cannot_be_compared(tmp_path: Path, finished: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "recipe.yaml"):
        (tmp_path / "run" / name).write_bytes((finished / name).read_bytes())
    with pytest.raises(UserError, match="no round is finished yet"):
        SideBySide([Run(tmp_path / "run")])


def test_show_tells_how_the_run_stands(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "tiny: 2 of 2 rounds done" in out
    assert "round 1: reward" in out
    assert "rewards in round 1, mix: weighted_sum" in out
    table = [" ".join(line.split()) for line in out.splitlines()]
    assert any(line.startswith("jpeg train 100%") for line in table)
    assert any(line.startswith("saturation hold_out -") for line in table)
    assert "jpeg and saturation order" in out
    assert "network evaluations spent" in out


def test_labels_prints_tallies_and_writes_the_preferences(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(finished)
    assert main(["labels", str(finished)]) == 2
    assert "nobody has labelled anything yet; run: raftdiff label" in capsys.readouterr().err
    pairs = candidate_pairs(run, 0, per_prompt=1, seed=0)
    Ballot(run, "ada").choose(pairs[0], "left")
    Ballot(run, "bob").choose(pairs[0], "tie")
    assert main(["labels", str(finished), "--pairs", str(tmp_path / "pairs.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "ada: 1 choice, of them 0 ties" in out
    assert "all: 2 choices, of them 1 tie" in out
    (line,) = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (line["chosen_file_name"], line["rejected_file_name"]) == (pairs[0].left, pairs[0].right)


def test_people_can_rank_a_finished_round_again(finished: Path, tmp_path: Path) -> None:
    """A veto of the best candidate of "a cat", and a choice: what is learnt from follows them."""
    run = Run(finished)
    pictures = [f"rounds/000/samples/a-cat-{k:03d}.png" for k in range(3)]
    chosen = {key.index for item in run.round(0).selection().items for key in item.keys if key.prompt == "a-cat"}
    (best,) = chosen
    Ballot(run, "eva").veto(pictures[best])
    changed = f"ranker.rewards=[{{type: labels, run: {finished}, rater: eva}}]"
    assert main(["score", str(finished), "--round", "0", "--out", str(tmp_path / "again"), changed]) == 0
    assert main(["select", str(tmp_path / "again")]) == 0
    keys = [key for item in Run(tmp_path / "again").unfinished(0).selection().items for key in item.keys]
    assert [key.index for key in keys if key.prompt == "a-cat"] == [min({0, 1, 2} - chosen)]
