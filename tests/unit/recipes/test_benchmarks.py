"""The prompt files that papers report on, as published: each is read whole."""

import os
import warnings
from pathlib import Path

import pytest

from raftdiff.recipes.prompts import PromptsConfig, build, inline

SHARED = Path(os.environ.get("RAFTDIFF_SHARED") or Path(__file__).parents[4] / "shared")
FILES = SHARED / "data" / "benchmarks"
pytestmark = pytest.mark.skipif(
    not FILES.is_dir(), reason=f"the published files are not at {FILES}; set RAFTDIFF_SHARED to the folder above data/"
)
COMPBENCH = ("3d_spatial", "color", "complex", "non_spatial", "numeracy", "shape", "spatial", "texture")


@pytest.mark.parametrize(
    ("file", "count", "columns"),
    [
        ("geneval/evaluation_metadata.jsonl", 553, {"tag", "include"}),
        ("partiprompts/PartiPrompts.tsv", 1632, {"Category", "Challenge", "Note"}),
        *((f"t2i-compbench/{name}_val.txt", 300, set()) for name in COMPBENCH),
        ("imagereward/benchmark-prompts.json", 100, set()),
        ("dpg/prompts", 12, set()),
    ],
)
def test_a_benchmark_is_read_whole(file: str, count: int, columns: set[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no line is doubted, and no caption stands twice
        prompts = build(inline(PromptsConfig(file=file), FILES))
    assert len({prompt.id for prompt in prompts}) == len({prompt.caption for prompt in prompts}) == count
    assert all(columns <= set(prompt.meta) for prompt in prompts)
    assert columns or not any(prompt.meta for prompt in prompts)


def test_what_a_benchmark_says_of_a_prompt_is_kept() -> None:
    (of_parti,) = (it for it in _prompts("partiprompts/PartiPrompts.tsv") if it.caption.startswith('"G I G G L E"'))
    assert dict(of_parti.meta) == {"Category": "Illustrations", "Challenge": "Writing & Symbols", "Note": ""}
    counted = [it for it in _prompts("geneval/evaluation_metadata.jsonl") if it.meta["tag"] == "counting"]
    assert len(counted) == 80
    assert all({"class", "count"} <= set(it.meta["include"][0]) for it in counted)
    assert _prompts("imagereward/benchmark-prompts.json")[0].id == "005695-0057"
    assert [it.id for it in _prompts("dpg/prompts")] == [str(number) for number in range(12)]


def _prompts(file: str):  # type: ignore[no-untyped-def]
    return build(inline(PromptsConfig(file=file), FILES))
