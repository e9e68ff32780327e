"""What weights are: kind, geometry, size, missing and unexpected keys, and the memory that they will need.

Only headers are read: tables of names, shapes and types, and lists of files in zips."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.checkpoints import sat
from cogvideo.checkpoints.c3d_weights import read_table
from cogvideo.checkpoints.convert import open_checkpoint
from cogvideo.checkpoints.frames import NETWORKS, icetk_sizes, loaded_names
from cogvideo.checkpoints.i3d_weights import unit_shapes
from cogvideo.checkpoints.native import ADVICE, INDEX
from cogvideo.checkpoints.pipeline_folder import read_labels
from cogvideo.checkpoints.registry import KNOWN, size_text
from cogvideo.checkpoints.released import FILES
from cogvideo.checkpoints.superres import our_superres_name, released_config
from cogvideo.checkpoints.unzip import model_root, open_zip
from cogvideo.config import ModelConfig, SamplingConfig, from_dict
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import read_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import CUDA_BYTES, cache_numbers, free_memory, int8_bytes
from cogvideo.runtime.tensors import open_safetensors, without_memory
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.iterative import IterativeSuperResolution
from cogvideo.superres.layers import SuperResolution
from cogvideo.tokenizers.text import TextTokenizer

IMAGE, STAGE1, STAGE2 = "image model", "stage 1", "stage 2"
DIRECT, ITERATIVE = "direct super-resolution", "iterative super-resolution"
NAMED = {"coglm": IMAGE, "stage1": STAGE1, "stage2": STAGE2, "itersr": ITERATIVE, "dsr": DIRECT}
WIDTHS = {"fp32": 4, "bf16/fp16": 2, "int8": 1}  # bytes of a number in a large matrix
SHOWN = 5  # names of keys


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Names of weights are those of the file."""

    path: Path
    kind: str
    layout: str  # of the files: released folder, native folder, ...
    geometry: dict[str, int | str] = field(default_factory=dict)
    parameters: int = 0
    matrices: int = 0  # parameters in large matrices, which int8 makes smaller
    cached: int = 0  # numbers in the caches of one sequence while it is generated
    files: int = 1  # that hold weights: ranks or shards
    size: int = 0  # bytes on disk
    dtypes: tuple[str, ...] = ()
    keys: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()  # the loader refuses them
    ignored: tuple[str, ...] = ()  # the loader leaves them out
    misshapen: tuple[str, ...] = ()  # "name [found] instead of [expected]"
    note: str = ""
    parts: tuple["Inspection", ...] = ()  # of a pipeline

    @property
    def complete(self) -> bool:
        """Whether it can be loaded."""
        parts = all(part.complete for part in self.parts)
        return parts and not (self.missing or self.unexpected or self.misshapen)

    def memory(self, device: str, dtype: str) -> int:
        """Bytes, about, of the weights of all parts on "cpu" or "cuda" in a type of WIDTHS."""
        if dtype == "int8":
            own = int8_bytes(self.parameters, self.matrices, device)
        else:
            own = self.parameters * WIDTHS[dtype]
        return own + sum(part.memory(device, dtype) for part in self.parts)

    def caches(self, device: str, dtype: str) -> int:
        """Bytes of the caches of one sequence while it is generated; of the part that needs most."""
        own = int8_bytes(self.cached, 0, device) if dtype == "int8" else self.cached * WIDTHS[dtype]
        return max([own, *(part.caches(device, dtype) for part in self.parts)])


def inspect(path: str | Path) -> Inspection:
    """Look at a released folder or zip, a native folder, a pipeline folder, or a single file of weights."""
    path = Path(path)
    if path.is_dir():
        if (path / "pipeline.json").exists():
            return _pipeline(path)
        if (path / "config.json").exists():
            return _native_folder(path)
        if (path / "model_config.json").exists() or (path / "latest").exists():
            return _released_folder(path)
        return _release(path)
    if not path.exists():
        raise CogVideoError(f"There is nothing at {path}: check the path.")
    readers: dict[str, Callable[[Path], Inspection]] = {
        ".zip": _zip, ".npy": _clusters, ".model": _text_model, ".pt": _torch_file,
        ".safetensors": _safetensors,
    }  # fmt: skip
    if path.suffix not in readers:
        raise CogVideoError(f"{path} is no file of weights: give one that ends in {', '.join(readers)}.")
    return readers[path.suffix](path)


# Folders


def _pipeline(path: Path) -> Inspection:
    file = path / "pipeline.json"
    from_dict(SamplingConfig, read_json(file, advice=ADVICE), str(file))
    needed = ["stage1", "stage2", "superres", "tokenizers/text.model", "tokenizers/frames.safetensors"]
    missing = tuple(name for name in needed if not (path / name).exists())
    found = [name for name in [*needed, "tokenizers/clusters.npy"] if (path / name).exists()]
    return _of_parts(path, "pipeline", "pipeline folder", found, missing=missing)


def _release(path: Path) -> Inspection:
    """The release's files side by side."""
    found = [item.place for item in KNOWN.values() if not item.packaged and (path / item.place).exists()]
    if not found:
        raise CogVideoError(
            f"{path} holds no weights: give a folder with config.json, model_config.json or pipeline.json."
        )
    needed = [name for name in FILES if not ((path / name).exists() or (path / f"{name}.zip").exists())]
    still = f"to generate videos from here, {', '.join(needed)} are still needed"
    note = still if needed else "ready for --weights"
    return _of_parts(path, "files of the release", "folder", found, note=note)


def _of_parts(path: Path, kind: str, layout: str, names: list[str], **facts: Any) -> Inspection:
    parts = tuple(inspect(path / name) for name in names)
    return Inspection(path, kind, layout, size=_bytes(path), files=len(parts), parts=parts, **facts)


def _native_folder(path: Path) -> Inspection:
    model, config, weights = open_checkpoint(path, image_tokens=1, begin_of_image=1)
    files = len(list(path.glob("model-*-of-*.safetensors"))) if (path / INDEX).exists() else 1
    empty = _empty(lambda: model(config))
    facts = _describe(config, empty) | _compare(empty.state_dict(), weights.meta, weights.meta)
    return Inspection(path, layout="native folder", files=files, size=_bytes(path), **facts)


def _released_folder(path: Path) -> Inspection:
    weights, settings = sat.read_sat_folder(path)
    ranks = list((path / (path / "latest").read_text().strip()).glob("mp_rank_*_model_states.pt"))
    size = sum(rank.stat().st_size for rank in ranks)
    return _released(path, weights.meta, settings, layout="released folder", files=len(ranks), size=size)


def _released(path: Path, meta: Mapping[str, Tensor], settings: dict[str, Any], **facts: Any) -> Inspection:
    """Weights under the names of the release; `settings` of model_config.json may be empty."""
    kind, whole = sat.released_kind(meta), dict(meta)
    superres: type[SuperResolution] | None = {
        "direct": DirectSuperResolution,
        "iterative": IterativeSuperResolution,
    }.get(kind)
    rename = our_superres_name if superres else sat.our_name
    with sat.invalid_release(path):
        for name, shape in _expected_tables(settings, meta, superres is not None).items():
            whole.setdefault(name, torch.empty(shape, device="meta"))
        # Which ids are image tokens is not in the files; no shape follows from it.
        ids: sat.Ids = {"image_tokens": 1, "begin_of_image": 1}
        heads = settings.get("num_attention_heads", 1)
        if superres:
            ours = {new: tensor for name, tensor in whole.items() if (new := rename(name))}
            config = released_config(superres, ours, num_heads=heads, **ids)
        else:
            config = sat.infer_config(whole, {"num_attention_heads": heads} | settings, **ids)
    model: Callable[[Any], nn.Module] = superres or CogVideoTransformer
    empty = _empty(lambda: model(config))
    expected = {sat.released_name(name): tensor for name, tensor in empty.state_dict().items()}
    facts |= _describe(config, empty) | _compare(expected, meta, [name for name in meta if rename(name)])
    facts["geometry"] |= {"heads": settings.get("num_attention_heads", "not told")}
    del facts["geometry"]["image tokens"]
    if facts["kind"] in (STAGE1, STAGE2) and "cogvideo_stage" not in settings:
        facts["note"] = (
            "model_config.json does not name the stage; by its windows (stage 2 has them) it loads as "
            f"{facts['kind']}"
        )
    return Inspection(path, **facts)


def _expected_tables(
    settings: dict[str, Any], meta: Mapping[str, Tensor], superres: bool
) -> dict[str, tuple[int, ...]]:
    """Shapes by model_config.json of the weights that geometry is read off, in case they are missing."""
    hidden, rows = settings.get("hidden_size"), {"word": "vocab_size", "position": "max_sequence_length"}
    if hidden is None:
        return {}
    shapes: dict[str, tuple[int, ...]] = {
        f"transformer.{kind}_embeddings.weight": (settings[key], hidden)
        for kind, key in rows.items()
        if key in settings
    }
    if "num_layers" in settings:
        shapes[f"transformer.layers.{settings['num_layers'] - 1}.input_layernorm.weight"] = (hidden,)
    if any(name.startswith("mixins.") for name in meta):
        positions = 3600 if superres else settings.get("additional_seqlen", 2000)
        shapes["mixins.extra_position_embedding.position_embeddings.weight"] = (positions, hidden)
    return shapes


# Single files


def _zip(path: Path) -> Inspection:
    """A released zip as far as it can be seen without unpacking."""
    with open_zip(path) as archive:
        root = model_root(archive, path)
        ranks = [i for i in archive.infolist() if re.search(r"/mp_rank_\d+_model_states\.pt$", i.filename)]
        if not ranks or (info := archive.getinfo(f"{root}model_config.json")).file_size > 10**6:
            raise CogVideoError(f"{path} is no zip of the release, with weights and a model_config.json.")
        with explained(f"The model_config.json in {path} cannot be read (REASON): download it again."):
            settings = json.loads(archive.read(info))
            layers, hidden = int(settings["num_layers"]), int(settings["hidden_size"])
    place = f"{path.name}/{root}".lower()
    named = next((kind for part, kind in NAMED.items() if part in place), "model of the release")
    kind = {1: STAGE1, 2: STAGE2}.get(settings.get("cogvideo_stage"), named)
    geometry = {"layers": layers, "hidden": hidden, "heads": settings.get("num_attention_heads", "not told")}
    geometry |= {"vocabulary": settings["vocab_size"]} if "vocab_size" in settings else {}
    size = sum(rank.file_size for rank in ranks)
    matrices = layers * hidden**2 * (16 if kind in (STAGE1, STAGE2, DIRECT) else 12)
    return Inspection(
        path, kind, "released zip", geometry, parameters=size // 2, matrices=matrices, files=len(ranks),
        size=size,
        note="unpack it to see its weights; parameters are counted from its size as 16 bit",
    )  # fmt: skip


def _clusters(path: Path) -> Inspection:
    labels = read_labels(path)
    geometry: dict[str, int | str] = {"image tokens": len(labels), "clusters": int(labels.max()) + 1}
    return Inspection(path, "clusters", "file", geometry, size=_bytes(path), dtypes=(str(labels.dtype),))


def _text_model(path: Path) -> Inspection:
    text = TextTokenizer(path, 0)
    geometry: dict[str, int | str] = {"pieces": text.text_pieces, "ids with special pieces": text.vocab_size}
    note = "text ids begin after the image tokens (20000 in the release); begin-of-image after the last"
    return Inspection(path, "text tokenizer", "file", geometry, size=_bytes(path), note=note)


def _torch_file(path: Path) -> Inspection:
    folder = path.parent.parent
    if re.fullmatch(r"mp_rank_\d+_model_states\.pt", path.name) and (folder / "model_config.json").exists():
        return _released_folder(folder)
    table = read_table(path, "of a model known here")
    return _table(path, {name: tensor.to("meta") for name, tensor in table.items()}, {})


def _safetensors(path: Path) -> Inspection:
    if path.name.startswith("model") and (path.parent / "config.json").exists():
        return _native_folder(path.parent)
    tensors, metadata = open_safetensors(path)
    return _table(path, {name: tensor.to("meta") for name, tensor in tensors.items()}, metadata)


def _table(path: Path, meta: dict[str, Tensor], metadata: dict[str, str]) -> Inspection:
    """A single file of weights, told apart by its names."""
    facts: dict[str, Any] = {"layout": "file", "size": _bytes(path)}
    if "frame_tokenizer" in metadata or "quantize.embed.weight" in meta:
        return _frame_tokenizer(path, meta, metadata, facts)
    if any(name.startswith("transformer.") for name in meta):
        return _released(path, meta, {}, **facts)
    if "Conv3d_1a_7x7.conv3d.weight" in meta:
        shapes = {unit: (out, into, k, k, k) for unit, (out, into, k) in unit_shapes().items()}
        expected = {f"{unit}.conv3d.weight": torch.empty(s, device="meta") for unit, s in shapes.items()}
        # What lies beside the convolutions differs by source.
        return replace(Inspection(path, "i3d", **facts, **_compare(expected, meta, meta)), unexpected=())
    if "blocks.0.attention_norm.weight" in meta:
        raise CogVideoError(f"{path} needs the config.json beside it: copy the whole folder.")
    raise CogVideoError(
        f"{path} holds no model known here ({min(meta, default='none')} is its first weight)."
    )


def _frame_tokenizer(
    path: Path, meta: dict[str, Tensor], metadata: dict[str, str], facts: dict[str, Any]
) -> Inspection:
    """Our own network or icetk's, whose sizes come from the shapes."""
    with explained(f"{path} is no whole image tokenizer (REASON is missing or invalid): download it again."):
        if "frame_tokenizer" in metadata:
            sizes, ours = json.loads(metadata["frame_tokenizer"]), set(meta)
        else:
            sizes, ours = {"kind": "icetk", **icetk_sizes(meta)}, loaded_names(meta)
        network: Callable[..., nn.Module] = NETWORKS[sizes.pop("kind")]
        expected = _empty(lambda: network(**sizes)).state_dict()
    geometry = {name: value if isinstance(value, int) else str(value) for name, value in sizes.items()}
    return Inspection(path, "image tokenizer", geometry=geometry, **facts, **_compare(expected, meta, ours))


# Facts


def _empty(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory for its weights."""
    with without_memory():
        return build()


def _compare(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], ours: Collection[str]
) -> dict[str, Any]:
    """Fields of an Inspection. ours: names in `found` that the loader looks at."""
    counted = {name: tensor for name, tensor in found.items() if name in ours}
    return {
        "keys": len(found),
        "parameters": sum(tensor.numel() for tensor in counted.values()),
        "dtypes": tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in counted.values()})),
        "missing": tuple(sorted(expected.keys() - found.keys())),
        "unexpected": tuple(sorted(counted.keys() - expected.keys())),
        "ignored": tuple(sorted(found.keys() - counted.keys())),
        "misshapen": tuple(
            f"{name} {list(found[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in found and found[name].shape != tensor.shape
        ),
    }


def _describe(c: Any, model: nn.Module) -> dict[str, Any]:
    """Fields of the Inspection of a transformer: kind, geometry, and what its memory depends on."""
    geometry: dict[str, int | str] = {
        "layers": c.num_layers, "hidden": c.hidden_size, "heads": c.num_heads, "vocabulary": c.vocab_size,
        "image tokens": c.image_tokens,
    }  # fmt: skip
    if isinstance(c, ModelConfig):
        kind = IMAGE if not c.temporal else STAGE2 if c.order == "interpolation" else STAGE1
        geometry |= {"frames": c.num_frames, "frame": f"{c.frame_height} x {c.frame_width}"}
        if c.temporal:
            geometry["window"] = c.window or "none"
        geometry["text slots"] = c.text_length
    elif isinstance(c, SuperResolutionConfig):
        low, high = (f"{s * c.low_height} x {s * c.low_width}" for s in (1, c.scale))
        kind = DIRECT
        geometry |= {"frame": f"{low} -> {high}", "text slots": c.text_slots}
    else:
        kind = ITERATIVE
        geometry |= {"frame": f"{c.height} x {c.width}", "text slots": c.text_slots}
    return {
        "kind": kind,
        "geometry": geometry,
        "matrices": sum(m.weight.numel() for m in model.modules() if type(m) is nn.Linear),
        "cached": cache_numbers(c) if isinstance(c, ModelConfig) else 0,
    }


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


# The report


def report(found: Inspection) -> str:
    """An Inspection as aligned plain text, with the memory that is free here."""
    facts = [("weights", str(found.path)), ("kind", f"{found.kind} ({found.layout})")]
    if found.geometry:
        facts.append(("geometry", ", ".join(f"{name} {value}" for name, value in found.geometry.items())))
    for part in found.parts:
        geometry = [f"{name} {value}" for name, value in list(part.geometry.items())[:3]]
        facts.append(("part", ", ".join([f"{part.path.name}: {part.kind}", size_text(part.size), *geometry])))
    facts.append(("files", ", ".join([str(found.files), size_text(found.size), *found.dtypes])))
    parameters = found.parameters + sum(part.parameters for part in found.parts)
    if parameters:
        count = f"{parameters / 1e9:.2f} billion" if parameters >= 1e8 else f"{parameters:,}"
        facts.append(("parameters", count))
    if found.keys:
        expected = "as" if found.complete else "not as"
        facts.append(("keys", f"{found.keys}, {expected} the loader expects them"))
    for part in (found, *found.parts):
        for name in ("missing", "misshapen", "unexpected", "ignored"):
            if keys := getattr(part, name):
                more = ", ..." if len(keys) > SHOWN else ""
                facts.append((name, f"{len(keys)}: {', '.join(keys[:SHOWN])}{more}"))
    facts += [("note", part.note) for part in (found, *found.parts) if part.note]
    if parameters:
        facts += _memory(found)
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {fact}".rstrip() for name, fact in facts)


def _memory(found: Inspection) -> list[tuple[str, str]]:
    """The table of memory by device and type."""
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    free = {name: f"{size_text(free_memory(name))} free" for name in ("cpu", *gpus)}
    if not gpus:
        free["one GPU"] = "none here"
    rows = [("memory", "".join(f"{name:<12}" for name in WIDTHS))]
    for name, text in free.items():
        device, own = ("cpu", 0) if name == "cpu" else ("cuda", CUDA_BYTES)
        sizes = [size_text(found.memory(device, dtype) + own) for dtype in WIDTHS]
        rows.append((f"  {name}", "".join(f"{size:<12}" for size in sizes) + text))
    if (caches := found.caches("cuda", "bf16/fp16")) > 0:
        rows.append(("  caches", f"{size_text(caches)} more in 16 bit for each sequence generated at once"))
    return rows
