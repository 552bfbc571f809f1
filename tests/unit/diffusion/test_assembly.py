"""What a recipe's parts say together: of pictures that show nothing, and of a judge of another world."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from raftdiff.cli import evaluate
from raftdiff.diffusion.assembly import Assembly, assemble, build_ranker, few_step_notes
from raftdiff.diffusion.before_after.comparison import compare
from raftdiff.diffusion.families.family import FewSteps
from raftdiff.diffusion.families.sdxl import StableDiffusionXL
from raftdiff.diffusion.models import tiny
from raftdiff.diffusion.models.loading import ModelConfig, load
from raftdiff.diffusion.recipe import work
from raftdiff.diffusion.recipe_files import load_recipe
from raftdiff.diffusion.sampler import DiffusionSampler, DiffusionSamplerConfig
from raftdiff.diffusion.sampling.given import FolderSampler
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import build
from raftdiff.rewards.jpeg import JpegConfig
from raftdiff.spread.processes import SharedSampler
from raftdiff.types import Prompt, Sample

EVALUATED = ["evaluation.prompts.file=null", "evaluation.prompts.captions=[a cat on a white background, two stars]"]
PARIS = "evaluation.prompts.captions=[Paris in spring, Paris at night]"
ALIEN = (
    "evaluation.prompts: the judge scene-judge understands none of these captions, and the evaluation goes without it."
    "\n  such as 'Paris in spring'; none that ships does"
)


def bare(*overrides: str) -> Assembly:
    """What a recipe says of its prompts, without models."""
    recipe = load_recipe("scene_align", [*EVALUATED, *overrides])
    reader = SimpleNamespace(token_limit=77, reads_whole=lambda text: True)
    model = SimpleNamespace(prompts=reader, few_steps=None)
    ranker, parts = SimpleNamespace(rewards=[]), SimpleNamespace(prompts=build(recipe.prompts), sampler=None)
    nothing: Any = None
    return Assembly(recipe, model, nothing, nothing, nothing, ranker, ranker, parts)  # type: ignore[arg-type]


def test_before_a_run_it_is_said_that_its_judge_will_refuse_some_of_its_captions() -> None:
    mixed = "evaluation.prompts.captions=[a cat on a white background, Paris in spring]"
    assert bare(mixed).first_notes()[-1:] == [
        "evaluation.prompts: the judge scene-judge does not understand 1 of 2 captions, so raftdiff eval will refuse "
        "them.\n  such as 'Paris in spring'; write it as the others, or evaluate with: evaluation.judge=null"
    ]
    assert not any("judge" in note for note in bare().first_notes())


def test_black_pictures_are_what_a_model_that_computes_nan_draws() -> None:
    ranker = build_ranker(load_recipe("demo", ["ranker.rewards=[{type: jpeg}]"]), device="cpu")
    prompt = Prompt("cat", "a cat", "a cat", "a cat")
    drawn = [Sample(0, prompt, index, index, "policy", Image.new("RGB", (16, 16))) for index in range(2)]
    sentence = r"^All 2 pictures are blank, of one colour.* computes NaN.* Set model\.dtype to bfloat16 or float32"
    with pytest.raises(UserError, match=sentence):
        ranker.refuse_unfit(drawn)
    with pytest.raises(UserError, match=sentence):
        ranker.score(iter([drawn]), ["cat"], 2)
    drawn[0].media.putpixel((3, 3), (255, 0, 0))
    assert ranker.score(iter([drawn]), ["cat"], 2).unfit == 1


class Picky:
    """Knows no stars. Higher is better."""

    name = "jpeg"

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        if any("star" in prompt.caption for prompt in prompts):
            raise UserError("It knows no stars.")

    def score(self, samples: Sequence[Sample[Image.Image]]) -> torch.Tensor:
        raise AssertionError("something was drawn")


def test_held_out_prompts_are_asked_of_the_rewards_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JpegConfig, "build", lambda *_, **__: Picky())
    looks_on = ["evaluation.rewards=[{type: jpeg}]", "evaluation.every_round=1"]
    recipe = load_recipe("scene_align", [*EVALUATED, *looks_on])
    with pytest.raises(UserError, match="It knows no stars"):
        assemble(recipe)
    looking = assemble(load_recipe("scene_align", [*EVALUATED, looks_on[0]]), training=False)
    with pytest.raises(UserError, match="It knows no stars"):
        compare(looking, [Prompt("stars", "two stars", "two stars", "two stars")], per_prompt=1, seed=0)


def test_a_judge_that_understands_no_caption_is_told() -> None:
    assert bare(PARIS).first_notes() == [ALIEN]
    assert bare().first_notes() == bare("evaluation.judge=null", PARIS).first_notes() == []


def test_without_held_out_prompts_the_judge_hears_the_training_s() -> None:
    own = ("prompts.file=null", "prompts.captions=[Paris in spring]")
    (note,) = bare("evaluation.prompts=null", *own).first_notes()
    assert note.startswith("prompts: the judge scene-judge understands none of these")


FEW = ["sampler.guidance=1", "evaluation.guidance=1", "sampler.steps=4", "evaluation.steps=4", EVALUATED[0], PARIS]
BY = {
    "turbo": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lightning": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "usual": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "leading"}),
    "v": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}),
}


def few_of(kind: str) -> FewSteps | None:
    import diffusers

    name, settings = BY[kind]
    return StableDiffusionXL().few_steps({}, getattr(diffusers, name)(**settings))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_model_says_by_its_scheduler_how_it_was_distilled() -> None:
    assert [few and (few.steps, few.guidance, few.solver) for few in map(few_of, BY)] == [
        (4, 1.0, None),
        (8, 1.0, None),
        (8, 2.0, "lcm"),
        (8, 8.0, "tcd"),
        None,
        None,
    ]


def few_notes(kind: str, *overrides: str) -> list[str]:
    model = SimpleNamespace(few_steps=few_of(kind), name="turbo")
    return few_step_notes(load_recipe("sdxl_align", list(overrides)), model)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_before_a_run_it_is_said_that_a_distilled_model_is_drawn_otherwise() -> None:
    (note,) = few_notes("turbo")
    assert note.splitlines() == [
        "model.base: by the trailing spacing of its EulerAncestralDiscreteScheduler, as distilled models have it, "
        "turbo was distilled to draw in few steps.",
        "  set sampler.steps=4 or fewer, not 20",
        "  set evaluation.steps=4 or fewer, not 30",
        "  set sampler.guidance=1, not 5",
        "  set evaluation.guidance=1, not 5",
        "  finetuner.learning: dpo learns from pictures under noise, which may undo the distillation; ddpo, draft and "
        "refl learn from its own steps (docs/models.md, 'Few-step models')",
    ]
    (other,) = few_notes("lcm", *FEW)
    assert [line.split(",")[0] for line in other.splitlines()[1:-1]] == ["  set sampler.scheduler=lcm"]
    learnt = ["finetuner.learning={type: ddpo}", "ranker.selector={type: advantage}", "sampler.scheduler=lcm"]
    assert few_notes("lcm", *FEW, *learnt) == few_notes("usual") == []


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_a_guidance_of_0_is_told_to_be_none_of_diffusers() -> None:
    (note,) = few_notes("usual", "sampler.guidance=0")
    assert note.startswith("sampler.guidance: 0 follows a caption less than 1 does")
    assert note.endswith("set sampler.guidance=1")


def test_an_evaluation_says_once_that_it_goes_without_its_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(evaluate, "compare", stop)
    logged: list[str] = []
    log: Callable[..., None] = lambda event, note: logged.append(note)  # noqa: E731
    run: Any = SimpleNamespace(path=tmp_path, log=log)
    with pytest.raises(UserError, match="far enough"):
        evaluate.measure(run, bare(PARIS))
    assert [str(one.message) for one in recwarn] == logged == [ALIEN]


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("dpo", "pairs, the better first; use type: best_worst"),
        ("nft", "candidates, each with an advantage; use type: advantage"),
        ("kto", "candidates, each good or bad; use type: threshold"),
        ("ddpo", "candidates, each with an advantage; use type: advantage"),
    ],
)
def test_a_rule_names_the_selector_that_it_learns_from(rule, wanted):
    with pytest.raises(
        UserError, match=f"it selects candidates, each with a weight, and learning: {rule} learns from {wanted}."
    ):
        load_recipe("demo", [f"finetuner.learning={{type: {rule}}}"])
    selector = wanted.rpartition(" ")[2]
    changes = [f"finetuner.learning={{type: {rule}}}", f"ranker.selector={{type: {selector}}}"]
    load_recipe("demo", [*changes, *(WALKED if rule == "ddpo" else ())])


WALKED = ("sampler.scheduler=ddim", "sampler.eta=1", "prompts.decouple=false", "loop.replay_rounds=0")
"""What ddpo wants of the demo's recipe."""
TEACHER = "sampler={type: teacher, drawing: {scheduler: ddim, eta: 1}}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["sampler.scheduler=dpm++", "sampler.eta=0"], "sampler: learning: ddpo learns from steps that draw noise"),
        (["sampler.eta=0"], "use scheduler: euler_a, or ddim with an eta above 0, such as eta: 1"),
        ([TEACHER], "sampler: learning: ddpo learns from the path on which a picture was drawn, and only the"),
        (["loop.sample_every=2"], "loop.sample_every: learning: ddpo learns from fresh pictures; make it 1"),
        (["loop.replay_rounds=1"], "loop.replay_rounds: learning: ddpo learns from fresh pictures; make it 0"),
        (
            ["prompts.decouple=true"],
            "drawn for the text that is learnt, and '.*' is drawn for another; leave the magic prompt out, or set prom",
        ),
    ],
)
def test_what_ddpo_cannot_learn_from_is_told_before_a_model_is_loaded(changes, sentence):
    ddpo = ["finetuner.learning={type: ddpo}", "ranker.selector={type: advantage}", *WALKED]
    with pytest.raises(UserError, match=sentence):
        load_recipe("demo", [*ddpo, *changes])


PRUNED = "sampler.prune={at: [0.3, 0.6], keep: [0.5, 0.25]}"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["ranker.selector={type: random}"], "sampler.prune: the selector 'random' takes candidates that lost too"),
        (["finetuner.learning={type: dpo}", "ranker.selector={type: best_worst}"], "selector 'best_worst' takes cand"),
        (
            ["finetuner.learning={type: draft}"],
            "sampler.prune: learning: draft learns from how each candidate was drawn",
        ),
        (["ranker.selector.keep=3"], "keep: 2 of a prompt's 8 candidates are left, and the selector 'best_of_k' takes"),
        (["sampler.prune.rewards=[jpeg]"], "rewards: 'jpeg' is none of the ranker's rewards .* constrain: clip"),
        (["sampler.prune.rewards=[]"], "sampler.prune.rewards: none of these ranks; name one with a weight"),
        (["ranker.rewards=[{type: labels, run: there}]"], "'labels' knows finished pictures alone, and no previews"),
        (["sampler.steps=2"], "seen after 1, 1 of 2 steps, and by 'keep' 4, 2 of 8 go on. Each look must be later"),
        (["loop.candidates=2"], "and by 'keep' 1, 1 of 2 go on. Each look must be later .* leave fewer"),
        (["sampler.prune.at=[0.5]"], "'at' names 1 looks and 'keep' 2; give both as many numbers"),
        (["sampler.prune.at=[0.5, 0.5]"], "'at' are shares of the steps between 0 and 1, each above the one before"),
        (["sampler.prune.keep=[0.5, 1.5]"], "'keep' are shares of the candidates between 1 and 0, each below the one"),
        (
            ["sampler={type: teacher, drawing: {prune: {at: [0.5], keep: [0.5]}}}"],
            "sampler.drawing.prune: only what the policy draws to learn from is pruned; leave it out",
        ),
    ],
)
def test_what_cannot_be_pruned_is_told_before_a_model_is_loaded(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        load_recipe("demo", [PRUNED, *changes])


def test_a_plan_counts_the_steps_that_pruning_leaves():
    whole, pruned = (work(load_recipe("demo", more)) for more in ([], [PRUNED]))
    assert (whole.sampling_evaluations, whole.images) == (20 * 8 * 8 * 2, 160)
    assert (pruned.sampling_evaluations, pruned.images) == (20 * (8 * 2 + 4 * 3 + 2 * 3) * 2, 40)


CLIMBED = ("finetuner.learning={type: draft, steps: 2}", "ranker.selector={type: random, keep: 2}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ["sampler.scheduler=unipc"],
            "learning: draft learns from steps between pictures under noise of a known level",
        ),
        (
            [TEACHER],
            "sampler: learning: draft learns from the path on which a picture was drawn, and only the policy's",
        ),
        (
            ["ranker.selector={type: advantage}"],
            "an advantage, and learning: draft learns from candidates, each with a weight; use",
        ),
        (
            ["ranker.rewards=[{type: jpeg}]"],
            "learning: draft follows the gradient of the rewards, and 'jpeg' has none.*'graded'",
        ),
        (
            ["ranker.rewards=[{type: clip, model: scene-clip}, {type: sharpness, name: sharp, weight: 0.1}]"],
            "draft follows the gradient of the rewards, and 'sharp' has none",
        ),
        (["finetuner.learning.steps=9"], r"finetuner.learning.steps: 9 are to be taken .* \(sampler.steps\)"),
    ],
)
def test_what_draft_cannot_learn_from_is_told_before_a_model_is_loaded(changes, sentence):
    load_recipe("demo", list(CLIMBED))
    onlookers = "{type: jpeg, weight: 0}, {type: ocr, role: hold_out}, {type: nsfw, role: veto, at_least: -0.5}"
    load_recipe("demo", [*CLIMBED, f"ranker.rewards=[{{type: clip, model: scene-clip}}, {onlookers}]"])
    with pytest.raises(UserError, match=sentence):
        load_recipe("demo", [*CLIMBED, *changes])


def test_a_path_that_other_models_have_is_refused_with_a_flow(tmp_path: Path) -> None:
    parts = load(ModelConfig(base=str(tiny.write_folder(tmp_path / "sd3", "sd3"))))
    config = DiffusionSamplerConfig(scheduler="dpm++")
    with pytest.raises(UserError, match=r"what dpm\+\+ draws with Stable Diffusion 3 .*keeps no path .*; use euler or"):
        config.build(parts, ("latent", "path"))


def test_a_recipe_s_rewards_are_climbed_as_they_are_weighted(tmp_path: Path) -> None:
    """Old pictures and other texts' are welcome: a path has states to start from, no draws to be made likelier."""
    folder = tiny.write_folder(tmp_path / "model", "sd15")
    base = [f"model.base={folder}", "model.device=cpu", "evaluation.judge=null", "loop.sample_every=2", *CLIMBED]
    assembly = assemble(load_recipe("demo", base))
    lesson = assembly.finetuner.lesson
    assert assembly.parts.sampler.provides == ("latent", "path")
    assert not assembly.finetuner.requires.fresh_samples
    assert (lesson.walk.starts, lesson.walk.steps) == (range(6, 7), 2)


def test_a_path_is_recorded_where_the_rule_learns_from_it_and_nowhere_else(tmp_path: Path) -> None:
    """Neither the held-out pictures nor those of an evaluation carry one."""
    folder = tiny.write_folder(tmp_path / "model", "sd15")
    base = [f"model.base={folder}", "model.device=cpu", "ranker.rewards=[{type: jpeg}]", "evaluation.judge=null"]
    ddpo = ["finetuner.learning={type: ddpo}", "ranker.selector={type: advantage}", *WALKED]
    assembly = assemble(load_recipe("demo", [*base, *ddpo]))
    held_out = assembly.parts.held_out_sampler
    assert assembly.parts.sampler.provides == ("latent", "path")
    assert held_out is not None
    assert assembly.sampler.provides == assembly.evaluator.provides == held_out.provides == ("latent",)
    assert assembly.parts.sampler.provides == assembly.finetuner.requires.aux
    assert assembly.finetuner.requires.fresh_samples
    plain = assemble(load_recipe("demo", base))
    assert plain.parts.sampler.provides == ("latent",)
    assert plain.parts.sampler.provides == plain.sampler.provides == ("latent",)


def test_candidates_come_in_all_sizes_and_the_model_is_looked_at_in_the_first(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "model", "sd15")
    base = [f"model.base={folder}", "model.device=cpu", "ranker.rewards=[{type: jpeg}]", "evaluation.judge=null"]
    assembly = assemble(load_recipe("demo", [*base, "sampler.sizes=[[24,16],[16,16]]"]))
    assert assembly.parts.sampler.sizes == assembly.sampler.sizes == ((16, 24), (16, 16))  # type: ignore[attr-defined]
    assert assembly.evaluator.sizes == assembly.parts.held_out_sampler.sizes == ((16, 24),)  # type: ignore[union-attr]


def test_rollouts_are_cheaper_than_what_is_looked_at_where_a_recipe_says_so(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "model", "sd15")
    base = [f"model.base={folder}", "model.device=cpu", "ranker.rewards=[{type: jpeg}]", "evaluation.judge=null"]
    cheap = ["sampler.steps=4", "sampler.reuse={every: 2}", "sampler.height=16", "sampler.width=16"]
    assembly = assemble(load_recipe("demo", [*base, *cheap, "evaluation={steps: 9, height: 32}"]))
    assert assembly.sampler.sizes == ((16, 16),)
    assert assembly.sampler.config.reuse is not None
    for seen, steps in ((assembly.evaluator, 9), (assembly.parts.held_out_sampler, 4)):
        assert isinstance(seen, DiffusionSampler)
        assert (seen.sizes, seen.config.steps, seen.config.reuse) == (((32, 16),), steps, None)


def test_pairs_of_a_folder_and_of_what_is_drawn_have_one_size(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "model", "sd15")
    (tmp_path / "cat.txt").write_text("a cat")
    Image.new("RGB", (30, 20), "red").save(tmp_path / "cat.png")
    sizes = "sizes: [[16, 16], [24, 16]]"
    parts = [f"{{type: folder, path: '{tmp_path}', drawing: {{{sizes}}}}}", f"{{type: diffusion, {sizes}}}"]
    mixed = ", ".join(f"{{share: 2, sampler: {part}}}" for part in parts)
    recipe = load_recipe(
        "demo",
        [
            *(f"model.base={folder}", "model.device=cpu", "prompts={captions: [a cat]}", "evaluation.judge=null"),
            *("ranker={rewards: [{type: jpeg}], selector: {type: best_worst}}", "finetuner.learning={type: dpo}"),
            *(f"sampler={{type: mix, parts: [{mixed}]}}", "loop={candidates: 4}"),
        ],
    )
    with pytest.raises(UserError, match="dpo learns from pairs of one size, and a folder's pictures have others"):
        assemble(recipe)


def test_what_is_cut_off_pictures_is_said_by_several_processes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FolderSampler, "notes", lambda self, prompts, share: [f"{share} cut in the middle"])
    found, folder = bare("loop.candidates=3"), object.__new__(FolderSampler)
    for sampler in (folder, SharedSampler(folder, "sampler")):
        found.parts.sampler = sampler  # type: ignore[misc]
        assert "3 cut in the middle" in found.first_notes()
