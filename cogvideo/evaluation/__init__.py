"""Scores of videos: I3D features, Fréchet and kernel distances, alignment with the prompt."""

from cogvideo.evaluation.distances import (
    frechet_distance,
    frechet_from_statistics,
    kernel_distance,
    sliced_distance,
)
from cogvideo.evaluation.fvd_score import FVDResult, fvd
from cogvideo.evaluation.i3d import I3D

__all__ = [
    "I3D",
    "FVDResult",
    "frechet_distance",
    "frechet_from_statistics",
    "fvd",
    "kernel_distance",
    "sliced_distance",
]
