"""Each damage does what its name says and nothing else."""

import numpy as np
import pytest

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.sensitivity import DAMAGES, damage
from cogvideo.evaluation.sources import open_side

CLIP = open_side("digits:test?seconds=2", 1).read("0")[:16]


@pytest.mark.parametrize("kind", DAMAGES)
def test_form_is_kept_and_the_clip_is_not(kind):
    before = CLIP.copy()
    wrong = damage(CLIP, kind)
    assert wrong.shape == CLIP.shape and wrong.dtype == np.uint8
    assert np.array_equal(CLIP, before) and not np.array_equal(wrong, CLIP)


def test_order():
    clip = np.arange(16, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    order = damage(clip, "shuffled")[:, 0, 0, 0].tolist()
    assert order != sorted(order) and sorted(order) == list(range(16))
    assert damage(clip, "frozen").max() == 0
    assert damage(clip, "reversed")[:, 0, 0, 0].tolist() == list(range(15, -1, -1))


def test_strength():
    grey = np.full((16, 64, 64, 3), 128, np.uint8)
    assert np.array_equal(damage(grey, "blurred"), grey)
    assert damage(grey, "noisy").std() == pytest.approx(32, abs=0.5)
    point = np.zeros((1, 65, 65, 3), np.uint8)
    point[:, 32, 32] = 255
    weights = damage(point, "blurred")[0, :, 32, 0].astype(float)
    assert weights.argmax() == 32 and weights[34] / weights[32] == pytest.approx(
        np.exp(-0.5 * (2 / 2.03) ** 2), abs=0.1
    )
    assert 0.3 < np.abs(damage(CLIP, "recoded").astype(float) - CLIP).mean() < 20


def test_unknown():
    with pytest.raises(CogVideoError, match="choose one of shuffled"):
        damage(CLIP, "sharpened")
