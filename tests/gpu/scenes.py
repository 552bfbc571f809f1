"""scene-sd, its judge and its reward in one go: each part learns in a process of its own on the one GPU.

From the weights that ship: the decoder, the U-Net and the text encoder are trained on. With ``--fresh`` from scratch:
the autoencoder comes first; meanwhile the judge and the reward begin, at a fraction of the device, and the U-Net's
process compiles itself; when the autoencoder is finished all take it up. Judge and reward always begin from scratch.
The weights lie in the folder of results whole at any time, renewed every so often, so that a killed step loses little.
Whenever the U-Net's are renewed a contact sheet of 64 captions is drawn and judged; at the end everything is measured.
With ``--measure`` nothing is trained, and what lies in the folder of results is measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raftdiff.diffusion.models.quiet import quietly
from raftdiff.embedded import folder
from raftdiff.embedded.emoji.art import SHEET
from raftdiff.embedded.emoji.measure import sample
from raftdiff.embedded.scenes.clip import WEIGHTS as CLIP
from raftdiff.embedded.scenes.judge import WEIGHTS, SceneJudge, right_of
from raftdiff.embedded.scenes.measure import Reward, art, contact_sheet, model, open_pipeline
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
    unet_until: float = 40.0
    """Seconds before the end."""
    judge_until: float = 0.55
    """Share of the whole time."""
    clip_until: float = 0.7
    grace: float = 25.0
    """Seconds that the U-Net may go on compiling when the autoencoder is finished."""
    vae: tuple[str, ...] = ("--batch=96",)
    judge: tuple[str, ...] = ("--batch=256", "--duty=0.4", "--seed=7")
    clip: tuple[str, ...] = ("--batch=512", "--duty=0.4", "--seed=3")
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
    clip=("--batch=8", "--most=2", "--seed=3"),
    unet=("--batch=4", "--pool=8", "--scenes=40", "--most=2"),
    compiled=False,
    prompts=2,
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
"""Peak learning rate of a U-Net that has learnt already."""


def figures(given: argparse.Namespace) -> Figures:
    """What the judge says of the model on the way and at the end; files go to ``given.out``.

    Raises:
        UserError: the art is missing.
    """
    if not (given.pack / SHEET).is_file():
        raise UserError(f"{given.pack / SHEET} is missing: run tests/gpu/pack.sh where there is a network.")
    size = SMALL if given.small else Size()
    torch.set_float32_matmul_precision("high")
    if given.measure:
        yield from conclude(given, size)
        return
    for name in (VAE, UNET, TEXT, WEIGHTS, CLIP):  # what an earlier step left must not pass for this one's
        (given.out / name).unlink(missing_ok=True)
    if not given.fresh:
        take_apart(folder("scene-sd"), given.out)
    with tempfile.TemporaryDirectory() as scratch, (given.out / LOG).open("a") as log, quietly():
        crew = Crew(given, size, Path(scratch) / "ready", log)
        try:
            yield from follow(given, size, crew)
        finally:
            crew.end()
        yield from crew.failed()
        yield from conclude(given, size)


class Crew:
    """The processes that learn."""

    def __init__(self, given: argparse.Namespace, size: Size, ready: Path, log: Any) -> None:
        self._given, self._size, self._ready, self._log = given, size, ready, log
        began = given.deadline - given.seconds
        self.vae_until = began + (size.vae_until if given.fresh else DECODER_UNTIL) * given.seconds
        self.unet_until = given.deadline - size.unet_until
        self._waited: float | None = None
        self._again = False
        self._late: list[str] = []
        self.vae = self._start_vae(self.vae_until)
        self.judge = self._start("judge", began + size.judge_until * given.seconds, size.judge)
        self.clip = self._start("clip", began + size.clip_until * given.seconds, size.clip)
        # from scratch it compiles while it waits for the autoencoder; else it would wait for that alone
        self.unet = self._start_unet(compiled=size.compiled and given.fresh)

    def _start_vae(self, until: float) -> Any:
        return self._start("vae", until, [*self._size.vae, *([] if self._given.fresh else ["--decoder"])])

    def _start_unet(self, *, compiled: bool) -> Any:
        again = [] if self._given.fresh else ["--resume", f"--rate={RATE_AGAIN}"]
        rate = [*again, f"--rate={self._given.rate}"] if self._given.rate else again
        batch = [f"--batch={self._given.batch}"] if self._given.batch else []
        how = ["--compile"] if compiled else []
        options = [*self._size.unet, *how, *rate, *batch, f"--ready={self._ready}"]
        return self._start("unet", self.unet_until, options)

    def _start(self, script: str, until: float, options: Any) -> Any:
        folders = [f"--cache={self._given.pack}", f"--out={self._given.out}", f"--device={DEVICE}"]
        command = [sys.executable, "-m", f"{CODE}.{script}", *folders, f"--until={until}", "--attached", *options]
        threads = "1" if self._given.small else "4"
        return subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": threads}
        )

    def tend(self) -> str | None:
        """Mend what went wrong; a sentence when something did."""
        if self.vae.poll() is not None and not finished(self._given.out / VAE) and not self._again:
            self._again, code = True, self.vae.returncode
            self.vae = self._start_vae(max(time.time() + 60, self.vae_until))
            return f"the autoencoder's training ended with {code}; begun again."
        alone = self.vae.poll() is not None and finished(self._given.out / VAE)
        if alone and not self._ready.exists() and self.unet.poll() is None:
            self._waited = self._waited or time.time()
            if time.time() - self._waited > self._size.grace:
                self._waited = time.time() + 1e9
                self.unet.kill()
                self.unet.wait()
                self.unet = self._start_unet(compiled=False)
                return "the U-Net was still compiling when its turn came; begun again without."
        if self.unet.poll() not in (None, 0) and time.time() < self.unet_until - 60 and self._waited != -1:
            self._waited = -1
            code = self.unet.returncode
            self.unet = self._start_unet(compiled=False)
            return f"the U-Net's training ended with {code}; begun again without compiling."
        return None

    def busy(self) -> bool:
        late = time.time() > self.unet_until + 9
        return not late and any(process.poll() is None for process in (self.unet, self.judge, self.clip))

    def end(self) -> None:
        """Kill what still runs."""
        for name, process in self._members().items():
            if process.poll() is None:
                self._late.append(name)
                process.kill()
                process.wait()

    def failed(self) -> Figures:
        """A line for each training that ended badly or not in time: its weights are not what was asked for."""
        for name, process in self._members().items():
            if process.returncode:
                why = "was not done in time" if name in self._late else f"ended with {process.returncode}"
                yield {"name": f"training of {name}", "failed": f"it {why}; see {LOG}."}

    def _members(self) -> dict[str, Any]:
        return {"vae": self.vae, "judge": self.judge, "clip": self.clip, "unet": self.unet}


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
                yield from look(given, size)
            except Exception as error:  # a look that fails must not end the training
                yield {"name": "look", "value": f"{type(error).__name__}: {error}"[:300], "unit": "note"}


def look(given: argparse.Namespace, size: Size) -> Figures:
    """The contact sheet, and what the judge says of it, if there is one yet."""
    pipeline = open_pipeline(given.out, DEVICE, torch.float32)
    scenes = draw(size.sheet, seed=41)
    captions = [scene.caption for scene in scenes]
    images = sample(pipeline, captions, steps=size.steps, guidance=4.0, seed=1, at_once=size.at_once)
    contact_sheet(images, captions).save(given.out / "contact.png")
    if (given.out / WEIGHTS).is_file():
        right = right_of(SceneJudge(given.out, DEVICE).judge(images, captions))
        after = time.time() - given.deadline + given.seconds
        yield {"name": f"after {after:.0f} s, guidance 4", "value": right["exact"], "unit": "share exact", "all": right}


def conclude(given: argparse.Namespace, size: Size) -> Figures:
    """Everything measured, for as long as there is time."""
    for name in (VAE, UNET, TEXT, WEIGHTS, CLIP):
        if not finished(given.out / name):
            yield {"name": name, "failed": f"{name} was not finished in time; see {LOG}."}
    if not all((given.out / name).is_file() for name in (VAE, UNET, TEXT)):
        return
    pipeline = open_pipeline(given.out, DEVICE, torch.float32)
    scenes = [*draw(size.sheet * 3 // 4, seed=40), *draw(size.sheet // 4, seed=40, held_out=True)]
    captions = [scene.caption for scene in scenes]
    images = sample(pipeline, captions, steps=size.steps, guidance=4.0, seed=1, at_once=size.at_once)
    contact_sheet(images, captions).save(given.out / "contact.png")
    if not (given.out / WEIGHTS).is_file():
        return
    judge = SceneJudge(given.out, DEVICE)
    for record in art(given.pack, given.out, judge, prompts=size.art, device=DEVICE):
        yield {"name": f"judge on {record['pictures']}", "value": record["exact"], "unit": "share exact", "all": record}
    reward = Reward(given.out, DEVICE) if (given.out / CLIP).is_file() else None
    how: dict[str, Any] = {"steps": size.steps, "at_once": size.at_once, "seeds": size.seeds}
    for record in model(pipeline, judge, reward, prompts=size.prompts, guidance=size.guidance, **how):
        name = f"{record['captions']}, guidance {record['guidance']:g}, seed {record['seed']}"
        yield {"name": name, "value": record["exact"], "unit": "share exact", "all": record}
        if time.time() > given.deadline - size.spare:
            yield {"name": "measuring", "value": "cut short, the time is over", "unit": "note"}
            return


def _written(path: Path) -> float:
    return path.stat().st_mtime if path.is_file() else 0.0
