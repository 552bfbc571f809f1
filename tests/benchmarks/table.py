"""Train a recipe over several seeds and arms, evaluate each in and out of domain, and print one Markdown table.

    python tests/benchmarks/table.py demo --seeds 0 1 2 --out runs/table
    python tests/benchmarks/table.py demo --seeds 0 1 2 --arm coupled prompts.decouple=false \
        --arm random ranker.selector.type=random

A run that is finished is not trained again, so the script continues where it was stopped.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from raftdiff.records.provenance import provenance
from raftdiff.reports.tables import aggregate, markdown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arm", action="append", nargs="+", default=[], metavar="NAME [key=value ...]")
    parser.add_argument("--prompts", action="append", default=[], metavar="NAME=FILE", help="further prompt files")
    parser.add_argument("--out", type=Path, default=Path("runs/table"))
    given = parser.parse_args()
    sets = {"in_domain": ["--prompts", "training"], "held_out": []}
    for named in given.prompts:
        name, _, file = named.partition("=")
        sets[name] = ["--prompts", file]
    report: dict[str, Any] = {"provenance": provenance(), "recipe": given.recipe, "arms": {}}
    for arm, *overrides in given.arm or [["recipe"]]:
        columns: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
        seconds = []
        for seed in given.seeds:
            run = given.out / f"{given.recipe}-{arm}-{seed}"
            began = time.monotonic()
            raftdiff("train", given.recipe, *overrides, f"loop.seed={seed}", "logging.tracker=null", "--out", run)
            seconds.append(time.monotonic() - began)
            for name, words in sets.items():
                result = run / "eval" / name / "eval.json"
                if not result.is_file():
                    raftdiff("eval", run, *words, "--name", name)
                columns[name].append(json.loads(result.read_text()))
        across = {name: aggregate(evaluations) for name, evaluations in columns.items()}
        report["arms"][arm] = {
            "overrides": overrides,
            "training_seconds": seconds,
            "table": {name: [row._asdict() for row in rows] for name, rows in across.items()},
        }
        print(f"\n### {given.recipe}: {arm}, seeds {given.seeds}, mean ± half of the 95% t-interval\n")
        print(markdown(across), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    arms = "-".join(report["arms"])
    (given.out / f"{given.recipe}-{arms}.json").write_text(json.dumps(report, indent=2, default=str) + "\n")


def raftdiff(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "raftdiff", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
