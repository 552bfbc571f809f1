"""pack.sh and run.sh, cut down on the CPU: so that the first run on a GPU is not the first run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from raftdiff import embedded
from raftdiff.diffusion.methods.changes import planned
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.embedded.scenes.art import SHEET
from raftdiff.embedded.scenes.flow import FILES as FLOW
from raftdiff.embedded.scenes.networks import TEXT, UNET, finished

ROOT = Path(__file__).parents[2]
PACKED = {
    "diffusers",
    "open-clip-torch",
    "ftfy",
    "wcwidth",
    "pydantic",
    "pydantic-core",
    "annotated-types",
    "typing-inspection",
    "typing-extensions",
    "importlib-metadata",
    "lazy-importer",  # what importlib-metadata needs
    "beartype",
}
THERE = {
    *("accelerate", "jaxtyping", "jinja2", "numpy", "peft", "pillow", "psutil", "pyyaml", "regex", "safetensors"),
    *("tensorboard", "torch", "torchvision", "tqdm", "transformers"),
}
"""What the GPU machine has, of what raftdiff depends on."""


def script(name: str, *arguments: str, root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        ["bash", str(root / "tests/gpu" / name), *arguments],
        env=known | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


def load(name: str) -> Any:
    """A module beside this file."""
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def executable(path: Path, text: str) -> str:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return str(path)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, sheet: np.ndarray) -> Path:
    """What pack.sh makes, with other art and without wheels."""
    folder = tmp_path_factory.mktemp("pack")
    np.savez_compressed(folder / SHEET, sheet=sheet)
    return folder


class Here:
    """A process as ``train``, ``flow`` and ``methods`` begin it, but in this one, which has imported what takes most of
    its time. The end of what draws is noticed late, so that there is time to look at its weights."""

    def __init__(self, command: list[str], *, env: dict[str, str], **how: Any) -> None:
        del how
        python, _, module, *arguments = command
        assert python == sys.executable
        assert env["OMP_NUM_THREADS"] == "1"
        if module == "raftdiff":  # where `methods:exact` is found
            assert env["PYTHONPATH"].startswith(str(Path(__file__).parent))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [module, *arguments])
            entry = importlib.import_module("raftdiff.cli.main" if module == "raftdiff" else module)
            self.returncode = entry.main() or 0
        self._late = 1 if module.endswith((".unet", ".flow")) else 0

    def poll(self) -> int | None:
        self._late -= 1
        return self.returncode if self._late < 0 else None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., list[Any]]]:
    """A step as run.sh starts it, but in this process; returns its figures."""
    precision = torch.get_float32_matmul_precision()
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def run(name: str, *arguments: str) -> list[Any]:
        if name in ("train", "flow", "methods"):
            beginning = SimpleNamespace(Popen=Here, STDOUT=subprocess.STDOUT)
            monkeypatch.setattr(importlib.import_module(name), "subprocess", beginning)
        monkeypatch.setattr(sys, "argv", ["step.py", name, "--small", "--seconds", "600", *arguments])
        status, told = load("step").main(), capsys.readouterr()
        assert status == 0, told.out + told.err
        return lines(told.out)

    yield run
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.benchmark = False
    for name in ("speed", "large", "train", "flow", "methods"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the packages' own, of which a step only tells
def test_every_step_runs_and_tells_its_figures(tmp_path: Path, pack: Path, here: Callable[..., list[Any]]) -> None:
    out = tmp_path / "out"
    ran = script("run.sh", "check", SMALL="1", PACK=str(pack), OUT=str(out), CHECK_SECONDS="600")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    places = ("--pack", str(pack), "--out", str(out))
    # the judge and the reward learn in a test of their own
    told = [*lines(ran.stdout), *here("speed", *places), *here("large", *places)]
    told += here("train", "--parts", "vae", "unet", *places)
    assert lines((out / "figures.jsonl").read_text()) == told
    assert all(figure["device"] for figure in told)
    names = {step: [f["name"] for f in told if f["step"] == step] for step in ("check", "speed", "large", "train")}
    assert names["check"] == ["GPU tests passed", "GPU tests failed", "GPU tests skipped"]
    assert sum(figure["value"] for figure in told if figure["step"] == "check") > 15
    for beginning in ("scene-sd sampling", "U-Net training", "review-lm sampling", "a random U-Net of SD 1.5's size"):
        assert any(name.startswith(beginning) for name in names["speed"])
    for beginning in ("SD 1.5's size, random, 32 px", "SDXL's size, random, 32 px", "the published job, tune"):
        assert any(name.startswith(beginning) for name in names["large"])
    assert all(figure["value"] > 0 for figure in told if figure["step"] in ("speed", "large"))
    assert {"seen, guidance 3, seed 0", "held out, guidance 3, seed 0"} <= set(names["train"])
    assert {"judge on art", "judge on rebuilt"} <= set(names["train"])
    assert any(re.fullmatch(r"after \d+ s, guidance 4", name) for name in names["train"]), "it was looked at"

    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(path.stat().st_size <= 16 * 2**20 and re.fullmatch(r"[A-Za-z0-9._-]+", path.name) for path in files)
    for part, file, kept in (("unet", "diffusion_pytorch_model", UNET), ("text_encoder", "model", TEXT)):
        shipped = embedded.folder("scene-sd") / part / f"{file}.safetensors"
        with safe_open(shipped, "pt") as one, safe_open(out / kept, "pt") as other:
            assert {name.removeprefix("text_model.") for name in one.keys()} == set(other.keys())  # noqa: SIM118
            tensors = [
                (one.get_tensor(name), other.get_tensor(name.removeprefix("text_model.")))
                for name in one.keys()  # noqa: SIM118
            ]
        assert all(b.dtype == torch.float16 and a.shape == b.shape for a, b in tensors)
        assert any(not torch.equal(a, b) for a, b in tensors)
    with Image.open(out / "contact.png") as contact:
        assert contact.height == 210  # a row of eight and their captions


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_flow_is_trained_looked_at_and_measured(tmp_path: Path, pack: Path, here: Callable[..., list[Any]]) -> None:
    told = here("flow", "--pack", str(pack), "--out", str(tmp_path))
    names = [figure["name"] for figure in told]
    assert {"seen, guidance 3, seed 0", "held out, guidance 3, seed 0"} <= set(names)
    assert any(re.fullmatch(r"after \d+ s, guidance 4", name) for name in names), "it was looked at"
    assert {path.name for path in tmp_path.iterdir()} == {
        *FLOW.values(), "scene-sd.vae.safetensors", "contact.png", "log.txt", "figures.jsonl",
    }  # fmt: skip
    assert all(finished(tmp_path / name) for name in FLOW.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_methods_are_compared(tmp_path: Path, here: Callable[..., list[Any]]) -> None:
    first, *others = here("methods", "--out", str(tmp_path))
    assert (first["name"], first["value"], first["unit"]) == ("runs ended", 1, "of 1")
    assert [figure["name"].split(",")[:3] for figure in others] == [
        ["raft", " seed 0", " held_out"],
        ["raft", " seed 0", " training"],
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"figures.jsonl", "table.md", "methods.json", "methods.svg"}


def test_what_methods_compares_are_recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    methods = load("methods")
    files = methods._written(tmp_path, small=False)
    base = load_recipe(str(files["methods"]))
    assert not set(base.prompts.captions) & set(base.evaluation.prompts.captions)
    trials = planned(list(map(str, list(files.values())[1:])), base, str(files["methods"]), evaluations=172_000)
    assert [trial.name for trial in trials] == [*methods.METHODS, *methods.OTHERS]
    assert all(160_000 < trial.cost.total <= 172_000 for trial in trials)
    rules = {trial.name: trial.recipe.finetuner.learning.type for trial in trials}
    assert [rules[name] for name in ("raft", "awm", "nft", "dpo", "kto", "oracle", "student")] == [
        "sft", "advantage", "nft", "dpo", "kto", "nft", "sft",
    ]  # fmt: skip
    assert {trial.recipe.sampler.type for trial in trials[: len(methods.METHODS)]} == {"diffusion"}
    # guided drawings cost twice, every other round
    assert len({trial.cost.sampling for trial in trials if trial.name != "mixed"}) == 1


def test_the_judge_as_a_reward_is_the_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = SimpleNamespace(judge=lambda *_: {"exact": np.array([1.0, 0.0])})
    monkeypatch.setattr("raftdiff.embedded.scenes.judge.SceneJudge", lambda *_: judge)
    assert load("methods").exact([], []) == [1.0, 0.0]


def test_a_step_that_takes_too_long_or_is_unknown_is_told_and_the_next_one_runs(tmp_path: Path, pack: Path) -> None:
    names = ("check", 'dan"ce', "train")
    limits = {"CHECK_SECONDS": "0.5", "TRAIN_SECONDS": "0.5"}
    ran = script("run.sh", *names, SMALL="1", PACK=str(pack), OUT=str(tmp_path), **limits)
    assert ran.returncode == 1
    told = lines(ran.stdout)
    assert [figure["step"] for figure in told] == ["check", "dan?ce", "train"]
    assert told[0]["failed"].startswith("exit 124 after ")
    assert told[1]["failed"] == "there is no such step; known: check, speed, large, train, flow, methods"
    assert lines((tmp_path / "figures.jsonl").read_text()) == told


def test_a_mistake_is_told_as_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = load("step")
    monkeypatch.setitem(sys.modules, "train", load("train"))
    monkeypatch.setattr(sys, "argv", ["step.py", "train", "--pack", str(tmp_path), "--out", str(tmp_path)])
    assert step.main() == 1
    (told,) = lines(capsys.readouterr().out)
    assert told["failed"] == f"{tmp_path}/sheet.npz is missing: run tests/gpu/pack.sh where there is a network."


def test_run_says_which_steps_there_are(tmp_path: Path) -> None:
    ran = script("run.sh", OUT=str(tmp_path))
    assert ran.returncode == 2
    assert ran.stderr == "Name the steps to run: check, speed, large, train, flow, methods.\n"


def test_what_is_missing_is_installed_from_the_wheels_without_a_network(tmp_path: Path) -> None:
    # a Python that lacks a package, and writes down what it is asked to do
    python = executable(
        tmp_path / "python",
        f'echo "$@" >> {tmp_path}/asked; if [ "$1" = -c ]; then echo pydantic; elif [ "$1" = -m ]; then exit 0; fi',
    )
    lacking = script("run.sh", "check", PYTHON=python, PACK=str(tmp_path / "pack"), OUT=str(tmp_path / "out"))
    assert lacking.returncode == 1
    assert f"This Python lacks pydantic, and {tmp_path}/pack/wheels is empty" in lacking.stderr
    wheels = tmp_path / "pack/wheels"
    wheels.mkdir(parents=True)
    (wheels / "pydantic-1-py3-none-any.whl").touch()
    (tmp_path / "asked").unlink()
    ran = script("run.sh", "check", PYTHON=python, PACK=str(tmp_path / "pack"), OUT=str(tmp_path / "out"))
    assert ran.returncode == 0
    install, step = (tmp_path / "asked").read_text().splitlines()[-2:]
    assert install.startswith("-m pip install")
    assert "--no-index --no-deps" in install
    assert "--target" in install
    assert install.endswith(str(wheels / "pydantic-1-py3-none-any.whl"))
    assert step.startswith("tests/gpu/step.py check --seconds 150")


def test_a_copy_without_its_symbolic_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tests/gpu").mkdir(parents=True)
    (tmp_path / "raftdiff").mkdir()
    (tmp_path / "tests/gpu/run.sh").write_text((ROOT / "tests/gpu/run.sh").read_text())
    ran = script("run.sh", "check", root=tmp_path, OUT=str(tmp_path / "out"))
    assert ran.returncode == 1
    assert ran.stderr == "raftdiff/llm leads nowhere: copy the repository with its symbolic links.\n"


def packing(tmp_path: Path, pack: Path, size: int) -> subprocess.CompletedProcess[str]:
    """pack.sh with a pip that writes down what it is asked for, and leaves one wheel of that size."""
    dest = 'while [ "$1" != --dest ]; do shift; done; mkdir -p "$2"'
    pip = f'echo "$@" > {tmp_path}/asked; {dest}; truncate -s {size} "$2/one.whl"'
    python = executable(tmp_path / "python", f'if [ "$2" = pip ]; then {pip}; else exec {sys.executable} "$@"; fi')
    return script("pack.sh", PYTHON=python, PACK=str(tmp_path / ".gpu"), CACHE=str(pack))


def test_pack_fetches_wheels_for_the_gpu_machine_and_lays_the_art_beside_them(tmp_path: Path, pack: Path) -> None:
    ran = packing(tmp_path, pack, 1000)
    assert ran.returncode == 0, ran.stderr
    asked = (tmp_path / "asked").read_text().split()
    names = asked[asked.index("--dest") + 2 :]
    assert {name.lower().replace("_", "-") for name in names} == PACKED
    assert "--no-deps --only-binary=:all: --constraint constraints.txt --python-version 3.12" in " ".join(asked)
    assert (tmp_path / ".gpu" / SHEET).read_bytes() == (pack / SHEET).read_bytes()
    assert f"{len(PACKED)} wheels and the art, {1000 + (pack / SHEET).stat().st_size} bytes" in ran.stdout


def test_pack_refuses_more_than_may_be_carried(tmp_path: Path, pack: Path) -> None:
    ran = packing(tmp_path, pack, 36 * 2**20)
    assert ran.returncode == 1
    assert re.search(r"holds \d+ bytes, more than the 37748736 \(36 MiB\) that it may\.", ran.stderr)


def test_an_older_pack_stays_until_there_is_a_new_one(tmp_path: Path, pack: Path) -> None:
    older = tmp_path / ".gpu/wheels/older.whl"
    older.parent.mkdir(parents=True)
    older.touch()
    assert packing(tmp_path, pack, 36 * 2**20).returncode == 1
    failing = executable(tmp_path / "failing", "exit 3")
    assert script("pack.sh", PYTHON=failing, PACK=str(tmp_path / ".gpu"), CACHE=str(pack)).returncode == 3
    assert [path.name for path in (tmp_path / ".gpu").iterdir()] == ["wheels"], "nothing half made is left"
    assert older.is_file()
    assert packing(tmp_path, pack, 1000).returncode == 0
    assert [path.name for path in older.parent.iterdir()] == ["one.whl"]


def test_a_signal_ends_the_step_that_runs_and_no_other_begins(tmp_path: Path) -> None:
    working = f'if [ "$1" != -c ]; then echo $$ >> {tmp_path}/steps; exec sleep 300; fi'
    environment = os.environ | {"PYTHON": executable(tmp_path / "python", working), "OUT": str(tmp_path / "out")}
    running = subprocess.Popen(["bash", str(ROOT / "tests/gpu/run.sh"), "check", "speed"], env=environment)
    steps = tmp_path / "steps"
    while not (steps.is_file() and steps.read_text().endswith("\n")):
        assert running.poll() is None
        time.sleep(0.05)
    running.terminate()
    assert running.wait(timeout=60) == 130
    (step,) = steps.read_text().split()
    assert not Path(f"/proc/{step}").exists()


def test_figures_that_cannot_be_written_fail_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = load("step")
    (tmp_path / "figures.jsonl").symlink_to("/dev/full")
    monkeypatch.setitem(sys.modules, "train", load("train"))
    monkeypatch.setattr(sys, "argv", ["step.py", "train", "--pack", str(tmp_path), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"figures\.jsonl: cannot be written: No space left on device\.$"):
        step.main()


def test_limits_are_numbers_and_folders_are_seen_from_where_one_stands(tmp_path: Path) -> None:
    ran = script("run.sh", "check", OUT=str(tmp_path / "out"), CHECK_SECONDS="0")
    assert [line["failed"] for line in lines(ran.stdout)] == ["its limit is no number of seconds above 0"]
    python = executable(tmp_path / "python", f'echo "$@" >> {tmp_path}/asked')
    known = os.environ | {"PYTHON": python, "OUT": "out", "PACK": "pack"}
    subprocess.run(["bash", str(ROOT / "tests/gpu/run.sh"), "check"], env=known, cwd=tmp_path, check=True)
    assert f"--out {tmp_path}/out --pack {tmp_path}/pack" in (tmp_path / "asked").read_text()


def test_whatever_raftdiff_needs_is_packed_or_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=]", name)[0].lower().replace("_", "-") for name in project["dependencies"]}
    assert needed <= PACKED | THERE, "add it to tests/gpu/pack.sh, unless the GPU machine has it"
    pinned = (ROOT / "constraints.txt").read_text().lower().replace("_", "-")
    assert all(f"\n{name}==" in pinned for name in PACKED)


def test_results_that_are_too_many_or_too_large_are_told(tmp_path: Path) -> None:
    step = load("step")
    for number in range(8):
        (tmp_path / f"{number}.png").touch()
    assert step.too_much(tmp_path) is None
    (tmp_path / "ninth.png").touch()
    assert step.too_much(tmp_path) == f"{tmp_path} holds 9 files, more than 8."
    os.truncate(tmp_path / "ninth.png", 16 * 2**20 + 1)
    assert step.too_much(tmp_path) == "ninth.png: larger than 16 MiB."


def test_skipped_gpu_tests_show_nothing_unless_all_is_cut_down(tmp_path: Path) -> None:
    check = load("check")
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite><testcase name='a'/><testcase name='b'><skipped/></testcase>"
        "<testcase name='c'><failure/></testcase><testcase name='d'><error/></testcase></testsuite></testsuites>"
    )
    assert check.count(report) == {"passed": 1, "skipped": 1, "failed": 2}
    skipped = Counter(passed=1, skipped=2)
    sentence = "2 tests were skipped, which shows nothing: a CUDA device is needed."
    assert check.verdict(0, skipped, small=False) == sentence
    assert check.verdict(0, skipped, small=True) is None
    assert check.verdict(0, Counter(passed=3), small=False) is None
    assert check.verdict(1, Counter(failed=2), small=True) == "2 tests failed; pytest ended with status 1."
    assert check.verdict(0, Counter(), small=True) == "No test was found."


def test_one_speed_that_fails_does_not_lose_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    speed, step = load("speed"), load("step")

    def broken(*, small: bool) -> Any:
        raise RuntimeError("out of memory")

    def well(*, small: bool) -> Any:
        yield {"name": "well", "value": 1.0, "unit": "pictures/s"}

    for name, group in (("scene_sampling", broken), ("scene_training", well), ("reviews", broken), ("sd15", well)):
        monkeypatch.setattr(speed, name, group)
    told = list(speed.figures(step.options(["speed", "--small"])))
    assert [figure.get("failed") for figure in told] == ["RuntimeError: out of memory", None] * 2


def test_a_training_that_fails_is_told_however_whole_the_weights_are_that_lie_there(
    tmp_path: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    train, step = load("train"), load("step")
    begun: list[str] = []
    failing = {"unet", "judge"}

    class Ended:
        """A process that ended at once; some badly, each time."""

        def __init__(self, command: list[str], **how: Any) -> None:
            begun.append(command[2].rsplit(".", 1)[-1])
            self.returncode = 3 if begun[-1] in failing else 0

        def poll(self) -> int:
            return self.returncode

    monkeypatch.setattr(train.subprocess, "Popen", Ended)
    monkeypatch.setattr(train, "conclude", lambda *_: iter([]))
    stale = tmp_path / "scene-judge.safetensors"
    stale.touch()
    given = step.options(["train", "--small", "--seconds", "600", "--pack", str(pack), "--out", str(tmp_path)])
    told = list(train.figures(given))
    assert begun == ["vae", "judge", "judge", "clip", "unet"]
    badly = [f"training of {name}" for name in ("judge", "reader", "unet")]
    assert [figure["name"] for figure in told if "failed" in figure] == badly
    assert all("ended with 3" in figure["failed"] for figure in told if "failed" in figure)
    assert (tmp_path / "scene-sd.vae.safetensors").is_file()
    assert not stale.exists()
    begun.clear()
    failing.clear()
    given = step.options(
        ["train", "--small", "--parts", "clip", "--seconds", "600", "--pack", str(pack), "--out", str(tmp_path)]
    )
    assert [figure for figure in train.figures(given) if "failed" in figure] == []
    assert begun == ["judge", "clip"]
    assert stale.is_file()
