"""Inception Score and CLIPSIM: closed forms, slow oracles, and the whole way with random weights."""

import json
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation import features
from cogvideo.evaluation.c3d import C3D
from cogvideo.evaluation.features import rows_of
from cogvideo.evaluation.scores import (
    ClipEncoder,
    evaluate_clipsim,
    evaluate_inception_score,
    frame_mean,
    inception_score,
    similarities,
)
from cogvideo.evaluation.settings import Settings
from cogvideo.evaluation.sources import open_side
from cogvideo.theatre.dataset import make_theatre


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("splits", [1, 4])
def test_uniform_predictions_score_1(splits):
    value, deviation = inception_score(np.full((40, 101), 7.0), splits)
    assert value == pytest.approx(1, abs=1e-12) and deviation == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 101])
def test_confident_and_balanced_predictions_score_the_number_of_classes(classes):
    logits = np.tile(1000 * np.eye(classes), (10, 1))
    assert inception_score(logits, 10) == pytest.approx((classes, 0), abs=1e-9)


def test_confident_but_one_sided_predictions_score_1():
    assert inception_score(np.tile(1000 * np.eye(5)[2], (20, 1)), 2)[0] == pytest.approx(1, abs=1e-12)


def test_splits_are_disjoint_and_in_order():
    """The first half knows 2 classes, the second 3."""
    logits = 1000 * np.concatenate([np.tile(np.eye(5)[:2], (3, 1)), np.tile(np.eye(5)[2:], (2, 1))])
    assert inception_score(logits, 2) == pytest.approx((2.5, 0.5), abs=1e-9)


def test_against_scipy():
    logits = np.random.default_rng(0).normal(0, 3, (57, 11))
    values = []
    for part in np.array_split(softmax(logits, 1), 5):
        values.append(np.exp(np.mean([rel_entr(row, part.mean(0)).sum() for row in part])))
    assert inception_score(logits, 5) == pytest.approx((np.mean(values), np.std(values)), rel=1e-12)


def test_what_cannot_be_scored_is_one_sentence():
    with pytest.raises(CogVideoError, match="3 clips cannot be cut into 10 splits"):
        inception_score(np.zeros((3, 101)))
    with pytest.raises(CogVideoError, match="finite"):
        inception_score(np.array([[0.0, np.nan]]), 1)


def test_rows_are_kept_by_what_clips_hold(tmp_path):
    clips = [np.full((2, 4, 4, 3), i % 5, np.uint8) for i in range(40)]
    met = []

    def compute(some):
        met.extend(some)
        return np.array([[clip.mean(), clip.size] for clip in some], np.float32)

    arguments = {"key": "k", "folder": tmp_path, "progress": False}
    rows = rows_of(clips, compute, **arguments)
    assert rows.tolist() == [[i % 5, 96] for i in range(40)] and len(met) == 5
    assert np.array_equal(rows_of(iter(clips[::-1]), compute, **arguments), rows[::-1]) and len(met) == 5
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(b"damaged")
    rows_of(clips, compute, **arguments)
    assert len(met) == 10


class FakeC3D(torch.nn.Module):
    """Tells the class from the brightness of the first frame."""

    digest, exact_mean = "0" * 64, False

    def forward(self, clips):
        assert clips.dtype == torch.uint8 and clips.shape[1] == 16
        return 1000 * torch.eye(101)[(clips[:, 0].float().mean((1, 2, 3)) / 2).long()]


def test_the_first_16_frames_are_scored(tmp_path, capsys):
    network = cast(C3D, FakeC3D())
    (tmp_path / "clips").mkdir()
    for i in range(8):  # four classes, each twice; later frames are all of one class
        frames = np.full((20, 16, 16, 3), 200, np.uint8)
        frames[:16] = 20 + 40 * (i % 4)
        write_video(tmp_path / "clips" / f"{i}.mp4", frames, 8)
    out = tmp_path / "is.json"
    clips, settings = str(tmp_path / "clips"), Settings(8, out=out, progress=False)
    result = evaluate_inception_score(clips, network, settings, splits=1)
    assert result.value == pytest.approx(4) == result.whole and result.n == 8
    assert json.loads(out.read_text())["value"] == result.value
    shown = capsys.readouterr().out
    assert "Inception Score      4.000 ± 0.000" in shown and "not as published" in shown
    with pytest.raises(CogVideoError, match="cannot be cut"):
        evaluate_inception_score(clips, network, settings, splits=9)
    with pytest.raises(CogVideoError, match="cannot be written"):
        evaluate_inception_score("demo", network, Settings(out=tmp_path / "none" / "x.json"))


def color_encoder() -> ClipEncoder:
    """Images as their mean colour, texts as the colour they name, of some length."""
    colors = {"red": (3.0, 0, 0), "green": (0, 0.5, 0), "blue": (0, 0, 9.0)}

    def texts(some):
        return torch.tensor([next(v for k, v in colors.items() if k in text) for text in some])

    return ClipEncoder(lambda frames: torch.from_numpy(frames).float().mean((1, 2)), texts, "f" * 64)


def test_similarity_is_the_mean_cosine_over_frames():
    rng = np.random.default_rng(0)
    videos = rng.integers(256, size=(3, 7, 4, 4, 3), dtype=np.uint8)
    prompts = ["a red hat", "a blue car", "a green boat"]
    found = similarities(np.stack([frame_mean(color_encoder(), v) for v in videos]), color_encoder(), prompts)
    for video, axis, value in zip(videos, (0, 2, 1), found, strict=True):
        means = video.astype(float).mean((1, 2))
        assert value == pytest.approx(np.mean(means[:, axis] / np.linalg.norm(means, axis=1)), rel=1e-6)


def write_folder(folder: Path, colors: list[tuple[int, int, int]], captions: list[str]) -> str:
    folder.mkdir()
    rows = []
    for i, (color, caption) in enumerate(zip(colors, captions, strict=True)):
        write_video(folder / f"{i}.mp4", np.tile(np.array(color, np.uint8), (5, 16, 16, 1)), 8)
        rows.append(json.dumps({"file": f"{i}.mp4", "caption": caption}) + "\n")
    (folder / "captions.jsonl").write_text("".join(rows))
    return str(folder)


def test_clipsim_and_relative_matching_of_folders(tmp_path, capsys):
    captions = ["red", "green", "blue"]
    right = write_folder(tmp_path / "real", [(250, 0, 0), (0, 250, 0), (0, 0, 250)], captions)
    half = write_folder(tmp_path / "half", [(250, 0, 0), (250, 250, 0), (0, 0, 250)], captions)
    out = tmp_path / "clipsim.json"
    result = evaluate_clipsim(half, color_encoder(), Settings(3, out=out, progress=False), real=right)
    expected = [1, 0.5**0.5, 1]
    assert result.value == pytest.approx(np.mean(expected), abs=0.01) and result.n == 3
    assert result.error == pytest.approx(np.std(expected, ddof=1) / 3**0.5, abs=0.01)
    assert result.relative == pytest.approx(np.mean(expected), abs=0.02)
    assert json.loads(out.read_text())["relative"] == result.relative
    assert "relative matching" in capsys.readouterr().out
    other = write_folder(tmp_path / "other", [(250, 0, 0)], ["blue"])
    with pytest.raises(CogVideoError, match="same prompts in the same order"):
        evaluate_clipsim(half, color_encoder(), Settings(3, progress=False), real=other)


def test_unreadable_videos_leave_prompts_and_clips_together(tmp_path, monkeypatch):
    folder = write_folder(
        tmp_path / "clips", [(250, 0, 0), (0, 250, 0), (0, 0, 250)], ["red", "green", "blue"]
    )
    Path(folder, "1.mp4").write_bytes(b"damaged")
    with pytest.raises(CogVideoError, match="1.mp4"):
        evaluate_clipsim(folder, color_encoder(), Settings(3, progress=False))
    monkeypatch.setattr(features, "MAX_SKIPPED", 0.5)
    result = evaluate_clipsim(folder, color_encoder(), Settings(3, progress=False))
    assert (
        result.n == 2
        and result.value == pytest.approx(1, abs=0.01)
        and "1.mp4" in result.protocol["skipped"][0]
    )


def test_sides_know_their_prompts(tmp_path):
    make_theatre(tmp_path / "theatre", clips=2, seed=0, size=64, seconds=0.5, progress=False)
    side = open_side(str(tmp_path / "theatre"), 5)
    assert len(side.names) == 2 and all(side.prompts[name].startswith("a") for name in side.names)
    drawn = open_side("theatre:test?seed=4", 3)
    assert list(drawn.prompts) == drawn.names and len(set(drawn.prompts.values())) == 3
    write_folder(tmp_path / "bare", [(0, 0, 250)], ["blue"])
    (tmp_path / "bare" / "captions.jsonl").unlink()
    with pytest.raises(CogVideoError, match="has no prompt"):
        evaluate_clipsim(str(tmp_path / "bare"), color_encoder(), Settings(progress=False))
    (tmp_path / "bare" / "captions.jsonl").write_text('{"file": 3}\n')
    with pytest.raises(CogVideoError, match="Line 1 of .* must have path and caption"):
        open_side(str(tmp_path / "bare"), 5)


def test_open_clip_itself(tmp_path):
    """A model with random weights: its encoder is the package's own, files of other models are refused."""
    open_clip = pytest.importorskip("open_clip", reason="the extra cogvideo[clip] is not installed")
    from PIL import Image

    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("RN50", load_weights=False)
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "clip.pt"
    )
    encoder = ClipEncoder.from_open_clip(tmp_path / "clip.pt", "RN50", device="cpu")
    frames = np.random.default_rng(0).integers(256, size=(2, 60, 80, 3), dtype=np.uint8)
    with torch.inference_mode():
        texts = model.eval().encode_text(open_clip.get_tokenizer("RN50")(["a lion"]))
        images = model.encode_image(torch.stack([transform(Image.fromarray(frame)) for frame in frames]))
        cosines = torch.nn.functional.cosine_similarity(images, texts)
    found = similarities(frame_mean(encoder, frames)[None], encoder, ["a lion"])
    assert found[0] == pytest.approx(cosines.mean().item(), abs=1e-5)
    with pytest.raises(CogVideoError, match="does not hold the weights of ViT-B-32"):
        ClipEncoder.from_open_clip(tmp_path / "clip.pt", "ViT-B-32")
    with pytest.raises(CogVideoError, match="no model 'ViT-Z'"):
        ClipEncoder.from_open_clip(tmp_path / "clip.pt", "ViT-Z")
    with pytest.raises(CogVideoError, match="missing"):
        ClipEncoder.from_open_clip(tmp_path / "none.pt", "RN50")


def test_without_open_clip_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CogVideoError, match=r"cogvideo\[clip\]"):
        ClipEncoder.from_open_clip("x.pt", "ViT-B-32")
