"""The GPU tests, counted. Warnings are printed and fail nothing: the packages there are of other versions than here."""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

SPARE = 3.0
"""Seconds in which what came of the tests is still told."""
# the slow ones compile: should the time run out over them, the others have been told
PARTS = {"tests": "gpu and not slow", "slow tests": "gpu and slow"}


def figures(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How many passed, failed and were skipped. A skipped test has shown nothing, so it is a failure, unless all is cut
    down on a machine that has no GPU."""
    for name, marks in ({"tests": "gpu"} if given.small else PARTS).items():
        with tempfile.TemporaryDirectory() as scratch:
            report = Path(scratch) / "report.xml"
            command = [sys.executable, "-m", "pytest", str(Path(__file__).parent), "-m", marks, "-W", "default"]
            command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
            left = max(1.0, given.deadline - time.time() - SPARE)
            try:
                status = subprocess.run(command, stdout=sys.stderr, check=False, timeout=left).returncode
            except subprocess.TimeoutExpired:
                yield {"name": f"GPU {name}", "failed": f"The time was over after {left:.0f} s."}
                continue
            counts = count(report) if report.is_file() else Counter()
        for outcome in ("passed", "failed", "skipped"):
            yield {"name": f"GPU {name} {outcome}", "value": counts[outcome], "unit": "tests"}
        if sentence := verdict(status, counts, small=given.small):
            yield {"name": f"GPU {name}", "failed": sentence}


def count(report: Path) -> Counter[str]:
    """Outcomes in a JUnit report; an error of a fixture is a failure."""
    kinds = {"failure": "failed", "error": "failed", "skipped": "skipped"}
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return Counter(next((kinds[part.tag] for part in case if part.tag in kinds), "passed") for case in cases)


def verdict(status: int, counts: Counter[str], *, small: bool) -> str | None:
    """What is wrong, as a sentence; None where nothing is."""
    if status or counts["failed"]:
        return f"{counts['failed']} tests failed; pytest ended with status {status}."
    if counts["skipped"] and not small:
        return f"{counts['skipped']} tests were skipped, which shows nothing: a CUDA device is needed."
    return None if counts.total() else "No test was found."
