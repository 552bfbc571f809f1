"""``raftdiff label``: which of two pictures is better, asked blind; an answer is on the disk before the next pair."""

from collections.abc import Mapping, Sequence
from typing import Any

from raftdiff.apps import page
from raftdiff.errors import UserError
from raftdiff.labels import Ballot, Pair, Side, tally, unanswered
from raftdiff.runs import Run

BUTTONS: Mapping[Side, str] = {"left": "← Left", "tie": "↓ A tie", "right": "Right →"}
KEYS = "Keys: ← left, → right, ↓ a tie, u undo; 1 and 2 veto the left or right picture."


def build(run: Run, pairs: Sequence[Pair], *, rater: str) -> Any:
    """The page.

    Raises:
        UserError: there is no pair to ask about.
    """
    import gradio as gr

    if not pairs:
        raise UserError(f"{run.path}: there is no pair to compare; a round needs two candidates of a prompt.")
    private = {"api_visibility": "private", "show_progress": "hidden"}
    with page.blocks("raftdiff label") as blocks:
        gr.Markdown("# Which is better?")
        name = gr.Textbox(rater, label="Your name", max_length=64, elem_id="rater")
        asked = gr.HTML(elem_id="asked")
        with gr.Row():
            buttons = {
                side: gr.Button(text, variant="primary", elem_id=f"key-{side}") for side, text in BUTTONS.items()
            }
        with gr.Row():
            vetoes = {
                side: gr.Button(f"Veto {side}: never learn from it", elem_id=f"key-veto-{side}", size="sm")
                for side in ("left", "right")
            }
            undo = gr.Button("Undo", elem_id="key-undo", size="sm")
        gr.Markdown(KEYS)

        def show(who: str) -> str:
            return question(run, pairs, Ballot(run, who))

        def answer(side: Side) -> Any:
            def chosen(who: str) -> str:
                ballot = Ballot(run, who)
                if pair := current(pairs, ballot):
                    ballot.choose(pair, side)
                return question(run, pairs, ballot)

            return chosen

        def veto(side: str) -> Any:
            def vetoed(who: str) -> str:
                ballot = Ballot(run, who)
                if pair := current(pairs, ballot):
                    ballot.veto(pair.left if side == "left" else pair.right)
                return question(run, pairs, ballot)

            return vetoed

        def back(who: str) -> str:
            ballot = Ballot(run, who)
            if not ballot.undo():
                raise UserError("There is nothing to undo.")
            return question(run, pairs, ballot)

        blocks.load(page.told(show), name, asked, **private)
        name.change(page.told(show), name, asked, **private)
        for side, button in buttons.items():
            button.click(page.told(answer(side)), name, asked, **private)
        for side, button in vetoes.items():
            button.click(page.told(veto(side)), name, asked, **private)
        undo.click(page.told(back), name, asked, **private)
    return blocks


def current(pairs: Sequence[Pair], ballot: Ballot) -> Pair | None:
    """The next pair that this rater has not answered; pairs with a picture that they vetoed are passed over."""
    vetoed = ballot.vetoes()
    return next((pair for pair in unanswered(pairs, ballot.choices()) if not pair.pictures & vetoed), None)


def question(run: Run, pairs: Sequence[Pair], ballot: Ballot) -> str:
    """The pair to decide on, or thanks and the tally."""
    vetoed = ballot.vetoes()
    open_pairs = [pair for pair in unanswered(pairs, ballot.choices()) if not pair.pictures & vetoed]
    if not open_pairs:
        return page.view("finished", of=len(pairs), lines=tally(run, [ballot]).lines)
    pair = open_pairs[0]
    return page.view(
        "question",
        caption=pair.caption,
        left=page.uri(run.path / pair.left),
        right=page.uri(run.path / pair.right),
        at=len(pairs) - len(open_pairs),
        of=len(pairs),
    )
