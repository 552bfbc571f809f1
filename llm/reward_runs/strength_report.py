"""How strong preferences are, as one page that opens without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raftdiff.llm.reward_models.strength import strength
from raftdiff.llm.reward_runs.ensemble import Measured
from raftdiff.llm.reward_runs.page import Plot, Section, tenth, to_read, write_page
from raftdiff.reports import plots
from raftdiff.reports.plots import Bar

SHOWN = 4
"""Pairs to read at either end."""
TENTHS = "tenths of the pairs, by strength mu: from, to"


def write_strength(path: Path, title: str, found: Measured, told: Mapping[str, Any]) -> Path:
    """Write the page of ``found`` to ``path`` and return it; ``told`` is ``ensemble.figures`` of it."""
    mu, sigma = strength(found.differences)
    order = np.argsort(mu, kind="stable").tolist()
    sections = [
        Section(
            "strength",
            "How strong the preferences are",
            "The reward of the chosen less that of the rejected answer, in logits. Below 0 the models would have "
            "chosen the other one.",
            plots=[
                Plot("Mean over the models", plots.histogram({"mu": mu}, x="strength mu", zero="no preference")),
                Plot("Spread over the models", plots.histogram({"sigma": sigma}, x="sigma, standard deviation")),
            ],
        ),
        Section(
            "tenths",
            "From the weakest to the strongest tenth",
            "What a tenth of the pairs is worth: its labels may be kept, smoothed, or turned round.",
            plots=_tenths(told),
        ),
        Section(
            "read",
            "Worth reading",
            "Of all labels, those of the weakest pairs are the likeliest to be wrong.",
            examples=[
                to_read("The weakest", found.pairs, order[:SHOWN]),
                to_read("The strongest", found.pairs, order[::-1][:SHOWN]),
            ],
        ),
    ]
    doubted = told["mu"]["below_0"]
    return write_page(
        path,
        title=title,
        headline=f"The models would have chosen the other answer in {doubted:.0%} of {told['pairs']} pairs.",
        remarks=[],
        facts=f"{told['models']} models, trained on the same pairs in other orders and asked of these same pairs.",
        sections=sections,
    )


def _tenths(told: Mapping[str, Any]) -> list[Plot]:
    tenths = told["deciles"]
    agree = [Bar(tenth(one), one["agreement"]) for one in tenths]
    right = [Bar(tenth(one), one["truth"]) for one in tenths if "truth" in one]
    found = [
        Plot(
            "Models that agree with the label",
            plots.bars(agree, x=TENTHS, y="share of the models", level=0.5, top=1.0),
            "The dashed line is chance.",
        )
    ]
    if right:
        auc = "" if told["auc"] is None else f" A low mu tells a wrong label with an AUC of {told['auc']:.2f}, where "
        found.append(
            Plot(
                "Labels that are right",
                plots.bars(right, x=TENTHS, y="share of the pairs", level=0.5, top=1.0),
                f"As the data's column 'truth' knows.{auc}{'0.5 is chance and 1 finds every one.' if auc else ''}",
            )
        )
    return found
