"""The frame of the pages on reward models: a sentence, some facts, then sections of plots, tables and pairs to read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from raftdiff.llm.data.preferences import Comparison
from raftdiff.reports.page import template, write_html
from raftdiff.reports.words import figure


class Plot(NamedTuple):
    heading: str
    svg: str
    caption: str = ""


class Section(NamedTuple):
    """A part of a page: what it shows, then plots, a table, or pairs to read."""

    id: str
    title: str
    text: str
    plots: Sequence[Plot] = ()
    head: Sequence[str] = ()
    """Of the table."""
    rows: Sequence[Sequence[str]] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    note: str = ""

    @property
    def empty(self) -> bool:
        return not (self.plots or self.rows or self.examples)


def write_page(
    path: Path, *, title: str, headline: str, remarks: Sequence[str], facts: str, sections: Sequence[Section]
) -> Path:
    """Write the page to ``path`` and return it; empty sections and plots are left out.

    Raises:
        UserError: the file cannot be written.
    """
    shown = [
        section._replace(plots=[plot._replace(svg=Markup(plot.svg)) for plot in section.plots if plot.svg])
        for section in sections
    ]
    page = template("raftdiff.llm.reward_runs", "page.html.jinja").render(
        title=title,
        headline=headline,
        remarks=remarks,
        facts=facts,
        sections=[section for section in shown if not section.empty],
    )
    return write_html(path, page)


def to_read(
    heading: str, pairs: Sequence[Comparison], places: Sequence[int], rewards: Sequence[tuple[float, float]] = ()
) -> Mapping[str, Any]:
    """Some pairs as the page shows them; ``rewards`` of all pairs, of the chosen and of the rejected answer."""
    shown = []
    for place in places:
        pair, scores = pairs[place], rewards[place] if len(rewards) else (None, None)
        chosen, rejected = ("" if score is None else figure(float(score)) for score in scores)
        shown.append(
            {
                "prompt": asked_text(pair),
                "chosen": pair.chosen,
                "rejected": pair.rejected,
                "chosen_reward": chosen,
                "rejected_reward": rejected,
            }
        )
    return {"heading": heading, "pairs": shown}


def asked_text(pair: Comparison) -> str:
    """The prompt with what was said before it, the last two turns of it."""
    turns = [f"{turn['role']}: {turn['content']}" for turn in pair.prompt.meta.get("history", [])[-2:]]
    return "\n".join([*turns, pair.prompt.caption])


def span(ends: Sequence[float]) -> str:
    """An interval of shares in words."""
    return f"95% interval {ends[0]:.0%} to {ends[1]:.0%}"


def tenth(one: Mapping[str, Any]) -> str:
    """A tenth's range of strength, on two lines."""
    return f"{one['from']:.2f}\n{one['to']:.2f}".replace("-", "−")
