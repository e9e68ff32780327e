"""Super-resolution of frame tokens: direct (one pass) and iterative (parts drawn again)."""

from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.iterative import IterativeConfig, IterativeSuperResolution

__all__ = ["DirectSuperResolution", "IterativeConfig", "IterativeSuperResolution", "SuperResolutionConfig"]
