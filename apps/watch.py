"""``raftdiff watch``: a run while it goes on, from its files alone."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raftdiff.apps import page
from raftdiff.errors import UserError
from raftdiff.recipes.prompts import PromptsConfig
from raftdiff.recipes.prompts import build as build_prompts
from raftdiff.records.media import prompt_of
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run
from raftdiff.records.watching import Metrics, Snapshot, snapshot, steadily
from raftdiff.reports.curve import curve_svg
from raftdiff.reports.goodhart import SIGNS_HEAD, signs, signs_note
from raftdiff.reports.tables import REWARDS_HEAD, rewards_table
from raftdiff.reports.words import said

SECONDS = 2.0
"""Between two looks at the files."""
SHELVES = 12
"""Prompts of a round shown at once."""
STILLS = 12
"""Places of a strip through the rounds at most."""


def build(run: Run) -> Any:
    """The page."""
    gr = page.gradio()

    with page.blocks("raftdiff watch") as blocks:
        gr.Markdown(f"# Watching {run.path.resolve().name}")
        state = gr.HTML(elem_id="state")
        gr.Markdown("## Candidates: selected and rejected")
        with gr.Row():
            number = gr.Slider(0, 1, 0, step=1, label="Round", elem_id="round", interactive=True)
            which = gr.Dropdown([1], value=1, label="Prompts", elem_id="which", interactive=True)
        mistake = page.mistake()
        shelves = gr.HTML(elem_id="candidates")
        gr.Markdown("## One held-out prompt through the rounds, from the same seed")
        prompt = gr.Dropdown([], label="Prompt", elem_id="picture")
        strip = gr.HTML(elem_id="strip")
        # not gr.State: each window of a browser would keep one of its six connections to this host open for it
        seen = gr.Textbox(visible="hidden", elem_id="seen")

        def look(before: Any, shown: Any) -> Any:
            try:
                now = snapshot(run)
            except UserError as error:  # said once, in its place: an alert would come back every two seconds
                return [page.view("gone", sentence=str(error)), *[gr.skip()] * 2, ""]
            mark = fingerprint(now)
            if mark == before:
                return [gr.skip()] * 4
            done, drawn = len(now.metrics), held_out(run)
            return [
                overview(now),
                gr.Slider(maximum=max(1, done - (now.making is None)), interactive=True),
                gr.Dropdown(
                    [(words, name) for name, words in drawn.items()],
                    value=shown if page.words(shown) in drawn else next(iter(drawn), None),
                ),
                mark,
            ]

        def show(shown: Any, part: Any) -> Any:
            at, part = int(page.number(shown, "Round")), int(page.number(part or 1, "Prompts", 1))
            prompts = _prompts(run, at)
            parts = parts_of(len(prompts))
            part = part if part <= len(parts) else 1
            chosen = prompts[(part - 1) * SHELVES :][:SHELVES]
            choices = [(words, place) for place, words in enumerate(parts, 1)]
            return [candidates(run, at, chosen), gr.Dropdown(choices, value=part)]

        looked = page.told(look, outputs=4, clears=False)
        outputs = [state, number, prompt, seen, mistake]
        blocks.load(looked, [seen, prompt], outputs, **page.ASKED)
        gr.Timer(SECONDS).tick(looked, [seen, prompt], outputs, trigger_mode="once", **page.ASKED)
        for event in (blocks.load, number.change, which.input, seen.change):
            event(page.told(show, outputs=2), [number, which], [shelves, which, mistake], **page.ASKED)
        for event in (prompt.change, seen.change):
            event(
                page.told(lambda name: through(run, page.words(name) or None)), prompt, [strip, mistake], **page.ASKED
            )
    return blocks


def overview(now: Snapshot) -> str:
    """Where the run stands, what to worry about, the curves, what each round cost, what the guard looks at, and which
    reward decided."""
    return page.view(
        "state",
        snapshot=now,
        curve=Markup(curve_svg(now.metrics)),
        spent=[_spent(it) for it in now.metrics],
        decided=rewards_table(now.metrics[-1]) if now.metrics else None,
        rewards_head=REWARDS_HEAD,
        signs=signs(now.metrics),
        signs_head=SIGNS_HEAD,
        signs_note=signs_note(now.metrics),
    )


def parts_of(prompts: int) -> list[str]:
    """A round's prompts, so many at once.

    >>> parts_of(30)
    ['1 to 12 of 30', '13 to 24 of 30', '25 to 30 of 30']
    """
    starts = range(0, max(1, prompts), SHELVES)
    return [f"{start + 1} to {min(prompts, start + SHELVES)} of {prompts}" for start in starts]


def candidates(run: Run, round: int, prompts: Collection[str]) -> str:
    """What was drawn for these prompts in a round: the selected first, then from the best score down."""
    shelves = steadily(lambda: _shelves(_folder(run, round), prompts))
    return page.view("candidates", round=round, shelves=shelves)


def through(run: Run, name: str | None) -> str:
    """One held-out picture or answer from the base model through the rounds, at even distances where they are many."""
    if name is None:
        why = "This run draws nothing for held-out prompts; set evaluation.every_round to 1 or more in the recipe."
        return page.view("strip", stills=[], said=why)
    done = run.rounds_done()
    places = (
        {round(place * done / min(done, STILLS - 1)) for place in range(min(done, STILLS - 1) + 1)} if done else {0}
    )
    caption = held_out(run).get(name, name)
    stills = [_still(run, name, rounds, caption) for rounds in sorted(places)]
    return page.view("strip", stills=[it for it in stills if it], said=f"{caption}: this one is not there.")


def _still(run: Run, name: str, rounds: int, caption: str) -> dict[str, Any] | None:
    """After so many rounds of fine-tuning; None where nothing was kept."""
    folder = run.round(0).held_out("held_out_base") if rounds == 0 else run.round(rounds - 1).held_out()
    media = folder.get(name)
    words = "before any fine-tuning" if rounds == 0 else f"after round {rounds - 1}"
    return None if media is None else {**_shown(media), "alt": f"{caption}, {words}", "said": words}


def held_out(run: Run) -> dict[str, str]:
    """Names of the held-out pictures or answers that every round draws, and what each was asked for."""
    if not run.rounds_done():
        return {}
    names = run.round(0).held_out()
    if any(isinstance(media, str) for media in names.values()):
        return {name: name for name in names}  # answers are kept under their prompts
    asked = run.recipe().get("evaluation", {}).get("prompts", {}).get("captions")
    captions = {prompt.id: prompt.caption for prompt in build_prompts(PromptsConfig(captions=asked))} if asked else {}
    words = {name: captions.get(prompt_of(name), name.removesuffix(".png")) for name in names}
    several = Counter(words.values())
    return {name: f"{it}, seed {_place(name)}" if several[it] > 1 else it for name, it in words.items()}


def _place(name: str) -> str:
    """Which of several to one prompt.

    >>> _place("a-cat-003.png")
    '3'
    """
    return str(int(name.removesuffix(".png").rpartition("-")[2]))


def fingerprint(now: Snapshot) -> str:
    """Changes when there is something new to show."""
    making = now.making and (*now.making[:3], int(now.making.idle // 60))
    return f"{len(now.metrics)} {making}"


def _folder(run: Run, round: int) -> RoundFolder:
    return run.round(round) if round < run.rounds_done() else run.unfinished(round)


def _prompts(run: Run, round: int) -> list[str]:
    """Ids of the prompts that a round has scored candidates of."""
    rows = steadily(lambda: _folder(run, round).rows())
    return list(dict.fromkeys(row["prompt_id"] for row in rows if "total" in row))


def _shelves(folder: RoundFolder, prompts: Collection[str]) -> list[dict[str, Any]]:
    rows = [row for row in folder.rows() if "total" in row and row["prompt_id"] in prompts]
    groups = [list(held) for _, held in groupby(rows, key=lambda row: row["prompt_id"])]
    return [{"caption": held[0]["caption"], "held": _ranked(folder, held)} for held in groups]


def _ranked(folder: RoundFolder, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    best_first = sorted(rows, key=lambda row: (not row.get("selected"), -_number(row["total"])))
    return [
        {
            **_shown(row["text"] if "text" in row else folder.path / "samples" / row["file_name"]),
            "alt": f"{row['caption']}, {'selected' if row.get('selected') else 'rejected'}: {said(_scores(row))}",
            "kept": bool(row.get("selected")),
            "score": row["total"],
        }
        for row in best_first
    ]


def _shown(media: Path | str) -> dict[str, str]:
    """A picture inside the page, or an answer."""
    return (page.Shown("", media) if isinstance(media, str) else page.picture(media))._asdict()


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("reward_"): value for name, value in row.items() if name.startswith("reward_")}


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


def _spent(metrics: Metrics) -> dict[str, Any]:
    diversity = metrics.get("diversity_all") or {}
    return {
        "round": metrics["round"],
        "first": metrics.get("first_sample_mean"),
        "mean": metrics.get("mean"),
        "selected": metrics.get("selected_mean"),
        "held_out": metrics.get("held_out"),
        "diversity": diversity.get("pairwise_distance", diversity.get("distinct_2")),
        "evaluations": sum(metrics.get("network_evaluations", {}).values()),
        "seconds": float(sum(metrics.get("seconds", {}).values())),
    }
