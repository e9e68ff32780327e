"""FVD and the paper's protocols from files and names of sides to the score."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluation.test_samples import clip, kinetics, ucf101

from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation import protocols, sensitivity
from cogvideo.evaluation.protocols import evaluate, evaluate_kinetics, evaluate_ucf101
from cogvideo.evaluation.recipes import find_recipe
from cogvideo.evaluation.settings import Settings
from cogvideo.evaluation.sources import open_side
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.scenes import FPS


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))


def test_the_command_with_real_features(tmp_path, monkeypatch, capsys, i3d_file):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "result.json"
    sides = "theatre:test?seconds=2", "theatre:test?seed=1&seconds=2"
    settings = Settings(2, i3d=i3d_file, device="cpu", progress=False)
    result = evaluate(*sides, replace(settings, out=out), seeds=2)
    stored = json.loads(out.read_text())
    assert stored["value"] == result.value > 0 and stored["protocol"]["i3d_known"]
    assert stored["protocol"]["recipe"]["name"] == "paper" and len(stored["protocol"]["i3d_sha256"]) == 64
    assert stored["protocol"]["skipped"] == {"real": [], "generated": []}
    assert set(stored["protocol"]["seconds"]) == {"real", "generated"}
    text = capsys.readouterr().out
    assert "real against real" in text and "generation seeds" in text and "time " in text
    assert evaluate(*sides, settings).value == result.value
    other = evaluate(sides[0], "theatre:test?seed=2&seconds=2", settings)
    assert result.by_seed == [result.value, other.value] and other.value != result.value
    same = evaluate("theatre:test?seed=0&seconds=2", "theatre:test?seed=0&seconds=2", settings)
    assert same.value == pytest.approx(0, abs=1e-6)


def test_sides_of_different_sizes_are_told_before_the_work(tmp_path, monkeypatch, i3d_file):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    for name, size in (("real", 16), ("made", 32)):
        (tmp_path / name).mkdir()
        for i in range(2):
            write_video(tmp_path / name / f"{i}.mp4", np.full((16, size, size, 3), 90 * i, np.uint8), 8)
    with pytest.raises(CogVideoError, match="32 x 32 pixels, videos before it 16 x 16"):
        settings = Settings(2, i3d=i3d_file, progress=False)
        evaluate(str(tmp_path / "real"), str(tmp_path / "made"), settings, preset="stylegan-v")


def test_mistakes_of_the_generated_side_are_told_before_the_work(tmp_path, i3d_file, monkeypatch):
    for module in (protocols, sensitivity):
        monkeypatch.setattr(module, "features_of", lambda *_, **__: pytest.fail("the real side first"))
    settings = Settings(2, i3d=i3d_file, device="cpu")
    (tmp_path / "empty").mkdir()
    for generated, sentence in (
        (str(tmp_path / "empty"), "holds no videos"),
        ("nowhere", "no weights"),
        ("kinetics-predictions:x?weights=demo&seconds=3", "3 seconds were not trained"),
    ):
        with pytest.raises(CogVideoError, match=sentence):
            evaluate("theatre:test", generated, settings)
        with pytest.raises(CogVideoError, match=sentence):
            sensitivity.sensitivity("theatre:test", generated, settings)


def test_missing_weights_and_places_are_told_first(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path))
    with pytest.raises(CogVideoError, match="weights get i3d"):
        evaluate("theatre:test", "theatre:train", Settings(2))
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate("theatre:test", "theatre:train", Settings(2, out=tmp_path / "none" / "x.json"))
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate("theatre:test", "theatre:train", Settings(2, out=tmp_path))
    with pytest.raises(CogVideoError, match="at least 2 clips"):
        evaluate("theatre:test", "theatre:train", Settings(1))


@pytest.fixture
def small_i3d(monkeypatch):
    """Without the real network where only the way to it is tested: the mean colours of 16 frames."""

    class Small:
        digest, known, batch_norm_eps = "0" * 64, False, 1e-5

        def __call__(self, video):
            return video.mean((3, 4)).flatten(1)

    monkeypatch.setattr("cogvideo.evaluation.i3d.I3D.from_pretrained", lambda *_, **__: Small())


def test_kinetics_from_files_to_the_score(tmp_path, small_i3d, capsys):
    folder, out = kinetics(tmp_path / "k600"), tmp_path / "result.json"
    settings = Settings(2, seed=2, out=out, device="cpu", progress=False)
    result = evaluate_kinetics(folder, "demo", settings, split="test.csv")
    assert result["fvd"]["value"] > 0 and result["fvd"]["n_generated"] == 2
    assert result["fvd"]["protocol"]["recipe"]["side"] == 64
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    shown = capsys.readouterr().out
    assert "5 real frames, 11 drawn" in shown and "109.23" in shown and "short side to 64" in shown


def test_ucf101_from_files_to_the_scores(tmp_path, i3d_file, capsys, monkeypatch):
    """With the real I3D and a C3D of random weights; the second run samples nothing."""
    from cogvideo.evaluation.c3d import C3D

    torch.manual_seed(0)
    state = {name.partition(".")[2]: tensor for name, tensor in C3D().state_dict().items() if name != "mean"}
    torch.save(state, tmp_path / "c3d.pt")
    folder, out = ucf101(tmp_path / "ucf", {"TaiChi": 3, "YoYo": 3}), tmp_path / "result.json"
    own = tmp_path / "prompts.csv"
    own.write_text("TaiChi,a lion eats an apple\nYoYo,a bear throws a ball\n")
    settings = Settings(2, i3d=i3d_file, device="cpu", progress=False)
    arguments = {"seconds": 2.0, "prompts": own, "c3d": tmp_path / "c3d.pt", "splits": 1}
    result = evaluate_ucf101(folder, "demo", replace(settings, out=out), **arguments)
    assert result["fvd"]["value"] > 0 and result["fvd"]["n_generated"] == 2 == result["fvd"]["n_real"]
    assert 1 <= result["inception_score"]["value"] < 2 and result["inception_score"]["n"] == 2
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
    shown = capsys.readouterr().out
    assert "in proportion to the videos of the split trainlist01.txt" in shown and "Inception Score" in shown
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *_, **__: pytest.fail("sampled anew"))
    again = evaluate_ucf101(folder, "demo", settings, **arguments)
    assert again["fvd"]["value"] == result["fvd"]["value"]
    assert again["inception_score"]["value"] == result["inception_score"]["value"]


def test_mistakes_are_told_before_sampling(tmp_path, small_i3d):
    folder, quiet = ucf101(tmp_path / "ucf", {"TaiChi": 3, "YoYo": 3}), Settings(2, progress=False)
    with pytest.raises(CogVideoError, match="no split file trainlist09.txt"):
        evaluate_ucf101(folder, "demo", quiet, split="trainlist09.txt")
    with pytest.raises(CogVideoError, match="There is no folder"):
        evaluate_ucf101(tmp_path / "none", "demo", quiet)
    with pytest.raises(CogVideoError, match="2 clips cannot be cut into 10 splits"):
        evaluate_ucf101(folder, "demo", quiet, c3d=tmp_path / "c3d.pt")
    with pytest.raises(CogVideoError, match="c3d.pt is missing"):
        evaluate_ucf101(folder, "demo", replace(quiet, n=20), c3d=tmp_path / "c3d.pt")
    with pytest.raises(CogVideoError, match="no weights at nowhere"):
        evaluate_ucf101(folder, "nowhere", quiet)
    with pytest.raises(CogVideoError, match="no weights at nowhere"):
        evaluate_kinetics(folder, "nowhere", quiet)
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate_kinetics(folder, "demo", Settings(out=tmp_path / "none" / "x.json"))
    with pytest.raises(CogVideoError, match="does not name weights"):
        open_side(f"ucf101-samples:{folder}", 2)
    with pytest.raises(CogVideoError, match="unknown option speed"):
        open_side(f"kinetics-predictions:{folder}?weights=demo&speed=2", 2)
    flat = tmp_path / "flat"
    flat.mkdir()
    write_video(flat / "v_TaiChi_g01_c01.mp4", clip(0), FPS)
    for seconds in (3.0, 0.0):
        with pytest.raises(CogVideoError, match="seconds were not trained: choose one of 0.5"):
            evaluate_ucf101(folder, "demo", quiet, seconds=seconds)
        with pytest.raises(CogVideoError, match="seconds were not trained: choose one of 0.5"):
            evaluate_kinetics(folder, "demo", quiet, seconds=seconds)
    with pytest.raises(CogVideoError, match="outside of class folders"):
        evaluate_ucf101(flat, "demo", quiet, split="all")


def test_the_presets_know_the_protocol():
    assert find_recipe("paper-kinetics").frames == protocols.GIVEN + protocols.PREDICTED
