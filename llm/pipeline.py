"""Pipelines: recipes one after the other, in which a later one uses what an earlier one made.

A stage is an ordinary run in a folder of its own, of a reward model or of a policy on texts. In a stage's overrides
``{id}`` stands for an earlier stage's run folder, and ``{id.model}`` for its model: a reward model's folder, or the
policy with what it learnt merged into its weights, as a transformers folder.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import yaml
from pydantic import Field

from raftdiff.errors import UserError, counted, nearest
from raftdiff.llm.data.preferences import PairsConfig
from raftdiff.llm.recipe import TextRecipe, load_text_recipe
from raftdiff.llm.reward_runs.recipe import RewardRecipe, load_reward_recipe
from raftdiff.recipes.config import COMMAND_LINE, Config, Named, flat, lines, plain, read
from raftdiff.recipes.files import locate, medium_of, spoken
from raftdiff.recipes.sentences import STAGE
from raftdiff.recipes.source import Where
from raftdiff.records.run import Run

StageRecipe: TypeAlias = TextRecipe | RewardRecipe

PLACE = re.compile(r"\{([A-Za-z][\w-]*)(?:\.([A-Za-z_]\w*))?\}")
TEMPLATES = ("prompt",)
"""Names in braces that recipes use for themselves."""
TAKEN = (*TEMPLATES, "media", "name", "stages", "order")
"""What no stage is called."""
MODEL = "model"
"""In a stage's run folder. A reward model's run makes it by itself."""
READ_LATER = ("pairs", "held_out")
"""Keys of data that a stage may take from an earlier one's rounds, and that cannot be read before these are there."""
OF_STAGE = ("recipe", "until")
"""Keys of a stage in the pipeline's file that are changed by its id too, as its recipe's are."""
STAND_IN = (
    "={data: {captions: [{prompt: a, chosen: b, rejected: c, mu: 1}, {prompt: d, chosen: e, rejected: f, mu: 1}]}}"
)
"""What is read in their place to look at the rest of the recipe."""


class StageConfig(Config):
    """One run of a pipeline."""

    id: str = Field(pattern=STAGE)
    """What later stages call it, and its folder's name."""
    recipe: str
    """A recipe for texts or of a reward model: a file, seen from this one, or the name of one that ships."""
    until: Literal["end", "scores"] = "end"
    """scores: a recipe for texts draws and scores the answers of its first round, and learns nothing: what a later
    stage's reward model compares."""
    overrides: list[str] = Field(default_factory=list)
    """Changes to it, "key.path=value". "{id}" is the run folder of an earlier stage, "{id.model}" its model's."""


class PipelineRecipe(Config):
    """Recipes that are run one after the other."""

    media: Literal["pipeline"]
    name: Named
    """Part of the folder's name."""
    stages: list[StageConfig] = Field(min_length=1)
    """In the order in which they are run."""


@final
@dataclass(frozen=True)
class Stage:
    """A stage in its place: what is run, where, and what later stages ask of it."""

    id: str
    source: Path
    """Its recipe's file."""
    overrides: Sequence[str]
    """With the folders of earlier stages in them."""
    path: Path
    """Its run folder."""
    asked_for_model: bool
    """Whether a later stage begins with its model."""
    until: Literal["end", "scores"] = "end"
    """Whether it learns, or draws and scores answers alone."""
    drawn: Sequence[Path] = ()
    """The run folders of earlier stages that do the latter."""

    @property
    def of_policy(self) -> bool:
        """Whether it tunes a policy; else it trains a reward model."""
        return medium_of(self.source) == "text"

    @property
    def model(self) -> Path:
        """Where its model lies once it is finished."""
        return self.path / MODEL

    def recipe(self) -> StageRecipe:
        """
        Raises:
            UserError: anything wrong in it.
        """
        load = load_text_recipe if self.of_policy else load_reward_recipe
        with _in_its_overrides():
            return load(self.source, [*self.overrides, *self._pinned()])

    def read(self) -> Config:
        """Its recipe by itself, without a look at what it names.

        Raises:
            UserError: a key or a value is wrong.
        """
        with _in_its_overrides():
            return read(TextRecipe if self.of_policy else RewardRecipe, self.source, [*self.overrides, *self._pinned()])

    def _pinned(self) -> Iterator[str]:
        """Pairs of what an earlier stage drew are of that round, whoever goes on with that run. A stage that an earlier
        version began, which did not say so, keeps what it began with."""
        if self.of_policy:
            return
        recipe = read(RewardRecipe, self.source, self.overrides)
        begun = Run(self.path).recipe() if (self.path / "run.json").is_file() else {}
        for key in READ_LATER:
            pairs = getattr(recipe, key)
            unsaid = key in begun and (begun[key] or {}).get("rounds") is None
            if pairs is not None and pairs.run in map(str, self.drawn) and pairs.rounds is None and not unsaid:
                yield f"{key}.rounds=[0]"


@contextmanager
def _in_its_overrides() -> Iterator[None]:
    try:
        yield
    except UserError as error:  # most stand in the pipeline's file
        raise UserError(str(error).replace(f"{COMMAND_LINE}:", "in its overrides:")) from None


def load_pipeline(path: Path, overrides: Sequence[str] = ()) -> PipelineRecipe:
    """The pipeline in a file. An override whose first part is a stage's id changes that stage's recipe,
    or what is run.

    Raises:
        UserError: anything wrong in it but for its stages' recipes, which ``check`` reads.
    """
    if (medium := medium_of(path)) != "pipeline" and path.is_file():
        raise UserError(
            f"{path}: this is a recipe for {spoken(medium)}, and this command runs a pipeline (media: pipeline)."
        )
    own = [one for one in overrides if _key(one) in PipelineRecipe.model_fields]
    recipe = read(PipelineRecipe, path, own)
    places = {stage.id: place for place, stage in enumerate(recipe.stages)}
    for override in overrides:
        stage, _, rest = override.partition(".")
        if stage in places and _key(rest) in OF_STAGE:
            own.append(f"stages.{places[stage]}.{rest}")
    recipe = read(PipelineRecipe, path, own)
    changed = {stage.id: [*stage.overrides] for stage in recipe.stages}
    for override in overrides:
        stage, _, rest = override.partition(".")
        if override in own:
            continue
        if "=" not in override:
            raise UserError(f"'{override}': an override is written key.path=value, for example policy.loop.rounds=5.")
        if stage not in changed:
            hint = nearest(stage, [*changed, *PipelineRecipe.model_fields])
            raise UserError(f"'{override}': '{stage}' is no stage of this pipeline and no key of it. {hint}")
        if _key(rest) not in OF_STAGE:
            changed[stage].append(rest)
    stages = [one.model_copy(update={"overrides": changed[one.id]}) for one in recipe.stages]
    recipe = recipe.model_copy(update={"stages": stages})
    _check_names(recipe, path, lines(path))
    return recipe


def stages(recipe: PipelineRecipe, folder: Path, out: Path) -> list[Stage]:
    """The stages with their places under ``out``; ``folder`` is where the pipeline's file stands.

    Raises:
        UserError: there is no recipe of a stage's name, or it is one for pictures.
    """
    found: list[Stage] = []
    wanted = {match[1] for one in recipe.stages for text in one.overrides for match in PLACE.finditer(text) if match[2]}
    for config in recipe.stages:
        source = _source(config, folder)
        places = {one.id: one.path for one in found} | {f"{one.id}.model": one.model for one in found}
        overrides = [filled(text, places) for text in config.overrides]
        drawn, path = [one.path for one in found if one.until == "scores"], out.resolve() / config.id
        found.append(Stage(config.id, source, overrides, path, config.id in wanted, config.until, drawn))
    return found


def _source(config: StageConfig, folder: Path) -> Path:
    beside = folder / config.recipe
    try:
        source = beside if beside.is_file() else locate(config.recipe)
    except UserError as error:
        raise UserError(f"the stage '{config.id}': {error}") from None
    if medium_of(source) not in ("text", "preferences"):
        raise UserError(f"the stage '{config.id}': {source} is neither for texts nor of a reward model.")
    return source


def check(
    recipe: PipelineRecipe, path: Path, look: Callable[[str, StageRecipe], None] = lambda stage, recipe: None
) -> dict[str, Any]:
    """Read every stage's recipe before anything is trained, with empty runs in place of those that are to come; returns
    what the pipeline is: each stage's recipe, complete, with ``{id}`` and ``{id.model}`` in it.

    Args:
        look: is given each stage's id and recipe, while what earlier stages are to make seems to be there.

    Raises:
        UserError: a stage's recipe is wrong; in a sentence with the pipeline's file and line.
    """
    found: dict[str, Any] = {}
    where = lines(path)
    with tempfile.TemporaryDirectory() as scratch:
        places: dict[str, str] = {}
        before: dict[str, tuple[Stage, StageRecipe]] = {}
        for place, stage in enumerate(stages(recipe, path.parent, Path(scratch))):
            try:
                _check_end(stage)
                later = _read_later(stage, before)
                with_stand_in = [*stage.overrides, *(key + STAND_IN for key in later)]
                one = replace(stage, overrides=with_stand_in).recipe()
                Run.create(stage.path, one, seed=one.loop.seed)
            except UserError as error:
                line = f"{path}:{where[('stages', place)]}: " if ("stages", place) in where else f"{path}: "
                raise UserError(f"{line}the stage '{stage.id}': {error}") from None
            look(stage.id, one)
            stage.model.mkdir()
            before[str(stage.path)] = (stage, one)
            told = plain(one.model_copy(update=later)) | ({} if stage.until == "end" else {"until": stage.until})
            found[stage.id] = _restored(told, places)
            places |= {str(stage.model): f"{{{stage.id}.model}}", str(stage.path): f"{{{stage.id}}}"}
    return found


def _read_later(stage: Stage, before: Mapping[str, tuple[Stage, StageRecipe]]) -> dict[str, PairsConfig]:
    """The keys of a stage whose pairs an earlier one is to make, and what is said of them; ``before`` has the earlier
    stages and their recipes, by their folders.

    Raises:
        UserError: an earlier stage will not make them.
    """
    recipe, found = stage.read(), {}
    for key in () if stage.of_policy else READ_LATER:
        pairs = getattr(recipe, key)
        if pairs is not None and any(folder in str(leaf) for leaf in flat(plain(pairs)).values() for folder in before):
            found[key] = pairs
            for name in ("run", "labels"):
                if (folder := getattr(pairs, name)) in before:
                    _check_source(f"{key}.{name}", pairs, *before[folder])
    return found


def _check_source(key: str, pairs: PairsConfig, source: Stage, recipe: StageRecipe) -> None:
    if not source.of_policy:
        raise UserError(f"{key}: {{{source.id}}} trains a reward model, which answers nothing; name a stage on texts.")
    alone = source.until == "scores"
    if pairs.labels and alone:
        raise UserError(
            f"{key}: {{{source.id}}} draws answers alone (until: scores), and people compare those of finished rounds. "
            "Take its scores (run), or begin when they have chosen, with their run in place of the stage."
        )
    rounds = 1 if alone else recipe.loop.rounds
    if pairs.rounds and max(pairs.rounds) >= rounds:
        raise UserError(
            f"{key.partition('.')[0]}.rounds: {{{source.id}}} has {counted(rounds, 'round')}, and the first is 0; "
            f"there is no round {max(pairs.rounds)}."
        )


def _key(override: str) -> str:
    return re.split(r"[.=]", override)[0]


def _check_end(stage: Stage) -> None:
    if stage.until == "scores" and not stage.of_policy:
        raise UserError("until: scores is for recipes on texts, which draw answers; leave it out of a reward model's.")
    if stage.until == "scores" and stage.asked_for_model:
        raise UserError(
            f"until: scores: it learns nothing, so there is no {{{stage.id}.model}} for a later stage; leave one of "
            "the two out."
        )


def filled(override: str, places: Mapping[str, Path]) -> str:
    """An override with folders in place of ``{id}`` and ``{id.model}``; one without any as it is.

    The value is read as YAML first, so that a folder's name may hold whatever it likes.

    >>> filled("ranker.rewards=[{type: reward_model, model: {rm.model}}]", {"rm.model": Path("out/a, b")})
    "ranker.rewards=[{type: reward_model, model: 'out/a, b'}]"
    """
    key, _, text = override.partition("=")
    marks = {f"place-{number}-": name for number, name in enumerate(places)}
    for mark, name in marks.items():
        text = text.replace(f"{{{name}}}", mark)
    if not any(mark in text for mark in marks):
        return override
    value = _restored(yaml.safe_load(text), {mark: str(places[name]) for mark, name in marks.items()})
    written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=float("inf"))
    return f"{key}={written.removesuffix(chr(10)).removesuffix('...').strip()}"


def _restored(data: Any, texts: Mapping[str, str]) -> Any:
    """``data`` with each key of ``texts`` replaced in every string, the longest first: one may begin as another."""
    if isinstance(data, Mapping):
        return {key: _restored(value, texts) for key, value in data.items()}
    if isinstance(data, list):
        return [_restored(value, texts) for value in data]
    if isinstance(data, str):
        for old in sorted(texts, key=len, reverse=True):
            data = data.replace(old, texts[old])
    return data


def _places(text: str) -> list[re.Match[str]]:
    return [match for match in PLACE.finditer(text) if match[1] not in TEMPLATES]


def _check_names(recipe: PipelineRecipe, path: Path, where: Mapping[Where, int]) -> None:
    """Stages are told apart, and use what earlier ones made."""
    for key, sentence in _wrong_names(recipe):
        line = next((where[key[:end]] for end in range(len(key), 0, -1) if key[:end] in where), None)
        place = f"{path}:{line}" if line else str(path)
        raise UserError(f"{place}: {'.'.join(map(str, key))}: {sentence}")


def _wrong_names(recipe: PipelineRecipe) -> Iterator[tuple[Where, str]]:
    ids = [stage.id for stage in recipe.stages]
    for place, stage in enumerate(recipe.stages):
        if stage.id in ids[:place]:
            yield ("stages", place, "id"), f"two stages are called '{stage.id}'; give each an id of its own."
        if stage.id in TAKEN:
            yield ("stages", place, "id"), f"'{stage.id}' means something else already; choose another id."
    for place, stage in enumerate(recipe.stages):
        for number, override in enumerate(stage.overrides):
            for match in _places(override):
                if sentence := _wrong_place(match, ids, place):
                    yield ("stages", place, "overrides", number), sentence


def _wrong_place(match: re.Match[str], ids: Sequence[str], place: int) -> str | None:
    name, part = match[1], match[2]
    if name not in ids:
        return f"'{match[0]}' names no stage. {nearest(name, ids[:place]) if place else 'No stage is before this one.'}"
    if ids.index(name) >= place:
        what = "is this stage itself" if ids[place] == name else "comes later"
        return f"'{match[0]}' {what}; a stage can use what earlier ones made."
    if part not in (None, "model"):
        return f"'{match[0]}': there is {{{name}}}, the run folder, and {{{name}.model}}, the model's folder."
    return None
