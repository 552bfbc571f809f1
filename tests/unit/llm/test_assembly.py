"""What is found out when the parts of a text recipe are wired, before anything is sampled."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

import pytest

from raftdiff.errors import UserError
from raftdiff.llm.assembly import assemble_text, held_out_prompts
from raftdiff.llm.comparison import evaluation_texts
from raftdiff.llm.model.rows import row_of
from raftdiff.llm.recipe import TextRecipe, load_text_recipe
from raftdiff.raft import raft
from raftdiff.records.run import Run
from raftdiff.records.watching import warnings
from raftdiff.types import Prompt, Sample, Source

RECIPE = """
media: text
name: small
model: {{base: {model}}}
prompts: {{captions: [the film, was]}}
sampler: {{type: policy, decoding: {{max_new_tokens: 6}}}}
ranker:
  rewards: [{{type: length, direction: more}}]
  selector: {{type: best_of_k}}
finetuner: {{adapter: lora, epochs: 1}}
loop: {{rounds: 1, candidates: 2}}
logging: {{tracker: null}}
"""


@pytest.fixture
def recipe(tmp_path: Path, lm_folder: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=lm_folder))
    return path


def of(path: Path, *overrides: str) -> TextRecipe:
    return load_text_recipe(path, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["ranker.rewards=[{type: review}]"],
        ["evaluation={prompts: {captions: [comedy of a dog]}, every_round: 1, rewards: [{type: review}]}"],
    ],
)
def test_prompts_that_a_reward_does_not_know_are_told_before_anything_is_sampled(
    recipe: Path, overrides: list[str]
) -> None:
    with pytest.raises(UserError, match="is no prompt of the text world; write one like"):
        assemble_text(of(recipe, *overrides))


WRONG = [
    ("{captions: [{prompt: a, response: ''}]}", "^{}.captions.0: 'response' is empty .* set {}.broken to skip"),
    ("{captions: [a], columns: {query: prompt}}", "^{}.columns: there is no column 'query' to rename"),
]
PPO = ("ranker.selector={type: all}", "finetuner={type: ppo, adapter: lora, ptx: {data: {captions: [a]}}}")


@pytest.mark.parametrize("key", ["prompts", "evaluation.prompts", "finetuner.ptx.data"])
def test_a_file_that_is_not_there_is_told_under_its_key(recipe: Path, key: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}.file: there is no file 'gone\.txt'"):
        of(recipe, *PPO, f"{key}={{file: gone.txt}}")


@pytest.mark.parametrize(("data", "sentence"), WRONG)
def test_mistakes_in_held_out_prompts_are_told_under_their_key(recipe: Path, data: str, sentence: str) -> None:
    found = of(recipe, f"evaluation.prompts={data}")
    with pytest.raises(UserError, match=sentence.replace("{}", "evaluation.prompts")):
        held_out_prompts(found, found.evaluation.prompts)


@pytest.mark.parametrize(("data", "sentence"), WRONG)
def test_mistakes_in_pretraining_data_are_told_under_their_key(recipe: Path, data: str, sentence: str) -> None:
    found = of(recipe, *PPO, f"finetuner.ptx.data={data}")
    with pytest.raises(UserError, match=sentence.replace("{}", "finetuner.ptx.data")):
        assemble_text(found)


def test_a_file_of_prompts_that_the_command_names_is_told_as_such(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"^--prompts: there is no file 'gone\.txt'"):
        evaluation_texts(assemble_text(of(recipe)), "gone.txt")


def test_a_judge_that_does_not_know_a_prompt_says_so(recipe: Path) -> None:
    assembly = assemble_text(of(recipe, "evaluation.judge=reviews"))
    with pytest.raises(UserError, match="'the film' is no prompt of the text world"):
        assembly.check(assembly.parts.prompts)
    assemble_text(of(recipe, "ranker.rewards=[{type: review, fluency: false}]"))  # any text will do


def test_an_evaluation_asks_with_the_system_message_of_the_training(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "held.txt").write_text("film\n")
    known = of(recipe, "prompts.system=Be kind.", "evaluation={prompts: {captions: [film]}, every_round: 1}")
    assembly = assemble_text(known)
    asked = (*evaluation_texts(assembly, None), *evaluation_texts(assembly, str(tmp_path / "held.txt")))
    for found in (*asked, *assembly.parts.held_out):
        assert (found.caption, found.meta) == ("film", {"system": "Be kind."})


DATA = (
    "sampler={type: dataset}",
    "finetuner.objective={type: sft}",
    "loop.candidates=1",
    "ranker.selector={type: random}",
)
LONG = "prompts.captions=[{prompt: film, response: was}, {prompt: the film, response: '" + "long " * 1100 + "'}]"


def test_an_answer_of_the_data_that_is_too_long_is_told_before_anything_is_sampled(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"prompts: of 'the-film' the prompt is 3 and an answer 1101 tokens long"):
        assemble_text(of(recipe, *DATA, LONG))
    with pytest.warns(UserWarning, match="1 of 2 rows were left out: 1 with prompt and answer together of more than"):
        assembly = assemble_text(of(recipe, *DATA, LONG, "prompts.broken=skip"))
    assert [prompt.caption for prompt in assembly.parts.prompts] == ["film"]
    with pytest.warns(UserWarning, match="in 1 of 2 rows the model reads an answer without its end"):
        assembly = assemble_text(of(recipe, *DATA, LONG, "prompts.too_long=cut"))
    asked = {"per_prompt": 1, "seed": 0, "round": 0, "done": frozenset[tuple[str, int]]()}
    short, long = assembly.parts.sampler.sample(assembly.parts.prompts, **asked)  # type: ignore[arg-type]
    assert (sorted(short.aux), sorted(long.aux)) == ([], ["cut"])
    assert len(row_of(assembly.lm, long, learning=True).answer) == 1020


def test_collected_answers_that_are_too_long_are_told_too(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "held.jsonl").write_text(
        '{"prompt": "was", "text": "' + "long " * 1100 + '"}\n{"prompt": "was", "text": "good"}\n'
    )
    held = "sampler={type: folder, path: held.jsonl}"
    with pytest.raises(UserError, match=r"prompts: of 'was' the prompt is 2 and an answer 1101 tokens long"):
        assemble_text(of(recipe, held))
    with pytest.warns(UserWarning, match="prompts: 1 of 2 rows were left out"):
        assembly = assemble_text(of(recipe, held, "prompts.too_long=cut"))
    asked = {"per_prompt": 2, "seed": 0, "round": 0, "done": frozenset[tuple[str, int]]()}
    found = assembly.parts.sampler.sample(assembly.parts.prompts, **asked)  # type: ignore[arg-type]
    assert [sample.media for sample in found] == ["good"]


def test_a_teacher_without_room_for_its_answers_is_told_before_anything_is_sampled(
    recipe: Path, lm_folder: Path
) -> None:
    teacher = f"sampler={{type: teacher, model: {{base: {lm_folder}}}, decoding: {{max_new_tokens: 1022}}}}"
    with pytest.raises(
        UserError,
        match=r"^sampler.decoding.max_new_tokens: .* 3 tokens and 1022 new ones are more than the 1024",
    ):
        assemble_text(of(recipe, teacher))
    mixture = teacher.replace("sampler=", "sampler={type: mix, parts: [{share: 2, sampler: ") + "}]}"
    with pytest.raises(UserError, match=r"^sampler.parts.0.sampler.decoding.max_new_tokens: a prompt"):
        assemble_text(of(recipe, mixture))


def test_a_magic_dialogue_that_leaves_no_room_for_an_answer_is_told_before_anything_is_sampled(recipe: Path) -> None:
    history = f"[{{role: user, content: {'film ' * 30}}}, {{role: assistant, content: good}}]"
    magic = f"sampler={{type: policy, magic: {{history: {history}}}, decoding: {{max_new_tokens: 1000}}}}"
    with pytest.raises(UserError, match=r"^sampler.decoding.max_new_tokens: .* new ones are more than the 1024"):
        assemble_text(of(recipe, magic))


def test_a_veto_alone_has_what_it_leaves_learnt(recipe: Path, tmp_path: Path) -> None:
    alone = "ranker.rewards=[{type: length, direction: more, role: veto, at_least: -1}]"
    known = of(recipe, alone, "evaluation.rewards=[{type: length, direction: more, name: looks_on}]")
    (done,) = raft(Run.create(tmp_path / "run", known, seed=0), assemble_text(known).parts)
    assert (done.metrics["selected"], done.metrics["undecided"]) == (2, 0)
    assert not any("told nothing apart" in one for one in warnings([done.metrics]))


@final
class Said:
    """Whoever it is that answers the film first at too great a length, then in a word."""

    provides = ()

    def __init__(self, source: Source) -> None:
        self.source = source

    def sample(self, prompts: Sequence[Prompt], *, round: int, **rest: object) -> Iterator[Sample[str]]:
        for prompt in prompts:
            for k, text in enumerate(("long " * 1100, "good", "the film")):
                yield Sample(round, prompt, k, k, self.source, text)

    def network_evaluations(self) -> int:
        return 0


@pytest.mark.parametrize("source", ["teacher", "human"])
def test_an_answer_that_the_model_cannot_read_is_discarded_and_counted_whoever_wrote_it(
    recipe: Path, tmp_path: Path, source: Source
) -> None:
    known = of(recipe, "ranker.rewards=[{type: length, direction: more}, {type: kl}]", "loop.candidates=3")
    assembly = assemble_text(known)
    (done,) = raft(Run.create(tmp_path / "run", known, seed=0), replace(assembly.parts, sampler=Said(source)))
    assert (done.metrics["too_long"], done.metrics["candidates"], done.metrics["selected"]) == (2, 6, 2)
    assert "2 of 6 answers in the last round were longer, with their prompts, than the" in warnings([done.metrics])[0]
    alone = [Sample(0, assembly.parts.prompts[0], 0, 0, source, "long " * 1100)]
    with pytest.raises(UserError, match=r"All 1 answers are too long: .* more than '.*' can read \(1024 tokens\)"):
        assembly.ranker.score(iter([alone]), [assembly.parts.prompts[0].id], 1)
