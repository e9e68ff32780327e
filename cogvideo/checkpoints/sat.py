"""Checkpoints in the layout of the 2022 release (SwissArmyTransformer): names, geometry, loading."""

import contextlib
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
import torch
from einops import EinopsError, rearrange
from torch import Tensor, nn
from typing_extensions import Unpack

from cogvideo.checkpoints.unzip import unpacked
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import read_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import check_fits
from cogvideo.runtime.tensors import (
    TensorFile,
    Weights,
    byte_bar,
    meta_of,
    release_pages,
    tensor_bytes,
    without_memory,
)  # fmt: skip

M = TypeVar("M", bound=nn.Module)


class Ids(TypedDict):
    """What the files do not show: how many image tokens there are, and the id of begin-of-image."""

    image_tokens: int
    begin_of_image: int


class Load(TypedDict, total=False):
    """How a model is filled: the last arguments of fill_model."""

    device: str | torch.device
    dtype: torch.dtype | None
    block_done: Callable[[nn.Module], Any] | None


# DeepSpeed stores the states of the random generators beside the weights, numpy's as an array, which
# torch.load would refuse. Its module was renamed with numpy 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_NUMPY = [
    np.ndarray, np.dtype, type(np.dtype(np.uint32)),
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]  # fmt: skip

# A literal in the released code: text positions count from 0, the first frame's from here.
FIRST_FRAME_POSITION = 512

# Released module or gate -> ours; {} is the layer.
OUR_NAMES = {
    "transformer.layers.{}.input_layernorm": "blocks.{}.attention_norm",
    "transformer.layers.{}.third_layernorm": "blocks.{}.attention_out_norm",
    "transformer.layers.{}.post_attention_layernorm": "blocks.{}.mlp_norm",
    "transformer.layers.{}.fourth_layernorm": "blocks.{}.mlp_out_norm",
    "transformer.layers.{}.attention.query_key_value": "blocks.{}.spatial.qkv",
    "transformer.layers.{}.attention.dense": "blocks.{}.spatial.dense",
    "transformer.layers.{}.mlp.dense_h_to_4h": "blocks.{}.mlp.up",
    "transformer.layers.{}.mlp.dense_4h_to_h": "blocks.{}.mlp.down",
    "mixins.attention_plus.query_key_value.{}": "blocks.{}.temporal.qkv",
    "mixins.attention_plus.dense.{}": "blocks.{}.temporal.dense",
    "mixins.attention_plus.attn_distribution.{}": "blocks.{}.gate",
    "transformer.word_embeddings": "word_embedding",
    "transformer.position_embeddings": "base_position_embedding",
    "transformer.final_layernorm": "final_norm",
    "mixins.extra_position_embedding.position_embeddings": "extra_position_embedding",
}
RELEASED_NAMES = {ours: released for released, ours in OUR_NAMES.items()}
LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")

# How SwissArmyTransformer's model parallelism shards a weight among its ranks (mpu/layers.py:
# VocabParallelEmbedding, ColumnParallelLinear, RowParallelLinear); every rank holds its heads' part of q,
# then of k, then of v. All other weights, biases of dense and dense_4h_to_h among them, are whole on every
# rank.
RANK_FILE = re.compile(r"mp_rank_(\d{2,})_model_states\.pt")
PARAMETER = re.compile(r"\.(\w+)(\.\d+)?\.(weight|bias)$")
ROWS = (0, "(rank rows) ... -> rank rows ...")  # the axis that is sharded, and how
HEADS = (0, "(three rank rows) ... -> rank three rows ...")
COLUMNS = (1, "rows (rank columns) -> rank rows columns")
SHARED_OUT = {
    ("word_embeddings", "weight"): ROWS,
    ("query_key_value", "weight"): HEADS,
    ("query_key_value", "bias"): HEADS,
    ("dense_h_to_4h", "weight"): ROWS,
    ("dense_h_to_4h", "bias"): ROWS,
    ("dense_4h_to_h", "weight"): COLUMNS,
    ("dense", "weight"): COLUMNS,
}


def our_name(released: str) -> str | None:
    """The name in CogVideoTransformer of a released weight, or None if it is not one of them."""
    return _renamed(released, OUR_NAMES)


def released_name(ours: str) -> str:
    """The inverse of our_name; of the names of super-resolution models, too."""
    ours = ours.replace(".given.", ".spatial.").replace(".drawn.", ".temporal.")
    released = _renamed(ours, RELEASED_NAMES)
    if released is None:
        raise KeyError(ours)
    return released


def _renamed(name: str, table: Mapping[str, str]) -> str | None:
    pattern, layers = LAYER.sub("{}", name), LAYER.findall(name)
    module, _, kind = pattern.rpartition(".")
    if pattern in table:  # a gate, which is a parameter itself
        return table[pattern].format(*layers)
    return f"{table[module]}.{kind}".format(*layers) if module in table else None


def released_kind(names: Iterable[str]) -> str:
    """The kind of a released table: image, video (stage 1 or 2), direct or iterative (super-resolution)."""
    names = list(names)
    if any(name.startswith("mixins.attention_plus.attn_distribution.") for name in names):
        return "video"
    if any(name.startswith("mixins.attention_plus.") for name in names):
        return "direct"
    return "iterative" if any(name.startswith("mixins.") for name in names) else "image"


def read_sat_folder(folder: str | Path) -> tuple[Weights, dict[str, Any]]:
    """Weights (released names, ranks merged, unread) and model_config.json of a released folder or zip."""
    folder = unpacked(Path(folder))
    for name in ("latest", "model_config.json"):
        if not (folder / name).exists():
            raise CogVideoError(f"{folder} is not a released checkpoint: {name} is missing; copy it again.")
    settings = read_json(folder / "model_config.json", advice="download it again")
    with explained(f"Cannot read {folder / 'latest'} (REASON): download it again.", ValueError, OSError):
        iteration = (folder / "latest").read_text().strip()
    # The newer spelling, then the older one; the weights decide where neither is given.
    if settings.get("layernorm_order", "sandwich") != "sandwich" or not settings.get("sandwich_ln", True):
        raise CogVideoError(
            f"{folder / 'model_config.json'} describes a model without sandwich LayerNorm, which all of "
            "CogVideo's have: choose another folder."
        )
    if not re.fullmatch(r"\w[\w.-]*", iteration):
        raise CogVideoError(f"{folder / 'latest'} should name a folder beside it, not {iteration!r}.")
    # zipfile finds the end of a whole file; what torch wrote before 2020 is no zip and cannot be mapped.
    files = [
        TensorFile(path, _open_rank, mapped=zipfile.is_zipfile(path))
        for path in _rank_files(folder / iteration)
    ]
    return _merge_ranks(files), settings


def _rank_files(folder: Path) -> list[Path]:
    """mp_rank_00_model_states.pt, mp_rank_01_..., without a gap."""
    ranks = {int(m[1]): path for path in folder.glob("*") if (m := RANK_FILE.fullmatch(path.name))}
    for rank in range(max(ranks, default=0) + 1):
        if rank not in ranks:
            raise CogVideoError(f"{folder}/mp_rank_{rank:02d}_model_states.pt is missing: download it again.")
    return [ranks[rank] for rank in sorted(ranks)]


def _open_rank(path: Path) -> dict[str, Tensor]:
    """The table under `module` of a torch file: mapped, or in memory if it is in the format before 2020."""
    damaged = f"{path} is damaged or holds more than tensors (REASON): download it again."
    with explained(damaged), torch.serialization.safe_globals(_NUMPY):
        table = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    table = table.get("module", table) if isinstance(table, dict) else table
    if not isinstance(table, dict) or not all(isinstance(value, Tensor) for value in table.values()):
        raise CogVideoError(f"{path} holds no table of weights under the key 'module'; download it again.")
    return table


def _merge_ranks(files: list[TensorFile]) -> Weights:
    """One table of the ranks' tables; a weight is put together when it is asked for."""
    first = files[0]
    for file in files[1:]:
        if differing := file.meta.keys() ^ first.meta.keys():
            raise CogVideoError(
                f"{first.path} and {file.path} do not belong together: {min(differing)} is in one of them "
                "alone; download the checkpoint again."
            )
    meta = {}
    for name, part in first.meta.items():
        shape, rule = list(part.shape), _rule(name)
        fits = len({(file.meta[name].shape, file.meta[name].dtype) for file in files}) == 1
        try:
            if rule is not None:
                shape[rule[0]] *= len(files)
            meta[name] = torch.empty(shape, dtype=part.dtype, device="meta")
            rank_views(name, meta[name], len(files))
        except (IndexError, EinopsError):  # too few axes, or no thirds of q, k and v
            fits = False
        if not fits:
            shapes = ", ".join(str(list(file.meta[name].shape)) for file in files)
            raise CogVideoError(
                f"The rank files in {first.path.parent} cannot be put together: {name} is {shapes}; download "
                "the checkpoint again."
            )
        if name.endswith("query_key_value.weight") and len(shape) == 2 and shape[0] != 3 * shape[1]:
            ranks = 3 * shape[1] * len(files) / max(1, shape[0])
            raise CogVideoError(
                f"{first.path.parent} should hold {ranks:g} rank file(s) mp_rank_.._model_states.pt, not "
                f"{len(files)} (together, {name} is {shape}); download the checkpoint again."
            )

    def fill(name: str, out: Tensor) -> None:
        # What is whole comes from the first rank.
        parts = rank_views(name, out, len(files)) if _rule(name) else [out]
        for file, part in zip(files, parts, strict=False):
            part.copy_(file.view(name).reshape(part.shape))
        release_pages(files)

    return Weights(meta, fill)


def _rule(name: str) -> tuple[int, str] | None:
    """How a released weight is sharded among ranks; None: each has all of it."""
    found = PARAMETER.search(name)
    return SHARED_OUT.get((found[1], found[3])) if found else None


def rank_views(name: str, whole: Tensor, ranks: int) -> list[Tensor]:
    """The part of a released weight that each rank holds, as a view in the layout of the rank's file."""
    rule = _rule(name)
    if rule is None:
        return [whole] * ranks
    return list(rearrange(whole, rule[1], rank=ranks, **({"three": 3} if rule is HEADS else {})))


def infer_config(weights: Mapping[str, Tensor], settings: dict[str, Any], **ids: Unpack[Ids]) -> ModelConfig:
    """Geometry from shapes, and from model_config.json what no shape shows (heads, layout, window, stage)."""
    weights = meta_of(weights)
    vocab_size, hidden_size = weights["transformer.word_embeddings.weight"].shape
    layers = [int(m[1]) for name in weights if (m := re.match(r"transformer\.layers\.(\d+)\.", name))]
    extra = weights.get("mixins.extra_position_embedding.position_embeddings.weight")
    temporal = any(name.startswith("mixins.attention_plus.") for name in weights)
    layout = settings.get("layout", (64, 464, 2064))
    layout = [int(end) for end in (layout.split(",") if isinstance(layout, str) else layout)]
    text_length, first_end, end = layout[0], layout[1], layout[-1]
    frame_tokens = first_end - text_length
    side = math.isqrt(frame_tokens)
    window = settings.get("window_size", -1)
    num_layers = max(layers) + 1
    if len(set(layers)) != num_layers:  # before so many are made
        raise CogVideoError(f"There are {len(set(layers))} layers, numbered up to {max(layers)}.")
    if settings.get("num_layers", num_layers) != num_layers:
        raise CogVideoError(f"{num_layers} layers where model_config.json says {settings['num_layers']}.")
    # Where the settings do not say: stage 1 was released with full attention, stage 2 with windows.
    stage = settings.get("cogvideo_stage", 2 if window > 0 else 1)
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=settings["num_attention_heads"],
        frame_height=side,
        frame_width=frame_tokens // side,
        num_frames=(end - text_length) // frame_tokens if temporal else 1,
        text_length=text_length,
        first_frame_position=FIRST_FRAME_POSITION,
        vocab_size=vocab_size,
        base_positions=len(weights["transformer.position_embeddings.weight"]),
        extra_positions=0 if extra is None else len(extra),
        temporal=temporal,
        order="interpolation" if stage == 2 else "sequential",
        window=window if window > 0 else None,
        **ids,
    )


def load_sat_checkpoint(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    image_tokens: int = 20000,
    begin_of_image: int = 150000,
    block_done: Callable[[nn.Module], Any] | None = None,
) -> CogVideoTransformer:
    """Load a released folder (stage 1, stage 2 or the image model) as a CogVideoTransformer in eval mode.

    Any number of ranks. dtype None keeps the type of the file. block_done: see fill_model.
    """
    ids: Ids = {"image_tokens": image_tokens, "begin_of_image": begin_of_image}
    config, weights = open_sat_checkpoint(folder, **ids)
    load: Load = {"device": device, "dtype": dtype, "block_done": block_done}
    return fill_model(lambda: CogVideoTransformer(config), weights, where=str(folder), **load)


def open_sat_checkpoint(folder: str | Path, **ids: Unpack[Ids]) -> tuple[ModelConfig, Weights]:
    """Configuration and weights (our names, unread) of a released stage 1, stage 2 or image model."""
    weights, settings = read_sat_folder(folder)
    with invalid_release(folder):
        config = infer_config(weights, settings, **ids)
    return config, weights.renamed(our_name)


@contextlib.contextmanager
def invalid_release(path: str | Path) -> Iterator[None]:
    """Turn what inferring a configuration raises into a CogVideoError about the checkpoint at `path`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CogVideoError(
            f"{path} is no checkpoint of the release: in its weights or model_config.json, {error} is missing"
            " or invalid; download it again."
        ) from None
    except CogVideoError as error:  # weights and settings that contradict each other
        raise CogVideoError(f"{path} is damaged or mixed from several checkpoints: {error}") from None


def fill_model(
    build: Callable[[], M],
    weights: Mapping[str, Tensor],
    *,
    where: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    block_done: Callable[[nn.Module], Any] | None = None,
) -> M:
    """The module that `build` makes, with `weights` (our names), in eval mode, if they and memory suffice.

    Weights in files are read one after another, straight to device and dtype. block_done(block) is called
    when all weights of a block are there and may shrink it before the next is read; free memory is then not
    checked.
    """
    model = empty_model(build, weights, where)
    meta = meta_of(weights)
    sizes = {name: tensor_bytes(meta[name], dtype) for name, _ in model.named_parameters()}
    if isinstance(weights, Weights) and block_done is None:  # others are in memory already
        check_fits(sum(sizes.values()), device, where)
    with byte_bar("loading", sum(sizes.values())) as bar:

        def read(name: str) -> Tensor:
            bar.update(sizes[name])
            if isinstance(weights, Weights):
                read = weights.read(name, device=device, dtype=dtype)
            else:
                read = weights[name].to(device=device, dtype=dtype)
            check_finite(read, name, where)
            return read

        blocks: Any = getattr(model, "blocks", ())
        for index, block in enumerate(blocks):
            names = [name for name, _ in block.named_parameters()]
            block.load_state_dict({name: read(f"blocks.{index}.{name}") for name in names}, assign=True)
            if block_done is not None:
                block_done(block)
        rest = {name: read(name) for name in sizes if not name.startswith("blocks.")}
        model.load_state_dict(rest, strict=False, assign=True)
    return model.eval()


def check_finite(weight: Tensor, name: str, where: str) -> None:
    """Refuse a weight with NaN or infinity in it; its least and greatest number show them without a copy."""
    if weight.is_meta or not weight.is_floating_point() or not weight.numel():
        return
    if not all(map(torch.isfinite, torch.aminmax(weight.detach()))):
        raise CogVideoError(
            f"{name} in {where} holds numbers that are not finite: copy the weights again, or take a "
            "checkpoint from before they broke."
        )


def empty_model(build: Callable[[], M], weights: Mapping[str, Tensor], where: str) -> M:
    """The module that `build` makes, on the meta device, if `weights` are exactly what it needs."""
    with without_memory():
        model = build()
    meta = meta_of(weights)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if missing := expected.keys() - meta.keys():
        count = f"{len(missing)} weights are missing"
        raise CogVideoError(f"{count} from {where}, {min(missing)} among them: get a whole copy.")
    if surplus := meta.keys() - expected.keys():
        raise CogVideoError(f"{where} holds weights beyond its configuration, {min(surplus)} for one.")
    for name, shape in expected.items():
        if meta[name].shape != shape:
            raise CogVideoError(
                f"{where}: {name} is {list(meta[name].shape)} where the configuration needs {list(shape)}; "
                "weights and configuration do not belong together."
            )
    return model
