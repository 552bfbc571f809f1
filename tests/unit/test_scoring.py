"""What a reward may return, and what the sentence says where it may not."""

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.scoring import demand_reward, numbers
from raftdiff.testing.toy import ToyReward

NAN = float("nan")


@pytest.mark.parametrize(
    "value",
    [
        [1, 2.5, NAN, -3],
        (1, 2.5, NAN, -3),
        [[1], [2.5], [NAN], [-3]],
        np.array([1, 2.5, np.nan, -3]),
        np.array([1, 2.5, np.nan, -3], dtype=np.float16),
        np.array([1, 2.5, np.nan, -3], dtype=object),
        np.array([[1, 2.5, np.nan, -3]]).T,
        torch.tensor([1, 2.5, NAN, -3], dtype=torch.float64, requires_grad=True),
        torch.tensor([1, 2.5, NAN, -3], dtype=torch.bfloat16),
        torch.tensor([1, 2.5, NAN, -3])[:, None],
        [np.float32(1), torch.tensor(2.5), NAN, np.int64(-3)],
        [torch.tensor([1.0], requires_grad=True), torch.tensor([2.5]), torch.tensor([NAN]), torch.tensor([-3.0])],
        [1, Decimal("2.5"), NAN, -3],
    ],
)
def test_any_sequence_of_numbers_will_do(value: Any) -> None:
    found = numbers(value, 4, "mine")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [1, 2.5, NAN, -3])


def test_whole_numbers_and_right_or_wrong_are_numbers_and_so_is_one_of_one() -> None:
    assert numbers(np.array([1, 2]), 2, "mine").tolist() == [1, 2]
    assert numbers([True, False], 2, "mine").tolist() == [1, 0]
    assert numbers([2**70, 1], 2, "mine").tolist() == [2.0**70, 1]
    assert numbers(torch.ones(1, 1), 1, "mine").tolist() == [1]
    assert numbers([], 0, "mine").tolist() == []


async def later() -> list[float]:
    return [0.0]


@pytest.mark.parametrize(
    ("value", "given", "advice"),
    [
        (np.zeros(3), r"ndarray of shape \(3,\) and type float64", ""),
        (np.zeros((1, 4)), r"ndarray of shape \(1, 4\) and type float64", ""),
        (torch.zeros(4, 2), r"Tensor of shape \(4, 2\) and type torch.float32", "Of several columns return one"),
        (SimpleNamespace(shape=(4, 2)), r"SimpleNamespace of shape \(4, 2\)", "Of several columns return one"),
        ([1.0, 2.0], r"a list of 2 items \(float\)", ""),
        (0.5, "a float", ""),
        (None, "None", "Does it end in 'return', whatever it is given"),
        (["good"] * 4, r"a list of 4 items \(str\)", ""),
        (np.array(["1", "2", "3", "4"], dtype=object), r"ndarray of shape \(4,\) and type object", ""),
        ("1234", "a str", ""),
        (b"1234", "a bytes", "Bytes are no numbers"),
        (bytearray(4), "a bytearray", "Bytes are no numbers"),
        (memoryview(bytes(4)), r"memoryview of shape", "Bytes are no numbers"),
        ([bytearray(b"1")] * 4, r"a list of 4 items \(bytearray\)", ""),
        (np.array([bytearray(b"1"), 2, 3, 4], dtype=object), r"ndarray of shape \(4,\) and type object", ""),
        (np.ma.masked_greater(np.arange(4.0), 2), r"MaskedArray of shape \(4,\) and type float64", "It is masked"),
        (np.ma.masked_greater(np.arange(4), 9), r"MaskedArray of shape \(4,\) and type int64", "It is masked"),
        ([1.0, np.ma.masked, 2.0, 3.0], r"a list of 4 items \(MaskedConstant, float\)", "It is masked"),
        ([[1], [2, 3], [4], [5]], r"a list of 4 items \(list\)", ""),
        ([1.0, None, 2.0, 3.0], r"a list of 4 items \(NoneType, float\)", "Return float..nan.. instead of None"),
        ({"a": 1}, "a dict", "without names"),
        (([1.0] * 4, {}), r"a tuple of 2 items \(dict, list\)", "That is a pair: return its first part"),
        (iter([1.0]), "a list_iterator", ""),
        ((n for n in range(4)), "a generator", "It yields: return a list of the scores"),
        (later, "a function", "name what it makes, such as 'score = make..' in the module"),
        (torch.zeros(4, dtype=torch.complex64), r"Tensor of shape \(4,\) and type torch.complex64", ""),
        (np.array(["2026-01-01"] * 4, dtype="datetime64[D]"), r"ndarray of shape \(4,\) and type datetime64", ""),
    ],
)
def test_anything_else_is_a_sentence(value: Any, given: str, advice: str) -> None:
    expected = r"It should return 4 numbers, one for each sample: a list, tensor or array of shape \(4,\)\."
    with pytest.raises(UserError, match=f"^mine returned {given}.*{advice}.*{expected}"):
        numbers(value, 4, "mine")


def test_a_coroutine_is_closed_so_that_nothing_is_said_of_it_later() -> None:
    made = later()
    with pytest.raises(UserError, match="It is async: write it with 'def' alone"):
        numbers(made, 1, "mine")
    with pytest.raises(RuntimeError, match="cannot reuse already awaited coroutine"):
        made.send(None)


def test_infinity_is_a_sentence() -> None:
    with pytest.raises(UserError, match=r"mine returned infinity for 2 of 4 texts, -inf for number 1. Scores are"):
        numbers([0.0, -np.inf, NAN, np.inf], 4, "mine", kind="text")


def test_a_class_in_place_of_a_reward_and_nothing_in_place_of_one_are_sentences() -> None:
    demand_reward(ToyReward())
    with pytest.raises(UserError, match=r"The reward ToyReward is a class; give an object of it: ToyReward\(...\)"):
        demand_reward(ToyReward)
    with pytest.raises(UserError, match=r"but None was given or built. Does build\(\) return the reward\?"):
        demand_reward(None)
