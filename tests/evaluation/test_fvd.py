"""FVD with floor, spread and extrapolation on Gaussians whose distance is known, and the command with the real I3D."""

import json

import numpy as np
import pytest

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.fvd import card, evaluate, fvd


def gaussians(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 8)) + shift


def test_extrapolation_is_nearer_to_the_truth_than_the_value():
    """Equal covariances and means 0.5 apart in 8 directions: the distance is 2."""
    results = [fvd(gaussians(200, s), gaussians(200, 100 + s, 0.5), seed=s) for s in range(10)]
    plain = np.mean([r.value for r in results]) - 2
    extrapolated = np.mean([r.extrapolated or np.nan for r in results]) - 2
    assert plain > 0.03 and abs(extrapolated) < plain / 2


def test_floor_spread_and_counts():
    result = fvd(gaussians(64, 0), gaussians(80, 1, 1.0), more_real=gaussians(64, 2), recipe="stylegan-v")
    assert result.floor is not None and result.spread is not None
    assert 0 < result.floor < result.value and result.floor_n == 64
    assert result.spread[0] > result.value and result.spread[1] > 0  # subsets are smaller, so higher
    assert (result.n_real, result.n_generated) == (64, 80)
    assert [n for n, _ in result.curve] == [16, 21, 32, 43, 64]
    assert "n = 64" in card(result) and "divided by n\n" in card(result)


def test_a_bootstrap_would_be_too_high():
    """Why there is none: it does not even hold the value itself."""
    a, b, rng = gaussians(40, 0), gaussians(40, 1), np.random.default_rng(0)
    value = fvd(a, b).value
    drawn = [fvd(a[rng.integers(40, size=40)], b[rng.integers(40, size=40)]).value for _ in range(20)]
    assert np.quantile(drawn, 0.05) > value


def test_few_samples_have_no_spread():
    result = fvd(gaussians(5, 0), gaussians(5, 1))
    assert result.extrapolated is None and result.spread is None and result.floor is None
    with pytest.raises(CogVideoError, match="at least 2"):
        fvd(gaussians(1, 0), gaussians(5, 1))


def test_the_command_with_real_features(tmp_path, monkeypatch, capsys, i3d_file):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "result.json"
    sides = "digits:test?seconds=2", "digits:test?seed=1&seconds=2"
    result = evaluate(*sides, n=2, i3d=i3d_file, out=out, device="cpu", progress=False)
    stored = json.loads(out.read_text())
    assert stored["value"] == result.value > 0 and stored["protocol"]["i3d_known"]
    assert stored["protocol"]["recipe"]["name"] == "paper" and len(stored["protocol"]["i3d_sha256"]) == 64
    assert "real against real" in capsys.readouterr().out
    assert evaluate(*sides, n=2, i3d=i3d_file, device="cpu", progress=False).value == result.value
    same = evaluate(sides[0], sides[0], n=2, i3d=i3d_file, device="cpu", progress=False)
    assert same.value == pytest.approx(0, abs=1e-6)


def test_missing_weights_and_places_are_told_first(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path))
    with pytest.raises(CogVideoError, match="weights get i3d"):
        evaluate("digits:test", "digits:train", n=2)
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate("digits:test", "digits:train", n=2, out=tmp_path / "none" / "x.json")
    with pytest.raises(CogVideoError, match="at least 2 clips"):
        evaluate("digits:test", "digits:train", n=1)
