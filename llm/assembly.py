"""The parts of a text recipe, built and wired; ``diffusion.assembly`` does it for pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, final

from raftdiff.embedded import resolve
from raftdiff.embedded.reviews import world
from raftdiff.embedded.reviews.reward import judge
from raftdiff.errors import UserError
from raftdiff.llm.data.prompts import DataConfig, like, read_prompts
from raftdiff.llm.data.screening import refuse_mean, screened
from raftdiff.llm.figures import Base, Distances, describe, similarity
from raftdiff.llm.learning.finetuner import LMFineTuner, LMFineTunerConfig
from raftdiff.llm.likelihood import KlConfig
from raftdiff.llm.model.lengths import Lengths, Limits, readable
from raftdiff.llm.model.loading import LM, load
from raftdiff.llm.model.rows import fits
from raftdiff.llm.ppo.finetuner import PpoFineTuner
from raftdiff.llm.ppo.rollouts import written_rows
from raftdiff.llm.recipe import UNMEASURED, TextRecipe, check_texts, limits_of, samplers
from raftdiff.llm.sampling.generation import DecodingConfig, Ending
from raftdiff.llm.sampling.given import DatasetSampler, DatasetSamplerConfig, FolderSamplerConfig
from raftdiff.llm.sampling.policy import LMSampler, MagicConfig, PolicySamplerConfig, TeacherSamplerConfig
from raftdiff.llm.sampling.vllm import Following, VllmSamplerConfig
from raftdiff.measures.evaluation import Judge
from raftdiff.mixing import MixSamplerConfig
from raftdiff.ranking import Ranker, Unfit, assigned, measured_by
from raftdiff.recipes.checks import has_say
from raftdiff.scoring import demand_prompts, demand_servers
from raftdiff.seeds import fold
from raftdiff.selection.lessons import ThresholdConfig
from raftdiff.selection.mixes import MIXES
from raftdiff.stages.parts import Parts
from raftdiff.training import sharded
from raftdiff.training.devices import flush_denormals
from raftdiff.types import Prompt, Reward, Sampler

TextFineTuner: TypeAlias = LMFineTuner | PpoFineTuner


@final
@dataclass(frozen=True)
class TextAssembly:
    """The parts of a text recipe, built and wired: sampler and fine-tuner share one network."""

    recipe: TextRecipe
    lm: LM
    evaluator: LMSampler
    """Answers as the tuned model is to be used."""
    finetuner: TextFineTuner
    ranker: Ranker[str]
    measures: Ranker[str]
    """The rewards that an evaluation looks at; those that only look on count where no other does."""
    distances: Distances
    parts: Parts[str]
    """What the loop takes."""

    def demand_known(self, prompts: Sequence[Prompt]) -> None:
        """
        Raises:
            UserError: the judge or a reward of the evaluation can say nothing of answers to one of the prompts.
        """
        if self.judge:
            world.check(prompt.caption for prompt in prompts)
        check_known(self.measures, prompts)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Whether an evaluation can say anything of answers to these prompts.

        Raises:
            UserError: the judge or a reward does not know one of them, or the server that a reward asks is not there.
        """
        self.demand_known(prompts)
        demand_servers(reward for reward, _ in self.measures.rewards)

    @property
    def judge(self) -> Judge | None:
        """The held-out judge that the recipe names."""
        return judge if self.recipe.evaluation.judge else None


def assemble_text(recipe: TextRecipe) -> TextAssembly:
    """Load the models and the rewards, and wire them.

    Raises:
        UserError: a model or a reward cannot be loaded, or a prompt is too long, or is not what its answers follow.
    """
    flush_denormals()
    prompts, evaluation = training_prompts(recipe), recipe.evaluation
    check_texts(recipe, prompts)
    lm, decoding = load(recipe.model, resolve), decoding_of(recipe)
    prompts = _read_by(lm, recipe, prompts)
    looked = evaluation.prompts.given and evaluation.every_round
    held_out = evaluated(recipe, lm, held_out_prompts(recipe, evaluation.prompts)) if looked else []
    finetuner = _finetuner(recipe, lm, decoding)
    rows = recipe.finetuner.rows_per_pass
    batch_size = getattr(recipe.sampler, "batch_size", rows)
    evaluator = LMSampler(lm, decoding, batch_size, "policy")
    sampler = _sampler(recipe, lm, prompts, limits_of(recipe.prompts, "prompts"))
    distances = Distances(lm, finetuner.base_weights, rows)
    ranker = build_text_ranker(recipe, lm, finetuner.base_weights)
    check_known(ranker, prompts)
    measures = _measures(recipe, ranker, device=str(lm.device))
    check_known(measures, held_out)
    parts = Parts(
        sampler=sampler,
        ranker=ranker,
        finetuner=finetuner,
        prompts=prompts,
        held_out=held_out,
        held_out_sampler=evaluator,
        held_out_ranker=measures,
        held_out_candidates=max(1, evaluation.every_round),
        examine=distances,
        loop=recipe.loop,
    )
    return TextAssembly(recipe, lm, evaluator, finetuner, ranker, measures, distances, parts)


def training_prompts(recipe: TextRecipe) -> list[Prompt]:
    """The prompts of the loop; where their own answers are all that is learnt from, those that hold a lesson.

    Raises:
        UserError: they cannot be read, or there is no lesson in any of them.
    """
    prompts, selector = read_prompts(recipe.prompts, Path(), "prompts"), recipe.ranker.selector
    if not isinstance(recipe.sampler, DatasetSamplerConfig):
        return prompts
    DatasetSampler().check(prompts)
    if isinstance(selector, ThresholdConfig) and selector.threshold is None:
        refuse_mean(prompts)
    given = all(reward.type == "given" for reward in recipe.ranker.rewards if has_say(reward))
    return screened(prompts, selector.build(seed=0).kind, candidates=recipe.loop.candidates, given=given)


def held_out_prompts(recipe: TextRecipe, config: DataConfig) -> list[Prompt]:
    """The prompts of an evaluation, with the training's system message where they name none; ``config`` is the recipe's
    ``evaluation.prompts``, or that with another file.

    Raises:
        UserError: they cannot be read.
    """
    return read_prompts(like(recipe.prompts, config), Path(), "evaluation.prompts")


def data_rows(recipe: TextRecipe, lm: LM) -> tuple[list[Prompt], list[Sampler[str]]]:
    """The prompts of the loop as the model reads them, and the samplers of answers that are there already.

    Raises:
        UserError: as ``assemble_text``.
    """
    prompts = training_prompts(recipe)
    check_texts(recipe, prompts)
    prompts, limits = _read_by(lm, recipe, prompts), limits_of(recipe.prompts, "prompts")
    held = [one for one in samplers(recipe) if isinstance(one, DatasetSamplerConfig | FolderSamplerConfig)]
    return prompts, [_held(one, lm, prompts, limits) for one in held]


def _read_by(lm: LM, recipe: TextRecipe, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those that the model has room for, with what the recipe does about the others."""
    rooms = {key: one.decoding.max_new_tokens for key, one in _policies(recipe).items()}
    asked = max(rooms, key=lambda key: rooms[key], default="sampler")
    limits, learnt = limits_of(recipe.prompts, "prompts"), _learns_from_data(recipe)
    return readable(lm, prompts, limits, room=rooms.get(asked, 0), asked=f"{asked}.decoding", learnt=learnt)


def check_known(ranker: Ranker[str], prompts: Sequence[Prompt]) -> None:
    """
    Raises:
        UserError: a reward can say nothing of answers to one of the prompts.
    """
    demand_prompts([reward for reward, _ in ranker.rewards], prompts)


def _finetuner(recipe: TextRecipe, lm: LM, decoding: DecodingConfig) -> TextFineTuner:
    config, rounds, seed = recipe.finetuner, recipe.loop.rounds, fold(recipe.loop.seed, "finetuner")
    if isinstance(config, LMFineTunerConfig):
        return config.build(lm, total_rounds=rounds, max_tokens=decoding.max_new_tokens, seed=seed)
    if sharded.is_split(lm.model):
        raise UserError(
            "finetuner.type: ppo asks a critic beside the policy, and model.sharded splits one network. Use lm."
        )
    critic = config.critic.open(recipe.model, lm, resolve, seed=seed)
    written = []
    if config.ptx:
        key = "finetuner.ptx.data"
        found = read_prompts(config.ptx.data, Path(), key)
        written = written_rows(lm, readable(lm, found, limits_of(config.ptx.data, key), learnt=True))
    return config.build(lm, total_rounds=rounds, seed=seed, critic=critic, pretraining=written)


def build_text_ranker(recipe: TextRecipe, lm: LM, base: Base) -> Ranker[str]:
    """The rewards, the selector, and what a round says of its answers."""
    configs = recipe.ranker.rewards
    built: list[Reward[str]] = [
        config.build_on(lm, base)
        if isinstance(config, KlConfig)
        else config.build(device=str(lm.device), resolve=resolve)
        for config in configs
    ]
    rewards, bounds = assigned(configs, built)
    selector = recipe.ranker.selector.build(seed=fold(recipe.loop.seed, "select"))
    return Ranker(rewards, selector, describe, _too_long(lm), similarity, MIXES[recipe.ranker.mix], bounds)


def _too_long(lm: LM) -> Unfit[str]:
    """Answers that the model could not learn whole, whoever wrote them: a teacher's limits are not its own."""
    return Unfit(
        lambda sample: not fits(lm, sample),
        "too_long",
        f"answers are too long: with their prompts they are more than '{lm.name}' can read ({lm.positions} tokens), so "
        "there is nothing to learn from. Have the sampler write shorter ones, or name another model.base.",
    )


def _measures(recipe: TextRecipe, ranker: Ranker[str], *, device: str) -> Ranker[str]:
    """The training's rewards and those that only look on, which count for the held-out curve only where there is
    nothing else. Left out are scores that data gave to their own answers, and the distance from the base, which is
    measured for itself: as a reward it would judge the base's answers by the tuned model."""
    configs = recipe.ranker.rewards
    kept = [pair for pair, config in zip(ranker.rewards, configs, strict=True) if config.type not in UNMEASURED]
    built = [(one.build(device=device, resolve=resolve), one.weight) for one in recipe.evaluation.rewards]
    return ranker.measuring(measured_by(kept, built))


def _held(
    config: DatasetSamplerConfig | FolderSamplerConfig, lm: LM, prompts: Sequence[Prompt], limits: Limits
) -> Sampler[str]:
    """The sampler of answers that are there already. Those of a folder that the model cannot read whole are left out,
    where the recipe does not say to stop at them; those of the data were looked at with their prompts.

    Raises:
        UserError: no answer is left, or one is too long.
    """
    if isinstance(config, DatasetSamplerConfig):
        held = config.build()
        held.check(prompts)
        return held
    collected = config.build(Path())
    collected.check(prompts)
    lengths = Lengths(lm, limits._replace(long="stop" if limits.long == "stop" else "skip"), positions=lm.positions)
    found = collected.only(prompts, lambda prompt, text: lengths.fit(prompt, [text]) is not None)
    lengths.tell(sum(len(collected.answers(prompt)) for prompt in prompts))
    return found


def _sampler(recipe: TextRecipe, lm: LM, prompts: Sequence[Prompt], limits: Limits) -> Sampler[str]:
    if not isinstance(recipe.sampler, MixSamplerConfig):
        return _one(recipe.sampler, lm, prompts, limits, "sampler")
    parts = enumerate(samplers(recipe))
    return recipe.sampler.build([_one(part, lm, prompts, limits, _part(place)) for place, part in parts])


def _one(config: Any, lm: LM, prompts: Sequence[Prompt], limits: Limits, key: str) -> Sampler[str]:
    match config:
        case PolicySamplerConfig():
            policy = config.build(lm)
            if config.magic != MagicConfig():  # the bare prompts were looked at when they were read
                policy.demand_room(prompts, f"{key}.decoding")
            return policy
        case TeacherSamplerConfig():
            teacher = config.build(resolve)
            teacher.demand_room(prompts, f"{key}.decoding")
            return teacher
        case VllmSamplerConfig():
            ends = Ending(lm, config.decoding.stop).ids
            render = lambda one: lm.prompt_ids(one, one.sampling)  # noqa: E731
            return Following(config.build(resolve(lm.name), render, ends=ends), lm)
        case DatasetSamplerConfig() | FolderSamplerConfig():
            return _held(config, lm, prompts, limits)
        case _:
            built: Sampler[str] = config.build()
            return built


def decoding_of(recipe: TextRecipe) -> DecodingConfig:
    """How the tuned model is used: as the evaluation says, or as the training samples the policy."""
    return _used(recipe)[1]


def _used(recipe: TextRecipe) -> tuple[str, DecodingConfig]:
    """The key of what ``decoding_of`` says, and that."""
    if recipe.evaluation.decoding is not None:
        return "evaluation.decoding", recipe.evaluation.decoding
    policies = ((f"{key}.decoding", one.decoding) for key, one in _policies(recipe).items())
    return next(policies, ("evaluation.decoding", DecodingConfig()))


def evaluated(recipe: TextRecipe, lm: LM, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Those that the tuned model has room to answer, as the recipe's ``evaluation`` says.

    Raises:
        UserError: as ``readable``.
    """
    limits, (asked, decoding) = limits_of(recipe.evaluation.prompts, "evaluation.prompts"), _used(recipe)
    return readable(lm, prompts, limits, room=decoding.max_new_tokens, asked=asked)


def _policies(recipe: TextRecipe) -> dict[str, PolicySamplerConfig | VllmSamplerConfig]:
    """The samplers whose answers the tuned model writes, by their keys."""
    alone = not isinstance(recipe.sampler, MixSamplerConfig)
    found = {"sampler" if alone else _part(place): one for place, one in enumerate(samplers(recipe))}
    return {key: one for key, one in found.items() if isinstance(one, PolicySamplerConfig | VllmSamplerConfig)}


def _part(place: int) -> str:
    """The key of a mixture's sampler."""
    return f"sampler.parts.{place}.sampler"


def _learns_from_data(recipe: TextRecipe) -> bool:
    """Whether answers that the data bring are candidates."""
    return any(isinstance(one, DatasetSamplerConfig) for one in samplers(recipe))
