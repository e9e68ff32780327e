"""The sampler's benchmark at a tiny size: counts that can be checked by hand, and the command."""

import json

import pytest
from typer.testing import CliRunner

from cogvideo.benchmarks.sampler import Settings
from cogvideo.cli import app
from cogvideo.errors import CogVideoError


def test_the_command_writes_what_it_counted(tmp_path):
    out = tmp_path / "sampler.json"
    sizes = ["--width", "16", "--layers", "1", "--heads", "2", "--side", "4", "--window", "2", "--threads", "1"]
    result = CliRunner().invoke(app, ["bench", "sampler", *sizes, "--out", str(out)])
    assert result.exit_code == 0, result.output
    stages = json.loads(out.read_text())["stages"]
    assert stages["stage 1"]["steps"] == stages["stage 1"]["tokens"] == 4 * 16
    assert stages["stage 2, wavefront"]["steps"] < stages["stage 2"]["steps"] == 2 * 16
    matrices = 2 * (16 * 48 + 48 + 16 * 16 + 16) + 2 * 4 * 16 * 16 + 4 * 16 + 16
    norms_and_gate = 5 * 2 * 16 + 16
    assert stages["stage 1"]["weight_bytes_per_step"] == 4 * (matrices + norms_and_gate + 20000 * 16)


@pytest.mark.parametrize("wrong", [{"frames": 4}, {"dtype": "fp8"}, {"threads": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(CogVideoError, match="bench sampler takes"):
        Settings(**wrong)
