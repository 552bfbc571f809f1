"""Processes that work together, as far as one alone can tell."""

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.training import processes


def test_a_pytorch_without_gloo_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    with pytest.raises(UserError, match="built without gloo.*or start without accelerate launch"):
        processes.join(0, 2)
