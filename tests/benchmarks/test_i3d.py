"""The benchmark of I3D: it runs, counts the work right, and refuses what cannot be run."""

import re

import pytest
import torch

from cogvideo.benchmarks.i3d import measure, render
from cogvideo.checkpoints.i3d_weights import unit_shapes
from cogvideo.errors import CogVideoError
from cogvideo.evaluation import I3D


def test_measures_videos_a_second(i3d_file, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(i3d_file.parent))
    head, ours, *_ = render(measure(frames=9, batch=1, device="cpu")).splitlines()
    # Two operations for every weight at every place that a convolution is applied to.
    model = I3D.from_pretrained(i3d_file, device="cpu")
    places = {name: x[0, 0].numel() for name, x in model.endpoints(torch.zeros(1, 3, 9, 224, 224)).items()}
    operations = sum(
        2 * width * channels * kernel**3 * places.get(unit.partition(".")[0], 1)
        for unit, (width, channels, kernel) in unit_shapes().items()
    )
    assert float(re.findall(r"([\d.]+) GFLOP each", head)[0]) == pytest.approx(operations / 1e9, abs=0.06)
    assert float(re.findall(r"([\d.]+) videos/s", ours)[0]) > 0


@pytest.mark.parametrize("wrong", [{"frames": 8}, {"batch": 0}, {"threads": 0}, {"dtype": "int3"}])
def test_refuses(wrong):
    with pytest.raises(CogVideoError, match="9 frames or more"):
        measure(device="cpu", **wrong)
