"""The training benchmark at toy size: what it measures is the same work, and its figures hang together."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from cogvideo.benchmarks.train import Settings, measure, memory, model_config, plain_loss, render, run
from cogvideo.config import COGVIDEO_9B
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer

TINY = Settings(width=8, layers=2, heads=2, side=4, window=2, threads=1, steps=1)


@pytest.mark.parametrize("stage", ["stage 1", "stage 2"])
def test_both_loops_compute_the_same_losses_and_take_the_same_steps(stage):
    lean, plain = (measure(TINY, stage, loop, 1e9) for loop in ("lean", "plain"))
    assert lean["losses"] == pytest.approx(plain["losses"], abs=1e-4) and len(lean["losses"]) == 2
    assert lean["losses"][1] != lean["losses"][0]
    tokens = 64 + 5 * 16
    assert lean["tokens_per_second"] == pytest.approx(tokens / lean["seconds_per_step"])


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_blocks_take_the_same_steps(monkeypatch):
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")  # another test may have loaded that one already
    settings = replace(TINY, width=32, compile=True)
    compiled, plain = (
        measure(s, "stage 1", "lean", 1e9) for s in (settings, replace(settings, compile=False))
    )
    assert compiled["losses"] == pytest.approx(plain["losses"], abs=1e-4)


@torch.no_grad()
def test_the_plain_loop_has_the_model_s_loss_with_padding():
    model = CogVideoTransformer(model_config(TINY, "stage 2")).initialize(0)
    text, mask = torch.randint(20000, 150000, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    mask[0, :2] = False
    frames = torch.randint(20000, (2, 5, 16))
    expected = model.token_losses(text, frames, mask)[:, [1, 3]].mean()
    torch.testing.assert_close(plain_loss(model, text, frames, mask), expected, atol=1e-5, rtol=0)


def test_the_report(tmp_path):
    report = run(Settings(**{**TINY.__dict__, "dtype": "bf16", "recompute": True, "compare": False}))
    told = render(json.loads(json.dumps(report)))
    assert told.count("| lean |") == 2 and "plain" not in told and "MFU" in told
    for loops in report["stages"].values():
        assert (
            0 < loops["lean"]["mfu"] < 1
            and loops["lean"]["peak_bytes"] >= loops["lean"]["peak_bytes_before_steps"]
        )


def test_memory_of_the_full_size_follows_from_the_numbers_of_weights():
    kept = memory(Settings(width=3072, layers=48, heads=48, dtype="bf16"))
    assert kept["adam"] == 2 * kept["trained"] == 2 * kept["gradients"]
    assert kept["trained"] == pytest.approx(4 * 1.82e9, rel=0.01)
    embeddings = 4 * 3072 * (COGVIDEO_9B.vocab_size + 912)
    assert kept["frozen"] == pytest.approx(2 * 48 * 12 * 3072**2 + embeddings, rel=0.01)
    assert sum(kept.values()) < 42e9


@pytest.mark.parametrize("change", [{"width": 10, "heads": 4}, {"dtype": "int8"}, {"steps": 0}])
def test_what_cannot_be_measured(change):
    with pytest.raises(CogVideoError):
        Settings(**change)
