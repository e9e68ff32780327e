"""What weights are: kind, geometry, size, missing and unexpected keys, and the memory they will need.

Only headers are read: of torch files and safetensors the table of names, shapes and types, of zips the list of files.
"""

import json
import re
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cogvideo.checkpoints.convert import open_checkpoint, released_kind
from cogvideo.checkpoints.inspection import Inspection
from cogvideo.checkpoints.native import INDEX, read_json
from cogvideo.checkpoints.registry import KNOWN
from cogvideo.checkpoints.sat import infer_config, our_name, read_sat_folder, released_name
from cogvideo.checkpoints.unzip import model_root, open_zip
from cogvideo.config import ModelConfig, SamplingConfig, from_dict
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.tensors import without_memory
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.iterative import IterativeSuperResolution
from cogvideo.superres.layers import our_superres_name
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.patches import PatchVQVAE
from cogvideo.tokenizers.text import TextTokenizer

IMAGE, STAGE1, STAGE2 = "image model", "stage 1", "stage 2"
DIRECT, ITERATIVE = "direct super-resolution", "iterative super-resolution"
NAMED = {"coglm": IMAGE, "stage1": STAGE1, "stage2": STAGE2, "itersr": ITERATIVE, "dsr": DIRECT}
TRAINING_STATISTICS = ("quantize.cluster_size", "quantize.embed_avg")  # of icetk's file; nobody loads them


def inspect(path: str | Path) -> Inspection:
    """Look at a released folder or zip, a native folder, a pipeline folder of either, or a single file of weights.

    Raises CogVideoError for paths that are none of these and for missing, damaged, half-downloaded or hostile files.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "pipeline.json").exists():
            return _pipeline(path)
        if (path / "config.json").exists():
            return _native_folder(path)
        if (path / "model_config.json").exists() or (path / "latest").exists():
            return _released_folder(path)
        if names := [
            item.place for item in KNOWN.values() if not item.packaged and (path / item.place).exists()
        ]:
            from cogvideo.checkpoints.released import FILES  # which imports this module

            parts = tuple(inspect(path / name) for name in names)
            lacking = ", ".join(
                n for n in FILES if not (path / n).exists() and not (path / f"{n}.zip").exists()
            )
            note = (
                f"to generate videos from here, {lacking} are still needed"
                if lacking
                else "ready for --weights"
            )
            return Inspection(
                path,
                "files of the release",
                "folder",
                size=_bytes(path),
                files=len(parts),
                note=note,
                parts=parts,
            )
        raise CogVideoError(
            f"{path} holds no weights: give a folder with config.json, model_config.json or pipeline.json."
        )
    if not path.exists():
        raise CogVideoError(f"There is nothing at {path}: check the path.")
    readers: dict[str, Callable[[Path], Inspection]] = {
        ".zip": _zip, ".npy": _clusters, ".model": _text_model, ".safetensors": _safetensors, ".pt": _torch_file,
    }  # fmt: skip
    if path.suffix not in readers:
        raise CogVideoError(
            f"{path} is no file of weights that is known: give one that ends in {', '.join(readers)}."
        )
    return readers[path.suffix](path)


# Folders


def _pipeline(path: Path) -> Inspection:
    from_dict(SamplingConfig, read_json(path / "pipeline.json"), str(path / "pipeline.json"))
    places = ["stage1", "stage2", "superres", "tokenizers/text.model", "tokenizers/frames.safetensors"]
    missing = tuple(place for place in places if not (path / place).exists())
    places = [place for place in [*places, "tokenizers/clusters.npy"] if (path / place).exists()]
    parts = tuple(inspect(path / place) for place in places)
    return Inspection(
        path, "pipeline", "pipeline folder", missing=missing, size=_bytes(path), files=len(parts), parts=parts
    )


def _native_folder(path: Path) -> Inspection:
    model, config, weights = open_checkpoint(path, image_tokens=1, begin_of_image=1)
    files = len(list(path.glob("model-*-of-*.safetensors"))) if (path / INDEX).exists() else 1
    empty = _empty(lambda: model(config))
    found = _compare(empty.state_dict(), weights.meta, weights.meta)
    kind, geometry = _describe(config)
    return Inspection(
        path,
        kind,
        "native folder",
        geometry,
        files=files,
        size=_bytes(path),
        matrices=_matrices(empty),
        cached=_cached(config),
        **found,
    )


def _released_folder(path: Path) -> Inspection:
    weights, settings = read_sat_folder(path)
    ranks = list((path / (path / "latest").read_text().strip()).glob("mp_rank_*_model_states.pt"))
    size = sum(rank.stat().st_size for rank in ranks)
    return _released(path, weights.meta, settings, layout="released folder", files=len(ranks), size=size)


def _released(path: Path, meta: Mapping[str, Tensor], settings: dict[str, Any], **facts: Any) -> Inspection:
    """Weights under the names of the release; `settings` of model_config.json may be empty."""
    model, rename = {
        "direct": (DirectSuperResolution, our_superres_name),
        "iterative": (IterativeSuperResolution, our_superres_name),
    }.get(released_kind(meta), (CogVideoTransformer, our_name))  # type: ignore[arg-type]  # looks at names alone
    whole = dict(meta)
    try:
        for name, shape in _stand_ins(settings, meta, model).items():
            whole.setdefault(name, torch.empty(shape, device="meta"))
        # Which ids are image tokens is not in the files; no shape follows from it.
        ids, heads = {"image_tokens": 1, "begin_of_image": 1}, settings.get("num_attention_heads", 1)
        if model is CogVideoTransformer:
            config = infer_config(whole, {"num_attention_heads": heads} | settings, **ids)
        else:
            renamed = {ours: tensor for name, tensor in whole.items() if (ours := rename(name))}
            config = model.released_config(renamed, num_heads=heads, **ids)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CogVideoError(
            f"{path} is no checkpoint of the release: its weights or model_config.json lack or spoil {error}; download it again."
        ) from None
    except CogVideoError as error:  # weights and settings that contradict each other
        raise CogVideoError(f"{path} is damaged or put together of several: {error}") from None
    ours = {name: renamed for name in meta if (renamed := rename(name))}
    empty = _empty(lambda: model(config))
    found = _compare({_released_spelling(name): t for name, t in empty.state_dict().items()}, meta, ours)
    kind, geometry = _describe(config)
    geometry |= {"heads": settings.get("num_attention_heads", "not told")}
    geometry = {name: value for name, value in geometry.items() if name != "image tokens"}
    note = ""
    if kind in (STAGE1, STAGE2) and "cogvideo_stage" not in settings:
        note = (
            f"model_config.json does not tell the stage; by its windows (stage 2 has them) it loads as {kind}"
        )
    return Inspection(
        path,
        kind,
        geometry=geometry,
        note=note,
        matrices=_matrices(empty),
        cached=_cached(config),
        **found,
        **facts,
    )


def _stand_ins(
    settings: dict[str, Any], meta: Mapping[str, Tensor], model: type[nn.Module]
) -> dict[str, tuple[int, ...]]:
    """Shapes, as model_config.json tells them, of the weights that geometry is read off, in case they are missing."""
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
        places = settings.get("additional_seqlen", 2000) if model is CogVideoTransformer else 3600
        shapes["mixins.extra_position_embedding.position_embeddings.weight"] = (places, hidden)
    return shapes


def _released_spelling(ours: str) -> str:
    return released_name(ours.replace(".given.", ".spatial.").replace(".drawn.", ".temporal."))


# Single files


def _zip(path: Path) -> Inspection:
    """A released zip as far as it can be seen without unpacking."""
    with open_zip(path) as archive:
        root = model_root(archive, path)
        ranks = [
            info for info in archive.infolist() if re.search(r"/mp_rank_\d+_model_states\.pt$", info.filename)
        ]
        if not ranks or (info := archive.getinfo(f"{root}model_config.json")).file_size > 10**6:
            raise CogVideoError(
                f"{path} is no zip of the release: it should hold weights and a small model_config.json."
            )
        try:
            settings = json.loads(archive.read(info))
            layers, hidden = int(settings["num_layers"]), int(settings["hidden_size"])
        except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise CogVideoError(
                f"The model_config.json in {path} cannot be read ({error}): download it again."
            ) from None
    named = next(
        (kind for part, kind in NAMED.items() if part in f"{path.name}/{root}".lower()),
        "model of the release",
    )
    kind = {1: STAGE1, 2: STAGE2}.get(settings.get("cogvideo_stage"), named)
    geometry = {"layers": layers, "hidden": hidden, "heads": settings.get("num_attention_heads", "not told")}
    geometry |= {"vocabulary": settings["vocab_size"]} if "vocab_size" in settings else {}
    size = sum(rank.file_size for rank in ranks)
    both = kind in (STAGE1, STAGE2, DIRECT)
    return Inspection(
        path, kind, "released zip", geometry, parameters=size // 2, matrices=layers * hidden**2 * (16 if both else 12),
        files=len(ranks), size=size, note="unpack it to see its weights; parameters are counted from its size as 16 bit",
    )  # fmt: skip


def _clusters(path: Path) -> Inspection:
    from cogvideo.checkpoints.pipeline_folder import read_labels

    labels = read_labels(path)
    geometry: dict[str, int | str] = {"image tokens": len(labels), "clusters": int(labels.max()) + 1}
    return Inspection(path, "clusters", "file", geometry, size=_bytes(path), dtypes=(str(labels.dtype),))


def _text_model(path: Path) -> Inspection:
    text = TextTokenizer(path, 0)
    geometry: dict[str, int | str] = {"pieces": text.text_pieces, "ids with special pieces": text.vocab_size}
    note = (
        "text ids begin after the image tokens (20000 in the release); begin-of-image follows the last piece"
    )
    return Inspection(path, "text tokenizer", "file", geometry, size=_bytes(path), note=note)


def _torch_file(path: Path) -> Inspection:
    if (
        re.fullmatch(r"mp_rank_\d+_model_states\.pt", path.name)
        and (path.parent.parent / "model_config.json").exists()
    ):
        return _released_folder(path.parent.parent)
    try:
        table = torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"names {forbidden[1]}, which is no tensor and was not run"
            if forbidden
            else "is damaged or half downloaded"
        )
        raise CogVideoError(
            f"{path} {reason} ({type(error).__name__}): delete it and download it again."
        ) from None
    table = table.get("module", table) if isinstance(table, dict) else table
    if not isinstance(table, dict):
        raise CogVideoError(f"{path} holds no table of weights: download it again.")
    return _table(path, {name: value for name, value in table.items() if isinstance(value, Tensor)}, {})


def _safetensors(path: Path) -> Inspection:
    if path.name.startswith("model") and (path.parent / "config.json").exists():
        return _native_folder(path.parent)
    try:
        with safe_open(path, framework="pt") as file:
            # Tensors are mapped, and nothing of them is read.
            meta = {name: file.get_tensor(name).to("meta") for name in file.keys()}
            return _table(path, meta, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CogVideoError(
            f"{path} is damaged or half downloaded ({error}): delete it and get it again."
        ) from None


def _table(path: Path, meta: dict[str, Tensor], metadata: dict[str, str]) -> Inspection:
    """A single file of weights, told apart by its names."""
    facts: dict[str, Any] = {"layout": "file", "size": _bytes(path)}
    if "frame_tokenizer" in metadata or "quantize.embed.weight" in meta:
        return _frame_tokenizer(path, meta, metadata, facts)
    if any(name.startswith("transformer.") for name in meta):
        return _released(path, meta, {}, **facts)
    if "Conv3d_1a_7x7.conv3d.weight" in meta:
        from cogvideo.checkpoints.i3d_weights import unit_shapes

        shapes = {
            f"{unit}.conv3d.weight": (out, into, k, k, k) for unit, (out, into, k) in unit_shapes().items()
        }
        expected = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        # What lies beside the convolutions differs by source.
        return replace(Inspection(path, "i3d", **facts, **_compare(expected, meta, meta)), unexpected=())
    if "digit.weight" in meta and "turn.weight" in meta:
        return Inspection(path, "judge of demo clips", **facts, **_compare(meta, meta, meta))
    if "blocks.0.attention_norm.weight" in meta:
        raise CogVideoError(
            f"{path} needs the config.json that was written beside it: copy the whole folder."
        )
    raise CogVideoError(
        f"{path} holds weights of no model known here ({min(meta, default='none')} is the first)."
    )


def _frame_tokenizer(
    path: Path, meta: dict[str, Tensor], metadata: dict[str, str], facts: dict[str, Any]
) -> Inspection:
    """icetk's network, or the demo's; without a description its sizes come from the shapes."""
    ours = set(meta)
    try:
        if "frame_tokenizer" in metadata:
            sizes = json.loads(metadata["frame_tokenizer"])
            network = {"patches": PatchVQVAE, "icetk": HVQVAE}[sizes.pop("kind")]
        else:
            network, sizes = HVQVAE, icetk_sizes(meta)
            ours = {
                name for name in meta if name.startswith(("enc.", "down_samplers.", "quantize.", "decs."))
            }
            ours -= set(TRAINING_STATISTICS)
        expected = _empty(lambda: network(**sizes)).state_dict()
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise CogVideoError(
            f"{path} is no whole image tokenizer: it lacks or spoils {error}; download it again."
        ) from None
    geometry = {name: value if isinstance(value, int) else str(value) for name, value in sizes.items()}
    return Inspection(path, "image tokenizer", geometry=geometry, **facts, **_compare(expected, meta, ours))


def icetk_sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What HVQVAE is to be made with, read off the shapes of icetk's weights; KeyError without its outermost layers."""

    def widths(prefix: str) -> list[int]:
        found = []
        while (name := f"{prefix}.{len(found)}.block.0.conv1.weight") in weights:
            found.append(len(weights[name]) // channels)
        return found

    codes, dim = weights["quantize.embed.weight"].shape
    channels = len(weights["enc.conv_in.weight"])
    decoders = []
    while decoder := widths(f"decs.{len(decoders)}.up"):
        decoders.append(decoder)
    return {
        "codes": codes,
        "dim": dim,
        "channels": channels,
        "encoder_mult": widths("enc.down"),
        "decoder_mults": decoders,
    }


# Facts


def _empty(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory for its weights."""
    with without_memory():
        return build()


def _matrices(model: nn.Module) -> int:
    """Parameters that quantize_int8 makes int8."""
    return sum(layer.weight.numel() for layer in model.modules() if type(layer) is nn.Linear)


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


def _describe(config: Any) -> tuple[str, dict[str, int | str]]:
    """Kind and geometry of a transformer."""
    geometry: dict[str, int | str] = {
        "layers": config.num_layers,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "vocabulary": config.vocab_size,
        "image tokens": config.image_tokens,
    }
    if isinstance(config, ModelConfig):
        kind = IMAGE if not config.temporal else STAGE2 if config.order == "interpolation" else STAGE1
        geometry |= {"frames": config.num_frames, "frame": f"{config.frame_height} x {config.frame_width}"}
        if config.temporal:
            geometry["window"] = config.window or "none"
        return kind, geometry | {"text slots": config.text_length}
    if isinstance(config, SuperResolutionConfig):
        low, high = (f"{s * config.low_height} x {s * config.low_width}" for s in (1, config.scale))
        return DIRECT, geometry | {"frame": f"{low} -> {high}", "text slots": config.text_slots}
    return ITERATIVE, geometry | {
        "frame": f"{config.height} x {config.width}",
        "text slots": config.text_slots,
    }


def _cached(config: Any) -> int:
    """Numbers in the caches of one sequence while it is drawn: keys and values of text and frames, in both channels."""
    if not isinstance(config, ModelConfig):
        return 0
    places = config.text_length + config.frame_tokens
    if config.temporal:
        places += config.text_length + config.num_frames * config.frame_tokens
    return 2 * config.num_layers * config.hidden_size * places


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
