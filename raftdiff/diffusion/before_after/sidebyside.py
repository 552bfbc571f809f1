"""Any checkpoints of one or two runs, side by side: the same prompts and seeds, drawn and scored."""

import contextlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, final

from raftdiff.diffusion.assembly import Assembly, assemble
from raftdiff.diffusion.before_after.comparison import Drawn, judged
from raftdiff.diffusion.recipe import Recipe, looking_of
from raftdiff.diffusion.recipe_files import recipe_of
from raftdiff.embedded.worlds import about
from raftdiff.errors import UserError, command
from raftdiff.measures.evaluation import draw
from raftdiff.recipes.prompts import PromptsConfig, build, read_named
from raftdiff.records.disk import read_json_lines, together, write_text
from raftdiff.records.media import file_name
from raftdiff.records.run import Run
from raftdiff.types import Prompt, Report, silent

DIFFUSERS = ("UNet2DConditionModel", "AutoencoderKL", "DPMSolverMultistepScheduler", "DDIMScheduler")
LONGEST_PROMPT = 1000
"""Characters."""
MOST_PICTURES = 256
"""On one side, in one go."""
MOST_STEPS = 1000
"""That a noise schedule has."""
MOST_GUIDANCE = 100
LARGEST = 4
"""Times as wide or high as the pictures that the model was made for."""


class Checkpoint(NamedTuple):
    """A model as a run left it."""

    run: int
    """Which of the runs side by side."""
    round: int | None
    """After this round; None for the base model."""


@final
@dataclass(frozen=True, slots=True)
class Settings:
    """What both sides share, so that nothing but the weights differs."""

    seed: int
    per_prompt: int
    steps: int
    guidance: float
    height: int | None = None
    """Pixels; None takes what the recipe says."""
    width: int | None = None
    negative: str = ""


@final
class SideBySide:
    """Models of one or two runs, each loaded when it is first asked for and kept; one drawing at a time.

    A picture depends on prompt, seed and place alone, as in ``raftdiff eval``: with the evaluation's own seed and
    prompts the pictures are the evaluation's.
    """

    def __init__(
        self, runs: Sequence[Run], *, device: str | None = None, file: str | None = None, most: float = MOST_PICTURES
    ) -> None:
        """
        Args:
            file: prompts to try, beside those of the runs.
            most: pictures on one side, in one go.

        Raises:
            UserError: no run is there, or none of its rounds is finished; the file cannot be read.
        """
        self.runs = [Run.open(run.path) for run in runs]
        for run in self.runs:
            if not run.rounds_done():
                raise UserError(f"{run.path}: no round is finished yet; run: {command('train', run.path)}")
        self._device, self._most = device, most
        found = [] if file is None else read_named(file, Path(), "--prompts")
        self.file: Sequence[Mapping[str, Any]] = [{"caption": row} if isinstance(row, str) else row for row in found]
        """What the file asks for."""
        self._assemblies: dict[int, Assembly] = {}
        self._loaded: dict[int, int | None] = {}
        self._one_at_a_time = threading.Lock()

    @staticmethod
    def warm() -> None:
        """Import what drawing needs, which takes longer than loading a small model: before anybody waits for it."""
        import diffusers
        import open_clip  # noqa: F401
        import peft  # noqa: F401
        import transformers

        for library, names in ((diffusers, DIFFUSERS), (transformers, ("CLIPTextModel", "CLIPTokenizer"))):
            for name in names:
                getattr(library, name)  # both import their modules when they are first asked for

    @cached_property
    def recipes(self) -> list[Recipe]:
        return [recipe_of(run) for run in self.runs]

    @property
    def settings(self) -> Settings:
        """Those of the first run's evaluation."""
        recipe = self.recipes[0]
        sampler, evaluation = looking_of(recipe), recipe.evaluation
        return Settings(
            seed=evaluation.seed,
            per_prompt=evaluation.samples_per_prompt,
            steps=evaluation.steps or sampler.steps,
            guidance=sampler.guidance,
            height=sampler.height,
            width=sampler.width,
        )

    def checkpoints(self) -> dict[str, Checkpoint]:
        """Every model there is, by a name for people, read anew from the disk: base first, then round after round."""
        names = [run.path.resolve().name for run in self.runs]
        found = {}
        for number, run in enumerate(self.runs):
            twin = f" ({number + 1})" if names.count(names[number]) > 1 else ""
            tail = f" of {names[number]}{twin}" if len(names) > 1 else ""
            found[f"base{tail}"] = Checkpoint(number, None)
            found |= {f"round {t}{tail}": Checkpoint(number, t) for t in range(run.rounds_done())}
        return found

    def latest(self) -> str:
        """The name of the last run's tuned model: after its last round, or the one that the guard went back to."""
        last = len(self.runs) - 1
        meant = Checkpoint(last, self.runs[last].origin(self.runs[last].rounds_done()))
        return next(name for name, checkpoint in self.checkpoints().items() if checkpoint == meant)

    def captions(self) -> list[str]:
        """Prompts to try: the file's, then the held-out ones of the first run, then those it was trained on."""
        return list(self._known)

    @cached_property
    def _known(self) -> dict[str, Mapping[str, Any]]:
        """The same by caption, with the ids that their seeds come from, and what else rewards read of them."""
        recipe = self.recipes[0]
        theirs = recipe.evaluation.prompts
        held_out = build(theirs, "evaluation.prompts") if theirs.captions else []
        own = [{**it.meta, "id": it.id, "caption": it.caption} for it in (*held_out, *build(recipe.prompts))]
        known: dict[str, Mapping[str, Any]] = {}
        for row in (*self.file, *own):
            known.setdefault(row["caption"].strip(), row)
        return known

    @property
    def world(self) -> str | None:
        """What the first run's model knows, in a few sentences, where it is a small one that ships."""
        return about(self.recipes[0].model.base)

    def draw(
        self,
        checkpoint: Checkpoint,
        captions: Sequence[str],
        settings: Settings,
        report: Report = silent,
        check: Callable[[], None] = lambda: None,
    ) -> list[Drawn]:
        """Pictures of these captions, prompt by prompt. ``check`` is called before each step, and ends the drawing by
        raising what it likes.

        Raises:
            UserError: nothing to draw, too much of it, a run that is gone, or a size that the model cannot draw.
        """
        prompts = self._asked(captions, settings)
        with self._one_at_a_time:
            assembly = self._assembly(checkpoint)
            _check_size(settings, assembly)
            config = looking_of(assembly.recipe).model_copy(
                update={
                    "steps": settings.steps,
                    "guidance": settings.guidance,
                    "height": settings.height,
                    "width": settings.width,
                }
            )
            sampler = config.build(assembly.model)
            with self._weights(assembly, checkpoint), _checked(assembly.model.denoiser, check):
                samples = draw(sampler, prompts, per_prompt=settings.per_prompt, seed=settings.seed, report=report)
            return judged(assembly, samples)

    def notes(self, run: int, captions: Sequence[str], settings: Settings) -> list[str]:
        """What of these captions a run's model or rewards do not read, or not as other programs read it.

        Raises:
            UserError: as ``draw``.
        """
        with self._one_at_a_time:
            prompts = self._asked(captions, settings)  # first, before a model is loaded
            return self._assembly(Checkpoint(run, None)).notes("these prompts", prompts)

    def _asked(self, captions: Sequence[str], settings: Settings) -> list[Prompt]:
        wanted = list(dict.fromkeys(caption.strip() for caption in captions if caption.strip()))
        if not wanted:
            raise UserError("There is no prompt; type one, for example: a cartoon of a cat on a red background.")
        if long := [caption for caption in wanted if len(caption) > LONGEST_PROMPT and caption not in self._known]:
            raise UserError(f"This prompt has {len(long[0])} characters; {LONGEST_PROMPT} are the most.")
        if (count := len(wanted) * settings.per_prompt) > self._most:
            raise UserError(f"These are {count} pictures a side; {self._most} are the most at once. Ask for fewer.")
        bounds = {"per_prompt": (1, MOST_PICTURES), "steps": (1, MOST_STEPS), "guidance": (0, MOST_GUIDANCE)}
        for name, (least, most) in bounds.items():
            if not least <= (given := getattr(settings, name)) <= most:  # so that NaN is none either
                raise UserError(f"{name}: {given} is no number from {least} to {most}.")
        rows, taken = [], set[str]()
        for caption in wanted:
            row = self._known.get(caption, {"caption": caption})
            name = str(row.get("id") or "").lower()
            rows.append({key: value for key, value in row.items() if key != "id" or name not in taken})
            taken.add(name)
        return build(PromptsConfig(captions=list(rows), negative=settings.negative))

    def _assembly(self, checkpoint: Checkpoint) -> Assembly:
        run = Run.open(self.runs[checkpoint.run].path)  # says so where the folder is gone by now
        if checkpoint.run not in self._assemblies:
            recipe = self.recipes[checkpoint.run]
            if self._device is not None:
                recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": self._device})})
            self._assemblies[checkpoint.run] = assemble(recipe, training=False)
        if checkpoint.round is not None and self._loaded.get(checkpoint.run) != checkpoint.round:
            self._assemblies[checkpoint.run].finetuner.load_state_dict(run.round(checkpoint.round).state())
            self._loaded[checkpoint.run] = checkpoint.round
        return self._assemblies[checkpoint.run]

    @staticmethod
    def _weights(assembly: Assembly, checkpoint: Checkpoint) -> AbstractContextManager[None]:
        return nullcontext() if checkpoint.round is not None else assembly.finetuner.base_weights()


@contextmanager
def _checked(network: Any, check: Callable[[], None]) -> Iterator[None]:
    """Within, ``check`` is called before the network computes."""
    hook = network.register_forward_pre_hook(lambda *_: check())
    try:
        yield
    finally:
        hook.remove()


def export(folder: Path, sides: Mapping[str, Sequence[Drawn]]) -> Path:
    """The pictures of each side in a folder of their own, and ``metadata.jsonl``: file, caption, side, seed, scores.

    What was drawn into the folder before stays, with its lines.
    """
    rows = {row["file_name"]: row for row in read_json_lines(folder / "metadata.jsonl")}
    with contextlib.ExitStack() as whole:
        asides = {side: whole.enter_context(together(folder / side)) for side in sides}
        for side, it in ((side, it) for side, drawn in sides.items() for it in drawn):
            name = file_name(it.sample)
            it.sample.media.save(asides[side] / name)
            told = {"file_name": f"{side}/{name}", "caption": it.sample.prompt.caption, "side": side}
            scores = {f"reward_{name}": None if math.isnan(value) else value for name, value in it.scores.items()}
            verdicts = {f"judge_{aspect}": right for aspect, right in it.verdicts.items()}
            rows[told["file_name"]] = told | {"seed": it.sample.seed} | scores | verdicts
        write_text(folder / "metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values()))
    return folder


def _check_size(settings: Settings, assembly: Assembly) -> None:
    sampler = looking_of(assembly.recipe)
    made_for = assembly.model.size
    sides = made_for if isinstance(made_for, tuple) else (made_for,)
    own = max(side or 0 for side in (*sides, sampler.width, sampler.height))
    for side in (settings.width, settings.height):
        if side is not None and own and not 0 < side <= LARGEST * own:
            raise UserError(
                f"A picture of {side} pixels a side is too large: this model draws {own}, and "
                f"{LARGEST * own} are the most."
            )
