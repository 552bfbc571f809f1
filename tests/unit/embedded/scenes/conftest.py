import numpy as np
import pytest


@pytest.fixture(scope="session")
def art(sheet: np.ndarray) -> np.ndarray:
    """A quarter of the art's pixels, which is quicker."""
    return np.ascontiguousarray(sheet[:, :, ::2, ::2])
