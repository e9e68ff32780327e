"""FVD with floor, spread and extrapolation on Gaussians whose distance is known, and the command with the real I3D."""

import json

import numpy as np
import pytest

from cogvideo.data.sources import read_options
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.fvd import card, evaluate, fvd, generations, line_in_1_over_n, real_sides
from cogvideo.evaluation.sources import open_side
from cogvideo.checkpoints.registry import DEMO


def gaussians(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 8)) + shift


def test_extrapolation_is_nearer_to_the_truth_than_the_value():
    """Equal covariances and means 0.5 apart in 8 directions: the distance is 2."""
    results = [fvd(gaussians(200, s), gaussians(200, 100 + s, 0.5), seed=s) for s in range(10)]
    plain = np.mean([r.value for r in results]) - 2
    extrapolated = np.mean([r.extrapolated or np.nan for r in results]) - 2
    assert plain > 0.03 and abs(extrapolated) < plain / 2


def test_the_line_in_1_over_n():
    assert line_in_1_over_n([(n, 3 + 40 / n) for n in (5, 10, 80)]) == pytest.approx((3, 40))


def test_floor_spread_and_counts():
    result = fvd(gaussians(64, 0), gaussians(80, 1, 1.0), more_real=gaussians(64, 2), recipe="stylegan-v")
    assert result.floor is not None and result.spread is not None
    assert 0 < result.floor < result.value and result.floor_n == 64
    assert result.spread[0] > result.value and result.spread[1] > 0  # subsets are smaller, so higher
    assert (result.n_real, result.n_generated) == (64, 80)
    assert [n for n, _ in result.curve] == [16, 21, 32, 43, 64]
    assert "n = 64" in card(result) and "divided by n\n" in card(result)


def test_several_generations():
    real, made = gaussians(64, 0), [gaussians(64, 1 + i, 0.2 * i) for i in range(3)]
    result = fvd(real, made[0], more_generated=made[1:])
    assert result.by_seed == [fvd(real, some).value for some in made] and result.by_seed[0] == result.value
    assert result.seed_spread == (np.mean(result.by_seed), np.std(result.by_seed, ddof=1))
    mean, deviation = result.seed_spread
    assert f"generation seeds     {mean:.2f} ± {deviation:.2f} ({result.value:.2f}, " in card(result)
    assert fvd(real, made[0]).seed_spread is None and "generation seeds" not in card(fvd(real, made[0]))


def test_what_can_be_generated_anew(tmp_path):
    """With other seeds than the real side's, which is 5: captions must not be shared."""
    assert generations("demo", 5, 3) == [("demo", 6), ("demo", 7), ("demo", 8)]
    assert generations(str(DEMO), 5) == [(str(DEMO), 6)]
    assert generations("digits:test", 5, 2) == [("digits:test", 6), ("digits:test", 7)]
    assert generations("digits:test?seed=9", 5) == [("digits:test?seed=9", 6)]
    specs = [spec for spec, _ in generations("digits:test?seed=7&seconds=2", 0, 2)]
    assert specs == ["digits:test?seed=7&seconds=2", "digits:test?seed=8&seconds=2"]
    assert generations(str(tmp_path), 3) == [(str(tmp_path), 3)]
    samples = "ucf101-samples:x?weights=demo"
    assert generations(samples, 3, 2) == [(samples, 3), (samples, 4)]
    (_, (spec, _)) = generations("digits:a b?seed=1&weights=my weights+", 0, 2)
    assert read_options(spec) == {"seed": "2", "weights": "my weights+"}  # a space and a plus go through
    with pytest.raises(CogVideoError, match="cannot be generated anew"):
        generations(str(tmp_path), 0, 2)
    with pytest.raises(CogVideoError, match="'x' in digits:test.seed=x is no number"):
        generations("digits:test?seed=x", 0, 2)
    with pytest.raises(CogVideoError, match="cannot be 0 generations"):
        generations("demo", 0, 0)


def test_floor_and_score_see_the_same_captions(tmp_path):
    """Real clips are of other captions than both; the split of a folder is by its own order."""
    right, others = real_sides("digits:test", 3, 5)
    spec, seed = generations("digits:test", 5)[0]
    made = open_side(spec, 3, seed=seed)
    assert others.label == made.label != right.label and len(right.names) == len(others.names) == 3
    labels = [side.label for side in real_sides("digits:test?seed=7&seconds=2", 2, 0)]
    assert labels == ["digits:test?seed=7&seconds=2", "digits:test?seed=8&seconds=2"]
    for i in range(5):
        (tmp_path / f"{i}.mp4").touch()
    right, others = real_sides(str(tmp_path), 3, 0)
    assert len(right.names) == 3 and len(others.names) == 2 and not set(right.names) & set(others.names)


def test_few_samples_have_no_spread():
    result = fvd(gaussians(5, 0), gaussians(5, 1))
    assert result.extrapolated is None and result.spread is None and result.floor is None
    with pytest.raises(CogVideoError, match="at least 2"):
        fvd(gaussians(1, 0), gaussians(5, 1))


def test_the_command_with_real_features(tmp_path, monkeypatch, capsys, i3d_file):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "result.json"
    sides = "digits:test?seconds=2", "digits:test?seed=1&seconds=2"
    options = {"n": 2, "i3d": i3d_file, "device": "cpu", "progress": False}
    result = evaluate(*sides, seeds=2, out=out, **options)
    stored = json.loads(out.read_text())
    assert stored["value"] == result.value > 0 and stored["protocol"]["i3d_known"]
    assert stored["protocol"]["recipe"]["name"] == "paper" and len(stored["protocol"]["i3d_sha256"]) == 64
    assert stored["protocol"]["skipped"] == {"real": [], "generated": []}
    assert set(stored["protocol"]["seconds"]) == {"real", "generated"}
    text = capsys.readouterr().out
    assert "real against real" in text and "generation seeds" in text and "time " in text
    assert evaluate(*sides, **options).value == result.value
    other = evaluate(sides[0], "digits:test?seed=2&seconds=2", **options)
    assert result.by_seed == [result.value, other.value] and other.value != result.value
    same = evaluate("digits:test?seed=0&seconds=2", "digits:test?seed=0&seconds=2", **options)
    assert same.value == pytest.approx(0, abs=1e-6)


def test_sides_of_different_sizes_are_told_before_the_work(tmp_path, monkeypatch, i3d_file):
    from cogvideo.data.video import write_video

    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    for name, size in (("real", 16), ("made", 32)):
        (tmp_path / name).mkdir()
        for i in range(2):
            write_video(tmp_path / name / f"{i}.mp4", np.full((16, size, size, 3), 90 * i, np.uint8), 8)
    with pytest.raises(CogVideoError, match="32 x 32 pixels, videos before it 16 x 16"):
        evaluate(
            str(tmp_path / "real"),
            str(tmp_path / "made"),
            preset="stylegan-v",
            n=2,
            i3d=i3d_file,
            progress=False,
        )


def test_mistakes_of_the_generated_side_are_told_before_the_work(tmp_path, i3d_file, monkeypatch):
    from cogvideo.evaluation.sensitivity import sensitivity

    monkeypatch.setattr(
        "cogvideo.evaluation.features.features_of", lambda *_, **__: pytest.fail("the real side first")
    )
    (tmp_path / "empty").mkdir()
    for generated, sentence in (
        (str(tmp_path / "empty"), "holds no videos"),
        ("nowhere", "no weights"),
        ("kinetics-predictions:x?weights=demo&seconds=3", "3 seconds were not trained"),
    ):
        with pytest.raises(CogVideoError, match=sentence):
            evaluate("digits:test", generated, n=2, i3d=i3d_file, device="cpu")
        with pytest.raises(CogVideoError, match=sentence):
            sensitivity("digits:test", generated, n=2, i3d=i3d_file, device="cpu")


def test_missing_weights_and_places_are_told_first(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path))
    with pytest.raises(CogVideoError, match="weights get i3d"):
        evaluate("digits:test", "digits:train", n=2)
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate("digits:test", "digits:train", n=2, out=tmp_path / "none" / "x.json")
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate("digits:test", "digits:train", n=2, out=tmp_path)
    with pytest.raises(CogVideoError, match="at least 2 clips"):
        evaluate("digits:test", "digits:train", n=1)
