"""What the recipes do to frames, against Pillow-free slow oracles and closed forms."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.recipes import PRESETS, Recipe, check_frames, choose_clip, find_recipe, prepare

FRAMES = np.random.default_rng(0).integers(256, size=(16, 48, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_what_i3d_takes(name):
    video = prepare(FRAMES, PRESETS[name])
    assert video.shape == (3, 16, 224, 224) and video.dtype == torch.float32
    assert -1 <= video.min() < -0.5 and 0.5 < video.max() <= 1


def test_plain_values_are_kept():
    black, white = np.zeros_like(FRAMES), np.full_like(FRAMES, 255)
    for recipe in PRESETS.values():
        assert torch.equal(prepare(black, recipe), torch.full((3, 16, 224, 224), -1.0))
        torch.testing.assert_close(prepare(white, recipe), torch.ones(3, 16, 224, 224))


def test_squeeze_takes_all_and_crop_the_middle():
    left = np.zeros((16, 48, 96, 3), np.uint8)
    left[:, :, :24] = 255  # a quarter of the width; the middle half has none of it
    assert prepare(left, PRESETS["stylegan-v"])[:, :, :, :50].min() == pytest.approx(1)
    assert prepare(left, PRESETS["videogpt"])[:, :, :, 5:].max() == pytest.approx(-1)


def test_squeeze_is_bilinear_without_corners():
    row = prepare(FRAMES, PRESETS["stylegan-v"])[0, 0, :, :]
    grid = torch.from_numpy(FRAMES[0, :, :, 0]).double()
    for y, x in ((0, 0), (100, 37), (223, 223), (13, 200)):
        v, u = (y + 0.5) * 48 / 224 - 0.5, (x + 0.5) * 64 / 224 - 0.5
        v, u = min(max(v, 0), 47), min(max(u, 0), 63)
        v0, u0 = int(v), int(u)
        v1, u1 = min(v0 + 1, 47), min(u0 + 1, 63)
        top = grid[v0, u0] * (1 - u + u0) + grid[v0, u1] * (u - u0)
        low = grid[v1, u0] * (1 - u + u0) + grid[v1, u1] * (u - u0)
        assert row[y, x] == pytest.approx(float(top * (1 - v + v0) + low * (v - v0)) / 127.5 - 1, abs=1e-5)


def test_antialias_only_where_the_recipe_has_it():
    stripes = np.zeros((16, 512, 512, 3), np.uint8)
    stripes[:, :, ::2] = 255  # finer than 256 pixels can show
    assert prepare(stripes, PRESETS["cd-fvd"])[:, :, :, 10:-10].std() < 0.02
    shrunk = F.interpolate(
        torch.from_numpy(stripes[:1, :, :, 0]).float()[None], size=(224, 224), mode="bilinear"
    )
    torch.testing.assert_close(prepare(stripes, PRESETS["stylegan-v"])[0, :1], shrunk[0] / 127.5 - 1)


def test_clip_choice():
    frames = np.arange(40, dtype=np.uint8)[:, None, None, None].repeat(3, 3)

    def chosen(seed: int = 0, **changes) -> list[int]:
        recipe = Recipe("own", "here", 2, True, 1e-3, **changes)
        return choose_clip(frames, recipe, np.random.default_rng(seed))[:, 0, 0, 0].tolist()

    assert chosen(clip="first") == list(range(16))
    assert chosen(clip="centre") == list(range(12, 28))
    assert chosen(clip="first", frames=10, stride=3) == list(range(0, 30, 3))
    assert {chosen(seed)[0] for seed in range(300)} == set(range(25))


def test_bad_input_is_one_sentence():
    recipe = find_recipe("paper")
    with pytest.raises(CogVideoError, match="has 12 frames and preset paper takes 16"):
        choose_clip(FRAMES[:12], recipe, np.random.default_rng(0))
    with pytest.raises(CogVideoError, match="NaN"):
        check_frames(np.full((16, 8, 8, 3), np.nan), "x")
    with pytest.raises(CogVideoError, match="uint8"):
        check_frames(np.zeros((16, 8, 8, 3)), "x")
    with pytest.raises(CogVideoError, match="choose one of paper, stylegan-v"):
        find_recipe("tats")
