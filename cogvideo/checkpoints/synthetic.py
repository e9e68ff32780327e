"""Random weights in the layout of the release: for measuring memory and speed without the real ones."""

import math
import mmap
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.checkpoints.native import new_folder
from cogvideo.checkpoints.sat import rank_views, released_name
from cogvideo.config import COGVIDEO_9B
from cogvideo.errors import CogVideoError
from cogvideo.io import write_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import GB
from cogvideo.runtime.tensors import DTYPES, TensorFile, byte_bar, release_pages, tensor_bytes, without_memory
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.iterative import IterativeConfig, IterativeSuperResolution

# Kinds and the names of their folders in the release; itersr is no part of CogVideo's pipeline.
FOLDERS = {
    "coglm": "coglm",
    "stage1": "cogvideo-stage1",
    "stage2": "cogvideo-stage2",
    "dsr": "cogview2-dsr",
    "itersr": "cogview2-itersr",
}
PIPELINE = ("coglm", "stage1", "stage2", "dsr")  # what the kind "all" makes
DEVIATION = 0.02  # of all weights, around 1 for LayerNorms and 0 for others
DRAWN_AT_ONCE = 2**24  # numbers


def make_checkpoint(
    out: str | Path,
    *,
    kind: str,
    layers: int = COGVIDEO_9B.num_layers,
    hidden: int = COGVIDEO_9B.hidden_size,
    heads: int | None = None,
    ranks: int = 1,
    dtype: str = "fp16",
    seed: int = 0,
) -> list[Path]:
    """Write random weights as a released folder `out`, or for kind "all" the pipeline's folders in it.

    heads: None makes them 64 wide, as in the release. The vocabulary is the release's, rounded up to a
    multiple of `ranks`. The same seed gives the same weights whatever `ranks` is. Memory: about twice the
    largest weight.
    """
    out = Path(out)
    if kind != "all" and kind not in FOLDERS:
        raise CogVideoError(f"Kind {kind!r} is unknown: choose {', '.join(FOLDERS)} or all.")
    if dtype not in DTYPES:
        raise CogVideoError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}.")
    heads = max(1, hidden // 64) if heads is None else heads
    if min(layers, hidden, heads, ranks) < 1 or hidden % heads or heads % ranks:
        raise CogVideoError(
            f"Layers, hidden, heads and ranks must be positive, heads {heads} divide hidden {hidden}, and "
            f"ranks {ranks} heads."
        )
    if kind == "all":
        sizes: Any = {"layers": layers, "hidden": hidden, "heads": heads}
        own: Any = {"ranks": ranks, "dtype": dtype, "seed": seed}
        return [
            path for one in PIPELINE for path in make_checkpoint(out / FOLDERS[one], kind=one, **sizes, **own)
        ]
    vocab_size = math.ceil(COGVIDEO_9B.vocab_size / ranks) * ranks
    model, settings = _model(kind, layers, hidden, heads, vocab_size)
    parameters = model.named_parameters()
    meta = {released_name(name): parameter.detach().to(DTYPES[dtype]) for name, parameter in parameters}
    total = sum(map(tensor_bytes, meta.values()))
    # [three,rows,columns] are three * rows in a file.
    parts = {
        name: [part.flatten(0, part.ndim - whole.ndim) for part in rank_views(name, whole, ranks)]
        for name, whole in meta.items()
    }
    with new_folder(out, sum(tensor_bytes(part) for ranked in parts.values() for part in ranked)) as folder:
        print(f"{out}: {total / GB:.2f} GB in {ranks} rank file(s), {_duration(meta)}", file=sys.stderr)
        (folder / "1").mkdir()
        (folder / "latest").write_text("1")
        write_json(folder / "model_config.json", {**settings, "model_parallel_size": ranks})
        paths = [folder / "1" / f"mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks)]
        for rank, path in enumerate(paths):
            _write_empty(path, {name: rank_parts[rank] for name, rank_parts in parts.items()})
        files = [TensorFile(path, _open_shared) for path in paths]
        with byte_bar(kind, total) as bar:
            for name, like in meta.items():
                whole = _draw(name, like, seed)
                for file, part in zip(files, rank_views(name, whole, ranks), strict=True):
                    file.view(name).view(part.shape).copy_(part)
                release_pages(files)
                bar.update(tensor_bytes(whole))
        del files  # the mappings end before the folder gets its name
    return [out]


def _model(
    kind: str, layers: int, hidden: int, heads: int, vocab_size: int
) -> tuple[nn.Module, dict[str, Any]]:
    """The model on the meta device, and model_config.json as the release has it."""
    own = {"num_layers": layers, "hidden_size": hidden, "num_heads": heads, "vocab_size": vocab_size}
    ids = {"image_tokens": COGVIDEO_9B.image_tokens, "begin_of_image": COGVIDEO_9B.begin_of_image}
    settings = {
        "num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "vocab_size": vocab_size,
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "layernorm_order": "sandwich",
        "max_sequence_length": 1024,
    }  # fmt: skip
    with without_memory():
        if kind == "dsr":
            layout = {"layout": [96, 496, 4096]}
            return DirectSuperResolution(SuperResolutionConfig(**own, **ids)), settings | layout
        if kind == "itersr":
            return IterativeSuperResolution(IterativeConfig(**own, **ids)), settings | {"layout": [16, 3616]}
        if kind == "coglm":
            config = replace(COGVIDEO_9B, **own, num_frames=1, temporal=False, extra_positions=0)
            return CogVideoTransformer(config), settings | {"layout": [64, 464, 4064]}
        stage = int(kind.removeprefix("stage"))
        model = CogVideoTransformer(replace(COGVIDEO_9B, **own))  # order and window are not in the weights
        return model, settings | {
            "model_class": "CogVideoModel", "layout": [64, 464, 2064], "additional_seqlen": 2000,
            "cogvideo_stage": stage,
            "window_size": 10 if stage == 2 else -1,
        }  # fmt: skip


def _draw(name: str, like: Tensor, seed: int) -> Tensor:
    """The weight called `name`, part by part: in single precision the word embedding alone has 1.8 GB."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    whole = torch.empty(like.shape, dtype=like.dtype)
    for part in whole.view(-1).split(DRAWN_AT_ONCE):
        drawn = torch.randn(len(part), generator=generator)
        part.copy_(drawn.mul_(DEVIATION).add_(name.endswith("norm.weight")))
    return whole


def _duration(meta: dict[str, Tensor]) -> str:
    """How long drawing will take, from a trial; the disk may take longer."""
    start = time.perf_counter()
    torch.randn(2**22)
    seconds = (time.perf_counter() - start) * sum(tensor.numel() for tensor in meta.values()) / 2**22
    return f"{seconds:.0f} s or more"


def _write_empty(path: Path, meta: dict[str, Tensor]) -> None:
    """A torch file with room for tensors like `meta`, not yet written to."""
    table = {name: torch.empty(part.shape, dtype=part.dtype) for name, part in meta.items()}
    # Memory that is never touched is never taken. The records' checksums stay empty, which torch.load
    # ignores.
    with torch.serialization.skip_data():
        torch.save({"module": table}, path)


def _open_shared(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped so that what is written to them is written to the file."""
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        return torch.load(path, weights_only=True, mmap=True)["module"]
