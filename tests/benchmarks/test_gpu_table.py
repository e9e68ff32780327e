"""The table of a GPU, its rows measured by stand-ins, and the commands of its rows."""

import subprocess

import pytest
import torch
import typer.testing

from cogvideo.benchmarks import gpu_table
from cogvideo.cli.app import app
from cogvideo.errors import CogVideoError


def test_without_a_gpu_the_plan_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(CogVideoError, match="bench sampler --plan"):
        gpu_table.run(tmp_path, 1)


def test_rows_that_fail_or_take_too_long_cost_the_others_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (9, 0))
    called = []

    def stand_in(call, *, env, timeout, **_):
        name = call[call.index("--output") + 1].rpartition("/")[2].removesuffix(".json")
        called.append((name, env.get("TORCH_CUDNN_SDPA_DEPRIORITIZED")))
        if name == "clip-bf16":
            raise subprocess.TimeoutExpired(call, timeout)
        failed = name == "clip-int8"
        return subprocess.CompletedProcess(
            call, int(failed), f"table of {name}\n", "a\nout of memory\n" * failed
        )

    monkeypatch.setattr(gpu_table.subprocess, "run", stand_in)
    table = gpu_table.run(tmp_path / "new", 1, progress=False)
    assert [name for name, _ in called] == list(gpu_table.ROWS)
    assert [name for name, flag in called if flag] == ["train-bf16-without-cudnn-attention"]
    assert "## clip-bf16\n\nNot measured: it was not done" in table
    assert "## clip-int8\n\nFailed: out of memory" in table and "table of train-bf16\n" in table
    assert "## Expected" in table and (tmp_path / "new" / "table.md").read_text() == table
    assert "no time was left" in gpu_table.run(tmp_path / "new", 0, progress=False) and len(called) == len(
        gpu_table.ROWS
    )


@pytest.mark.parametrize("name", gpu_table.ROWS)
def test_every_row_is_a_command_that_exists(name):
    """`--help` after all options: typer reads them, and runs nothing."""
    result = typer.testing.CliRunner().invoke(app, ["bench", *gpu_table.ROWS[name], "--help"])
    assert result.exit_code == 0, result.output
