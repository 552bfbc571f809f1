"""``raftdiff eval ... --benchmark``: of a run, a model and a folder, as a person calls it."""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import yaml
from open_clip import factory
from PIL import Image
from safetensors.torch import save_file

from raftdiff.cli.main import main
from raftdiff.records.disk import alone
from raftdiff.rewards import tiny

RECIPE = {
    "name": "tiny",
    "model": {"device": "cpu"},
    "prompts": {"captions": ["a cat"]},
    "sampler": {"type": "diffusion", "steps": 2, "guidance": 2.0, "batch_size": 4},
    "ranker": {"rewards": [{"type": "jpeg"}], "selector": {"type": "best_of_k"}},
    "finetuner": {"type": "diffusion", "rank": 2, "steps": 4, "batch_size": 2, "learning_rate": 0.05},
    "loop": {"rounds": 1, "candidates": 2},
    "logging": {"tracker": None},
}
ROWS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {"tag": "colors", "include": [{"class": "couch", "count": 1, "color": "red"}], "prompt": "a photo of a red couch"},
]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run of one round, GenEval's file of two prompts, and its detector and CLIP model in miniature."""
    place = tmp_path_factory.mktemp("benchmarks")
    (place / "tiny.yaml").write_text(yaml.safe_dump({**RECIPE, "model": {"base": str(model), "device": "cpu"}}))
    assert main(["train", str(place / "tiny.yaml"), "--out", str(place / "run")]) == 0
    (place / "geneval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tiny.write_mask2former(place / "detector", ["bench", "sofa"])
    (place / "clip").mkdir()
    save_file(
        {name: it.contiguous() for name, it in open_clip.CLIP(**tiny.CLIP).state_dict().items()},
        place / "clip" / "open_clip_model.safetensors",
    )
    (place / "clip" / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": dict(tiny.CLIP), "preprocess_cfg": {}})
    )
    return place


def test_a_run_is_compared_before_and_after_and_goes_on_where_it_was(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = f"geneval:detector={place / 'detector'},model={place / 'clip'},threshold=0.0"
    words = ["eval", str(place / "run"), "--benchmark", "geneval", "--prompts", str(place / "geneval.jsonl")]
    words += ["--samples", "2", "--reward", reward]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "single_object" in out
    assert "GenEval, run: 2 prompts x 2, the same prompts and seeds before and after" in out
    folder = place / "run" / "eval" / "geneval"
    result = json.loads((folder / "benchmark.json").read_text())
    assert (result["sides"], result["prompts"], result["samples"]) == (["before", "after"], 2, 2)
    mean = result["rewards"]["geneval"]["by"]["tag"]["mean"]["scores"]
    assert result["rewards"]["geneval"]["overall"]["scores"] == mean
    assert "what is wrong" in out
    for side in ("before", "after"):
        rows = [json.loads(line) for line in (folder / f"results-{side}.jsonl").read_text().splitlines()]
        assert [row["tag"] for row in rows] == ["single_object"] * 2 + ["colors"] * 2
        assert sum(row["correct"] for row in rows) / 4 == mean[side]["mean"]
        assert all(bool(row["reason"]) != row["correct"] for row in rows)
        assert all(Path(row["filename"]).is_file() for row in rows)
        assert json.loads(rows[2]["metadata"])["include"] == ROWS[1]["include"]
        counted = [why["wrong"][side] for why in result["reasons"]["geneval"]]
        assert sum(counted) == sum(len(set(row["kinds"])) for row in rows)
    assert "results-before.jsonl, results-after.jsonl" in out
    pictures = {file: file.stat().st_mtime_ns for file in folder.rglob("*.png")}
    assert len(pictures) == 8
    lost = min(pictures)
    held = lost.read_bytes()
    lost.unlink()
    (folder / "table.tex").unlink()
    assert main(words) == 0
    assert lost.read_bytes() == held
    assert sum(file.stat().st_mtime_ns != then for file, then in pictures.items()) == 1
    again = json.loads((folder / "benchmark.json").read_text())
    assert [again[part] for part in ("rewards", "reasons")] == [result[part] for part in ("rewards", "reasons")]
    assert (folder / "table.tex").read_text().startswith(r"% \usepackage{booktabs}")
    assert main(["check", str(place / "run")]) == 0


def test_a_model_and_then_the_folder_that_it_drew_have_the_same_scores(
    place: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--benchmark", "imagereward", "--reward", "jpeg"]
    (tmp_path / "benchmark.json").write_text(
        json.dumps([{"id": "1", "prompt": "a cat"}, {"id": "2", "prompt": "a dog"}])
    )
    prompts = ["--prompts", "benchmark.json"]
    assert (
        main(["eval", str(model), *asked, *prompts, "--samples", "2", "--steps", "2", "model.device=cpu", "--json"])
        == 0
    )
    of_model = json.loads(capsys.readouterr().out)
    assert main(["eval", "sd15-imagereward/pictures", *asked, "--out", "again", "--json"]) == 0
    of_folder = json.loads(capsys.readouterr().out)
    assert of_folder["rewards"] == of_model["rewards"]
    shutil.copytree("sd15-imagereward/pictures", "other/pictures")
    assert main(["eval", "other/pictures", *asked, "--out", "again"]) == 2
    assert f"again: these are the results of {tmp_path / 'sd15-imagereward/pictures'}" in capsys.readouterr().err
    assert main(["eval", "other/pictures", "--benchmark", "imagereward", "--reward", "jpeg:weight=0"]) == 0
    assert of_model["sides"] == ["score"]
    assert of_model["how"]["sampler"]["steps"] == 2


def test_weights_that_were_replaced_under_their_name_score_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-H-14", dict(tiny.CLIP))
    for name, colour in (("one", "red"), ("two", "blue")):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.effect_noise((32, 32), 80).convert("RGB").save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(f"a {colour} cat")
    reward = f"clip:model=ViT-H-14,pretrained={tmp_path / 'clip.pt'},quick_gelu=false"
    words = ["eval", str(tmp_path / "pictures"), "--benchmark", "imagereward", "--reward", reward]
    found = []
    for seed in (0, 0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            torch.save(open_clip.CLIP(**tiny.CLIP).state_dict(), tmp_path / "clip.pt")
        assert main([*words, "--out", str(tmp_path / "out")]) == 0
        result = json.loads((tmp_path / "out" / "benchmark.json").read_text())
        found.append(result["rewards"]["clip"]["overall"]["scores"]["score"]["mean"])
    assert found[0] == found[1] != found[2]
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["RUN", "--benchmark", "geneval"],
            "--benchmark geneval: name its prompts with --prompts: evaluation_metadata",
        ),
        (["RUN", "--benchmark", "gen"], "'gen' is none of geneval"),
        (["RUN", "--reward", "jpeg"], "--reward goes with --benchmark"),
        (["RUN", "--benchmark", "parti", "--out", "x"], "--out: what is looked at of a run lies in it"),
        (["RUN", "--benchmark", "parti", "--guidance", "1,2"], "--guidance: a benchmark is drawn with one strength"),
        (["scene-sd", "--benchmark", "parti", "--round", "1"], "scene-sd: --round is for runs"),
        (["FOLDER", "--benchmark", "parti"], "--benchmark parti: say what scores the pictures with --reward"),
        (["FOLDER", "--benchmark", "parti", "--steps", "3"], "--steps does not go with a folder of pictures"),
        (
            ["FOLDER", "--benchmark", "geneval2"],
            "it is scored by a vision-language model that you name: --reward soft_tifa",
        ),
        (["./none", "--benchmark", "parti"], "There is no run, model or folder './none'"),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(
    place: Path, tmp_path: Path, words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"RUN": str(place / "run"), "FOLDER": str(tmp_path)}
    assert main(["eval", *(named.get(word, word) for word in words)]) == 2
    assert sentence in capsys.readouterr().err


def test_an_own_detector_that_does_not_know_a_class_is_told_before_anything_is_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "run" / "eval" / "geneval" / "before", tmp_path / "drawn")
    row = {**ROWS[0], "include": [{"class": "zebra", "count": 1}]}
    (tmp_path / "drawn" / "00000" / "metadata.jsonl").write_text(json.dumps(row))
    reward = f"geneval:detector={place / 'detector'},model={place / 'clip'}"
    words = [
        "eval",
        str(tmp_path / "drawn"),
        "--benchmark",
        "geneval",
        "--reward",
        reward,
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(words) == 2
    assert "knows no class 'zebra', which a prompt asks for" in capsys.readouterr().err
    assert not (tmp_path / "out" / "benchmark.json").exists()


def test_a_reward_that_discards_is_told_and_a_folder_that_another_process_has_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "discarding.py").write_text(
        "nan = float('nan')\ndef some(images, prompts): return [nan if 'cat' in it else 1.0 for it in prompts]\n"
        "def all_of_them(images, prompts): return [nan] * len(images)\n"
    )
    (tmp_path / "pictures").mkdir()
    for name in ("cat", "dog"):
        Image.linear_gradient("L").save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(f"a {name}")
    words = ["eval", "pictures", "--benchmark", "imagereward", "--out", "found"]
    words += ["--reward", "discarding:some:name=some", "--reward", "discarding:all_of_them:name=none"]
    with pytest.warns(UserWarning, match="is NaN") as warned:
        assert main(words) == 0
    said = " ".join(str(one.message) for one in warned)
    assert "'some' is NaN (discard) for 1 of 2 pictures (score); its figures are of the others" in said
    assert "'none' is NaN (discard) for 2 of 2 pictures" in said
    rewards = json.loads((tmp_path / "found" / "benchmark.json").read_text())["rewards"]
    assert rewards["some"]["overall"]["scores"]["score"]["mean"] == 1.0
    assert rewards["none"]["any"] is None
    with alone(tmp_path / "found"):
        assert main(words) == 2
    assert "found: another raftdiff process is working in this folder" in capsys.readouterr().err


def test_a_picture_of_another_size_than_the_others_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for name, side in (("cat", 64), ("dog", 64), ("fox", 32)):
        Image.linear_gradient("L").resize((64, side)).save(f"pictures/{name}.png")
        Path(f"pictures/{name}.txt").write_text(f"a {name}")
    told = r"1 of 3 pictures is of another size than most, 64 x 64: pictures/fox\.png has 64 x 32"
    with pytest.warns(UserWarning, match=told):
        assert main(["eval", "pictures", "--benchmark", "imagereward", "--reward", "jpeg", "--out", "found"]) == 0
