"""Names of parts: ours are there, plug-ins are found, a broken plug-in breaks nothing else."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from raftdiff.errors import UserError
from raftdiff.recipes import registry
from raftdiff.recipes.config import Config


class Plugged(Config):
    type: str = "plugged"
    name: str = "plugged"
    weight: float = 1.0


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        EntryPoint("plugged", f"{__name__}:Plugged", "raftdiff.rewards"),
        EntryPoint("broken", "no_such_module_here:Thing", "raftdiff.rewards"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: found if group == "raftdiff.rewards" else [])
    monkeypatch.setattr(registry, "resolve", resolve_here(registry.resolve))
    registry.sources.cache_clear()
    yield
    registry.sources.cache_clear()


def resolve_here(real):
    return lambda target, what: Plugged if target.endswith(":Plugged") else real(target, what)


@pytest.mark.parametrize("group", list(registry.BUILT_IN))
def test_every_built_in_name_loads(group: registry.Group) -> None:
    for name in registry.BUILT_IN[group]:
        assert registry.load(group, name).model_fields["type"].default == name


def test_a_wrong_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="'clap' is not a reward. Did you mean 'clip'"):
        registry.load("rewards", "clap")


def test_a_plug_in_is_found_and_a_broken_one_left_out_with_a_warning(plugins: None) -> None:
    with pytest.warns(UserWarning, match="left out: the reward 'broken': cannot import 'no_such_module_here'"):
        found = registry.load_all("rewards")
    assert Plugged in found
    assert len(found) == len(registry.BUILT_IN["rewards"]) + 1


@pytest.mark.parametrize("target", ["nothing", "a:", ":b", ""])
def test_a_target_of_another_form_is_named(target: str) -> None:
    with pytest.raises(UserError, match="should be written module:name"):
        registry.resolve(target, "the reward 'x'")


def test_a_module_without_the_name() -> None:
    with pytest.raises(UserError, match="has no 'thing'"):
        registry.resolve("raftdiff.errors:thing", "the reward 'x'")


def test_a_module_that_asks_for_an_older_raftdiff_is_told_apart_from_one_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "older_reward.py").write_text("from raftdiff.config import Config\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"No module named 'raftdiff.config'\). raftdiff's modules are listed in docs/"):
        registry.resolve("older_reward:Config", "the reward 'older'")
    with pytest.raises(UserError, match=r"No module named 'no_such_reward'\). Is it installed, or in this folder\?"):
        registry.resolve("no_such_reward:Config", "the reward 'gone'")
