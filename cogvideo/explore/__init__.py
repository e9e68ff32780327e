"""Looking inside: what the model attends to, measured, drawn and explored."""

from cogvideo.explore.recording import Captured, Patches, Recording, capture, record, to_patches
from cogvideo.explore.requests import memory_needed

__all__ = ["Captured", "Patches", "Recording", "capture", "memory_needed", "record", "to_patches"]
