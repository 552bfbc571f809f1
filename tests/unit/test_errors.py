"""Suggested commands can be pasted: each word arrives as it was."""

import shlex
import subprocess

import pytest

from raftdiff import errors

PATHS = ["run", "my runs/a", r"C:\runs\new table", "C:\\my runs\\", "Läufe 1"]
WORDS = [*PATHS, 'a "b" c', 'a \\"b\\" c', "it's a run", ""]


@pytest.mark.parametrize("word", WORDS)
def test_a_posix_shell_reads_the_word(word: str) -> None:
    assert shlex.split(errors.quoted(word, windows=False)) == [word]


@pytest.mark.parametrize("word", WORDS)
def test_a_windows_program_reads_the_word(word: str) -> None:
    assert errors.quoted(word, windows=True) == subprocess.list2cmdline([word])


@pytest.mark.parametrize("word", ["a&b", "a|b", "a>b", "(a)", "prompts.captions=[a,b]", "a;b", "100%", "a\\&\\"])
def test_what_a_windows_shell_would_act_on_stands_in_quotes(word: str) -> None:
    written = errors.quoted(word, windows=True)
    assert written == '"' + word + ("\\" if word.endswith("\\") else "") + '"'


def test_a_plain_windows_path_stands_as_it_is() -> None:
    assert errors.quoted(r"C:\runs\new", windows=True) == r"C:\runs\new"


def test_a_command_is_written_for_this_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert errors.command("train", "my runs/a", "loop.rounds=4") == "raftdiff train 'my runs/a' loop.rounds=4"
    monkeypatch.setattr(errors.os, "name", "nt")
    assert errors.command("train", r"C:\my runs\a", 4) == 'raftdiff train "C:\\my runs\\a" 4'
