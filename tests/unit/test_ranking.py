"""The ranker: every raw score beside the total, and a sentence for what cannot be ranked."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.ranking import Bound, Ranker, Unfit, assigned, measured_by
from raftdiff.recipes.config import check
from raftdiff.rewards.jpeg import JpegConfig
from raftdiff.scoring import by_prompt
from raftdiff.selection.best import BestOfK
from raftdiff.selection.diverse import Diverse
from raftdiff.selection.mixes import MIXES, MixName
from raftdiff.types import Prompt, Sample, Scores

PROMPTS = ("cat", "dog")


@dataclass
class Mine:
    """A reward that is any function of the samples. Higher is better."""

    call: Callable[[Sequence[Sample[Any]]], Any]
    name: str = "mine"

    def score(self, samples: Sequence[Sample[Any]]) -> Any:
        return self.call(samples)


def samples() -> list[Sample[Any]]:
    asked = [Prompt(name, name, name, name) for name in PROMPTS]
    return [Sample(0, prompt, k, k, "policy", Image.new("RGB", (2, 2))) for prompt in asked for k in range(2)]


def scored(*rewards: tuple[Mine, float]) -> Any:
    return Ranker(rewards, BestOfK()).score(iter([samples()]), PROMPTS, 2)


def index(of: Sequence[Sample[Any]]) -> torch.Tensor:
    return torch.tensor([float(sample.index) for sample in of])


def test_the_total_is_the_weighted_sum_and_every_raw_score_is_kept() -> None:
    found = scored((Mine(index), 2.0), (Mine(lambda of: torch.ones(len(of)), "one"), -0.5))
    np.testing.assert_array_equal(found.total, [[-0.5, 1.5], [-0.5, 1.5]])
    np.testing.assert_array_equal(found.raw["mine"], [[0, 1], [0, 1]])
    np.testing.assert_array_equal(found.raw["one"], np.ones((2, 2)))


def test_nan_discards_and_a_reward_of_weight_zero_discards_nothing() -> None:
    def picky(of: Sequence[Sample[Any]]) -> torch.Tensor:
        return torch.where(index(of) > 0, index(of), torch.nan)

    assert np.isnan(scored((Mine(picky), 1.0)).total[:, 0]).all()
    assert not np.isnan(scored((Mine(index, "other"), 1.0), (Mine(picky), 0.0)).total).any()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda of: None, "The reward 'mine' returned None. Does it end in 'return'"),
        (lambda of: torch.ones(3), "The reward 'mine' returned Tensor of shape (3,)"),
        (lambda of: index(of) / 0, "The reward 'mine' returned infinity for 2 of 4 samples"),
        (lambda of: index(of) * torch.nan, "The reward 'mine' is NaN (discard) for all 4 candidates"),
    ],
)
def test_what_cannot_be_ranked_is_a_sentence(call: Callable[..., Any], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        scored((Mine(call), 1.0))
    assert sentence in str(error.value)


def test_rewards_that_together_discard_everything() -> None:
    def only(place: int) -> Callable[[Sequence[Sample[Any]]], torch.Tensor]:
        return lambda of: torch.where(index(of) == place, 1.0, torch.nan)

    with pytest.raises(UserError, match="Every candidate is discarded by one reward or another"):
        scored((Mine(only(0), "first"), 1.0), (Mine(only(1), "second"), 1.0))


@pytest.mark.parametrize("weights", [(1e308, 1.0), (1e308, -1e308), (1e308, 1e308)])
def test_weights_that_make_infinite_totals_are_a_sentence(weights: tuple[float, float]) -> None:
    one, two = (Mine(lambda of: torch.full((len(of),), 72.0), name) for name in ("one", "two"))
    with pytest.raises(UserError, match="The total reward of 4 candidates is infinite: the rewards' weights are too"):
        scored((one, weights[0]), (two, weights[1]))


def picky_ranker(*places: int) -> tuple[Ranker[Any], list[int]]:
    """A ranker to whom the candidates of these indices are unfit, and how many samples its reward was shown."""
    shown: list[int] = []

    def seen(of: Sequence[Sample[Any]]) -> torch.Tensor:
        shown.append(len(of))
        return index(of)

    return Ranker(
        [(Mine(seen), 1.0)], BestOfK(), unfit=Unfit(lambda sample: sample.index in places, "blank", "are.")
    ), shown


def test_an_unfit_candidate_is_a_discard_that_no_reward_sees() -> None:
    ranker, shown = picky_ranker(0)
    found = ranker.score(iter([samples()]), PROMPTS, 2)
    np.testing.assert_array_equal(found.total, [[np.nan, 1.0], [np.nan, 1.0]])
    assert (found.unfit, shown) == (2, [2])


def test_a_batch_of_unfit_candidates_alone_reaches_no_reward() -> None:
    ranker, shown = picky_ranker(0)
    first, second = ([it for it in samples() if it.index == k] for k in (0, 1))
    assert ranker.score(iter([first, second]), PROMPTS, 2).unfit == 2
    assert shown == [2]


def test_a_round_of_unfit_candidates_alone_is_a_sentence() -> None:
    with pytest.raises(UserError, match="All 4 are."):
        picky_ranker(0, 1)[0].score(iter([samples()]), PROMPTS, 2)


@dataclass
class Apart:
    """The distance of a candidate's index from the mean of its prompt's. Higher is better."""

    name: str = "apart"
    whole_prompts: bool = True

    def score(self, samples: Sequence[Sample[Any]]) -> torch.Tensor:
        found = index(samples)
        for places in by_prompt((sample.prompt.id, sample.index) for sample in samples):
            found[places] = (found[places] - found[places].mean()).abs()
        return found


def test_a_reward_that_compares_candidates_sees_those_that_are_fit_and_there() -> None:
    given = [it for it in samples() if (it.prompt.id, it.index) != ("dog", 1)]
    given.append(replace(given[0], index=2))
    ranker = Ranker([(Apart(), 1.0)], BestOfK(), unfit=Unfit(lambda it: it.index == 1, "blank", "are."))
    np.testing.assert_array_equal(ranker.score(iter([given]), PROMPTS, 3).total, [[1, np.nan, 1], [0, np.nan, np.nan]])


def test_parts_of_a_prompt_are_a_sentence_for_a_reward_that_compares_its_candidates() -> None:
    first, second = ([it for it in samples() if it.index == k] for k in (0, 1))
    with pytest.raises(UserError, match="'apart' compares the candidates of a prompt, and those of 'cat' came in two"):
        Ranker([(Apart(), 1.0)], BestOfK()).score(iter([first, second]), PROMPTS, 2)
    found = Ranker([(Apart(whole_prompts=False), 1.0)], BestOfK()).score(iter([first, second]), PROMPTS, 2)
    np.testing.assert_array_equal(found.total, np.zeros((2, 2)))


TABLE = Scores(0, ("cat",), np.array([[3.0, 2.0, 1.0, np.nan]]), {})


def test_only_a_selector_that_sees_similarity_has_samples_looked_at() -> None:
    asked: list[Any] = []

    def similarity(batches: Any, scores: Scores) -> np.ndarray:
        asked.append((list(batches), scores))
        return np.array([[[1.0, 1, 0, np.nan], [1, 1, 0, np.nan], [0, 0, 1, np.nan], [np.nan] * 4]])

    rewards = [(Mine(index), 1.0)]
    for selector, chosen in ((BestOfK(2), [0, 1]), (Diverse(2, 1.0), [0, 2])):
        found = Ranker(rewards, selector, similarity=similarity).select(TABLE, iter([[], []]))
        assert [item.keys[0].index for item in found.items] == chosen
    assert asked == [([[], []], TABLE)], "once, for the second"


def test_features_that_are_no_numbers_are_a_sentence_unless_the_candidate_is_discarded_anyway() -> None:
    table = np.ones((1, 4, 4))
    table[0, :, 3] = table[0, 3, :] = np.nan
    ranker = Ranker([(Mine(index), 1.0)], Diverse(2, 1.0), similarity=lambda batches, scores: table)
    assert len(ranker.select(TABLE, []).items) == 2
    table[0, :, 1] = table[0, 1, :] = np.nan
    with pytest.raises(UserError, match="The features of 1 candidates are no numbers"):
        ranker.select(TABLE, [])


def test_rewards_that_look_on_count_where_no_other_does() -> None:
    one, other = Mine(index), Mine(index, "other")
    assert measured_by([(one, 2.0)], [(other, 3.0)]) == [(one, 2.0), (other, 0.0)]
    assert measured_by([(one, 0.0)], [(other, 3.0)]) == [(one, 0.0), (other, 3.0)]


PLACES = [[0.0, 1.0], [0.0, 1.0]]


def table(of: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, np.ndarray]:
    return {name: np.array(rows, dtype=float) for name, rows in of.items()}


def bounded(mix: MixName = "weighted_sum", **bounds: Bound) -> Ranker[Any]:
    """A ranker by ``good``, beside the rewards that ``bounds`` names."""
    rewards = [(Mine(index, "good"), 1.0), *((Mine(index, name), 0.0) for name in bounds)]
    return Ranker(rewards, BestOfK(), mix=MIXES[mix], bounds=bounds)


def test_a_veto_discards_what_is_below_it_and_what_it_has_no_score_of() -> None:
    raw = table({"good": [[1, 2, 3, 4]], "safe": [[0.5, 0.4, np.nan, 0.9]]})
    ranker = bounded(safe=Bound("veto", 0.5))
    np.testing.assert_array_equal(ranker.total(raw), [[1, np.nan, np.nan, 4]])
    assert ranker.vetoed(raw) == {"safe": 1}
    assert ranker.role("safe") == "veto"


def test_a_veto_discards_also_where_nothing_ranks() -> None:
    raw = table({"good": [[1, 2, 3]], "safe": [[0.5, 0.4, np.nan]]})
    ranker = bounded(safe=Bound("veto", 0.5))
    only = replace(ranker, rewards=[(reward, 0.0) for reward, _ in ranker.rewards])
    np.testing.assert_array_equal(only.total(raw), [[0, np.nan, np.nan]])


def test_of_what_is_measured_those_that_count_come_first() -> None:
    ranker = bounded(safe=Bound("veto", 0.5))
    turned = sorted(ranker.rewards, key=lambda pair: pair[1])
    assert [weight for _, weight in turned] == [0, 1]
    assert [reward.name for reward, _ in ranker.measuring(turned).rewards] == ["good", "safe"]


def test_what_a_veto_turned_down_has_no_part_in_the_mix_of_the_others() -> None:
    raw = table({"good": [[1, 2, 1000]], "safe": [[1, 1, 0]]})
    found = bounded("grpo", safe=Bound("veto", 0.5)).total(raw)
    np.testing.assert_allclose(found[0, :2], [-(0.5**0.5), 0.5**0.5], rtol=1e-3)


def test_of_a_constraint_whoever_holds_comes_first_and_the_total_orders_the_rest() -> None:
    """Aesthetic, among those with CLIP at least the prompt's median."""
    raw = table({"good": [[9, 1, 2, 8], [1, 2, 3, 4]], "clip": [[10, 40, 30, 20], [1, 1, 1, 1]]})
    found = bounded(clip=Bound("constraint", "median")).total(raw)
    np.testing.assert_array_equal((-found[0]).argsort(), [2, 1, 0, 3])
    np.testing.assert_array_equal((-found[1]).argsort(), [3, 2, 1, 0])


def test_the_first_of_two_constraints_matters_more() -> None:
    raw = table({"good": [[4, 3, 2, 1]], "a": [[0, 1, 0, 1]], "b": [[1, 0, 0, 1]]})
    found = bounded(a=Bound("constraint", 1.0), b=Bound("constraint", 1.0)).total(raw)
    np.testing.assert_array_equal((-found[0]).argsort(), [3, 1, 0, 2])


def test_parts_add_up_to_the_total_and_leave_out_who_only_looks_on() -> None:
    raw = table({"good": [[1, 2, 3]], "clip": [[3, 2, 1]]})
    ranker = bounded("gdpo", clip=Bound("constraint", 2.0))
    parts = ranker.parts(raw)
    assert [*parts] == ["good", "clip"]
    np.testing.assert_allclose(sum(parts.values()), ranker.total(raw))
    assert [*Ranker([(Mine(index), 1.0), (Mine(index, "on"), 0.0)], BestOfK()).parts(table({"mine": PLACES}))] == [
        "mine"
    ]


def test_a_veto_that_turns_everything_down_is_a_sentence_with_its_name() -> None:
    ranker = bounded(safe=Bound("veto", 7.0))
    with pytest.raises(UserError, match="Vetoes turned down: 'safe' 4; look at its scores, and lower at_least"):
        ranker.score(iter([samples()]), PROMPTS, 2)


def test_the_level_knows_no_veto_and_counts_spreads_where_weights_do() -> None:
    raw = table({"good": [[0, 2, 4, 6]], "safe": [[0, 0, 1, 1]]})
    np.testing.assert_array_equal(bounded(safe=Bound("veto", 0.5)).level(raw, {}), [[0, 2, 4, 6]])
    gdpo = bounded("gdpo", safe=Bound("veto", 0.5))
    assert gdpo.units(raw) == {"good": pytest.approx(5**0.5)}
    np.testing.assert_allclose(gdpo.level(raw, gdpo.units(raw)), np.array([[0, 2, 4, 6]]) / 5**0.5)


def test_a_recipes_roles_become_weights_and_bounds() -> None:
    configs = [
        JpegConfig(name="a", weight=2),
        JpegConfig(name="b", role="hold_out"),
        JpegConfig(name="c", role="veto", at_least=-3.0),
        JpegConfig(name="d", role="constraint", at_least="median"),
        SimpleNamespace(weight=0.5),  # of a plug-in that knows no roles
    ]
    rewards, bounds = assigned(configs, [Mine(index, name) for name in "abcde"])
    assert [weight for _, weight in rewards] == [2, 0, 0, 0, 0.5]
    assert bounds == {"c": Bound("veto", -3.0), "d": Bound("constraint", "median")}
    ranker = Ranker(rewards, BestOfK(), bounds=bounds)
    assert [ranker.role(name) for name in "abcde"] == ["train", "hold_out", "veto", "constraint", "train"]
    looking = ranker.measuring(rewards[:3])
    assert [*looking.bounds] == ["c"], "what is not among the rewards bounds nothing"


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"role": "veto"}, "role: veto takes 'at_least', the lowest score that is good enough, or median"),
        ({"role": "constraint"}, "role: constraint takes 'at_least'"),
        ({"at_least": 1.0}, "'at_least' says something with role: veto or constraint alone, and this is train"),
        ({"role": "hold_out", "at_least": 1.0}, "and this is hold_out"),
        (
            {"role": "hold out"},
            "this should be 'train', 'hold_out', 'veto' or 'constraint', and 'hold out' is read here",
        ),
    ],
)
def test_a_role_that_lacks_its_bound_or_has_one_too_many_is_a_sentence(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check(JpegConfig, {"type": "jpeg", **keys})
