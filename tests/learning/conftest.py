"""The toy world of texts: eight words, and a language model that knows nothing of them."""

from pathlib import Path

import pytest

from raftdiff.llm.model import tiny
from raftdiff.testing.toy import TOY_WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("lm") / "tiny", TOY_WORDS)
