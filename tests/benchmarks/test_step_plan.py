"""The plan of a step's time against counts by hand, and the project's targets."""

import pytest
import torch

from cogvideo.benchmarks import step_plan
from cogvideo.benchmarks.memory_plan import SEQUENCES, released_geometry
from cogvideo.benchmarks.sampler import Settings, expected, model_config

TEXT = 64


@pytest.mark.parametrize("dtype, most", [("bf16", 1.0), ("int8", 0.6)])
def test_the_released_model_keeps_the_targets_on_an_h100(dtype, most):
    """6.5 ms a token of stage 1, 9 ms a step of stage 2 at 8 rows; int8 at most 0.6 of these."""
    g, gpu = released_geometry(), step_plan.GPUS["h100"]
    one = step_plan.step_plan(gpu, g.stage1, dtype, 2, TEXT, wavefront=False)
    two = step_plan.step_plan(gpu, g.stage2, dtype, SEQUENCES, TEXT, wavefront=True)
    assert one.total <= 6.5 * most and two.total <= 9 * most and one.bound == two.bound == "weights"
    # By hand: 16 matrices of 3072 x 3072 a layer (qkv, dense of both channels, the MLP's two) are nearly all.
    assert one.bytes["weights"] == pytest.approx(48 * 16 * 3072**2 * (2 if dtype == "bf16" else 1), rel=2e-3)
    mean_place = TEXT + 200.5 + TEXT + 400 + 800.5  # of 400 in the frame, of 1,600 after the first one
    assert one.bytes["caches"] == pytest.approx(mean_place * 2 * 2 * 48 * 3072 * 2)


def test_keys_of_windows_and_of_whole_caches():
    """4 x 4 tokens, windows of 2: a position sees 4 of the 16 of a frame, or fewer at shifted borders."""
    config = model_config(Settings(width=16, layers=1, heads=2, side=4, window=2), "interpolation", 2)
    alone = step_plan.keys_read(config, [1, 3], 8, wavefront=False)
    # The first: itself; text and a window of three frames, 4 tokens each, or 1 where cuts are shifted.
    assert alone[0] == 8 + 1 + 8 + (3 * 4 + 1 + 3 * 1 + 1) / 2
    together = step_plan.keys_read(config, [1, 3], 8, wavefront=True)
    assert len(together) < len(alone) and max(together) > max(alone)
    everything = step_plan.keys_read(config, [1, 3], 8, wavefront=False, hidden=True)
    assert set(everything) == {8 + 16 + 8 + 5 * 16}


def test_the_plan_names_its_assumptions_and_cards(run):
    code, out, _ = run("bench", "sampler", "--plan", "--gpu", "t4")
    assert (
        code == 0 and "no kernels of ours before compute capability 8.0" in out and "| fp16, layers |" in out
    )
    code, _, error = run("bench", "sampler", "--plan", "--gpu", "tpu")
    assert code and "choose one of h100, h200, a100, 4090, t4" in error
    assert step_plan.gpu_of("NVIDIA GeForce RTX 4090") is step_plan.GPUS["4090"]
    assert step_plan.gpu_of("Tesla T4") is step_plan.GPUS["t4"] and step_plan.gpu_of("CPU, 2 threads") is None


def test_measured_figures_stand_beside_expected_ones():
    places = torch.linspace(500, 2500, 20)
    plan = step_plan.Plan("a step", {}, 10, {"weights": 4.0, "caches": 1.0, "launches": 1.0})
    said = step_plan.where_they_part(plan, [(float(p), 5 + 0.002 * float(p)) for p in places])
    assert said == (
        "a step: expected 6.00 ms, measured 8.00 (1.33 times); caches 1.00 and 3.00, "
        "weights, head and launches 5.00 and 5.00"
    )
    settings = Settings(width=16, layers=1, heads=2, side=4, window=2, dtype="bf16")
    stages = {kind: {"places_and_ms": [(9.0, 2.0)]} for kind in ("stage 1", "stage 2, wavefront")}
    first, second = expected(settings, "NVIDIA H100 80GB HBM3", stages)
    assert first.startswith("stage 1: expected 0.03 ms, measured 2.00") and second.startswith(
        "stage 2, wavefront"
    )
    assert expected(settings, "CPU, 2 threads", stages) == []
