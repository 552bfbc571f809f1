"""``raftdiff watch``: a run while it goes on, from its files alone."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup

from raftdiff.apps import page
from raftdiff.errors import UserError
from raftdiff.records.rounds import RoundFolder
from raftdiff.records.run import Run
from raftdiff.records.watching import Metrics, Snapshot, snapshot, steadily
from raftdiff.reports.curve import curve_svg
from raftdiff.reports.words import said

SECONDS = 2.0
"""Between two looks at the files."""
SHELVES = 12
"""Prompts shown of a round."""


def build(run: Run) -> Any:
    """The page."""
    import gradio as gr

    with page.blocks("raftdiff watch") as blocks:
        gr.Markdown(f"# {run.path.resolve().name}")
        state = gr.HTML(elem_id="state")
        gr.Markdown("## Candidates: selected and rejected")
        number = gr.Slider(1, 2, 1, step=1, label="Round", elem_id="round", interactive=True)
        shelves = gr.HTML(elem_id="candidates")
        gr.Markdown("## One held-out prompt through the rounds, from the same seed")
        with gr.Row():
            prompt = gr.Dropdown([], label="Which", elem_id="picture")
            after = gr.Slider(0, 1, 0, step=1, label="Rounds of fine-tuning", elem_id="after", interactive=True)
        picture = gr.HTML(elem_id="still")
        seen = gr.State("")

        def look(before: str, shown: str | None) -> Any:
            try:
                now = snapshot(run)
            except UserError as error:  # said once, in its place: an alert would come back every two seconds
                return [page.view("gone", sentence=str(error)), *[gr.skip()] * 3, ""]
            mark = fingerprint(now)
            if mark == before:
                return [gr.skip()] * 5
            done, drawn = len(now.metrics), held_out(run)
            return [
                overview(now),
                gr.Slider(maximum=max(2, done + (now.making is not None)), interactive=True),
                gr.Slider(maximum=max(1, done), interactive=True),
                gr.Dropdown(drawn, value=shown if shown in drawn else next(iter(drawn), None)),
                mark,
            ]

        outputs = [state, number, after, prompt, seen]
        blocks.load(page.told(look), [seen, prompt], outputs, **page.QUIETLY)
        gr.Timer(SECONDS).tick(page.told(look), [seen, prompt], outputs, **page.QUIETLY)
        show = page.told(lambda shown: candidates(run, int(shown) - 1))
        still = page.told(lambda name, rounds: scrubbed(run, name, int(rounds)))
        for event in (blocks.load, number.change, seen.change):
            event(show, number, shelves, **page.QUIETLY)
        for event in (prompt.change, after.change, seen.change):
            event(still, [prompt, after], picture, **page.QUIETLY)
    return blocks


def overview(now: Snapshot) -> str:
    """Where the run stands, what to worry about, the curves, and what each round cost."""
    return page.view(
        "state", snapshot=now, curve=Markup(curve_svg(now.metrics)), spent=[_spent(it) for it in now.metrics]
    )


def candidates(run: Run, round: int) -> str:
    """What was drawn in a round, prompt by prompt: the selected first, then from the best score down."""
    shelves = steadily(lambda: _shelves(_folder(run, round)))
    return page.view("candidates", round=round + 1, shelves=shelves)


def scrubbed(run: Run, name: str | None, rounds: int) -> str:
    """One held-out picture or answer after so many rounds; 0 is the base model."""
    if name is None:
        why = "This run draws nothing for held-out prompts; set evaluation.every_round to 1 or more in the recipe."
        return page.view("still", it=None, said=why)
    folder = run.round(0).held_out("held_out_base") if rounds == 0 else run.round(rounds - 1).held_out()
    media = folder.get(name)
    words = f"{name.removesuffix('.png')}, {'before any fine-tuning' if rounds == 0 else f'after round {rounds}'}"
    if media is None:
        return page.view("still", it=None, said=f"{words}: this one is not there.")
    return page.view("still", it={**_shown(media), "alt": words}, said=words)


def held_out(run: Run) -> list[str]:
    """Names of the held-out pictures or answers that every round draws."""
    return list(run.round(0).held_out()) if run.rounds_done() else []


def fingerprint(now: Snapshot) -> str:
    """Changes when there is something new to show."""
    making = now.making and (*now.making[:3], int(now.making.idle // 60))
    return f"{len(now.metrics)} {making}"


def _folder(run: Run, round: int) -> RoundFolder:
    return run.round(round) if round < run.rounds_done() else run.unfinished(round)


def _shelves(folder: RoundFolder) -> list[dict[str, Any]]:
    rows = [row for row in folder.rows() if "total" in row]
    groups = [list(held) for _, held in groupby(rows, key=lambda row: row["prompt_id"])]
    shown = groups[:: max(1, -(-len(groups) // SHELVES))]
    return [{"caption": held[0]["caption"], "held": _ranked(folder, held)} for held in shown]


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
    return {"uri": "", "text": media} if isinstance(media, str) else {"uri": page.uri(media), "text": ""}


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    return {name.removeprefix("reward_"): value for name, value in row.items() if name.startswith("reward_")}


def _number(value: float | None) -> float:
    return float("-inf") if value is None else value


def _spent(metrics: Metrics) -> dict[str, Any]:
    diversity = metrics.get("diversity_all") or {}
    return {
        "round": metrics["round"] + 1,
        "first": metrics.get("first_sample_mean"),
        "mean": metrics.get("mean"),
        "selected": metrics.get("selected_mean"),
        "held_out": metrics.get("held_out"),
        "diversity": diversity.get("pairwise_distance", diversity.get("distinct_2")),
        "evaluations": sum(metrics.get("network_evaluations", {}).values()),
        "seconds": float(sum(metrics.get("seconds", {}).values())),
    }
