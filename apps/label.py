"""``raftdiff label``: which of two pictures or answers is better, asked blind; a choice is on the disk before the next
pair."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from raftdiff.apps import page
from raftdiff.chat.dialogue import messages
from raftdiff.errors import UserError
from raftdiff.records.entries import Entry, found
from raftdiff.records.labels import Ballot, Pair, Side, tally, unanswered
from raftdiff.records.run import Run

Deed = Callable[[Ballot, Pair], None]
BUTTONS: Mapping[Side, str] = {"left": "← Left", "tie": "↓ A tie", "right": "Right →"}
VETOES: tuple[Literal["left", "right"], ...] = ("left", "right")
KEYS = "Keys: ← left, → right, ↓ a tie, u undo; 1 and 2 veto the left or the right one."


def build(run: Run, pairs: Sequence[Pair], *, rater: str) -> Any:
    """The page.

    Raises:
        UserError: there is no pair to ask about.
    """
    gr = page.gradio()

    if not pairs:
        raise UserError(f"{run.path}: there is no pair to compare; a round needs two different candidates of a prompt.")
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
                place: gr.Button(f"Veto {place}: never learn from it", elem_id=f"key-veto-{place}", size="sm")
                for place in VETOES
            }
            undo = gr.Button("Undo", elem_id="key-undo", size="sm")
        gr.Markdown(KEYS)

        show = page.told(lambda who: question(run, pairs, Ballot(run, who)))
        for event in (blocks.load, name.change):
            event(show, name, asked, **page.BRIEFLY)
        for side, button in buttons.items():
            button.click(page.told(handler(run, pairs, answer(side))), name, asked, **page.BRIEFLY)
        for place, button in vetoes.items():
            button.click(page.told(handler(run, pairs, veto(place))), name, asked, **page.BRIEFLY)
        undo.click(page.told(lambda who: undone(run, pairs, Ballot(run, who))), name, asked, **page.BRIEFLY)
    return blocks


def answer(side: Side) -> Deed:
    return lambda ballot, pair: ballot.choose(pair, side)


def veto(side: Literal["left", "right"]) -> Deed:
    return lambda ballot, pair: ballot.veto(pair.left if side == "left" else pair.right)


def handler(run: Run, pairs: Sequence[Pair], deed: Deed) -> Callable[[str], str]:
    """What a button does: the deed on the pair that its rater sees, and then the next pair."""

    def pressed(who: str) -> str:
        ballot = Ballot(run, who)
        for pair in waiting(pairs, ballot)[:1]:
            deed(ballot, pair)
        return question(run, pairs, ballot)

    return pressed


def undone(run: Run, pairs: Sequence[Pair], ballot: Ballot) -> str:
    """
    Raises:
        UserError: this rater did nothing yet.
    """
    if not ballot.undo():
        raise UserError("There is nothing to undo.")
    return question(run, pairs, ballot)


def waiting(pairs: Sequence[Pair], ballot: Ballot) -> list[Pair]:
    """The pairs that this rater has still to answer; those with one that they vetoed are passed over."""
    vetoed = ballot.vetoes()
    return [pair for pair in unanswered(pairs, ballot.choices()) if not pair.names & vetoed]


def question(run: Run, pairs: Sequence[Pair], ballot: Ballot) -> str:
    """The pair to decide on, or thanks and the tally.

    Raises:
        UserError: the run no longer has what the pair names.
    """
    left = waiting(pairs, ballot)
    if not left:
        return page.view("finished", of=len(pairs), lines=tally(run, [ballot]).lines)
    pair = left[0]
    entries = found(run, pair.names)
    if pair.names - entries.keys():
        raise UserError("What this page asks about is gone: was the evaluation made again? Start raftdiff label anew.")
    return asked(entries[pair.left], entries[pair.right], at=len(pairs) - len(left), of=len(pairs))


def asked(left: Entry, right: Entry, *, at: int, of: int) -> str:
    """Two pictures of a caption, or a conversation and two answers to it."""
    prompt = left.prompt
    if isinstance(left.media, str):
        return page.view("answers", turns=messages(prompt), left=left.media, right=right.media, at=at, of=of)
    pictures = {"left": page.picture(left.media), "right": page.picture(Path(right.media))}
    return page.view("question", caption=prompt.caption, **pictures, at=at, of=of)
