"""Tiny random models in the formats of the families, written once for all tests of this folder."""

import pytest

from raftdiff.diffusion.models import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """{kind: folder}; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    return {
        kind: tiny.write_folder(root / kind, kind)
        for kind in ("sd15", "sd21", "sd21_zero_snr", "sdxl", "sd3", "sd3_no_t5", "zimage")
    }
