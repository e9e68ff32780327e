"""What a capture at the release's size takes: `python -m cogvideo.benchmarks.capture` (random weights, few layers)."""

from dataclasses import replace
from pathlib import Path

import torch

from cogvideo.config import COGVIDEO_9B
from cogvideo.explore import capture, memory_needed
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.machine import describe
from cogvideo.runtime.memory import GB, peak_memory


def measure(layers: int = 2, window: int | None = None) -> str:
    """Capture layer by layer all heads for the queries of the last frame -> a sentence with the memory taken beside the model."""
    vocabulary = {"vocab_size": 20010, "begin_of_image": 20000}  # the embedding is no part of the question
    config = replace(COGVIDEO_9B, num_layers=layers, window=window, **vocabulary)
    with torch.device("meta"):
        model = CogVideoTransformer(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02, generator=generator).requires_grad_(False)
    text = torch.arange(64)
    frames = torch.randint(config.image_tokens, (5, config.frame_tokens), generator=generator)
    queries = [(4, place) for place in range(config.frame_tokens)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_memory()
    found = capture(model, text, frames, layers=[layers - 1], queries=queries)
    taken = peak_memory() - before
    assert found.maps("temporal").shape == (
        1,
        config.num_heads,
        config.frame_tokens,
        64 + 5 * config.frame_tokens,
    )
    said = sum(
        memory_needed(
            config, text_length=64, num_frames=5, layers=1, heads=config.num_heads, queries=len(queries)
        )
    )
    return (
        f"capture of one of {layers} layers, {config.num_heads} heads, hidden {config.hidden_size}, {len(queries)} queries, window {window}: "
        f"peak {taken / GB:.2f} GB beside the model, {said / GB:.2f} GB said before"
    )


if __name__ == "__main__":
    print(describe(torch.device("cpu")))
    for window in (None, 10):
        print(measure(window=window))
