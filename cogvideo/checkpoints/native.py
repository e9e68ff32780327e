"""Native model folders (config.json + model.safetensors); inheriting an image model, and getting it back."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from einops import repeat
from torch import Tensor, nn
from typing_extensions import Unpack

from cogvideo.checkpoints.sat import Load, fill_model, load_sat_checkpoint
from cogvideo.checkpoints.unzip import check_room
from cogvideo.config import COGVIDEO_9B, ModelConfig, from_dict, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json, replacing, write_json
from cogvideo.model.masks import place
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.tensors import (
    TensorFile,
    Weights,
    byte_bar,
    meta_of,
    open_safetensors,
    release_pages,
    save_tensors,
    tensor_bytes,
)  # fmt: skip

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SINGLE_FILE_BYTES = 4 * 10**9  # more weights than this are spread over several files
SHARD_BYTES = 2 * 10**9  # the most that each of these holds
ADVICE = "copy the whole weights folder again"


def write_weights(folder: Path, weights: Mapping[str, Tensor], *, dtype: torch.dtype | None = None) -> None:
    """Write model.safetensors, or shards with an index above SINGLE_FILE_BYTES; weights are read one by one.

    dtype None keeps the types. No more than one shard is in memory. Each file is whole or missing; those left
    from earlier weights are deleted at the end.
    """
    sizes = {name: tensor_bytes(tensor, dtype) for name, tensor in meta_of(weights).items()}
    shards = _shards(sizes)
    count = len(shards)
    files = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    files = files if count > 1 else [WEIGHTS]
    with byte_bar("writing", sum(sizes.values())) as bar:
        for file, names in zip(files, shards, strict=True):
            tensors = {}
            for name in names:
                if isinstance(weights, Weights):
                    tensors[name] = weights.read(name, dtype=dtype)
                else:
                    tensors[name] = weights[name].detach().to(dtype=dtype).contiguous()
                bar.update(sizes[name])
            save_tensors(tensors, folder / file)
    if count > 1:
        file_of = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": file_of}
        write_json(folder / INDEX, index)
        files.append(INDEX)
    for path in (folder / WEIGHTS, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        if path.name not in files:
            path.unlink(missing_ok=True)


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names by file, in order."""
    if sum(sizes.values()) <= SINGLE_FILE_BYTES:
        return [list(sizes)]
    shards, taken = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and taken + size > SHARD_BYTES:
            shards.append([])
            taken = 0
        shards[-1].append(name)
        taken += size
    return shards


def read_weights(folder: Path) -> Weights:
    """The weights of a native folder, read when asked for."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        files = {WEIGHTS: TensorFile(folder / WEIGHTS, _open)}
        file_of = dict.fromkeys(files[WEIGHTS].meta, WEIGHTS)
    else:
        file_of: Any = read_json(folder / INDEX, advice=ADVICE).get("weight_map")
        names = file_of.values() if isinstance(file_of, dict) else [None]
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise CogVideoError(f"{folder / INDEX} should name a file for every weight; {ADVICE}.")
        files = {name: TensorFile(folder / name, _open) for name in sorted(set(file_of.values()))}
    for name, file in file_of.items():
        if name not in files[file].meta:
            raise CogVideoError(f"{name} is missing from {folder / file}, where the index has it; {ADVICE}.")

    def fill(name: str, out: Tensor) -> None:
        out.copy_(files[file_of[name]].view(name))
        release_pages(files.values())

    return Weights({name: files[file].meta[name] for name, file in file_of.items()}, fill)


def _open(path: Path) -> dict[str, Tensor]:
    return open_safetensors(path)[0]


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """A folder beside `target` to write to, which becomes it at the end: what has the final name is complete.

    A run that is killed leaves TARGET.part behind, which the next one deletes. Raises CogVideoError where
    `target` is not empty, and where fewer than `needed` bytes are free.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CogVideoError(f"{target} is there already: choose another name, or delete it first.")
    with replacing(target, parents=True, one_writer=True) as part:
        part.mkdir()
        check_room(part, needed, "choose a disk with as many GB free")
        yield part
        if target.exists():  # and empty; not all systems replace a folder
            target.rmdir()


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json (`model.config`) and the weights (in `dtype`, or as they are); see write_weights."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", to_dict(cast(Any, model.config)))
    write_weights(folder, model.state_dict(), dtype=dtype)


def read_folder(folder: str | Path, config_class: type[C]) -> tuple[C, Weights]:
    """Configuration and weights of a folder written by save_model."""
    file, config_type = Path(folder) / "config.json", cast(Any, config_class)
    return from_dict(config_type, read_json(file, advice=ADVICE), str(file)), read_weights(Path(folder))


def load_native(
    model: Callable[[C], M], config_class: type[C], folder: str | Path, **load: Unpack[Load]
) -> M:
    """The model in a folder written by save_model, in eval mode, as float32 unless `load` has another dtype.

    load: see sat.fill_model; dtype None keeps the types of the files.
    """
    config, weights = read_folder(folder, config_class)
    options: Load = {"dtype": torch.float32, **load}
    return fill_model(lambda: model(config), weights, where=str(folder), **options)


def load_model(folder: str | Path, **load: Unpack[Load]) -> CogVideoTransformer:
    """The CogVideoTransformer in a native folder; see load_native."""
    return load_native(CogVideoTransformer, ModelConfig, folder, **load)


def inherit_image_model(
    source: str | Path | CogVideoTransformer, *, config: ModelConfig | None = None, seed: int = 0
) -> CogVideoTransformer:
    """A video model that starts from an image model (CogView2 -> CogVideo, paper section 3.2).

    The image model gives every weight it has. New: temporal qkv copied from the layer's own, temporal dense
    normal(0, 0.02) with zero bias, gate 0 (both channels count half), extra positions repeated from frame
    0's, places (if it is told any) 0. `source` is a model, a native folder or a released one; `config`
    defaults to five sequential frames.
    """
    given = isinstance(source, CogVideoTransformer)
    ids = config or COGVIDEO_9B
    if isinstance(source, CogVideoTransformer):
        image = source
    elif (Path(source) / "config.json").exists():
        image = load_model(source, dtype=None)
    else:
        image = load_sat_checkpoint(source, image_tokens=ids.image_tokens, begin_of_image=ids.begin_of_image)
    if image.config.temporal:
        raise CogVideoError("A video model cannot be inherited from: give an image model.")
    config = image.config.video() if config is None else config
    if (differing := _differences(image.config, config)) or not config.temporal:
        raise CogVideoError(f"Configuration and image model differ: {', '.join(differing) or 'temporal'}.")
    like = image.word_embedding.weight
    generator = torch.Generator().manual_seed(seed)
    # A model that was read here lives on in the new one; one that was given must not share its weights.
    weights = {name: p.detach().clone() if given else p.detach() for name, p in image.named_parameters()}
    for layer in range(config.num_layers):
        new = f"blocks.{layer}.temporal."
        for kind in ("weight", "bias"):
            weights[new + f"qkv.{kind}"] = weights[f"blocks.{layer}.spatial.qkv.{kind}"].clone()
        size = config.hidden_size
        weights[new + "dense.weight"] = (torch.randn(size, size, generator=generator) * 0.02).to(like)
        weights[new + "dense.bias"] = like.new_zeros(size)
        weights[f"blocks.{layer}.gate"] = like.new_zeros(size)
    first = config.first_frame_position
    frame = weights["base_position_embedding.weight"][first : first + config.frame_tokens]
    repeats = -(-config.extra_positions // config.frame_tokens)
    extra = repeat(frame, "n d -> (t n) d", t=repeats)[: config.extra_positions]
    weights["extra_position_embedding.weight"] = extra.clone()
    if config.placed_rounds:
        rows = int(place(config, config.placed_rounds + 1, 0))
        weights["place_embedding.weight"] = like.new_zeros(rows, config.hidden_size)
    return fill_model(lambda: CogVideoTransformer(config), weights, where="the image model")


def _differences(image: ModelConfig, video: ModelConfig) -> list[str]:
    """Settings that an inheriting model must share with its image model, and does not."""
    free = {"num_frames", "extra_positions", "temporal", "order", "window", "text_length", "placed_rounds"}
    matched = replace(video, **{name: getattr(image, name) for name in free})
    return [name for name, value in to_dict(matched).items() if value != getattr(image, name)]


def origin(name: str) -> str:
    """How a video model starts the weight: "inherited", "copied" or "new" (see inherit_image_model)."""
    if ".temporal.qkv." in name or name.startswith("extra_position_embedding"):
        return "copied"
    new = ".temporal." in name or name.endswith(".gate") or name.startswith("place_embedding")
    return "new" if new else "inherited"


def image_model_of(model: CogVideoTransformer) -> CogVideoTransformer:
    """The image model inside a stage 1 or 2, which shares the weights' memory."""
    if not model.config.temporal:
        raise CogVideoError("This is an image model already: give a stage 1 or stage 2 model.")
    config = model.config.image()
    base = {name: weight for name, weight in model.state_dict().items() if origin(name) == "inherited"}
    return fill_model(lambda: CogVideoTransformer(config), base, where="the stage")
