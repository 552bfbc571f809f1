"""Candidates that are there already: pictures that people or other models made."""

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Literal, NamedTuple, final

import torch
from PIL import Image, ImageOps
from PIL.Image import Resampling

from raftdiff.diffusion.models.loaded import Parts
from raftdiff.diffusion.models.pictures import encode
from raftdiff.diffusion.sampler import DiffusionSamplerConfig, sizes_of
from raftdiff.diffusion.sampling.pictures import PAIR, Found, asked, digest, read
from raftdiff.diffusion.sizes import Size, cut, fit, nearest, told
from raftdiff.diffusion.wording import NEXT
from raftdiff.errors import UserError, counted
from raftdiff.measures.pictures import extent, opened
from raftdiff.recipes.config import Config
from raftdiff.seeds import fold
from raftdiff.types import Prompt, Sample


class FolderSamplerConfig(Config):
    """Pictures that are there already, with their captions: collected, drawn by other programs, or compared in pairs by
    people. Where the recipe names no prompts, theirs are asked."""

    type: Literal["folder"] = "folder"
    path: str
    """A folder, or a table of pictures: datasets' ImageFolder, a run's samples, captions in .txt files beside the
    pictures, folders of pairs, tables of pairs such as Pick-a-Pic's."""
    pictures: str | None = None
    """The folder that the table's file names are within, such as the run that people labelled; None takes the one that
    the table stands in."""
    score: str = "score"
    """The column with what was said of a picture, for the reward ``given``; of pairs it is known."""
    source: Literal["dataset", "teacher", "human"] = "dataset"
    """Whose pictures these are."""
    drawing: DiffusionSamplerConfig = DiffusionSamplerConfig()
    """How the tuned model is looked at, and at what size the pictures are learnt."""
    sha256: str | None = None
    """Filled in when a run begins: a resumed run refuses other pictures."""

    @property
    def evaluations(self) -> int:
        """Of the network, for a picture: none is drawn."""
        return 0

    def sealed(self, folder: Path) -> "FolderSamplerConfig":
        """The same config with the whole paths and ``sha256``, for a run to keep; one that has it stays as it is.

        Raises:
            UserError: as ``found``.
        """
        if self.sha256:
            return self
        path = str(_there(self.path, folder, "path").resolve())
        root = None if self.pictures is None else str(_there(self.pictures, folder, "pictures").resolve())
        whole = self.model_copy(update={"path": path, "pictures": root})
        return whole.model_copy(update={"sha256": digest(whole.found())})

    def found(self) -> list[Found]:
        """
        Raises:
            UserError: as ``pictures.read``.
        """
        root = None if self.pictures is None else _there(self.pictures, Path(), "pictures")
        return read(_there(self.path, Path(), "path"), root=root, score=self.score)

    def prompts(self) -> list[dict[str, str]]:
        """Those of the pictures, for a recipe that names none."""
        return asked(self.found())

    def build(self, parts: Parts, *, alike: bool = False) -> "FolderSampler":
        """
        Args:
            alike: whether the pictures of a prompt are to have one size, as where pairs of them are learnt from.

        Raises:
            UserError: as ``found``, or these are not the pictures that ``sha256`` names.
        """
        found = self.found()
        if self.sha256 and digest(found) != self.sha256:
            raise UserError(
                f"sampler.path: the pictures in '{self.path}' are not those that the run began with. Put the old ones "
                "back, or begin a new run."
            )
        return FolderSampler(self, found, parts, alike=alike)


class _Sized(NamedTuple):
    found: Found
    size: Size
    """At which it is learnt."""


CUT = 0.98
"""Share of a picture that is left, below which it is said: less is the rounding of sides."""


@final
class FolderSampler:
    """Candidate k is the k-th picture of the prompt, in the order of the folder or of the table's rows.

    Found by the prompt's id where the row gives one, else by its caption. A prompt with fewer pictures than candidates
    yields what it has. A picture is scaled so that it covers its size, of several that of the nearest shape, cut at
    both ends alike where it is longer, and encoded: ``aux["latent"]`` is the mean of the VAE's word, ``aux["score"]``
    what was said of it; of several sizes ``aux["frame"]`` how it was scaled and cut, as of ``Texts``.
    """

    provides: tuple[str, ...] = ("latent",)

    def __init__(
        self, config: FolderSamplerConfig, found: Sequence[Found], parts: Parts, *, alike: bool = False
    ) -> None:
        self.config, self.parts, self.source = config, parts, config.source
        self.sizes, self._alike = sizes_of(config.drawing, parts), alike
        self._extents: dict[int, Size] = {}
        self.scored = any(one.score is not None for one in found)
        self._known: dict[tuple[str, str], list[Found]] = {}
        for one in found:
            key = ("caption", one.caption) if one.id is None else ("id", one.id)
            self._known.setdefault(key, []).append(one)

    def check(self, prompts: Sequence[Prompt], per_prompt: int, *, alone: bool = False) -> None:
        """Say how many pictures are more than ``per_prompt``, and so are left out.

        Args:
            alone: whether a round may ask a prompt without a picture, and nothing else.

        Raises:
            UserError: not one prompt of the run has a picture, or, ``alone``, one has none.
        """
        counts = [len(self.pictures(prompt)) for prompt in prompts]
        if not any(counts) and all(kind == "id" and PAIR.fullmatch(name) for kind, name in self._known):
            raise UserError(
                f"sampler.path: every pair of '{self.config.path}' is a prompt of its own; leave the recipe's prompts "
                "out."
            )
        if not any(counts):
            raise UserError(
                f"sampler.path: '{self.config.path}' has a picture for not one of the {len(prompts)} prompts; its rows "
                'name them by "id" or caption. Where a recipe names no prompts, those of the folder are asked.'
            )
        if alone and (bare := [prompt for prompt, count in zip(prompts, counts, strict=True) if not count]):
            raise UserError(
                f"loop.prompts_per_round: a round may be left with nothing, for {len(bare)} of the prompts have no "
                f"picture in '{self.config.path}', such as '{bare[0].caption}'. Take them out of the recipe."
            )
        if bare := [prompt for prompt, count in zip(prompts, counts, strict=True) if not count]:
            some = f"{counted(len(bare), 'prompt')} of {len(prompts)}"
            warnings.warn(f"sampler.path: no picture is there of {some}, such as '{bare[0].caption}'.", stacklevel=2)
        if left := sum(max(0, count - per_prompt) for count in counts):
            told = f"{counted(left, 'picture')} beyond the first {per_prompt} of a prompt"
            warnings.warn(f"sampler.path: {told} will not be looked at (loop.candidates).", stacklevel=2)

    def pictures(self, prompt: Prompt) -> list[Found]:
        """Those of a prompt."""
        return [*self._known.get(("id", prompt.id), ()), *self._known.get(("caption", prompt.caption.strip()), ())]

    def sample(
        self, prompts: Sequence[Prompt], *, per_prompt: int, seed: int, round: int, done: AbstractSet[tuple[str, int]]
    ) -> Iterator[Sample[Image.Image]]:
        """In batches, each encoded whole where anything of it is left to give.

        Raises:
            UserError: a picture is damaged.
        """
        jobs = [(prompt, index, one) for prompt in prompts for index, one in enumerate(self._sized(prompt, per_prompt))]
        count = self.config.drawing.at_once
        for size, batch in cut(jobs, lambda job: job[2].size, count):
            if all((prompt.id, index) in done for prompt, index, _ in batch):
                continue
            whole = [opened(one.found.picture, _where(one.found)) for *_, one in batch]
            pictures = [ImageOps.fit(one, (size[1], size[0]), Resampling.LANCZOS) for one in whole]
            latents = encode(self.parts, pictures, self.config.drawing.decoded_at_once)
            frames = [self._frame((one.height, one.width), size) for one in whole]
            for (prompt, index, one), picture, latent, frame in zip(batch, pictures, latents, frames, strict=True):
                if (prompt.id, index) not in done:
                    score = {} if one.found.score is None else {"score": torch.tensor(one.found.score)}
                    own, source = fold(seed, prompt.id, index), self.source
                    aux = {"latent": latent.clone(), **frame, **score}
                    yield Sample(round, prompt, index, own, source, picture, aux)

    def notes(self, prompts: Sequence[Prompt], per_prompt: int) -> list[str]:
        """How the pictures of these prompts come to their sizes: how many go to each, how much is cut off, and which
        are enlarged. Nothing where all are of their size.

        Raises:
            UserError: one is no picture.
        """
        held = [one for prompt in prompts for one in self._sized(prompt, per_prompt)]
        ways = [fit(self._extent(one.found), one.size) for one in held]
        lines = []
        if len(self.sizes) > 1:
            counts = Counter(one.size for one in held)
            lines.append(f"sizes: {', '.join(f'{told(size)} {count}' for size, count in counts.most_common())}")
        kept = [way.kept for way in ways]
        if min(kept, default=1) < CUT:
            most = f"at most {1 - min(kept):.0%}, of {self._told(held[kept.index(min(kept))])}"
            lines.append(f"{1 - sum(kept) / len(kept):.0%} of a picture is cut off on average, {most}")
        if small := [one for one, way in zip(held, ways, strict=True) if way.scale > 1]:
            lines.append(
                f"smaller than that, and so enlarged: {counted(len(small), 'picture')}, such as {self._told(small[0])}"
            )
        head = (
            f"sampler.path: {counted(len(held), 'picture')} of '{self.config.path}' are scaled and cut in the middle."
        )
        return [NEXT.join([head, *lines])] if lines else []

    def network_evaluations(self) -> int:
        """None: nothing is drawn."""
        return 0

    def _sized(self, prompt: Prompt, per_prompt: int) -> list[_Sized]:
        """The pictures of a prompt that are looked at."""
        found = self.pictures(prompt)[:per_prompt]
        if len(self.sizes) == 1:
            return [_Sized(one, self.sizes[0]) for one in found]
        seen = [self._extent(one) for one in found]
        return [
            _Sized(one, nearest(self.sizes, seen if self._alike else [own]))
            for one, own in zip(found, seen, strict=True)
        ]

    def _extent(self, one: Found) -> Size:
        if id(one) not in self._extents:
            self._extents[id(one)] = extent(one.picture, _where(one))
        return self._extents[id(one)]

    def _frame(self, picture: Size, size: Size) -> dict[str, torch.Tensor]:
        """Nothing where a run has one size: every picture is told to be whole then, as it always was."""
        if self.config.drawing.sizes is None:
            return {}
        way = fit(picture, size)
        return {"frame": torch.tensor([*picture, way.top, way.left], dtype=torch.float32)}

    def _told(self, one: _Sized) -> str:
        return f"{one.found.where} ({told(self._extent(one.found))} to {told(one.size)})"


def _where(one: Found) -> str | None:
    return None if isinstance(one.picture, Path) else one.where


def _there(name: str, folder: Path, key: str) -> Path:
    found = next((path for path in (folder / name, Path(name).expanduser()) if path.is_file() or path.is_dir()), None)
    if found is None:
        where = "" if Path(name).is_absolute() or folder == Path() else f", neither in {folder} nor in this folder"
        raise UserError(f"sampler.{key}: there is no file or folder '{name}'{where}.")
    return found
