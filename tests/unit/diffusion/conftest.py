"""Tiny random models in the formats of the families, each written once for all tests of this folder."""

from pathlib import Path

import pytest

from raftdiff.diffusion.models import tiny


class Folders:
    """{kind: folder} of every kind, written when it is first asked for; not to be written to."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, kind: tiny.Kind) -> Path:
        folder = self._root / kind
        return folder if folder.exists() else tiny.write_folder(folder, kind)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return Folders(tmp_path_factory.mktemp("models"))
