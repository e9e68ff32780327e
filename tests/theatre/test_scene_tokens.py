"""Tokens of scenes from the table are those of drawing and encoding every frame."""

import numpy as np
import pytest
import torch
from einops import rearrange

from cogvideo.checkpoints.registry import DEMO
from cogvideo.theatre.drawing import render
from cogvideo.theatre.scene_tokens import SceneTokens, scene_patches
from cogvideo.theatre.scenes import sample_clips, states
from cogvideo.tokenizers.frames import FrameTokenizer


@pytest.fixture(scope="module")
def frames() -> FrameTokenizer:
    return FrameTokenizer.load(DEMO / "tokenizers" / "frames.safetensors")


def test_tokens_are_those_of_drawn_and_encoded_frames(frames):
    clips = sample_clips(12, np.random.default_rng(0), split="pictures")
    times = np.random.default_rng(1).uniform(0, 9, (12, 3))
    tokens = SceneTokens(frames)(clips, states(clips, times), 64)
    pictures = rearrange(render(clips, times), "n t c h w -> (n t) c h w")
    assert torch.equal(tokens, rearrange(frames.encode(pictures), "(n t) h w -> n t (h w)", t=3))


def test_patches_are_distinct_and_counted():
    scenes = scene_patches(64)
    assert scenes is scene_patches(64)  # found once in a process
    assert len(scenes.patches.flatten(1).unique(dim=0)) == len(scenes.patches)
    assert scenes.table.shape == (12, 22, 4, 17, 64)
    assert len(scenes.table.unique()) == len(scenes.patches) == len(scenes.counts)
    pictures = scenes.table.reshape(-1, 64).unique(dim=0)
    assert torch.equal(torch.bincount(pictures.flatten().long()), scenes.counts)
