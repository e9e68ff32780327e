"""Strategies, the cached decode loop, key frames, interpolation, the pipeline."""

from cogvideo.model.strategies import (
    ClusterStrategy,
    Strategy,
    TopKStrategy,
    TopPStrategy,
    cluster_codebook,
    draw,
)
from cogvideo.sampling.decode import generate_first_frame, generate_key_frames, interpolate_frames

__all__ = [
    "ClusterStrategy",
    "Strategy",
    "TopKStrategy",
    "TopPStrategy",
    "cluster_codebook",
    "draw",
    "generate_first_frame",
    "generate_key_frames",
    "interpolate_frames",
]
