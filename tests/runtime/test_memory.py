"""What is free, what fits, and that nothing is held twice while weights are loaded and converted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DATA

from cogvideo.checkpoints.native import load_model, save_model
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime import memory
from cogvideo.runtime.memory import check_fits, free_memory

VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
LINUX = Path("/proc/self/clear_refs").exists()
TINY = ModelConfig(
    num_layers=1, hidden_size=16, num_heads=2, frame_height=3, frame_width=4, num_frames=1, text_length=6,
    first_frame_position=6, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=18,
    temporal=False,
)  # fmt: skip


@pytest.mark.skipif(not LINUX, reason="reads /proc")
def test_free_memory_is_what_the_system_tells(monkeypatch, tmp_path):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory() <= total
    (tmp_path / "meminfo").write_text("MemTotal: 9000000 kB\nMemFree: 1 kB\nMemAvailable:   4000000 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    assert free_memory("cpu") == 4_000_000 * 1024
    (tmp_path / "meminfo").unlink()
    assert free_memory("cpu") == total


@pytest.mark.parametrize(
    ("version", "groups", "folder", "names"),
    [
        (2, "0::/user/job\n", "user/job", ("memory.max", "memory.current", "inactive_file")),
        # a limit above the own group
        (2, "0::/user/job\n", "user", ("memory.max", "memory.current", "inactive_file")),
        (2, "0::/../elsewhere\n", "", ("memory.max", "memory.current", "inactive_file")),  # a container
        (1, "9:cpu:/\n4:memory:/job\n", "memory/job", VERSION_1),
        (1, "4:cpu,memory:/host/job\n", "memory", VERSION_1),
    ],
)  # fmt: skip
def test_the_limit_of_a_container_counts(version, groups, folder, names, tmp_path):
    (tmp_path / "groups").write_text(groups)
    group = tmp_path / "root" / folder
    group.mkdir(parents=True)
    limit, usage, cache = names
    (group / limit).write_text("8000000000\n")
    (group / usage).write_text("5000000000\n")
    (group / "memory.stat").write_text(f"anon 1\n{cache} 2000000000\nactive_file 3\n")
    assert memory._group_limits(tmp_path / "groups", tmp_path / "root") == [5_000_000_000]
    (group / limit).write_text("max\n")
    assert memory._group_limits(tmp_path / "groups", tmp_path / "root") == []


def test_what_does_not_fit_is_refused_with_the_options(monkeypatch, capsys):
    monkeypatch.setattr(memory, "free_memory", lambda device: 12 * 10**9)
    with pytest.raises(
        CogVideoError, match=r"Stage 1 needs 15.40 GB on cpu and 12.00 GB are free.*16 bits.*int8.*device"
    ):
        check_fits(15_400_000_000, "cpu", "Stage 1")
    check_fits(7_700_000_000, "cpu", "Stage 1")
    assert "Stage 1 needs 7.7 GB on cpu; 12.0 GB are free." in capsys.readouterr().err
    check_fits(7_000_000, "cpu", "A small one")
    assert not capsys.readouterr().err
    check_fits(10**18, "meta", "Nothing")


def test_too_large_models_are_refused_before_they_are_read(monkeypatch, tmp_path):
    save_model(CogVideoTransformer(TINY).initialize(), tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(CogVideoError, match="free"):
        load_model(tmp_path)
    with pytest.raises(CogVideoError, match="free"):
        load_sat_checkpoint(DATA / "cogvideo" / "sequential_full", image_tokens=256, begin_of_image=310)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_one_sentence(tmp_path):
    save_model(CogVideoTransformer(TINY).initialize(), tmp_path)
    with pytest.raises(CogVideoError, match="no device cuda"):
        load_model(tmp_path, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_free_memory_of_a_gpu():
    before = free_memory("cuda")
    held = torch.ones(2**28, device="cuda")
    assert 0.9 * held.nbytes < before - free_memory("cuda") < 2 * held.nbytes
    del held  # torch keeps it for reuse: free all the same
    assert before - free_memory("cuda") < 2**28


# 30 weights of 10 MB. Peaks are counted from what the imports took; /proc resets the peak.
SCRIPT = """
import re, sys, torch
from pathlib import Path
from cogvideo.checkpoints import native
from cogvideo.runtime import tensors
from cogvideo.runtime.memory import peak_memory
from cogvideo.checkpoints.sat import fill_model, read_sat_folder
folder, what = Path(sys.argv[1]), sys.argv[2]
native.SINGLE_FILE_BYTES = native.SHARD_BYTES = 40_000_000
tensors.MAPPED_BYTES = 30_000_000
status = lambda key: int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
weights, _ = read_sat_folder(folder)
weights.read("layers.0.dense_h_to_4h.weight")
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
if what == "convert":
    native.write_weights(folder, weights, dtype=torch.bfloat16)
else:
    def build():
        return torch.nn.ParameterDict({name: torch.nn.Parameter(t) for name, t in weights.meta.items()})
    weights = weights.renamed(lambda name: name.replace(".", "_"))
    model = fill_model(build, weights, where="the test", dtype=torch.bfloat16)
print(status("VmHWM") - before, status("VmHWM") - peak_memory())
"""


@pytest.mark.skipif(not LINUX, reason="reads /proc")
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(("what", "least", "most"), [("convert", 40, 160), ("load", 280, 360)])
def test_nothing_is_held_twice(what, least, most, ranks, tmp_path):
    """In MB: a shard of 40, the last one in the allocator, 40 of pages; or the model's 290, and pages."""
    (tmp_path / "1").mkdir()
    (tmp_path / "latest").write_text("1")
    (tmp_path / "model_config.json").write_text("{}")
    for rank in range(ranks):
        table = {
            f"layers.{i}.dense_h_to_4h.weight": torch.ones(5_000_000 // ranks, 1).half() for i in range(30)
        }
        torch.save({"module": table}, tmp_path / "1" / f"mp_rank_{rank:02d}_model_states.pt")
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), what], capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, difference = (int(number) / 1e6 for number in run.stdout.split())
    assert least <= peak <= most and abs(difference) < 1
