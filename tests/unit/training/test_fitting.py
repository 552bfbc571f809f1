"""Where memory does not suffice less is taken at once, and nothing is lost."""

import pytest
import torch

from raftdiff.errors import UserError
from raftdiff.training import sharded
from raftdiff.training.fitting import Fitting, attempted

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def holding(most, error=FULL):
    tried = []

    def work(width):
        tried.append(width)
        if width > most:
            raise error
        return width

    return work, tried


def test_half_is_tried_until_it_fits_and_that_is_said_once():
    fits, left = Fitting("sampler.batch_size", "draw"), []
    fits.halved = left.append
    work, tried = holding(3)
    with pytest.warns(UserWarning, match=r"^sampler.batch_size: memory does not suffice to draw 16 pictures at once; "):
        assert fits(16, work) == 2
    assert (tried, left) == ([16, 8, 4, 2], [8, 4, 2])
    assert (fits(16, work), fits(1, work), tried[4:]) == (2, 1, [2, 1])  # no second warning, which would be an error


def test_a_single_row_that_does_not_fit_is_refused():
    fits = Fitting("sampler.vae_batch_size", "decode")
    with pytest.raises(UserError, match=r"does not suffice to decode a single picture\. Take smaller .*plan RECIPE"):
        fits(2, holding(0)[0])


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_what_this_machine_lacks_is_told_from_other_errors(error):
    assert attempted(lambda: holding(0, error)[0](1)) is None
    with pytest.raises(RuntimeError, match="shapes"):
        attempted(lambda: holding(0, RuntimeError("shapes"))[0](1))


def test_a_network_that_is_split_over_processes_is_not_asked_again(monkeypatch):
    monkeypatch.setattr(sharded, "splits", lambda: True)
    work, tried = holding(3)
    with pytest.raises(torch.OutOfMemoryError):
        Fitting("sampler.batch_size", "draw")(16, work)
    assert tried == [16]
