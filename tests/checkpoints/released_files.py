"""A tiny folder of released files: random transformers, the fixture's frame tokenizer, a text model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import DATA
from safetensors.torch import load_file

from cogvideo.checkpoints.sat import released_name
from cogvideo.config import ModelConfig
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.tokenizers.text import TextTokenizer, train_text_tokenizer

IMAGE_TOKENS, BEGIN_OF_IMAGE = 256, 310  # as in the fixtures
WORDS = ("a", "red", "dog", "runs", "in", "the", "snow")


def text_model(pieces: int) -> bytes:
    """A text model of exactly so many pieces."""
    words = [f"▁{word}" for word in WORDS]
    while True:
        model = train_text_tokenizer(["a"], pieces, words)
        missing = pieces - TextTokenizer(model, 1).text_pieces
        if not missing:
            return model
        words += [f"▁w{len(words) + i:x}" for i in range(missing)]


def write_checkpoint(folder: Path, model: torch.nn.Module, settings: dict) -> None:
    """A model under the release's names, in half precision as there."""
    weights = {}
    for name, tensor in model.state_dict().items():
        name = name.replace(".given.", ".spatial.").replace(".drawn.", ".temporal.")  # of super-resolution
        weights[released_name(name)] = tensor.half()
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    (folder / "model_config.json").write_text(json.dumps(settings))
    torch.save({"module": weights}, folder / "1" / "mp_rank_00_model_states.pt")


def write_released_files(folder: Path, side: int = 4) -> Path:
    """side: rows and columns of a frame's tokens; enlarged frames have 24 times as many pixels."""
    n = side * side
    ids: Any = {"image_tokens": IMAGE_TOKENS, "vocab_size": 320, "begin_of_image": BEGIN_OF_IMAGE}
    image = ModelConfig(
        num_layers=2, hidden_size=32, num_heads=2, frame_height=side, frame_width=side, num_frames=1,
        text_length=64,
        first_frame_position=512, base_positions=1024, temporal=False, **ids,
    )  # fmt: skip
    settings = {"num_attention_heads": 2, "layout": [64, 64 + n, 64 + 5 * n]}
    stage1 = replace(image, num_frames=5, temporal=True, extra_positions=5 * n)
    write_checkpoint(folder / "cogvideo-stage1", CogVideoTransformer(stage1).initialize(1), settings)
    stage2 = replace(stage1, order="interpolation", window=side // 2)
    settings |= {"cogvideo_stage": 2, "window_size": side // 2}
    write_checkpoint(folder / "cogvideo-stage2", CogVideoTransformer(stage2).initialize(2), settings)
    superres = SuperResolutionConfig(
        num_layers=2, hidden_size=32, num_heads=2, low_height=side, low_width=side, **ids
    )
    write_checkpoint(
        folder / "cogview2-dsr",
        DirectSuperResolution.from_config(superres, seed=3),
        {"num_attention_heads": 2},
    )
    torch.save({"module": load_file(DATA / "vqvae" / "checkpoint.safetensors")}, folder / "ice_image.pt")
    (folder / "ice_text.model").write_bytes(text_model(BEGIN_OF_IMAGE - IMAGE_TOKENS))
    np.save(folder / "cluster_label2.npy", np.arange(IMAGE_TOKENS) % 20)
    return folder
