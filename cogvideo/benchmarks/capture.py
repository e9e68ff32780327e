"""An attention capture's memory at the release's size: `python -m cogvideo.benchmarks.capture`."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from cogvideo.benchmarks.measuring import random_weights
from cogvideo.config import COGVIDEO_9B
from cogvideo.explore import capture, memory_needed
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.machine import describe
from cogvideo.runtime.memory import GB, peak_memory


def measure(layers: int = 2, window: int | None = None) -> str:
    """Capture all heads of the last layer for all queries of the last frame -> a line on the memory taken."""
    config = replace(  # a small vocabulary: the embedding is no part of the question
        COGVIDEO_9B, num_layers=layers, window=window, vocab_size=20010, begin_of_image=20000
    )
    model = random_weights(partial(CogVideoTransformer, config), 0)(device="cpu", dtype=torch.float32)
    n, heads = config.frame_tokens, config.num_heads
    frames = torch.randint(config.image_tokens, (5, n), generator=torch.Generator().manual_seed(0))
    queries = [(4, position) for position in range(n)]
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_memory()
    found = capture(model, torch.arange(64), frames, layers=[layers - 1], queries=queries)
    taken = peak_memory() - before
    assert found.maps("temporal").shape == (1, heads, n, 64 + 5 * n)
    estimate = memory_needed(config, text_length=64, num_frames=5, layers=1, heads=heads, queries=n)
    return (
        f"capture of one of {layers} layers, {heads} heads, hidden {config.hidden_size}, {n} queries, window "
        f"{window}: peak {taken / GB:.2f} GB beside the model, {sum(estimate) / GB:.2f} GB estimated"
    )


if __name__ == "__main__":
    print(describe(torch.device("cpu")))
    for window in (None, 10):
        print(measure(window=window))
