"""The benchmark of local attention at a small size: local attention takes less memory than scores."""

import pytest

from cogvideo.benchmarks.superres import Settings, render, run
from cogvideo.errors import CogVideoError


def test_three_ways_are_compared():
    report = run(Settings(width=64, layers=1, heads=2, side=12, repeats=1))
    assert report["places"] == 36 * 36 and report["settings"]["side"] == 12
    ways = report["ways"]
    assert all(cost["seconds"] > 0 for cost in ways.values())
    scores = 2 * report["places"] ** 2 * 4  # of two heads in fp32
    written_out, local = (
        ways[name]["bytes"] for name in ("dense attention, scores written out", "local attention")
    )
    assert 4 * scores > written_out > scores > local > report["places"] * 64 * 4
    table = render(report)
    assert "12 x 12 tokens -> 1296" in table and "| dense attention, fused |" in table and "| 1.00 |" in table


def test_sizes_that_cannot_be_run():
    with pytest.raises(CogVideoError, match="1 or more"):
        run(Settings(repeats=0))
    with pytest.raises(CogVideoError, match="multiple of num_heads"):
        run(Settings(width=65))
