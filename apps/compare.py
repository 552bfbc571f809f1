"""``raftdiff compare``: any two checkpoints side by side, from the same prompts and seeds."""

import atexit
import random
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from raftdiff.apps import page
from raftdiff.diffusion.bench import LONGEST_PROMPT, Bench, Settings, export
from raftdiff.diffusion.comparison import Drawn
from raftdiff.errors import UserError
from raftdiff.reports.words import said
from raftdiff.types import Report

LARGEST_SEED = 2**31 - 1
Number: TypeAlias = float | int | None
"""What Gradio hands over for a field of numbers; None where it was emptied."""


def build(bench: Bench) -> Any:
    """The page."""
    import gradio as gr

    bar = gr.Progress()
    scratch = Path(tempfile.mkdtemp(prefix="raftdiff-"))  # as long as the process: its page
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    known, models, defaults = bench.captions(), list(bench.checkpoints()), bench.settings
    with page.blocks("raftdiff compare") as blocks:
        gr.Markdown(f"# Before and after\n{', '.join(str(run.path.name) for run in bench.runs)}")
        with gr.Row():
            asked = gr.Textbox(
                known[0],
                label="Prompts, one a line",
                lines=2,
                max_lines=8,
                max_length=64 * LONGEST_PROMPT,
                elem_id="prompts",
                scale=3,
            )
            picked = gr.Dropdown(known, value=None, label="or take one of the run's", elem_id="known", scale=2)
        with gr.Row():
            left = gr.Dropdown(models, value=models[0], label="Left", elem_id="left")
            right = gr.Dropdown(models, value=models[-1], label="Right", elem_id="right")
        with gr.Accordion("Seeds, steps, guidance, size", open=False):
            count = gr.Slider(1, 16, defaults.per_prompt, step=1, label="Pictures a prompt", elem_id="count")
            shared = _settings(defaults, "")
            locked = gr.Checkbox(True, label="Both sides share these", elem_id="lock")
            with gr.Group(visible=False) as other:
                gr.Markdown("The right side's own:")
                apart = _settings(defaults, "right-")
            fresh = gr.Button("Another seed", elem_id="fresh")
        draw = gr.Button("Draw", variant="primary", elem_id="draw")
        shown = gr.HTML(elem_id="shown", min_height=120)
        save = gr.DownloadButton("Save these pictures", elem_id="save", visible=False)

        picked.input(lambda caption: caption, picked, asked, **page.QUIETLY)
        locked.change(lambda on: gr.Group(visible=not on), locked, other, **page.QUIETLY)
        fresh.click(
            lambda: [random.randint(0, LARGEST_SEED)] * 2,
            None,
            [shared[0], apart[0]],
            **page.QUIETLY,
        )
        blocks.load(
            page.told(lambda: [gr.Dropdown(list(bench.checkpoints()))] * 2),
            None,
            [left, right],
            **page.QUIETLY,
        )

        def press(
            text: str, one: str, two: str, same: bool, count: Number, *values: Number, progress: Any = bar
        ) -> Any:
            own = values[: len(shared)] if same else values[len(shared) :]
            settings = (_read(count, values[: len(shared)]), _read(count, own))
            view, pictures = compare(bench, text, (one, two), settings, progress)
            return view, gr.DownloadButton(value=packed(pictures, scratch), visible=True)

        draw.click(
            page.told(press),
            [asked, left, right, locked, count, *shared, *apart],
            [shown, save],
            concurrency_id="bench",
            concurrency_limit=1,
            **page.PRIVATE,
        )
    return blocks


def compare(
    bench: Bench, text: str, names: tuple[str, str], settings: tuple[Settings, Settings], progress: Callable[..., Any]
) -> tuple[str, dict[str, list[Drawn]]]:
    """Draw both sides; returns the view, and the pictures by side.

    Raises:
        UserError: a model that is not there, or anything that the bench refuses.
    """
    models = bench.checkpoints()
    captions = text.splitlines()
    sides = []
    for place, (name, chosen) in enumerate(zip(names, settings, strict=True)):
        if name not in models:
            raise UserError(f"'{name}' is not a model of this run any more; reload the page.")
        sides.append(bench.draw(models[name], captions, chosen, _report(progress, place, name)))
    one, two = sides
    view = page.view("comparison", cards=cards(one, two, names), left=names[0], right=names[1])
    return view, {"left": one, "right": two}


def cards(left: Sequence[Drawn], right: Sequence[Drawn], names: tuple[str, str]) -> list[dict[str, Any]]:
    """One card a prompt, one pair a picture."""
    both = zip(left, right, strict=True)
    return [
        {
            "caption": caption,
            "pairs": [
                {
                    "seed": one.sample.seed,
                    "width": one.sample.media.width,
                    "height": one.sample.media.height,
                    "left": _told(one, names[0]),
                    "right": _told(two, names[1]),
                }
                for one, two in pairs
            ],
        }
        for caption, pairs in groupby(both, key=lambda pair: pair[0].sample.prompt.caption)
    ]


def _told(it: Drawn, name: str) -> dict[str, Any]:
    marks = {key: value for key, value in it.verdicts.items() if key == "exact"}
    words = f"{it.sample.prompt.caption}, {name}: {said({**it.scores, **marks})}"
    mark = "✓" if it.verdicts.get("exact") else ""
    return {"uri": page.uri(it.sample.media), "alt": words, "scores": dict(it.scores), "mark": mark}


def _settings(defaults: Settings, prefix: str) -> list[Any]:
    """The fields of one side, in the order of ``_read``."""
    import gradio as gr

    with gr.Row():
        seed = gr.Number(defaults.seed, label="Seed", precision=0, minimum=0, elem_id=f"{prefix}seed")
        steps = gr.Slider(1, 100, defaults.steps, step=1, label="Steps", elem_id=f"{prefix}steps")
    with gr.Row():
        guidance = gr.Slider(1, 15, defaults.guidance, step=0.5, label="Guidance (CFG)", elem_id=f"{prefix}guidance")
        width = gr.Number(defaults.width or 0, label="Width, 0 for the model's own", precision=0, minimum=0)
        height = gr.Number(defaults.height or 0, label="Height, likewise", precision=0, minimum=0)
    return [seed, steps, guidance, width, height]


def _read(count: Number, values: Sequence[Number]) -> Settings:
    """
    Raises:
        UserError: a field was emptied.
    """
    if count is None or any(value is None for value in values):
        raise UserError("A setting is empty; give it a number.")
    seed, steps, guidance, width, height = (float(value or 0) for value in values)
    return Settings(
        seed=int(seed),
        per_prompt=int(count),
        steps=int(steps),
        guidance=guidance,
        width=int(width) or None,
        height=int(height) or None,
    )


def _report(progress: Callable[..., Any], place: int, name: str) -> Report:
    def report(done: int, total: int) -> None:
        progress((place * total + done, 2 * total), desc=name, unit="pictures")

    return report


def packed(drawn: dict[str, list[Drawn]], folder: Path) -> str:
    """All pictures of a drawing with their scores, as one zip file."""
    place = Path(tempfile.mkdtemp(dir=folder))
    export(place / "pictures", drawn)
    whole = place / "raftdiff-comparison.zip"
    with zipfile.ZipFile(whole, "w") as archive:
        for path in sorted((place / "pictures").rglob("*.*")):
            archive.write(path, path.relative_to(place / "pictures"))
    shutil.rmtree(place / "pictures")
    return str(whole)
