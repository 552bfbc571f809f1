"""Timing in turn, operations counted, what is kept for plans, and the tables, each on next to nothing."""

import itertools
import json
import math
from dataclasses import asdict

import pytest
import torch

from raftdiff.diffusion.learning.finetuner import DiffusionFineTunerConfig
from raftdiff.diffusion.models import measured
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.probe import Counts, Probe
from raftdiff.diffusion.sampler import DiffusionSamplerConfig
from raftdiff.diffusion.speed import known, tables
from raftdiff.diffusion.speed.operations import operations, product
from raftdiff.diffusion.speed.repeats import Call, Figure, Timed, Way, figures, in_turn
from raftdiff.diffusion.speed.ways import (
    AS_IT_IS,
    BATCH,
    OTHERWISE,
    OUTSIDE,
    PARTS,
    PEAK,
    PRODUCT,
    ROUNDS,
    SAMPLING,
    TUNING,
)
from raftdiff.errors import UserError
from raftdiff.training import devices

PROBE = Probe(0.01, 0.02, 0.03, 4, 5, 6)
COUNTS = Counts(8, 64, 2, 3, 24, 48)


class Machine:
    """A clock, and ways that take what they say; the first call of each ten times as long."""

    def __init__(self, **seconds: float) -> None:
        self.now, self.called = 0.0, list[str]()
        self.ways = [
            Way("t", name, "pictures", 2.0, lambda n=name, s=took: self._spend(n, s)) for name, took in seconds.items()
        ]

    def _spend(self, name: str, seconds: float) -> Call:
        took = seconds * (1 if name in self.called else 10)
        self.now += took
        self.called.append(name)
        return Call(took, {"a": took / 2})

    def run(self, repeats: int, budget: float = math.inf) -> list[Timed]:
        return list(in_turn(self.ways, repeats=repeats, budget=budget, clock=lambda: self.now))


def test_ways_are_called_in_turn_and_the_first_calls_do_not_count() -> None:
    machine = Machine(a=1.0, b=3.0)
    calls = machine.run(repeats=2)
    assert machine.called == ["a", "b"] * 3
    a, b = figures(machine.ways, calls)
    assert (a.seconds, a.rate, a.parts) == ((1.0, 1.0), 2.0, {"a": 0.5})
    assert (b.seconds, b.spread) == ((3.0, 3.0), (2 / 3, 2 / 3))
    assert [it.left for it in calls[-3:]] == [4.0, 3.0, 0.0]


def test_the_budget_is_kept_and_a_first_call_counts_where_it_is_the_only_one() -> None:
    machine = Machine(a=1.0, b=3.0)
    calls = machine.run(repeats=5, budget=55.0)  # 10, 30, 1; b took 30 the last time
    assert machine.called == ["a", "b", "a"]
    assert all(it.left <= 55.0 for it in calls)
    assert [it.seconds for it in figures(machine.ways, calls)] == [(1.0,), (30.0,)]
    assert Machine(a=1.0).run(repeats=3, budget=0.0)[1:] == []


def test_the_spread_is_that_of_the_repeats() -> None:
    way = Way("t", "x", "pictures", 6.0, lambda: Call(0.0))
    calls = [Timed(0, warm > 0, Call(seconds), 0.0) for warm, seconds in enumerate((9.0, 1.0, 3.0, 2.0))]
    (figure,) = figures([way], calls)
    assert (figure.rate, figure.spread) == (3.0, (2.0, 6.0))


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), "memory does not suffice"),
        (UserError("model.compile: PyTorch cannot compile here"), "model.compile: PyTorch cannot compile here"),
    ],
)
def test_what_fails_is_told_once_and_the_others_go_on(fault, told) -> None:
    machine = Machine(a=1.0, b=3.0)
    tried = list[int]()

    def fails() -> Call:
        tried.append(1)
        raise fault

    machine.ways.insert(1, Way("t", "fails", "pictures", 64.0, fails))
    calls = machine.run(repeats=2)
    assert machine.called == ["a", "b"] * 3
    assert (len(tried), len(calls)) == (1, 7)
    assert [(it.place, it.failed) for it in calls if it.took is None] == [(1, told)]
    assert [it.left for it in calls[-2:]] == [3.0, 0.0]
    assert [it.name for it in figures(machine.ways, calls)] == ["a", "b"]


def test_another_fault_than_memory_is_not_hidden() -> None:
    def broken() -> Call:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(in_turn([Way("t", "x", "pictures", 1.0, broken)], repeats=1))


def test_operations_are_those_of_products_attention_and_their_gradients() -> None:
    one = torch.randn(3, 4, requires_grad=True)
    other = torch.randn(4, 5, requires_grad=True)
    assert operations(lambda: one @ other) == 2 * 3 * 4 * 5
    assert operations(lambda: (one @ other).sum().backward()) == 3 * 2 * 3 * 4 * 5
    rows = torch.randn(1, 2, 7, 8)
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        assert operations(lambda: attend(rows, rows, rows)) == 2 * (2 * 2 * 7 * 7 * 8)
    multiply, count = product(torch.device("meta"), torch.float32)
    assert operations(multiply) == count


def test_where_a_cpu_lacks_bfloat16_a_smaller_product_stands_for_the_peak(monkeypatch) -> None:
    counts = []
    for takes in (True, False):
        monkeypatch.setattr(devices, "onednn_takes_bfloat16", lambda takes=takes: takes)
        counts.append(product(torch.device("cpu"), torch.bfloat16)[1])
    assert counts == [2 * 2048**3, 2 * 512**3]


@pytest.fixture(scope="module")
def built(models):
    parts = load(ModelConfig(base=str(models["sd15"])))

    def both(**changes):
        sampler = DiffusionSamplerConfig(**{"steps": 3, "batch_size": 4, **changes.pop("sampler", {})}).build(parts)
        return sampler, tuner

    tuner = DiffusionFineTunerConfig(batch_size=2, rank=2).build(parts, total_rounds=1, guidance=3.0, seed=0)
    return both


def test_what_is_kept_is_found_for_the_same_shape_and_no_other(built, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path / "cache"))
    sampler, tuner = built()
    model = ModelConfig(base="here")
    key = known.key(sampler, tuner, model)
    assert known.find(key) is None
    known.keep(key, PROBE, "model.compile=true, 1.25 times")
    assert (known.find(key).probe, known.find(key).faster) == (PROBE, "model.compile=true, 1.25 times")
    assert known.key(built(sampler={"steps": 7})[0], tuner, model) == key, "an evaluation takes no longer so"
    others = [{"batch_size": 8}, {"height": 32, "width": 32}, {"guidance": 1.0}]
    assert known.find(known.key(built(sampler=others[0])[0], tuner, model)) is None
    assert len({key, *(known.key(built(sampler=it)[0], tuner, model) for it in others)}) == 4
    held = [ModelConfig(base="here", offload=True), ModelConfig(base="here", vae_tiling=True)]
    assert len({key, *(known.key(sampler, tuner, it) for it in held)}) == 3


def damaged(probe: object = 1.0, **changed: object) -> str:
    return json.dumps({"k": {"probe": dict.fromkeys(asdict(PROBE), probe), "date": "d", **changed}})


DAMAGED = [*map(damaged, ("fast", float("nan"), float("inf"), -5.0, True))]
DAMAGED += [damaged(faster=["x"]), damaged(faster=None), damaged(faster="a\x1b[31m"), damaged(date=None)]


@pytest.mark.parametrize("text", ["{", "[]", '{"k": {"probe": {"seconds": 1}, "date": "d"}}', *DAMAGED])
def test_a_damaged_file_is_told_and_made_anew(text, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path))
    (tmp_path / "speed.json").write_text(text)
    with pytest.warns(UserWarning, match="raftdiff bench"):
        assert known.find("k") is None
    if "probe" not in text:
        with pytest.warns(UserWarning, match="writes it anew"):
            known.keep("k", PROBE)
    else:
        known.keep("k", PROBE)
    assert known.find("k").probe == PROBE


def test_the_latest_are_kept_and_the_oldest_go_first(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path))
    monkeypatch.setattr(measured, "MOST", 2)
    for key in ("a", "b", "a", "c"):
        measured.keep("some.json", key, {"of": key})
    assert [measured.entry("some.json", key) for key in "abc"] == [{"of": "a"}, None, {"of": "c"}]
    measured.forget("some.json", "a")
    measured.forget("some.json", "never")
    assert json.loads((tmp_path / "some.json").read_text()) == {"c": {"of": "c"}}


def test_a_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be kept here"):
        known.keep("k", PROBE)


def test_a_file_that_cannot_be_read_is_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "speed.json").mkdir()
    monkeypatch.setenv("RAFTDIFF_CACHE", str(tmp_path))
    with pytest.warns(UserWarning, match="cannot be read here"):
        assert known.find("k") is None


def figure(table: str, name: str, amount: float, *seconds: float, parts: dict[str, float] | None = None) -> Figure:
    return Figure(table, name, "pictures", amount, seconds, parts or {})


def test_tables_tell_medians_spread_and_the_share_of_the_peak(tmp_path) -> None:
    found = [
        figure(PEAK, PRODUCT, 1e10, 0.1, 0.1, 0.2),
        figure(PARTS, SAMPLING, 64, 1.0, 2.0, 1.0),
        figure(PARTS, "decoding", 8, 0.5),
        figure(PARTS, TUNING, 8, 0.4),
        figure(BATCH, "1", 4, 0.5),
        figure(ROUNDS, "1 prompt", 8, 2.0, parts={"sample": 1.5, "records": 0.5, OUTSIDE: 0.1}),
    ]
    asked = {SAMPLING: 5e8, TUNING: 1e9}
    assert tables.shares(found, asked) == pytest.approx({SAMPLING: 0.32, TUNING: 0.2})
    text = tables.written(tmp_path, found, asked, COUNTS, {"batch_size": 16})
    assert "| sampling, pictures | 64.0 | 32.0 | 64.0 | 32% |" in text
    assert "| 1 prompt | 2.00 | 1.50 | 0.50 | 5.0% |" in text
    assert "sampling 1.0 s" in text
    held = json.loads((tmp_path / "bench.json").read_text())
    assert held["share_of_peak"][TUNING] == pytest.approx(0.2)
    assert (tmp_path / "bench.svg").read_text().count("<rect") == 2
    assert tables.probed(found, trained=1, parameters=2, memory=3) == Probe(1 / 64, 0.5 / 8, 0.05, 1, 2, 3)


def test_whatever_was_measured_until_then_makes_tables() -> None:
    found = [figure(PEAK, PRODUCT, 1e10, 0.1), figure(PARTS, SAMPLING, 64, 1.0), figure(BATCH, "1", 4, 0.5)]
    for count in range(len(found) + 1):
        for some in itertools.combinations(found, count):
            assert ("peak" in tables.tables(some, {}, COUNTS)) == (found[0] in some or found[1] in some)
            assert tables.probed(some, trained=1, parameters=2, memory=3) is None


def held(name: str, *seconds: float) -> Figure:
    return figure(OTHERWISE, name, 60, *seconds)


def test_another_way_to_hold_the_network_is_advised_where_it_is_faster_in_every_repeat() -> None:
    own = held(AS_IT_IS, 1.0, 1.0, 1.1)
    compiled, noisy = held("model.compile=true", 0.8, 0.8, 0.9), held("model.x=1", 0.7, 0.7, 1.05)
    for found in ([own, compiled], [own, compiled, noisy], [own, noisy, compiled, held("model.y=1", 0.9, 0.9)]):
        best = "model.compile=true, 1.25 times (pictures change in the last digits)"
        assert tables.faster(found) == best
        assert f"faster here: {best}" in (text := tables.tables(found, {}, COUNTS))
        assert "| model.compile=true | 75.0 | 66.7 | 75.0 | 125% |" in text
        assert "| as the recipe says | 60.0 | 54.5 | 60.0 | 100% |" in text
    half = held("model.dtype=bfloat16", 0.5, 0.5)
    assert tables.faster([own, half]) == "model.dtype=bfloat16, 2.00 times (pictures change as bfloat16 rounds)"


def test_what_is_noise_or_was_timed_once_is_not_advised() -> None:
    own, noisy = held(AS_IT_IS, 1.0, 1.0, 1.1), held("model.x=1", 0.7, 0.7, 1.05)
    hardly = held("model.x=1", 0.97, 0.97, 0.97)
    for found in ([own, noisy], [own, hardly], [own, held("model.x=1", 0.5)]):
        assert tables.faster(found) == ""
        assert "faster here: nothing" in tables.tables(found, {}, COUNTS)
    for found in ([held(AS_IT_IS, 1.0), held("model.x=1", 0.5, 0.5)], [noisy], [own], []):
        assert tables.faster(found) == ""
