"""What a terminal brings and takes: bytes that are no text, letters that it cannot show, commands to paste."""

import ast
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from raftdiff.cli.main import main, parser
from raftdiff.errors import command

ROOT = Path(__file__).parents[3]
VERBS = "|".join(next(action.choices for action in parser()._actions if isinstance(action.choices, dict)))
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(*words: bytes) -> subprocess.CompletedProcess[bytes]:
    start = [os.fsencode(sys.executable), b"-m", b"raftdiff.cli.main"]
    return subprocess.run([*start, *words], env={**os.environ, **C_LOCALE}, capture_output=True, check=False)


def test_a_word_that_is_no_utf8_is_a_sentence() -> None:
    told = run(b"train", b"demo", b"prompts.negative=K\xf6ln")
    assert told.returncode == 2
    assert b"raftdiff: 'prompts.negative=K\\udcf6ln' is not UTF-8; set the terminal to UTF-8" in told.stderr


def test_utf8_is_understood_in_the_c_locale_and_shown_in_ascii() -> None:
    told = run(b"train", "Köln".encode())
    assert told.returncode == 2
    assert b"'K\\xf6ln' is no file and not a recipe that ships" in told.stderr


def test_what_a_console_cannot_show_ends_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["recipes"]) == 0
    print("猫", flush=True)
    assert console.buffer.getvalue().splitlines()[-1] == b"\\u732b"  # type: ignore[attr-defined]


def test_a_command_can_be_pasted() -> None:
    words = ["train", "my runs/a", "ranker.rewards=[{type: clip, model: scene-clip}]"]
    assert shlex.split(command(*words)) == ["raftdiff", *words]


def test_only_the_word_that_is_none_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "demo", "loop.rounds=1", "--seed=3", "--out", "new", "word", "loop.seed=1"])
    assert capsys.readouterr().err.splitlines()[-1] == "raftdiff: error: unrecognized arguments: --seed=3 word"


def test_a_recipe_that_another_command_runs_is_told_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (
            ["companion", "--out", "a b"],
            "'companion' is the recipe of a pipeline; run: raftdiff llm pipeline companion --",
        ),
        (["rm_reviews"], "'rm_reviews' is the recipe of a reward model; run: raftdiff llm rm train rm_reviews"),
    ):
        assert main(["llm", *words]) == 2
        assert f"raftdiff: {told}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["llm", "nonsense"])


@pytest.mark.parametrize("package", ["raftdiff", "llm", "rewards", "apps"])
def test_every_command_that_is_suggested_is_quoted(package: str) -> None:
    """No f-string spells out a command of ours with values in it: ``errors.command`` does, and quotes them."""
    unquoted = []
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
                if re.search(rf"raftdiff (\{{\}}|{VERBS})\b( [A-Za-z-]+)* (\S*=)?\{{\}}", text):
                    unquoted.append(f"{path}:{node.lineno}: {text}")
    assert unquoted == []


@pytest.mark.parametrize("where", ["{}", "exec({!r})"])
def test_an_interrupt_ends_every_command_with_130(where: str, tmp_path: Path) -> None:
    """Also in a text that Python runs, as dataclasses and libraries do when they are imported."""
    program = (
        "import signal, sys, types\n"
        "from raftdiff.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background job ignores\n"
        f"interrupted = lambda _: {where.format('signal.raise_signal(signal.SIGINT)')}\n"
        "sys.modules['raftdiff.cli.tools'] = types.SimpleNamespace(recipes=interrupted)\n"
        "sys.exit(main.main(['recipes']))"
    )
    (tmp_path / "interrupted.py").write_text(program)
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    told = subprocess.run(
        [sys.executable, "-m", "interrupted"],  # as "python -m raftdiff": here Python has the last word on the status
        env={**os.environ, "PYTHONPATH": places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr[:20]) == (130, "\nraftdiff: stopped. ")
