"""All that a GPU should be measured with, in one command of under ten minutes: `cogvideo bench gpu-table`.

Each row is another `cogvideo bench` in a process of its own, so that one that fails or takes too long costs
the others nothing. The most important rows come first; what no time is left for is said to be missing.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from cogvideo.benchmarks.step_plan import gpu_of, render_plan
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole

SIZE = ("--layers", "48", "--width", "3072", "--heads", "48", "--device", "cuda")
SAMPLER = ("sampler", *SIZE, "--most-steps", "200")
TRAIN = (
    "train",
    "--layers",
    "12",
    "--width",
    "3072",
    "--heads",
    "48",
    "--device",
    "cuda",
    "--dtype",
    "bf16",
    "--recompute",
)
# Name of the row's files, and its command. `layers` copies all weights at every step: two show the rate.
ROWS = {
    "sampler-bf16": (*SAMPLER, "--dtype", "bf16"),
    "clip-bf16": ("full-size", "--dtype", "bf16"),
    "sampler-int8": (*SAMPLER, "--dtype", "int8"),
    "clip-int8": ("full-size", "--dtype", "int8"),
    "clips-16-bf16": ("full-size", "--dtype", "bf16", "--clips", "16"),
    "train-bf16": TRAIN,
    "train-bf16-without-cudnn-attention": TRAIN,
    "offload-stages-int8": ("full-size", "--dtype", "int8", "--offload", "stages", "--seconds", "1"),
    "offload-layers-bf16-2-layers": ("full-size", "--layers", "2", "--offload", "layers", "--seconds", "1"),
}
ENVIRONMENT = {"train-bf16-without-cudnn-attention": {"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"}}


def run(folder: Path, minutes: float, *, progress: bool = True) -> str:
    """Measure all rows, each report into `folder`; the table of all, which is written there as well."""
    if not torch.cuda.is_available():
        raise CogVideoError(
            "There is no GPU here; `cogvideo bench sampler --plan` computes what one should do."
        )
    card, end = torch.cuda.get_device_name(), time.monotonic() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {card}, torch {torch.__version__}"]
    for name, command in tqdm(ROWS.items(), desc="measuring", disable=not progress):
        parts += [f"## {name}", measured(name, command, folder, end - time.monotonic())]
    if gpu_of(card) is not None:
        parts += ["## Expected", render_plan(card)]
    table = "\n\n".join(parts) + "\n"
    write_whole(folder / "table.md", table)
    return table


def measured(name: str, command: tuple[str, ...], folder: Path, seconds: float) -> str:
    """One row's table, or why there is none."""
    if seconds <= 0:
        return "Not measured: no time was left."
    call = [sys.executable, "-m", "cogvideo", "bench", *command, "--output", str(folder / f"{name}.json")]
    environment = os.environ | ENVIRONMENT.get(name, {})
    try:
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"Not measured: it was not done after the {seconds:.0f} s that were left."
    if done.returncode:
        return f"Failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
    return done.stdout.strip()
