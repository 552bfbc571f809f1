"""Run one step of ``run.sh``; print a JSON line for each of its figures, append it to ``figures.jsonl`` in the folder
of results, and print everything else to the error stream.

    python tests/gpu/step.py speed --small

A step is the module of its name beside this file. Its ``figures(given)`` yields dicts: ``name``, ``value`` and
``unit``, or ``name`` and ``failed``, a sentence. The exit status is 1 if any failed.
"""

import argparse
import contextlib
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

STARTED = time.time()
"""The seconds of a step count from here: what takes long is imported later."""
PARTS = ("vae", "judge", "clip", "unet")
FILES, FILE_BYTES = 8, 16 * 2**20
"""What the folder of results may hold: so many files, each of at most so many bytes."""


def options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("step", choices=["check", "speed", "large", "train", "flow", "methods"])
    parser.add_argument("--small", action="store_true", help="everything cut down to seconds on a CPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="where files go (default: %(default)s)")
    parser.add_argument("--pack", type=Path, default=Path(".gpu"), help="what pack.sh made (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=360.0, help="the step is killed then (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="train, flow: pictures a step")
    parser.add_argument("--rate", type=float, help="train, flow: peak learning rate")
    parser.add_argument(
        "--fresh", action="store_true", help="train, flow: from scratch, not from the weights that are there"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="train: which learn (default: all)")
    parser.add_argument(
        "--measure", action="store_true", help="train, flow: measure the weights in the folder of results"
    )
    parser.add_argument("--methods", nargs="+", help="methods: which (default: all)")
    parser.add_argument("--jobs", type=int, default=10, help="methods: runs at once (default: %(default)s)")
    given = parser.parse_args(argv)
    given.deadline = STARTED + given.seconds
    return given


def too_much(out: Path) -> str | None:
    """A sentence where ``out`` holds more files, or larger ones, than can be carried home."""
    files = sorted(path for path in out.rglob("*") if path.is_file())
    large = [path.name for path in files if path.stat().st_size > FILE_BYTES]
    if large:
        return f"{', '.join(large)}: larger than {FILE_BYTES // 2**20} MiB."
    return f"{out} holds {len(files)} files, more than {FILES}." if len(files) > FILES else None


def main() -> int:
    given = options()
    given.out.mkdir(parents=True, exist_ok=True)
    lines, failed = sys.stdout, False

    def tell(figure: dict[str, Any]) -> None:
        line = json.dumps({"step": given.step, **figure, "device": device}) + "\n"
        try:
            with (given.out / "figures.jsonl").open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            sys.exit(f"{given.out / 'figures.jsonl'}: cannot be written: {error.strerror}.")
        lines.write(line)
        lines.flush()

    with contextlib.redirect_stdout(sys.stderr):
        from raftdiff.errors import UserError
        from raftdiff.records.provenance import hardware

        device = hardware()
        try:
            for figure in import_module(given.step).figures(given):
                failed |= "failed" in figure
                tell(figure)
        except UserError as error:
            failed = True
            tell({"name": given.step, "failed": str(error)})
        if sentence := too_much(given.out):
            failed = True
            tell({"name": "files", "failed": sentence})
    print(f"{given.step}: {time.time() - given.deadline + given.seconds:.0f} s", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
