"""Native pipeline folders, and what every pipeline is loaded with: device, precision, home of the weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cogvideo.checkpoints.native import ADVICE, load_model, read_weights
from cogvideo.checkpoints.registry import PIPELINE, no_pipeline
from cogvideo.config import ModelConfig, SamplingConfig, from_dict
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import read_json
from cogvideo.runtime.device import wide_type
from cogvideo.runtime.memory import check_fits, weight_bytes
from cogvideo.runtime.quantize import load_int8
from cogvideo.runtime.tensors import DTYPES, meta_of
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import TextTokenizer

M = TypeVar("M", bound=nn.Module)
OFFLOADS = ("none", "stages", "layers")
BLOCK = re.compile(r"\.(\d+)(?:\.|$)")  # the block's number in a weight's name, the release's or ours


@dataclass(frozen=True)
class Loader:
    """Calls a model's loader with the precision and the devices asked for."""

    dtype: str | None  # one of DTYPES, or int8; None: `default`
    device: str  # that computes
    home: str  # where the weights stay: the device, or the CPU when they are offloaded
    default: torch.dtype | None  # None: as in the files
    offload: str = "none"  # one of OFFLOADS

    def __post_init__(self):
        if self.dtype not in (None, "int8", *DTYPES):
            raise CogVideoError(f"dtype {self.dtype!r} is unknown: choose {', '.join(DTYPES)} or int8.")

    def __call__(self, read: Callable[..., M]) -> M:
        """read(device=..., dtype=...) -> the model."""
        if self.dtype == "int8":
            return load_int8(read, device=self.device, home=self.home, dtype=wide_type(self.device))
        return read(device=self.home, dtype=DTYPES[self.dtype] if self.dtype else self.default)

    def bytes_of(self, weights: Mapping[str, Tensor]) -> int:
        """Memory of a transformer's weights once they are loaded."""
        return weight_bytes(weights, self.dtype, self.device, self.default)

    def room_of(self, weights: Mapping[str, Tensor]) -> int:
        """Device memory of a transformer's weights at work: of streamed blocks two, and the rest."""
        if self.offload != "layers":
            return self.bytes_of(weights)
        blocks: dict[str | None, dict[str, Tensor]] = {}
        for name, tensor in weights.items():
            number = BLOCK.search(name)
            blocks.setdefault(number and number[1], {})[name] = tensor
        rest = self.bytes_of(blocks.pop(None, {}))
        return rest + 2 * max(map(self.bytes_of, blocks.values()), default=0)

    def check(self, models: Sequence[Mapping[str, Tensor]], folder: Path) -> None:
        """Raise CogVideoError unless all models fit where they will stay, and each where it will work."""
        metas = [meta_of(weights) for weights in models]
        check_fits(sum(map(self.bytes_of, metas)), self.home, str(folder))
        if self.offload != "none":
            check_fits(max(map(self.room_of, metas)), self.device, f"The largest part of {folder}")


def check_offload(name: str) -> str:
    if name not in OFFLOADS:
        raise CogVideoError(f"offload {name!r} is unknown: choose none, stages or layers.")
    return name


def read_labels(path: Path) -> np.ndarray:
    """Cluster labels [V], each from 0 to V - 1, of a .npy file without pickles."""
    damaged = f"{path} is damaged or holds more than numbers (REASON): copy or download it again."
    with explained(damaged, OSError, ValueError, EOFError):
        labels = np.load(path, mmap_mode="r", allow_pickle=False)
    numbers = labels.ndim == 1 and labels.dtype.kind in "iu" and len(labels)
    if not numbers or not 0 <= labels.min() <= labels.max() < len(labels):
        raise CogVideoError(
            f"{path} holds no cluster labels (a number from 0 for each image token) but {labels.dtype} "
            f"{list(labels.shape)}: copy or download it again."
        )
    return np.array(labels)


def read_sampling(folder: Path) -> SamplingConfig:
    """How a pipeline folder samples: its pipeline.json."""
    file = folder / PIPELINE
    if not file.exists():
        raise no_pipeline(folder)
    return from_dict(SamplingConfig, read_json(file, advice=ADVICE), str(file))


def read_native(folder: Path, load: Loader) -> dict[str, Any]:
    """The parts of a pipeline folder: stage1/, stage2/, superres/, tokenizers/, pipeline.json."""
    sampling = read_sampling(folder)
    # All of them now, not after the first has been read for minutes.
    load.check([read_weights(folder / name) for name in ("stage1", "stage2", "superres")], folder)
    tokenizers = folder / "tokenizers"
    frames = FrameTokenizer.load(tokenizers / "frames.safetensors", device=load.home)
    labels = tokenizers / "clusters.npy"
    return {
        "text": TextTokenizer(tokenizers / "text.model", frames.num_codes),
        "frames": frames,
        "stage1": load(partial(load_model, folder / "stage1")),
        "stage2": load(partial(load_model, folder / "stage2")),
        "superres": load(partial(DirectSuperResolution.from_pretrained, folder / "superres")),
        "sampling": sampling,
        "cluster_labels": read_labels(labels) if labels.exists() else None,
    }


def check_parts(
    text: TextTokenizer,
    frames: FrameTokenizer,
    one: ModelConfig,
    two: ModelConfig,
    large: SuperResolutionConfig,
    labels: np.ndarray | None,
) -> None:
    """Refuse parts of a pipeline that do not belong together."""
    if (one.order, two.order) != ("sequential", "interpolation"):
        raise CogVideoError(
            f"Stage 1 should be sequential and stage 2 interpolation, not {one.order} and {two.order}: "
            "were the folders exchanged?"
        )
    if two.num_frames != 5 or one.num_frames % 2 == 0:
        raise CogVideoError(
            "Frames between are made from three at a time: stage 2 needs sequences of five frames "
            f"and stage 1 an odd number, not {two.num_frames} and {one.num_frames}."
        )
    geometry = {(c.frame_height, c.frame_width, c.image_tokens, c.begin_of_image) for c in (one, two)}
    geometry.add((large.low_height, large.low_width, large.image_tokens, large.begin_of_image))
    if len(geometry) > 1 or frames.num_codes != one.image_tokens or text.begin_of_image != one.begin_of_image:
        raise CogVideoError(
            "Stage 1, stage 2, super-resolution and tokenizers do not share frame size and token ids: "
            "take all from one set of weights."
        )
    if labels is not None and len(labels) != one.image_tokens:
        raise CogVideoError(
            f"There are cluster labels for {len(labels)} image tokens, but the models have "
            f"{one.image_tokens}: take the cluster file of these weights."
        )
