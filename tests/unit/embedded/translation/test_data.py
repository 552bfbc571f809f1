"""The data of the translation recipes: what ships is what the commands write, and pairs differ as they say."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from raftdiff.embedded.translation import world
from raftdiff.embedded.translation.data import (
    CLEAN,
    KINDS,
    NOISE,
    PAIRS,
    TAUGHT,
    decided,
    preferences,
    sources,
    written,
)
from raftdiff.embedded.translation.reward import RenderingConfig
from raftdiff.errors import UserError
from raftdiff.types import Prompt, Sample

PROMPTS = Path(__file__).parents[4] / "configs" / "prompts"
PROMPT = "the scenes are slow :"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (PROMPTS / f"translation_{name}.jsonl").read_text().splitlines()]


def test_what_ships_is_what_the_command_writes() -> None:
    assert rows("train")[:20] == list(islice(sources(), 20))
    assert rows("held_out")[:5] == list(islice(sources(apart=True), 5))
    assert rows("ptx")[:20] == list(islice(written(), 20))
    assert rows("pairs")[:20] == list(islice(preferences(PAIRS, kinds=TAUGHT, noise=NOISE), 20))
    assert rows("clean_pairs")[:5] == list(islice(preferences(CLEAN, apart=True), 5))


def test_what_is_held_out_shares_no_pair_of_thing_and_opinion_with_what_is_learnt() -> None:
    said = {
        name: {(one.thing, one.opinion) for row in rows(name)[:200] for one in world.meaning(row["prompt"])}
        for name in ("train", "pairs", "ptx", "held_out", "clean_pairs")
    }
    learnt = said["train"] | said["pairs"] | said["ptx"]
    assert not learnt & (said["held_out"] | said["clean_pairs"])


def test_half_of_the_pairs_is_decided_by_fluency_and_a_tenth_is_labelled_wrongly() -> None:
    pairs = rows("pairs")
    assert (len(pairs), len(rows("clean_pairs"))) == (PAIRS, CLEAN)
    assert sum(pair["truth"] == 0 for pair in pairs) == NOISE * PAIRS
    assert all(pair["truth"] for pair in rows("clean_pairs"))
    assert Counter(pair["kind"] for pair in pairs) == {
        "faithful": PAIRS // 4,
        "fluent": PAIRS // 2,
        "elegant": PAIRS // 4,
    }
    assert set(Counter(pair["kind"] for pair in rows("clean_pairs")).values()) == {CLEAN // 3}
    for pair in pairs[:150]:
        assert decided(pair["prompt"], pair["chosen"], pair["rejected"]) == (pair["kind"], bool(pair["truth"]))


def test_faithfulness_goes_before_fluency_and_that_before_elegance() -> None:
    fine, plain = world.references(PROMPT)
    slipped = world.render(world.meaning(PROMPT), lambda _: True, lambda: True)
    other = world.references("the scenes are bland :")[0]
    assert decided(PROMPT, slipped, other) == ("faithful", True)
    assert decided(PROMPT, slipped, plain) == ("fluent", False)
    assert decided(PROMPT, fine, plain) == ("elegant", True)
    assert decided(PROMPT, fine, fine) is None
    assert KINDS == ("faithful", "fluent", "elegant")


@pytest.mark.parametrize(
    ("aspect", "expected"),
    [
        ("adequate", [1, 1, 1, 0]),
        ("faithful", [1, 1, 1, 2 / 3]),
        ("fluent", [1, 1, 0, 1]),
        ("elegant", [1, 0, 0, 1]),
        ("quality", [1, 0.5, 0, 0]),
    ],
)
def test_the_reward_is_the_truth_of_its_aspect(aspect: str, expected: list[float]) -> None:
    fine, plain = world.references(PROMPT)
    slipped = world.render(world.meaning(PROMPT), lambda _: True, lambda: True)
    past = world.references("the scenes were slow :")[0]
    config = RenderingConfig.model_validate({"aspect": aspect})
    reward, prompt = config.build(), Prompt("a", PROMPT, PROMPT, PROMPT)
    samples = [Sample(0, prompt, place, 0, "policy", said) for place, said in enumerate((fine, plain, slipped, past))]
    faithful_past = world.faithfulness(PROMPT, past)
    wanted = [faithful_past if value == 2 / 3 else value for value in expected]
    assert torch.allclose(reward.score(samples), torch.tensor(wanted, dtype=torch.float32))
    assert 0 < faithful_past < 1


def test_a_prompt_of_another_world_is_refused_before_anything_is_sampled() -> None:
    with pytest.raises(UserError, match="is no source of the world of translation"):
        RenderingConfig().build().check_prompts([Prompt("a", "what is rain", "", "")])
