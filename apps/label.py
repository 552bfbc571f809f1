"""``raftdiff label``: which of two pictures or answers is better, asked blind; a choice is on the disk before the next
pair."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from raftdiff.apps import page
from raftdiff.chat.dialogue import messages
from raftdiff.errors import UserError
from raftdiff.records.entries import Entry, changed, found
from raftdiff.records.labels import Ballot, Pair, Side, tally, unanswered
from raftdiff.records.run import Run

Decision: TypeAlias = Callable[[Ballot, Pair], None]
Deed: TypeAlias = Callable[[Ballot, str], None]
"""What an event does, given also which pair was on the page."""
BUTTONS: Mapping[Side, str] = {"left": "← Left", "tie": "↓ A tie", "right": "Right →"}
VETOES: tuple[Literal["left", "right"], ...] = ("left", "right")
VETO = "A veto: never learn from it."
KEYS = "Keys: ← left, → right, ↓ a tie, u undo; 1 and 2 veto the left or the right one."
NARROW = 80
"""Pixels that a button needs at least: three stand side by side on a phone, under the pictures that they name."""


def build(run: Run, pairs: Sequence[Pair], *, rater: str) -> Any:
    """The page.

    Raises:
        UserError: there is no pair to ask about.
    """
    gr = page.gradio()

    if not pairs:
        raise UserError(
            f"{run.path}: there is no pair to compare: no prompt of this round has two different candidates. With "
            "loop.candidates=1 there are none; take another round with --round, or before against after with --eval."
        )
    deciding = threading.Lock()
    with page.blocks("raftdiff label") as blocks:
        gr.Markdown("# Which is better?")
        asked = gr.HTML(elem_id="asked")
        seen = gr.Textbox(visible="hidden", elem_id="seen")  # which pair is on the page, so that none is decided unseen
        with gr.Row():
            buttons = {
                side: gr.Button(text, variant="primary", elem_id=f"key-{side}", min_width=NARROW)
                for side, text in BUTTONS.items()
            }
        with gr.Row():
            vetoes = {
                place: gr.Button(f"Veto {place}", elem_id=f"key-veto-{place}", size="md", min_width=NARROW)
                for place in VETOES
            }
            undo = gr.Button("Undo", elem_id="key-undo", size="md", min_width=NARROW)
        mistake = page.mistake()
        gr.Markdown(VETO)
        gr.Markdown(KEYS, elem_id="keys")
        name = gr.Textbox(rater, label="Your name", max_length=64, elem_id="rater")

        def on(event: Any, deed: Deed) -> None:
            def handler(who: Any, at: Any) -> list[str]:
                ballot = Ballot(run, page.words(who))
                with deciding:
                    deed(ballot, page.words(at))
                    return [question(run, pairs, ballot), at_next(pairs, ballot)]

            event(page.told(handler, outputs=2), [name, seen], [asked, seen, mistake], **page.ASKED)

        for event in (blocks.load, name.change):
            on(event, lambda ballot, at: None)
        for side, button in buttons.items():
            on(button.click, decided(pairs, answer(side)))
        for place, button in vetoes.items():
            on(button.click, decided(pairs, veto(place)))
        on(undo.click, lambda ballot, at: undo_last(ballot))
    return blocks


def answer(side: Side) -> Decision:
    return lambda ballot, pair: ballot.choose(pair, side)


def veto(side: Literal["left", "right"]) -> Decision:
    return lambda ballot, pair: ballot.veto(pair.left if side == "left" else pair.right)


def decided(pairs: Sequence[Pair], decision: Decision) -> Deed:
    """The decision on the pair that its rater sees. Another pair, whose picture a second press did not wait for or
    another window has decided on, is left as it is."""

    def pressed(ballot: Ballot, at: str) -> None:
        if at and at == at_next(pairs, ballot):
            decision(ballot, pairs[int(at)])

    return pressed


def at_next(pairs: Sequence[Pair], ballot: Ballot) -> str:
    """The place of the pair that is asked about next; nothing where all are answered."""
    return next((str(pairs.index(pair)) for pair in waiting(pairs, ballot)), "")


def undo_last(ballot: Ballot) -> None:
    """
    Raises:
        UserError: this rater did nothing yet.
    """
    if not ballot.undo():
        raise UserError("There is nothing to undo.")


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
    return asked(run, entries[pair.left], entries[pair.right], at=len(pairs) - len(left), of=len(pairs))


def asked(run: Run, left: Entry, right: Entry, *, at: int, of: int) -> str:
    """Two pictures of a caption, or a conversation and two answers to it."""
    prompt = left.prompt
    if isinstance(left.media, str):
        return page.view("answers", turns=messages(prompt), left=left.media, right=right.media, at=at, of=of)
    pictures = {"left": _picture(run, left), "right": _picture(run, right)}
    return page.view("question", caption=prompt.caption, **pictures, at=at, of=of)


def _picture(run: Run, entry: Entry) -> page.Shown:
    """The picture, or a word where it cannot be shown or is another than the run drew: that choice would teach."""
    shown = page.picture(file := Path(entry.media))
    if shown.uri and changed(run, entry):
        return page.Shown("", f"{file.name}: this picture is not what it was when its round was finished.")
    return shown
