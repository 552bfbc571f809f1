"""scene-sd, its judge and its reward in one go: each part learns in a process of its own on the one GPU.

The decoder, the U-Net, the text encoder and the reward are trained on from the weights that ship; the judge begins from
scratch. With ``--fresh`` all does: the autoencoder comes first; meanwhile the judge and the reward begin, at a fraction
of the device, and the U-Net's process compiles itself; when the autoencoder is finished all take it up. ``--parts``
names those that learn, the others stay as they ship.
The weights lie in the folder of results whole at any time, renewed every so often, so that a killed step loses little.
Whenever the U-Net's are renewed a contact sheet of 64 captions is drawn and judged; at the end everything is measured.
With ``--measure`` nothing is trained, and what lies in the folder of results is measured.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.models.quiet import quietly
from raftdiff.embedded import folder
from raftdiff.embedded.scenes.art import SHEET
from raftdiff.embedded.scenes.clip import WEIGHTS as CLIP
from raftdiff.embedded.scenes.clip import take_apart as take_clip_apart
from raftdiff.embedded.scenes.judge import WEIGHTS, SceneJudge, right_of
from raftdiff.embedded.scenes.measure import Reward, art, contact_sheet, model, open_pipeline, sample, sheet_of
from raftdiff.embedded.scenes.networks import TEXT, UNET, VAE, finished, take_apart
from raftdiff.embedded.scenes.world import draw
from raftdiff.errors import UserError

Figures = Iterator[dict[str, Any]]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CODE = "raftdiff.embedded.scenes.training"
LOG = "log.txt"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; seconds count from the beginning of the step, those of the end back from its limit."""

    vae_until: float = 0.29
    """Share of the whole time; where only the decoder learns, a share of 0.17."""
    unet_until: float = 75.0
    """Seconds before the end."""
    judge_until: float = 0.55
    """Share of the whole time."""
    reader_until: float = 0.22
    """Share of the whole time; the reward awaits the detector that finds its pairs."""
    grace: float = 25.0
    """Seconds that the U-Net may go on compiling when the autoencoder is finished."""
    vae: tuple[str, ...] = ("--batch=96",)
    judge: tuple[str, ...] = ("--batch=256", "--duty=0.4", "--seed=7")
    clip: tuple[str, ...] = ("--batch=512", "--seed=3")
    reader: tuple[str, ...] = ("--batch=256", "--seed=11")
    unet: tuple[str, ...] = ("--batch=512", "--pool=131072", "--scenes=300000", "--save-every=35")
    compiled: bool = True
    prompts: int = 96
    """Captions of a choice that are measured, 8 candidates each."""
    guidance: tuple[float, ...] = (3.0, 1.0, 5.0, 2.0, 7.5)
    seeds: tuple[int, ...] = (0, 1, 2)
    sheet: int = 64
    art: int = 1024
    steps: int = 12
    at_once: int = 1024
    spare: float = 6.0


SMALL = Size(
    vae=("--batch=2", "--most=2"),
    judge=("--batch=4", "--most=2", "--seed=7"),
    clip=("--batch=16", "--most=2", "--seed=3"),
    reader=("--batch=4", "--most=2", "--seed=11"),
    unet=("--batch=4", "--pool=8", "--scenes=40", "--most=2"),
    compiled=False,
    prompts=1,
    guidance=(3.0,),
    seeds=(0,),
    sheet=8,
    art=8,
    steps=1,
    at_once=8,
    grace=200,
)
DECODER_UNTIL = 0.17
RATE_AGAIN = 7e-4
"""Peak learning rate of a part that has learnt already."""
FILES = {"vae": [VAE], "judge": [WEIGHTS], "clip": [CLIP], "unet": [UNET, TEXT]}
"""Of each part."""


def figures(given: argparse.Namespace) -> Figures:
    """What the judge says of the model on the way and at the end; files go to ``given.out``.

    Raises:
        UserError: the art is missing.
    """
    size = begin(given)
    if given.measure:
        yield from conclude(given, size)
        return
    prepare(given)
    with tempfile.TemporaryDirectory() as scratch, (given.out / LOG).open("a") as log, quietly():
        crew = Crew(given, size, Path(scratch), log)
        try:
            yield from follow(given, size, crew)
        finally:
            crew.end()
        yield from crew.failed()
        yield from conclude(given, size)


def begin(given: argparse.Namespace) -> Size:
    """How much of everything.

    Raises:
        UserError: the art is missing.
    """
    if not (given.pack / SHEET).is_file():
        raise UserError(f"{given.pack / SHEET} is missing: run tests/gpu/pack.sh where there is a network.")
    torch.set_float32_matmul_precision("high")
    return SMALL if given.small else Size()


def prepare(given: argparse.Namespace) -> None:
    """The weights that ship, but of what begins from scratch: what an earlier step left must not pass for its."""
    take_apart(folder("scene-sd"), given.out)
    take_clip_apart(folder("scene-clip"), given.out)
    shutil.copy(folder("scene-judge") / WEIGHTS, given.out / WEIGHTS)
    for part in given.parts if given.fresh else {"judge"}.intersection(given.parts):
        for name in FILES[part]:
            (given.out / name).unlink()


class Crew:
    """The processes that learn."""

    def __init__(self, given: argparse.Namespace, size: Size, scratch: Path, log: Any) -> None:
        self._given, self._size, self._log = given, size, log
        self._ready, self._reader = scratch / "ready", scratch / "reader"
        if not given.fresh:  # what it learns from is rebuilt by the autoencoder that ships
            self._reader.mkdir()
            shutil.copy(given.out / VAE, self._reader)
        began = given.deadline - given.seconds
        self.vae_until = began + (size.vae_until if given.fresh else DECODER_UNTIL) * given.seconds
        self.unet_until = given.deadline - size.unet_until
        self._waited: float | None = None
        self._again = False
        self._late: list[str] = []
        self._reader_until = began + size.reader_until * given.seconds
        self._judge_until = began + size.judge_until * given.seconds
        self._members: dict[str, Any] = {}
        for part in given.parts:
            # from scratch the U-Net compiles while it waits for the autoencoder; else it would wait for that alone
            self._start(part, compiled=size.compiled and given.fresh)

    def _start(self, part: str, *, compiled: bool = False, later: float = 0.0) -> None:
        again, fresh = [] if self._given.fresh else ["--resume", f"--rate={RATE_AGAIN}"], self._given.fresh
        if part == "vae":
            until, options = max(later, self.vae_until), [*self._size.vae, *([] if fresh else ["--decoder"])]
        elif part == "judge":
            until, options = self._judge_until, [*self._size.judge]
        elif part == "clip":
            until, options = self.unet_until, [*self._size.clip, *again]
            if not fresh:
                options = [*options, f"--reader={self._reader}"]
                self._begin("judge", self._reader, self._reader_until, self._size.reader, name="reader")
        else:
            rate = [*again, f"--rate={self._given.rate}"] if self._given.rate else again
            batch = [f"--batch={self._given.batch}"] if self._given.batch else []
            how = ["--compile"] if compiled else []
            until, options = self.unet_until, [*self._size.unet, *how, *rate, *batch, f"--ready={self._ready}"]
        self._begin(part, self._given.out, until, options)

    def _begin(self, script: str, out: Path, until: float, options: Sequence[str], *, name: str = "") -> None:
        folders = [f"--cache={self._given.pack}", f"--out={out}", f"--device={DEVICE}"]
        command = [sys.executable, "-m", f"{CODE}.{script}", *folders, f"--until={until}", "--attached", *options]
        threads = "1" if self._given.small else "4"
        self._members[name or script] = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": threads}
        )

    def _over(self, part: str) -> bool:
        return part not in self._members or self._members[part].poll() is not None

    def tend(self) -> str | None:
        """Mend what went wrong; a sentence when something did."""
        done = finished(self._given.out / VAE)
        if self._over("vae") and not done and not self._again:
            self._again, code = True, self._members["vae"].returncode
            self._start("vae", later=time.time() + 60)
            return f"the autoencoder's training ended with {code}; begun again."
        if self._over("vae") and done and not self._ready.exists() and not self._over("unet"):
            self._waited = self._waited or time.time()
            if time.time() - self._waited > self._size.grace:
                self._waited = time.time() + 1e9
                self._members["unet"].kill()
                self._members["unet"].wait()
                self._start("unet")
                return "the U-Net was still compiling when its turn came; begun again without."
        unet = self._members.get("unet")
        if unet and unet.poll() not in (None, 0) and time.time() < self.unet_until - 60 and self._waited != -1:
            self._waited, code = -1, unet.returncode
            self._start("unet")
            return f"the U-Net's training ended with {code}; begun again without compiling."
        return None

    def busy(self) -> bool:
        late = time.time() > self.unet_until + 9
        return not late and not all(self._over(part) for part in ("unet", "judge", "clip"))

    def end(self) -> None:
        """Kill what still runs."""
        for name, process in self._members.items():
            if process.poll() is None:
                self._late.append(name)
                process.kill()
                process.wait()

    def failed(self) -> Figures:
        """A line for each training that ended badly or not in time: its weights are not what was asked for."""
        for name, process in self._members.items():
            if process.returncode:
                why = "was not done in time" if name in self._late else f"ended with {process.returncode}"
                yield {"name": f"training of {name}", "failed": f"it {why}; see {LOG}."}


def follow(given: argparse.Namespace, size: Size, crew: Crew) -> Figures:
    """Until the training is over: a look whenever the U-Net has written its weights."""
    seen = 0.0
    while crew.busy():
        time.sleep(0.5)
        if sentence := crew.tend():
            yield {"name": "training", "value": sentence, "unit": "note"}
        written = _written(given.out / UNET)
        if written > seen and written < crew.unet_until - 15:
            seen = written
            try:
                judge = SceneJudge(given.out, DEVICE) if (given.out / WEIGHTS).is_file() else None
                yield from look(given, size, open_pipeline(given.out, DEVICE, torch.float32), judge)
            except Exception as error:  # a look that fails must not end the training
                yield {"name": "look", "value": f"{type(error).__name__}: {error}"[:300], "unit": "note"}


def look(given: argparse.Namespace, size: Size, pipeline: Any, judge: SceneJudge | None) -> Figures:
    """The contact sheet, and what the judge says of it, if there is one yet."""
    scenes = draw(size.sheet, seed=41)
    captions = [scene.caption for scene in scenes]
    images = sample(pipeline, captions, steps=size.steps, guidance=4.0, seed=1, at_once=size.at_once)
    contact_sheet(images, captions).save(given.out / "contact.png")
    if judge:
        right = right_of(judge.judge(images, captions))
        after = time.time() - given.deadline + given.seconds
        yield {"name": f"after {after:.0f} s, guidance 4", "value": right["exact"], "unit": "share exact", "all": right}


def conclude(given: argparse.Namespace, size: Size) -> Figures:
    """Everything measured, for as long as there is time."""
    for name in chain.from_iterable(FILES.values()):
        if not finished(given.out / name):
            yield {"name": name, "failed": f"{name} was not finished in time; see {LOG}."}
    if not all((given.out / name).is_file() for name in (VAE, UNET, TEXT)):
        return
    pipeline = open_pipeline(given.out, DEVICE, torch.float32)
    draw_sheet(given, size, pipeline)
    if not (given.out / WEIGHTS).is_file():
        return
    judge = SceneJudge(given.out, DEVICE)
    for record in art(given.pack, given.out, judge, prompts=size.art, device=DEVICE):
        yield {"name": f"judge on {record['pictures']}", "value": record["exact"], "unit": "share exact", "all": record}
    reward = Reward(given.out, DEVICE) if (given.out / CLIP).is_file() else None
    yield from measure(given, size, pipeline, judge, reward)


def draw_sheet(given: argparse.Namespace, size: Size, pipeline: Any) -> None:
    """The last contact sheet."""
    sheet = sheet_of(pipeline, count=size.sheet, steps=size.steps, guidance=4.0, at_once=size.at_once)
    sheet.save(given.out / "contact.png")


def measure(given: argparse.Namespace, size: Size, pipeline: Any, judge: SceneJudge, reward: Reward | None) -> Figures:
    """What judge and reward say of the model, for as long as there is time."""
    how: dict[str, Any] = {"steps": size.steps, "at_once": size.at_once, "seeds": size.seeds}
    for record in model(pipeline, judge, reward, prompts=size.prompts, guidance=size.guidance, **how):
        name = f"{record['captions']}, guidance {record['guidance']:g}, seed {record['seed']}"
        yield {"name": name, "value": record["exact"], "unit": "share exact", "all": record}
        if time.time() > given.deadline - size.spare:
            yield {"name": "measuring", "value": "cut short, the time is over", "unit": "note"}
            return


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0
