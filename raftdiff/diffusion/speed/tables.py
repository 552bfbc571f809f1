"""What ``raftdiff bench`` found, as tables, as JSON and as a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raftdiff.diffusion.probe import Counts, Probe
from raftdiff.diffusion.speed.repeats import Figure
from raftdiff.diffusion.speed.ways import (
    AS_IT_IS,
    BATCH,
    DECODING,
    OTHERWISE,
    OUTSIDE,
    PARTS,
    PEAK,
    ROUNDS,
    SAMPLING,
    TUNING,
)
from raftdiff.records.disk import write_text
from raftdiff.reports.plots import Bar, bars
from raftdiff.reports.words import duration

GAIN = 1.05
"""As many times as fast another way to hold the network has to be."""


def named(found: Sequence[Figure], table: str, name: str) -> Figure | None:
    return next((it for it in found if (it.table, it.name) == (table, name)), None)


def shares(found: Sequence[Figure], asked: Mapping[str, float]) -> dict[str, float]:
    """Of sampling and of tuning, the share of the large product's speed; nothing of what was not measured.

    ``asked``: operations of an evaluation and of a picture tuned on.
    """
    peak = next((it for it in found if it.table == PEAK), None)
    parts = {name: named(found, PARTS, name) for name in asked}
    return {} if peak is None else {name: it.rate * asked[name] / peak.rate for name, it in parts.items() if it}


def probed(found: Sequence[Figure], *, trained: int, parameters: int, memory: int) -> Probe | None:
    """What a plan needs to know; None where some of it was not measured."""
    speeds = [named(found, PARTS, name) for name in (SAMPLING, DECODING, TUNING)]
    if any(it is None for it in speeds):
        return None
    evaluation, decoding, tuning = (1 / it.rate for it in speeds if it)
    return Probe(evaluation, decoding, tuning, trained, parameters, memory)


def tables(found: Sequence[Figure], asked: Mapping[str, float], counts: Counts) -> str:
    """Markdown: medians, and the least and the greatest of the repeats."""
    part = shares(found, asked)
    blocks = []
    peak = next((it for it in found if it.table == PEAK), None)
    if peak:
        low, high = (rate / 1e9 for rate in peak.spread)
        blocks.append(f"peak, by a large matrix product: {peak.rate / 1e9:,.0f} Gflop/s ({low:,.0f} to {high:,.0f})")
    if rows := [_row(it, part.get(it.name)) for it in found if it.table == PARTS]:
        blocks.append("\n".join(["| part | a second | from | to | of the peak |", "|---|--:|--:|--:|--:|", *rows]))
    own = named(found, PARTS, SAMPLING)
    if rows := [_row(it) for it in found if it.table == BATCH]:
        blocks.append("\n".join(["| pictures at once | a second | from | to |", "|---|--:|--:|--:|", *rows]))
    as_it_is = named(found, OTHERWISE, AS_IT_IS)
    if as_it_is and (ways := [it for it in found if it.table == OTHERWISE and it is not as_it_is]):
        top = "| the network held | a second | from | to | of the first |\n|---|--:|--:|--:|--:|"
        blocks.append("\n".join([top, *(_row(it, it.rate / as_it_is.rate) for it in (as_it_is, *ways))]))
        best = faster(found) or f"nothing, by at least {GAIN - 1:.0%} and in every repeat"
        blocks.append(f"faster here: {best}")
    rounds = [it for it in found if it.table == ROUNDS]
    if rounds:
        stages = [name for name in rounds[0].parts if name != OUTSIDE]
        head = ["a small round", "seconds", *stages, "outside the networks"]
        lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
        for it in rounds:
            whole = it.amount / it.rate
            cells = [f"{whole:.2f}", *(f"{it.parts.get(name, 0.0):.2f}" for name in stages)]
            outside = f"{it.parts[OUTSIDE] / whole:.1%}" if OUTSIDE in it.parts else ""
            lines.append("| " + " | ".join([it.name, *cells, outside]) + " |")
        blocks.append("\n".join(lines))
    if own and (probe := probed(found, trained=0, parameters=0, memory=0)):
        drawing = counts.sampling_evaluations * probe.seconds_per_evaluation
        decoding, tuning = counts.images * probe.seconds_per_decode, counts.tuning_rows * probe.seconds_per_tuned_row
        told = f"sampling {duration(drawing)}, decoding {duration(decoding)}, tuning {duration(tuning)}"
        blocks.append(f"a round of the recipe, by these: {told}, without rewards")
    return "\n\n".join(blocks)


def written(
    folder: Path, found: Sequence[Figure], asked: Mapping[str, float], counts: Counts, facts: Mapping[str, Any]
) -> str:
    """Write ``bench.json``, ``bench.svg`` and ``table.md``; returns the tables."""
    folder.mkdir(parents=True, exist_ok=True)
    text = tables(found, asked, counts)
    rows = [{**asdict(it), "rate": it.rate, "spread": it.spread} for it in found]
    said = {"figures": rows, "operations": dict(asked), "share_of_peak": shares(found, asked)}
    write_text(folder / "bench.json", json.dumps({**said, "per_round": asdict(counts), **facts}, indent=2) + "\n")
    write_text(folder / "table.md", text + "\n")
    if drawn := plot(found, facts["batch_size"]):
        write_text(folder / "bench.svg", drawn + "\n")
    return text


def plot(found: Sequence[Figure], batch: int) -> str:
    """Sampling by pictures at once; ``batch`` is the recipe's own. Empty where none was measured."""
    own = named(found, PARTS, SAMPLING)
    sampled = {int(it.name): it for it in found if it.table == BATCH} | ({batch: own} if own else {})
    held = [Bar(f"{count}", it.rate, *it.spread) for count, it in sorted(sampled.items())]
    return bars(held, x="pictures at once", y="network evaluations a second, with spread")


def faster(found: Sequence[Figure]) -> str:
    """How the network had better be held, and how many times as fast that draws, where every repeat of it was faster
    than every one of the network as it is; empty where nothing is, or of what there are no repeats."""
    own = named(found, OTHERWISE, AS_IT_IS)
    ways = [it for it in found if it.table == OTHERWISE and it is not own]
    if own is None or len(own.seconds) < 2:
        return ""
    sure = [it for it in ways if len(it.seconds) > 1 and it.spread[0] > own.spread[1] and it.rate >= GAIN * own.rate]
    if not sure:
        return ""
    best = max(sure, key=lambda it: it.rate)
    change = "as bfloat16 rounds" if "dtype" in best.name else "in the last digits"
    return f"{best.name}, {best.rate / own.rate:.2f} times (pictures change {change})"


def _row(it: Figure, share: float | None = None) -> str:
    low, high = it.spread
    name = it.name if it.table in (BATCH, OTHERWISE) else f"{it.name}, {it.unit}"
    last = [] if it.table == BATCH else ["" if share is None else f"{share:.0%}"]
    return "| " + " | ".join([name, f"{it.rate:,.1f}", f"{low:,.1f}", f"{high:,.1f}", *last]) + " |"
