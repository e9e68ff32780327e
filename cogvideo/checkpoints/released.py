"""The parts of a pipeline from the files of the 2022 release, all in one folder under their own names.

    cogvideo-stage1/  cogvideo-stage2/  cogview2-dsr/  ice_text.model  ice_image.pt  cluster_label2.npy

(or cogvideo-stage1.zip and so on, which are unpacked there). The image model `coglm` is not needed: stage 1
holds it unchanged, as the spatial channel, which generates the first frame.
"""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cogvideo.checkpoints.frames import read_frame_tokenizer
from cogvideo.checkpoints.pipeline_folder import Loader, read_labels
from cogvideo.checkpoints.sat import Ids, load_sat_checkpoint, read_sat_folder
from cogvideo.checkpoints.unzip import unpacked
from cogvideo.config import SamplingConfig
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json
from cogvideo.model.strategies import cluster_codebook
from cogvideo.superres.direct import DirectSuperResolution
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import FIRST_FRAME_SUFFIX, UNGUIDED_PROMPT, TextTokenizer

STAGE1, STAGE2, SUPERRES = "cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr"
TEXT, FRAMES, CLUSTERS = "ice_text.model", "ice_image.pt", "cluster_label2.npy"
FILES = (STAGE1, STAGE2, SUPERRES, TEXT, FRAMES)  # those that are needed
NUM_CLUSTERS = 500

# How the release samples: its launch script and pipeline (reference pages COGVIDEO "Sampling" and SR_VQ_I3D
# section 5); SamplingConfig's defaults are its temperatures and guidance. Prompts go to the models as they
# are; the release's web page first translated English ones to Chinese: that is left to the user.
SAMPLING = SamplingConfig(
    spans=(0.5, 1.0, 2.0, 4.0),  # seconds; the release itself makes 4 s: 33 frames at 8 fps
    first_frame_suffix=f" {FIRST_FRAME_SUFFIX}",
    key_frame_suffix=f" {UNGUIDED_PROMPT}",
    guidance_prompt=UNGUIDED_PROMPT,
    first_text_bonus=1.4,
    key_text_bonus=0.0,  # guidance takes the place of the bonus
    unguided_text_bonus=1.4,
    fill_text_bonus=1.4,
    clusters=True,
    release_quirks=True,
)


def is_released(folder: Path) -> bool:
    """Whether a folder holds the release's files rather than a pipeline folder of this project."""
    found = (path.exists() for name in FILES for path in (folder / name, folder / f"{name}.zip"))
    return not (folder / "pipeline.json").exists() and any(found)


def read_released(folder: Path, load: Loader) -> dict[str, Any]:
    """Text and frame tokenizers, stages 1 and 2, super-resolution, cluster labels and SAMPLING.

    How many image tokens there are and which id is begin-of-image follow from the two tokenizers.
    """
    frames, text = read_tokenizers(folder)
    ids: Ids = {"image_tokens": frames.num_codes, "begin_of_image": text.begin_of_image}
    heads = superres_heads(folder / SUPERRES)
    # All of them now, not after the first has been read for minutes.
    load.check([read_sat_folder(folder / name)[0] for name in (STAGE1, STAGE2, SUPERRES)], folder)
    return {
        "text": text,
        "frames": frames.to(load.home),
        "stage1": load(partial(load_sat_checkpoint, folder / STAGE1, **ids)),
        "stage2": load(partial(load_sat_checkpoint, folder / STAGE2, **ids)),
        "superres": load(partial(DirectSuperResolution.from_sat, folder / SUPERRES, num_heads=heads, **ids)),
        "sampling": SAMPLING,
        "cluster_labels": read_clusters(folder, frames),
    }


def read_tokenizers(folder: Path) -> tuple[FrameTokenizer, TextTokenizer]:
    """The two tokenizers, once all of FILES are found; zips of models are unpacked beside them."""
    for name in (STAGE1, STAGE2, SUPERRES):
        if (folder / f"{name}.zip").exists():
            unpacked(folder / f"{name}.zip")
    check_there(folder, FILES)
    frames = read_frame_tokenizer(folder / FRAMES)
    return frames, TextTokenizer(folder / TEXT, frames.num_codes)


def check_there(folder: Path, names: Sequence[str]) -> None:
    """Raise CogVideoError that names those of the release's files and folders that are missing."""
    if missing := [name for name in names if not (folder / name).exists()]:
        raise CogVideoError(
            f"{', '.join(missing)} of the release is missing in {folder}: see `cogvideo weights get`."
        )


def superres_heads(folder: Path) -> int:
    """The attention heads of a released super-resolution model, which no weight's shape shows."""
    file = unpacked(folder) / "model_config.json"
    heads = read_json(file, advice="download it again").get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise CogVideoError(f"{file} has no num_attention_heads; download it again.")
    return heads


def read_clusters(folder: Path, frames: FrameTokenizer) -> np.ndarray:
    """Cluster labels [V]: the release's, or, with a warning, from k-means over the codebook."""
    if (folder / CLUSTERS).exists():
        return read_labels(folder / CLUSTERS)
    warnings.warn(
        f"{folder} has no {CLUSTERS}, so clusters come from k-means over the codebook: samples will differ "
        "from the release's.",
        stacklevel=2,
    )
    return cluster_codebook(frames.codebook.detach(), min(NUM_CLUSTERS, frames.num_codes)).numpy()
