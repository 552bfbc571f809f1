"""A run goes on where its models lie elsewhere now, and not with others."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from pydantic import Field

from raftdiff.cli import either, opening
from raftdiff.errors import UserError
from raftdiff.recipes.config import Config, check, plain, read
from raftdiff.records.beginning import at_work, fork
from raftdiff.records.changes import go_on_with
from raftdiff.records.provenance import NOTHING, fingerprint, fingerprints, revisions, run_mark
from raftdiff.records.run import Run


class Model(Config):
    base: str


class Data(Config):
    path: str = "/a/x.jsonl"
    sha256: str | None = "12ab"


class Loop(Config):
    rounds: int = 2
    candidates: int = 4
    seed: int = 0


class Toy(Config):
    name: str = "toy"
    model: Model
    ranker: list[Model] = Field(default_factory=list)
    sampler: Data = Data()
    loop: Loop = Loop()
    run: str | None = None


def weights(folder: Path, content: bytes = b"one") -> str:
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "model.safetensors").write_bytes(content)
    return str(folder)


def toy(base: str, **others: object) -> Toy:
    return check(Toy, {"model": {"base": base}, **others})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = begun(tmp_path / "run", toy(weights(tmp_path / "m"), ranker=[{"base": weights(tmp_path / "r")}]))
    draft = run.draft(0)
    draft.write_rows([])
    draft.commit({})
    return run


def begun(path: Path, recipe: Toy) -> Run:
    run = Run.create(path, recipe, seed=3)
    run.bind(fingerprints(plain(recipe), str))
    return run


def moved(run: Run, tmp_path: Path, **others: object) -> Toy:
    (tmp_path / "m").rename(tmp_path / "elsewhere")
    return toy(str(tmp_path / "elsewhere"), ranker=[{"base": str(tmp_path / "r")}], **others)


def test_a_mark_is_the_same_under_another_name_when_the_old_one_is_known(tmp_path: Path) -> None:
    old = Path(weights(tmp_path / "m"))
    mark = fingerprint(old)
    new = old.rename(tmp_path / "n")
    assert fingerprint(new) != mark
    assert fingerprint(new, "m") == mark
    one = new / "unet" / "model.safetensors"
    assert fingerprint(one.rename(tmp_path / "x.safetensors"), "y.safetensors") != fingerprint(
        tmp_path / "x.safetensors"
    )


def test_a_model_that_moved_goes_on_and_the_run_knows_its_new_place(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = moved(run, tmp_path)
    with run.locked(recipe):
        run.bind(fingerprints(plain(recipe), str))
    said = capsys.readouterr().err
    assert f"model.base: '{tmp_path / 'm'}' lies in '{tmp_path / 'elsewhere'}' now; it is the same." in said
    assert check(Toy, run.recipe()) == recipe
    with run.locked(recipe):
        pass
    assert capsys.readouterr().err == ""


def test_a_run_that_is_killed_while_it_notes_a_move_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = moved(run, tmp_path)
    written: list[str] = []

    def dying(path: Path, text: str) -> None:
        if len(written) == 2:  # the recipe is known, and there
            raise KeyboardInterrupt
        written.append(path.name)
        path.write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr("raftdiff.records.run.write_text", dying)
        with pytest.raises(KeyboardInterrupt), run.locked(recipe):
            pass
    again = Run.open(run.path)
    assert check(Toy, again.recipe()) == recipe, "without naming the place anew"
    with again.locked(recipe):
        again.bind(fingerprints(plain(recipe), str))
    assert again.info()["weights"][str(tmp_path / "elsewhere")]


def test_other_weights_in_the_new_place_are_refused_with_both_named(run: Run, tmp_path: Path) -> None:
    other = toy(weights(tmp_path / "other", b"two"), ranker=[{"base": str(tmp_path / "r")}])
    marks = [run.info()["weights"][str(tmp_path / "m")], fingerprint(tmp_path / "other", "m")]
    sentence = f"model.base ('{tmp_path / 'other'}' holds {marks[1]}, and '{tmp_path / 'm'}' held {marks[0]})"
    for attempt in (
        lambda: Run.create(run.path, other, seed=3),
        lambda: go_on_with(run, other),
        lambda: fork(run, other, tmp_path / "fork", round=0, seed=3),
    ):
        with pytest.raises(UserError) as caught:
            attempt()
        assert sentence in str(caught.value)
    with pytest.raises(UserError, match=r"these keys differ: model\.base\. "):
        Run.create(run.path, toy("owner/on-a-hub", ranker=[{"base": str(tmp_path / "r")}]), seed=3)


def test_more_rounds_with_a_moved_model_and_reward_change_the_rounds_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r").rename(tmp_path / "s")
    recipe = moved(run, tmp_path, loop={"rounds": 3})
    recipe = recipe.model_copy(update={"ranker": [Model(base=str(tmp_path / "s"))]})
    assert go_on_with(run, recipe) == ["loop.rounds"]
    assert run.changes() == {1: ["loop.rounds"]}
    (tmp_path / "s").rename(tmp_path / "r")
    back = recipe.model_copy(update={"ranker": [Model(base=str(tmp_path / "r"))]})
    assert go_on_with(run, back) == []
    assert run.changes() == {1: ["loop.rounds"]}
    assert run.recipe()["ranker"] == [{"base": str(tmp_path / "r")}]


def test_a_fork_of_a_run_whose_model_moved_knows_the_earlier_rounds_for_the_same(run: Run, tmp_path: Path) -> None:
    draft = run.draft(1)
    draft.write_rows([])
    draft.commit({})
    forked = fork(run, moved(run, tmp_path), tmp_path / "fork", round=1, seed=3)
    assert len(forked.kept_recipes()) == 1
    assert forked.changes() == {}


def test_a_run_that_a_recipe_names_is_known_by_its_beginning(run: Run, tmp_path: Path) -> None:
    recipe = toy("owner/on-a-hub", run=str(run.path))
    second = begun(tmp_path / "second", recipe)
    second.draft(0)
    mark = run_mark(run.path)
    assert second.info()["weights"] == {str(run.path): mark}
    draft = run.draft(1)
    draft.write_rows([])
    draft.commit({})
    run.path.rename(tmp_path / "away")
    assert run_mark(tmp_path / "away") == mark, "it went on, and is the same"
    assert second.differing(toy("owner/on-a-hub", run=str(tmp_path / "away"))) == []
    assert second.differing(toy("owner/on-a-hub", run=str(tmp_path / "second"))) == ["run"]


def test_a_file_with_its_checksum_beside_it_may_lie_elsewhere(run: Run, tmp_path: Path) -> None:
    same = toy(str(tmp_path / "m"), ranker=[{"base": str(tmp_path / "r")}], sampler={"path": "/b/y.jsonl"})
    assert run.differing(same) == []
    other = same.model_copy(update={"sampler": Data(path="/b/y.jsonl", sha256="34cd")})
    assert run.differing(other) == ["sampler.path", "sampler.sha256"]


def test_the_files_of_rewards_are_held_on_to(tmp_path: Path) -> None:
    place = weights(tmp_path / "m")
    for key in ("model", "head", "checkpoint"):
        assert fingerprints({"ranker": {"rewards": [{key: place}]}}, str).keys() == {place}


def test_a_checkpoint_file_of_clip_is_held_on_to_and_a_tag_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights(tmp_path / "openai")  # somebody's folder, which the tag of that name does not mean
    file = tmp_path / "clip.pt"
    found = []
    for content in (b"one", b"two"):
        file.write_bytes(content)
        rewards = [{"model": "ViT-L-14", "pretrained": name} for name in ("openai", str(file))]
        found.append(fingerprints({"ranker": {"rewards": rewards}}, str))
    assert [marks.keys() for marks in found] == [{str(file)}] * 2
    assert found[0] != found[1]


@pytest.mark.parametrize("prefix", ["local-dir:", "transformers:"])
def test_a_folder_of_clip_is_held_on_to_however_it_is_written(prefix: str, tmp_path: Path) -> None:
    place = weights(tmp_path / "m")
    named = fingerprints({"model": f"{prefix}{place}"}, str)
    assert named == {f"{prefix}{place}": fingerprint(Path(place))}
    run = Run.create(tmp_path / "run", toy(f"{prefix}{place}"), seed=3)
    run.bind({f"{prefix}{place}": str(fingerprint(Path(place)))})
    (tmp_path / "m").rename(tmp_path / "n")
    assert run.differing(toy(f"{prefix}{tmp_path / 'n'}")) == []
    assert run.differing(toy(str(tmp_path / "n"))) == []


def test_extras_of_prompts_are_no_models(tmp_path: Path) -> None:
    place = weights(tmp_path / "m")
    assert fingerprints({"prompts": {"captions": [{"meta": {"model": place}}]}, "vae": place}, str).keys() == {place}
    assert fingerprints({"model": {"config": place}}, str).keys() == {place}
    assert fingerprints({"page": {"config": place}}, str) == {}


def test_what_a_model_of_pictures_starts_from_is_held_on_to(tmp_path: Path) -> None:
    """PEFT's settings too, which say how much of a LoRA is added; what it was trained on is not read."""
    lora, word = Path(weights(tmp_path / "lora")), tmp_path / "word.pt"
    word.write_bytes(b"one")
    recipe = {"loras": [{"path": str(lora), "weight": 1.0}], "embeddings": [{"path": str(word), "token": None}]}
    recipe["loras"].append({"path": "someone/on-the-hub", "weight": 1.0})
    marks = []
    for alpha in (1, 2):
        told = {"lora_alpha": alpha, "base_model_name_or_path": str(tmp_path)}
        (lora / "adapter_config.json").write_text(json.dumps(told))
        marks.append(fingerprints({"model": recipe}, str))
    assert marks[0].keys() == {str(lora), f"{lora}/adapter_config.json", str(word)}
    changed = {name for name, mark in marks[0].items() if marks[1][name] != mark}
    assert changed == {f"{lora}/adapter_config.json"}
    assert not fingerprints({"prompts": {"path": str(lora)}, "sampler": {"path": str(word)}}, str)


def test_a_command_on_a_run_takes_the_new_place_and_asks_for_it(run: Run, tmp_path: Path) -> None:
    def missing(recipe: Toy) -> list[str]:
        if not Path(recipe.model.base).exists():
            raise UserError(f"model.base: there is no folder or file '{recipe.model.base}' here.")
        return []

    kind = opening.Kind(
        lambda name, overrides: read(Toy, Path(name), overrides), lambda one: check(Toy, one.recipe()), "train", missing
    )
    recipe = moved(run, tmp_path)
    given = Namespace(recipe=str(run.path), overrides=[f"model.base={tmp_path / 'elsewhere'}"], out=None)
    assert opening.existing_run(given, kind)[1] == recipe
    assert run.recipe()["model"]["base"] == str(tmp_path / "elsewhere"), "noted, for commands that take no overrides"
    given.overrides = []
    (tmp_path / "elsewhere").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=f"(?s)no folder or file.*raftdiff train {run.path} KEY=PLACE"):
        opening.open_run(given, kind)


def test_what_moved_is_in_the_runs_facts(run: Run, tmp_path: Path) -> None:
    with run.locked(moved(run, tmp_path)):
        facts = json.loads((run.path / "run.json").read_text())
    assert facts["moved"] == {str(tmp_path / "m"): str(tmp_path / "elsewhere")}


def gguf(folder: Path, content: bytes) -> Toy:
    folder.mkdir()
    (folder / "x.gguf").write_bytes(content)
    return toy(str(folder))


def test_a_folder_of_gguf_files_is_known_by_them(tmp_path: Path) -> None:
    assert fingerprint(tmp_path) is None
    first, other = gguf(tmp_path / "a", b"one"), gguf(tmp_path / "b", b"two")
    run = begun(tmp_path / "run", first)
    assert run.differing(other) == ["model.base"]
    earlier = {**run.info(), "weights": {first.model.base: NOTHING, **run.info()["weights"]}}
    (run.path / "run.json").write_text(json.dumps(earlier))
    assert run.differing(other) == ["model.base"]
    run.bind(fingerprints(plain(first), str))
    (tmp_path / "a").rename(tmp_path / "c")
    assert run.differing(toy(str(tmp_path / "c"))) == []


def lora(folder: Path, base: Path) -> Toy:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"lora")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    return toy(str(folder))


def test_a_lora_of_another_base_is_another_model(tmp_path: Path) -> None:
    bases = [Path(weights(tmp_path / name, text)) for name, text in (("p", b"one"), ("q", b"two"), ("s", b"one"))]
    first, other, same = (lora(tmp_path / f"lora-{base.name}", base) for base in bases)
    run = begun(tmp_path / "run", first)
    assert run.differing(other) == ["model.base"]
    assert run.differing(same) == [], "the same base elsewhere"
    config = tmp_path / "lora-p" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(bases[1])}))
    with pytest.raises(UserError, match=f"other weights of the base of {tmp_path / 'lora-p'} than lie there now"):
        run.bind(fingerprints(plain(first), str))


def test_a_model_of_a_hub_is_known_by_the_commit_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--owner--name/refs").mkdir(parents=True)
    (tmp_path / "models--owner--name/refs/main").write_text("abc\n")
    recipe = {"model": {"base": "owner/name", "vae": "owner/not-here"}, "prompts": {"model": "owner/name"}}
    assert revisions(recipe) == {"owner/name": "abc"}
    assert revisions({"model": {"base": "scene-sd"}, "name": "owner/name"}) == {}


def test_a_run_goes_on_with_the_commit_of_a_hub_that_it_was_begun_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "my hub"))
    latest = tmp_path / "my hub/models--owner--name/refs/main"
    latest.parent.mkdir(parents=True)
    recipe, path = toy("owner/name"), tmp_path / "run"

    def fetched(commit: str) -> None:
        """As when a hub that moved on is asked for the model."""

        def assemble(recipe: Config) -> None:
            latest.write_text(commit)

        with at_work(Run(path), recipe, lambda recipe: {}, assemble):
            (path / "rounds/000.partial").mkdir(exist_ok=True)

    fetched("abc")
    fetched("abc")
    with pytest.raises(UserError, match="begun with other weights of owner/name than lie there now") as refused:
        fetched("def")
    assert f"(hf download owner/name --revision abc && echo abc > '{latest}'; and" in str(refused.value)
    monkeypatch.setattr(either, "weights_of", lambda recipe: {})
    monkeypatch.setattr(either, "assemble", lambda recipe, training: None)
    with pytest.raises(UserError, match="begun with other weights of owner/name"):
        either.prepared(Run(path), recipe)
    latest.write_text("abc")
    either.prepared(Run(path), recipe)
