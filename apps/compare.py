"""``raftdiff compare``: any two checkpoints side by side, from the same prompts and seeds."""

import math
import random
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from raftdiff.apps import page
from raftdiff.apps.desk import Desk, Job
from raftdiff.diffusion.before_after.comparison import Drawn
from raftdiff.diffusion.before_after.sidebyside import LONGEST_PROMPT, Settings, SideBySide, export
from raftdiff.errors import UserError
from raftdiff.records.entries import of_evaluation
from raftdiff.records.run import Run
from raftdiff.reports.words import said
from raftdiff.types import Report

LARGEST_SEED = 2**31 - 1
SECONDS = 1.0
"""Between two looks at how a drawing stands."""
EVALUATED = 8
"""Pairs of the evaluation that the page opens with."""
WAYS = ["One picture with a seam to drag", "Both pictures whole"]
INTRODUCTION = (
    "Two models draw the same prompts from the same seeds, so that whatever differs is the models' doing. Choose a "
    "model for each side and press Draw."
)
STEPS, GUIDANCE, EACH = (1, 100), (1.0, 15.0), (1, 16)
"""From and to."""


def build(beside: SideBySide) -> Any:
    """The page."""
    gr = page.gradio()

    desk = Desk()
    known, models, defaults = beside.captions(), list(beside.checkpoints()), beside.settings
    with page.blocks("raftdiff compare") as blocks:
        gr.Markdown(f"# Before and after\n{INTRODUCTION}\n\n{', '.join(str(run.path.name) for run in beside.runs)}")
        with gr.Row():
            asked = gr.Textbox(
                known[0],
                label="Prompts, one a line",
                lines=2,
                max_lines=8,
                max_length=64 * LONGEST_PROMPT,
                elem_id="prompts",
                scale=3,
                min_width=280,
            )
            picked = gr.Dropdown(
                known, value=None, label="or take one of the run's", elem_id="known", scale=2, min_width=280
            )
        _what_it_knows(beside.world)
        with gr.Row():
            left = gr.Dropdown(models, value=models[0], label="Left", elem_id="left")
            right = gr.Dropdown(models, value=beside.latest(), label="Right", elem_id="right")
        with gr.Accordion("Seeds, steps, guidance, size", open=False):
            count = gr.Slider(*EACH, defaults.per_prompt, step=1, label="Pictures a prompt", elem_id="count")
            shared = _settings(defaults, "")
            locked = gr.Checkbox(True, label="Both sides share these", elem_id="lock")
            with gr.Group(visible=False) as other:
                gr.Markdown("The right side's own:")
                apart = _settings(defaults, "right-")
            fresh = gr.Button("Another seed", elem_id="fresh")
        with gr.Row():
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            cancel = gr.Button("Cancel", elem_id="cancel", visible=False)
        standing = gr.HTML(elem_id="standing")
        mistake = page.mistake()
        way = gr.Radio(WAYS, value=WAYS[0], show_label=False, container=False, elem_id="way")
        shown = gr.HTML(elem_id="shown", min_height=120)
        save = gr.DownloadButton("Save these pictures", elem_id="save", visible=False)
        timer = gr.Timer(SECONDS, active=False)

        picked.input(page.words, picked, asked, **page.ASKED)
        locked.change(
            lambda on, *values: [gr.Group(visible=not on), *map(_kept, values)],
            [locked, *shared],
            [other, *apart],
            **page.ASKED,
        )
        fresh.click(lambda: [random.randint(0, LARGEST_SEED)] * 2, None, [shared[0], apart[0]], **page.ASKED)
        way.change(
            None, way, None, js=f"way => {{ document.querySelector('#shown').dataset.way = {WAYS!r}.indexOf(way) }}"
        )
        opened = partial(_opened, beside)
        blocks.load(page.told(opened, outputs=3, clears=False), None, [left, right, shown, mistake], **page.ASKED)

        def press(visitor: str, text: str, *values: Any) -> list[Any]:
            (one, two, same, count), sides = values[:4], values[4:]
            both = sides[: len(shared)], sides[: len(shared)] if same else sides[len(shared) :]
            settings = (_read(count, both[0]), _read(count, both[1]))
            said = [page.words(value) for value in (text, one, two)]
            desk.ask(visitor, lambda job: compare(beside, said[0], (said[1], said[2]), settings, job))
            return _going(page.view("standing", now=desk.look(visitor), ticket=visitor), on=True)

        buttons = [standing, timer, draw, cancel]
        draw.click(
            page.visited(page.told(press, outputs=len(buttons))),
            [asked, left, right, locked, count, *shared, *apart],
            [*buttons, mistake],
            **page.ASKED,
        )
        timer.tick(page.visited(partial(look, desk)), None, [*buttons, shown, save], trigger_mode="once", **page.ASKED)
        cancel.click(page.visited(partial(stop, desk)), None, buttons, **page.ASKED)

        def leave(ticket: str) -> None:
            """For a window that closes: its ticket is its visitor."""
            desk.leave(str(ticket))

        gr.api(leave, api_name="leave", queue=False, api_visibility="undocumented")
    return blocks


def _opened(beside: SideBySide) -> list[Any]:
    """What a window shows first: the models that there are by now, for either side, and the evaluation's pictures."""
    models = page.gradio().Dropdown(list(beside.checkpoints()))
    return [models, models, evaluated(beside.runs[0])]


def look(desk: Desk, visitor: str) -> list[Any]:
    """How a visitor's drawing stands: the line under the buttons, what can be pressed, the pictures, the file."""
    gr = page.gradio()
    try:
        now = desk.look(visitor)
    except UserError as error:
        return [*_going(page.view("gone", sentence=str(error)), on=False), gr.skip(), gr.skip()]
    if now.result is None:
        return [page.view("standing", now=now, ticket=visitor), *[gr.skip()] * 5]
    view, pictures = now.result
    file = gr.DownloadButton(value=packed(pictures, page.scratch()), visible=True)
    return [*_going("", on=False), view, file]


def stop(desk: Desk, visitor: str) -> list[Any]:
    """Give up a visitor's drawing."""
    desk.leave(visitor)
    return _going(page.view("note", said="Cancelled."), on=False)


def _going(words: str, *, on: bool) -> list[Any]:
    """The line under the buttons, and what can be pressed."""
    gr = page.gradio()
    return [words, gr.Timer(active=on), gr.Button(interactive=not on), gr.Button(visible=on)]


def evaluated(run: Run) -> str:
    """Pictures that the run's evaluation left, or where the page begins without one."""
    try:
        pairs = of_evaluation(run, "eval")
    except UserError:
        return page.view("note", said="Press Draw, and both models draw these prompts from the same seeds.")
    shown = pairs[:: max(1, -(-len(pairs) // EVALUATED))]
    both = [(page.picture(Path(one.media)), page.picture(Path(two.media)), one.prompt.caption) for one, two in shown]
    return page.view("evaluated", both=both, of=len(pairs))


def compare(
    beside: SideBySide, text: str, names: tuple[str, str], settings: tuple[Settings, Settings], job: Job
) -> tuple[str, dict[str, list[Drawn]]]:
    """Draw both sides; returns the view, and the pictures by side.

    Raises:
        UserError: a model that is not there, or anything that cannot be drawn.
    """
    models = beside.checkpoints()
    captions = text.splitlines()
    sides = []
    for place, (name, chosen) in enumerate(zip(names, settings, strict=True)):
        if name not in models:
            raise UserError(f"'{name}' is not a model of this run any more; reload the page.")
        sides.append(beside.draw(models[name], captions, chosen, _report(job, place, name), job.check))
    one, two = sides
    told_of = [beside.notes(models[name].run, captions, chosen) for name, chosen in zip(names, settings, strict=True)]
    notes = list(dict.fromkeys(note for side in told_of for note in side))
    told = {"notes": notes, "means": means(one, two), "exact": (exact(one), exact(two)), "pairs": len(one)}
    view = page.view("comparison", cards=cards(one, two, names), left=names[0], right=names[1], **told)
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


def means(left: Sequence[Drawn], right: Sequence[Drawn]) -> list[dict[str, Any]]:
    """What each reward says of both sides on the average over pairs that it discards nothing of, and the judge's ✓."""
    rows = []
    for name in left[0].scores:
        pairs = [(one.scores[name], two.scores[name]) for one, two in zip(left, right, strict=True)]
        valid = [pair for pair in pairs if not any(map(math.isnan, pair))]
        if valid:
            one, two = (sum(side) / len(valid) for side in zip(*valid, strict=True))
            rows.append({"name": name, "left": one, "right": two, "of": len(valid)})
    return rows


def exact(drawn: Sequence[Drawn]) -> int | None:
    """How many pictures the judge finds right in everything; None where it does not know the prompts."""
    return sum(it.verdicts["exact"] for it in drawn) if all("exact" in it.verdicts for it in drawn) else None


def _told(it: Drawn, name: str) -> dict[str, Any]:
    marks = {key: value for key, value in it.verdicts.items() if key == "exact"}
    words = f"{it.sample.prompt.caption}, {name}: {said({**it.scores, **marks})}"
    mark = "✓" if it.verdicts.get("exact") else ""
    return {"uri": page.uri(it.sample.media), "alt": words, "scores": dict(it.scores), "mark": mark}


def _what_it_knows(world: str | None) -> None:
    gr = page.gradio()

    if world:
        with gr.Accordion("What this model can draw", open=False):
            gr.Markdown(world)


def _settings(defaults: Settings, prefix: str) -> list[Any]:
    """The fields of one side, in the order of ``_read``."""
    gr = page.gradio()

    with gr.Row():
        seed = gr.Number(defaults.seed, label="Seed", precision=0, elem_id=f"{prefix}seed")
        steps = gr.Slider(*STEPS, defaults.steps, step=1, label="Steps", elem_id=f"{prefix}steps")
    with gr.Row():
        guidance = gr.Slider(
            *GUIDANCE, defaults.guidance, step=0.5, label="Guidance (CFG)", elem_id=f"{prefix}guidance"
        )
        width, height = (
            gr.Number(value or 0, label=f"{name} (0: the model's own)", precision=0, elem_id=f"{prefix}{name.lower()}")
            for name, value in (("Width", defaults.width), ("Height", defaults.height))
        )
    return [seed, steps, guidance, width, height]


def _read(count: Any, values: Sequence[Any]) -> Settings:
    """
    Raises:
        UserError: a field was emptied, or holds what it cannot.
    """
    seed, steps, guidance, width, height = values
    return Settings(
        seed=int(page.number(seed, "Seed", 0, LARGEST_SEED)),
        per_prompt=int(page.number(count, "Pictures a prompt", *EACH)),
        steps=int(page.number(steps, "Steps", *STEPS)),
        guidance=float(page.number(guidance, "Guidance", *GUIDANCE)),
        width=int(page.number(width, "Width")) or None,
        height=int(page.number(height, "Height")) or None,
    )


def _kept(value: Any) -> Any:
    """A number for the other side's field, which stays as it is where there is none."""
    try:
        return page.number(value, "")
    except UserError:
        return page.gradio().skip()


def _report(job: Job, place: int, name: str) -> Report:
    def report(done: int, total: int) -> None:
        job.report(place * total + done, 2 * total, name)

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
