"""emoji-flow on the autoencoder that ships, judged by the judge and ranked by the reward that ship.

It begins from scratch, or goes on from its weights where they lie in the folder of results, unless ``--fresh`` is
given. They lie there whole at any time. Whenever they are renewed a contact sheet of 64 captions is drawn and judged;
at the end, or with ``--measure`` alone, everything is measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.models.quiet import quietly
from raftdiff.embedded import folder
from raftdiff.embedded.scenes.clip import take_apart as take_clip_apart
from raftdiff.embedded.scenes.flow import FILES
from raftdiff.embedded.scenes.judge import SceneJudge
from raftdiff.embedded.scenes.measure import Reward, open_pipeline
from raftdiff.embedded.scenes.networks import TEXT, UNET, finished, take_apart
from raftdiff.embedded.scenes.training.flow import RATE
from raftdiff.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))  # so that it is found by whoever collects this file, too
import train

MODEL = "emoji-flow"
FIRST = FILES["transformer"]


def figures(given: argparse.Namespace) -> train.Figures:
    """What the judge says of the model on the way and at the end; files go to ``given.out``.

    Raises:
        UserError: the art is missing; or there is nothing to measure.
    """
    size = train.begin(given)
    if given.measure and not _whole(given.out):
        raise UserError(f"{given.out} lacks weights of {MODEL} to measure: run the step without --measure first.")
    judge = SceneJudge(folder("scene-judge"), train.DEVICE)
    take_apart(folder("scene-sd"), given.out)
    for name in (UNET, TEXT):
        (given.out / name).unlink()
    with quietly():
        if not given.measure:
            yield from learn(given, size, judge)
        yield from conclude(given, size, judge)


def learn(given: argparse.Namespace, size: train.Size, judge: SceneJudge) -> train.Figures:
    """Train in a process of its own, and look whenever it has written its weights."""
    again = _whole(given.out) and not given.fresh
    if not again:
        for name in FILES.values():
            (given.out / name).unlink(missing_ok=True)
    until = given.deadline - size.unet_until
    rate = given.rate or (train.RATE_AGAIN if again else RATE)
    options = [*size.unet, f"--rate={rate}", *(["--resume"] if again else [])]
    options += [f"--batch={given.batch}"] if given.batch else []
    options += ["--reading=2"] if given.small else []
    folders = [f"--cache={given.pack}", f"--out={given.out}", f"--device={train.DEVICE}"]
    command = [sys.executable, "-m", f"{train.CODE}.flow", *folders, f"--until={until}", "--attached", *options]
    with (given.out / train.LOG).open("a") as log:
        seen, threads = _written(given.out), {"OMP_NUM_THREADS": "1" if given.small else "4"}
        process: Any = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads)
        try:
            while (code := process.poll()) is None and time.time() < until + 9:
                time.sleep(0.5)
                if (written := _written(given.out)) > seen and written < until - 15 and _whole(given.out):
                    seen = written
                    try:
                        pipeline = open_pipeline(given.out, train.DEVICE, torch.float32, MODEL)
                        yield from train.look(given, size, pipeline, judge)
                    except Exception as error:  # a look that fails must not end the training
                        yield {"name": "look", "value": f"{type(error).__name__}: {error}"[:300], "unit": "note"}
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code is None or code:
        why = "was not done in time" if code is None else f"ended with {code}"
        yield {"name": f"training of {MODEL}", "failed": f"it {why}; see {train.LOG}."}


def conclude(given: argparse.Namespace, size: train.Size, judge: SceneJudge) -> train.Figures:
    """Everything measured, for as long as there is time."""
    for name in FILES.values():
        if not finished(given.out / name):
            yield {"name": name, "failed": f"{name} was not finished in time; see {train.LOG}."}
    if not _whole(given.out):
        return
    pipeline = open_pipeline(given.out, train.DEVICE, torch.float32, MODEL)
    train.draw_sheet(given, size, pipeline)
    with tempfile.TemporaryDirectory() as scratch:
        take_clip_apart(folder("scene-clip"), Path(scratch))
        reward = Reward(Path(scratch), train.DEVICE)
    yield from train.measure(given, size, pipeline, judge, reward)


def _whole(out: Path) -> bool:
    return all((out / name).is_file() for name in FILES.values())


def _written(out: Path) -> float:
    return (out / FIRST).stat().st_mtime if (out / FIRST).is_file() else 0.0
