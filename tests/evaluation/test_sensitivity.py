"""Each damage does what its name says and nothing else, and the table with the real I3D."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.protocols import evaluate
from cogvideo.evaluation.sensitivity import DAMAGES, damage, sensitivity
from cogvideo.evaluation.settings import Settings
from cogvideo.evaluation.sources import open_side

CLIP = open_side("theatre:test?seconds=2", 1).read("0")[:16]
COUNT = (
    np.arange(16, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
)  # frame t is grey t


@pytest.mark.parametrize("kind", DAMAGES)
def test_form_is_kept_and_the_clip_is_not(kind):
    before = CLIP.copy()
    for strength in (0.3, 1.0):
        wrong = damage(CLIP, kind, strength=strength)
        assert wrong.shape == CLIP.shape and wrong.dtype == np.uint8
        assert np.array_equal(CLIP, before) and not np.array_equal(wrong, CLIP)


def test_order():
    def order(kind: str, seed: int = 0, strength: float = 1.0) -> list[int]:
        return damage(COUNT, kind, seed, strength)[:, 0, 0, 0].tolist()

    assert order("shuffled") != sorted(order("shuffled")) and sorted(order("shuffled")) == list(range(16))
    assert order("frozen") == [0] * 16
    assert order("frozen", strength=0.2) == [*range(13), 12, 12, 12]
    assert order("reversed") == list(range(15, -1, -1))
    assert order("reversed", strength=0.25) == [3, 2, 1, 0, *range(4, 16)]
    for seed in range(20):
        some = order("shuffled", seed, 0.25)
        assert sorted(some) == list(range(16)) and sum(t != place for place, t in enumerate(some)) <= 4


def test_strength():
    grey = np.full((16, 64, 64, 3), 128, np.uint8)
    assert np.array_equal(damage(grey, "blurred"), grey)
    assert damage(grey, "noisy").std() == pytest.approx(32, abs=0.5)
    assert damage(grey, "noisy", strength=0.25).std() == pytest.approx(8, abs=0.2)
    point = np.zeros((1, 65, 65, 3), np.uint8)
    point[:, 32, 32] = 255
    for strength, sigma in ((1.0, 65 / 32), (0.5, 65 / 64)):
        weights = damage(point, "blurred", strength=strength)[0, :, 32, 0].astype(float)
        assert weights.argmax() == 32
        assert weights[34] / weights[32] == pytest.approx(np.exp(-0.5 * (2 / sigma) ** 2), abs=0.1)
    coarse, fine = (
        np.abs(damage(CLIP, "recoded", strength=s).astype(float) - CLIP).mean() for s in (1.0, 0.1)
    )
    assert 0.3 < fine < coarse < 20


def test_unknown():
    with pytest.raises(CogVideoError, match="choose one of shuffled"):
        damage(CLIP, "sharpened")
    for strength in (0, 1.5, float("nan")):
        with pytest.raises(CogVideoError, match="at most 1"):
            damage(CLIP, "noisy", strength=strength)


def test_the_table(tmp_path, monkeypatch, capsys, i3d_file):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    out, settings = tmp_path / "table.json", Settings(2, i3d=i3d_file, device="cpu", progress=False)
    real, other = "theatre:test?seconds=2", "theatre:train?seconds=2"
    result = sensitivity(real, other, replace(settings, out=out), presets=["paper"], damages=["noisy"])
    assert [(row.clips, row.strength) for row in result.rows] == [
        ("real", None),
        ("generated", None),
        ("noisy", 1),
    ]
    floor, made, noisy = (row.score.value for row in result.rows)
    assert noisy > floor
    same = evaluate(real, other, settings)  # the same clips, by the other command
    assert (same.floor, same.value) == pytest.approx((floor, made))
    text = capsys.readouterr().out
    assert f"{floor:>12.2f}" in text and "2 clips a side (published with: paper 2048)" in text
    stored = json.loads(out.read_text())
    assert [row["score"]["value"] for row in stored["rows"]] == [floor, made, noisy]
    assert stored["protocol"]["i3d_known"] and out.with_suffix(".png").read_bytes()[1:4] == b"PNG"


def test_of_a_small_folder_each_half_is_used(tmp_path, monkeypatch, i3d_file):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    folder, settings = tmp_path / "videos", Settings(i3d=i3d_file, device="cpu", progress=False)
    folder.mkdir()
    for i in range(5):
        write_video(folder / f"{i}.mp4", np.roll(CLIP, 8 * i, 2), 8)
        if i == 2:
            with pytest.raises(CogVideoError, match="too few videos"):
                sensitivity(str(folder), None, settings, presets=["paper"])
    result = sensitivity(str(folder), None, settings, presets=["paper"], damages=["frozen"])
    assert result.protocol["n"] == 2
    assert [(row.score.n_real, row.score.n_generated) for row in result.rows] == [(2, 2), (2, 2)]


def test_bad_input_is_told_before_the_work(tmp_path):
    cases: list[tuple[Settings, dict[str, Any], str]] = [
        (Settings(1), {}, "at least 2 clips"),
        (Settings(), {"presets": ["tats"]}, "no FVD preset 'tats'"),
        (Settings(), {"damages": ["sharpened"]}, "no damage 'sharpened'"),
        (Settings(), {"strengths": [2.0]}, "cannot have the strength 2"),
        (Settings(out=tmp_path / "none" / "x.json"), {}, "cannot be written"),
    ]
    for settings, options, sentence in cases:
        with pytest.raises(CogVideoError, match=sentence):
            sensitivity("theatre:test", None, settings, **options)
