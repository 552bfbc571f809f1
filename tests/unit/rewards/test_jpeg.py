import io

import pytest
import torch
from PIL import Image

from raftdiff.errors import UserError
from raftdiff.recipes.config import check
from raftdiff.rewards.jpeg import JpegConfig, jpeg_kilobytes
from raftdiff.testing.conformance import check_reward
from raftdiff.testing.examples import reward_samples


def test_the_unit_is_a_thousand_bytes_at_quality_95() -> None:
    image = reward_samples(count=2)[1].media
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    assert jpeg_kilobytes(image) == len(buffer.getvalue()) / 1000


def test_the_directions_are_opposite() -> None:
    samples = reward_samples(count=4)
    small, large = (JpegConfig(direction=way).build().score(samples) for way in ("compressible", "incompressible"))
    assert torch.equal(small, -large)
    assert float(large[1]) > float(large[0]) > 0, "noise takes more room than a plain picture"


def test_transparent_pictures_have_a_size_too() -> None:
    assert jpeg_kilobytes(Image.new("RGBA", (8, 8), (255, 0, 0, 0))) > 0


@pytest.mark.parametrize("direction", ["compressible", "incompressible"])
def test_it_keeps_the_contract(direction: str) -> None:
    report = check_reward(check(JpegConfig, {"direction": direction}).build(), reward_samples(count=6))
    assert all(check.passed for check in report.checks), str(report)


def test_another_direction_gets_a_sentence() -> None:
    with pytest.raises(UserError, match=r"this should be 'compressible' or 'incompressible', and 'smaller' is read"):
        check(JpegConfig, {"direction": "smaller"})
