"""Reading clips and keeping features; the real I3D once, elsewhere a network whose output is known."""

import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation import features
from cogvideo.evaluation.features import CHUNK, clips_of, extract, features_of
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import PRESETS, prepare
from cogvideo.evaluation.sides import Side
from cogvideo.evaluation.sources import open_side

RECIPE = PRESETS["stylegan-v"]


class Means:
    """Mean colour of a clip; counts the clips it has seen."""

    def __init__(self, stop_after: int = 10**9):
        self.seen, self.stop_after = 0, stop_after

    def __call__(self, video: torch.Tensor) -> torch.Tensor:
        if self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(video)
        return video.mean((2, 3, 4))


def some_clips(n: int) -> list[np.ndarray]:
    return list(np.random.default_rng(n).integers(256, size=(n, 16, 8, 8, 3), dtype=np.uint8))


def test_features_are_those_of_the_clips_in_order_and_kept(tmp_path):
    clips = some_clips(5)
    found = extract([*clips, clips[0]], RECIPE, Means(), key="a", folder=tmp_path, progress=False)
    np.testing.assert_allclose(
        found, [prepare(c, RECIPE).mean((1, 2, 3)) for c in [*clips, clips[0]]], atol=1e-6
    )
    again = Means()
    assert np.array_equal(
        extract(clips[::-1], RECIPE, again, key="a", folder=tmp_path, progress=False), found[4::-1]
    )
    assert again.seen == 0
    for key, recipe in (("b", RECIPE), ("a", PRESETS["paper"])):
        other = Means()
        extract(clips, recipe, other, key=key, folder=tmp_path, progress=False)
        assert other.seen == 5


def test_a_stopped_run_loses_at_most_a_chunk(tmp_path):
    clips = some_clips(40)
    with pytest.raises(KeyboardInterrupt):
        extract(clips, RECIPE, Means(stop_after=30), key="a", folder=tmp_path, progress=False)
    rest = Means()
    extract(clips, RECIPE, rest, key="a", folder=tmp_path, progress=False)
    assert rest.seen == 40 - 16


def test_a_damaged_chunk_is_made_anew(tmp_path):
    clips = some_clips(3)
    extract(clips, RECIPE, Means(), key="a", folder=tmp_path, progress=False)
    file = next(tmp_path.rglob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    again = Means()
    extract(clips, RECIPE, again, key="a", folder=tmp_path, progress=False)
    assert again.seen == 3


def test_no_more_than_a_chunk_of_clips_is_in_memory(tmp_path):
    """Videos of 40 frames, 16 of them taken: neither they nor clips whose features are known may be kept."""
    made: list[weakref.ref[np.ndarray]] = []
    alive = []

    def read(name: str) -> np.ndarray:
        video = np.full((40, 8, 8, 3), int(name), np.uint8)
        made.append(weakref.ref(video))
        return video

    clips, _ = clips_of(Side("many", [str(i) for i in range(60)], read), RECIPE)

    def watched() -> Iterator[np.ndarray]:
        for clip in clips:
            made.append(weakref.ref(clip))
            alive.append(sum(array() is not None for array in made))
            yield clip

    found = extract(watched(), RECIPE, Means(), key="a", folder=tmp_path, progress=False)
    assert len(alive) == 60 and CHUNK <= max(alive) <= CHUNK + 4
    np.testing.assert_allclose(found[:, 0], np.arange(60) / 127.5 - 1, atol=1e-6)


def test_unreadable_files_are_listed_and_then_too_many(tmp_path, monkeypatch):
    for i in range(9):
        write_video(tmp_path / f"{i}.mp4", np.full((16, 16, 16, 3), 20 * i, np.uint8), 8)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    side = open_side(str(tmp_path), 10)
    with monkeypatch.context() as patched:
        patched.setattr(features, "MAX_SKIPPED", 0.1)
        clips, skipped = clips_of(side, RECIPE)
        assert len(list(clips)) == 9 and len(skipped) == 1 and "bad.mp4" in skipped[0]
    with pytest.raises(CogVideoError, match="1 of the 10 videos .*bad.mp4.* at most 1%"):
        list(clips_of(side, RECIPE)[0])


def test_sizes_are_mixed_only_where_the_recipe_makes_them_one(tmp_path):
    for i, size in enumerate((16, 32)):
        write_video(tmp_path / f"{i}.mp4", np.zeros((16, size, size, 3), np.uint8), 8)
    side = open_side(str(tmp_path), 2)
    with pytest.raises(CogVideoError, match="(16 x 16 .* 32 x 32|32 x 32 .* 16 x 16).*one size"):
        list(clips_of(side, RECIPE)[0])
    assert len(list(clips_of(side, PRESETS["paper"], size=(64, 64))[0])) == 2
    with pytest.raises(CogVideoError, match="before it 64 x 48"):
        next(clips_of(side, RECIPE, size=(48, 64))[0])


def test_short_videos_and_frames_with_nan_are_one_sentence(tmp_path):
    write_video(tmp_path / "a.mp4", np.zeros((9, 16, 16, 3), np.uint8), 8)
    with pytest.raises(CogVideoError, match="has 9 frames"):
        next(clips_of(open_side(str(tmp_path), 1), RECIPE)[0])
    broken = Side("broken", ["x"], lambda _: np.full((16, 8, 8, 3), np.nan))
    with pytest.raises(CogVideoError, match="broken, x holds frames with NaN"):
        next(clips_of(broken, RECIPE)[0])
    np.save(tmp_path / "a.npy", np.full((16, 8, 8, 3), np.nan))
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(CogVideoError, match="a.npy holds frames with NaN"):
        next(clips_of(open_side(str(tmp_path), 1), RECIPE)[0])


def test_features_of_a_side_that_is_changed(tmp_path, monkeypatch, i3d_file):
    """A change is part of what is kept: features of black frames are not those of the clips."""
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path))
    model = I3D.from_pretrained(i3d_file, device="cpu")
    side = open_side("theatre:test?seconds=2", 2)
    plain = features_of(side, RECIPE, model, progress=False)
    seen: list[int] = []

    def blacken(clip: np.ndarray, number: int) -> np.ndarray:
        seen.append(number)
        return np.zeros_like(clip)

    black = features_of(side, RECIPE, model, change=blacken, progress=False)
    assert plain.size == (64, 64) and plain.values.shape == (2, 400) and seen == [0, 1]
    expected = model(torch.full((1, 3, 16, 224, 224), -1.0)).numpy()
    np.testing.assert_allclose(black.values, expected.repeat(2, 0), atol=1e-4)
    assert np.abs(plain.values - black.values).min(1).max() > 0 and not np.allclose(
        plain.values, black.values, atol=0.1
    )
    with pytest.raises(CogVideoError, match="only 1 readable video"):
        features_of(open_side("theatre:test?seconds=2", 1), RECIPE, model, progress=False)


def test_with_the_real_network(tmp_path, i3d_file):
    model, clips = I3D.from_pretrained(i3d_file, device="cpu"), some_clips(2)
    found = extract(clips, RECIPE, model, key="i3d", folder=tmp_path, progress=False)
    expected = model(torch.stack([prepare(clip, RECIPE) for clip in clips]))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
