"""A pipeline folder of parts that were trained or found anywhere: stages, super-resolution, tokenizers.

A model folder may hold training.json, which training writes: what its tokens were, and its frame rates.
"""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cogvideo.checkpoints.native import ADVICE, new_folder, read_folder, write_weights
from cogvideo.checkpoints.pipeline_folder import check_parts, read_labels, read_sampling
from cogvideo.checkpoints.registry import DEMO, PIPELINE
from cogvideo.config import ModelConfig, SamplingConfig, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json, write_json
from cogvideo.superres.direct import SuperResolutionConfig
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import TextTokenizer

MODELS = {"stage1": "stage 1", "stage2": "stage 2", "superres": "super-resolution"}
FILES = {"text": "text.model", "frames": "frames.safetensors", "clusters": "clusters.npy"}
NEEDED = MODELS | {"text": "the text tokenizer", "frames": "the frame tokenizer"}
TRAINED = "training.json"


def find_parts(places: Iterable[str | Path]) -> dict[str, Path]:
    """Parts of a pipeline -> the folder or file of each, where there is one; earlier places come first.

    Keys: those of MODELS and FILES, and "sampling", a pipeline.json. A place: "demo" or a pipeline folder;
    the folder of one model; the run_dir of a training or of a recipe; or one of the files.
    """
    found: dict[str, Path] = {}
    for place in places:
        place = DEMO if place == "demo" else Path(place)
        if not place.exists():
            raise CogVideoError(f"There is nothing at {place}: check the path.")
        for part, file in (*FILES.items(), ("sampling", PIPELINE)):
            options = [place] if place.name == file else [place / file, place / "tokenizers" / file]
            for path in filter(Path.is_file, options):
                found.setdefault(part, path)
        folders = [place / name for name in ("", *MODELS)]
        for folder in (folder / name for folder in folders for name in ("", "model")):
            if part := _model_part(folder):
                found.setdefault(part, folder)
    return found


def _model_part(folder: Path) -> str | None:
    """Which of MODELS a folder holds; None: no model, an image model, or another super-resolution."""
    if not (folder / "config.json").is_file():
        return None
    settings = read_json(folder / "config.json", advice=ADVICE)
    if "low_window" in settings:
        return "superres"
    stages = {"sequential": "stage1", "interpolation": "stage2"}
    return stages.get(settings.get("order", "")) if settings.get("temporal") else None


def assemble(
    output: str | Path,
    parts: Mapping[str, Path],
    *,
    sampling: SamplingConfig | None = None,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
) -> Path:
    """Make the pipeline folder `output` of `parts` (see find_parts) -> output.

    sampling: how it draws; None: as the pipeline of a part does, with the frame rates that stage 1 was
    trained with. dtype None keeps the files as they are, linked where the disk can. overwrite: replace an
    earlier pipeline. Raises CogVideoError that names the missing parts, and for parts that do not belong
    together.
    """
    output = Path(output)
    if missing := [words for part, words in NEEDED.items() if part not in parts]:
        raise CogVideoError(
            f"{output} cannot be assembled without {' and '.join(missing)}: train what is missing, or name a "
            "folder that has it, such as demo."
        )
    _check(parts)
    sampling = sampling or _sampling(parts)
    replaces = overwrite and (output / PIPELINE).exists()  # perhaps parts of it are taken
    new = output.with_name(output.name + ".new") if replaces else output
    sources = [file for part in MODELS for file in _files(parts[part])]
    with new_folder(new, sum(file.stat().st_size for file in sources)) as folder:
        (folder / "tokenizers").mkdir()
        for part, file in FILES.items():
            if part in parts:
                _link(parts[part], folder / "tokenizers" / file)
        for part in MODELS:
            (folder / part).mkdir()
            _put_model(parts[part], folder / part, dtype)
        write_json(folder / PIPELINE, to_dict(sampling))
    if replaces:
        shutil.rmtree(output)
        new.rename(output)
    return output


def describe(output: Path, parts: Mapping[str, Path]) -> str:
    """Lines for people: where each part of an assembled pipeline came from, and how to use it."""
    lines = [f"{words}: {parts[part]}" for part, words in NEEDED.items()]
    return "\n".join([*lines, f'Now: cogvideo generate "PROMPT" --weights {output}'])


def _put_model(source: Path, target: Path, dtype: torch.dtype | None) -> None:
    for file in _files(source):
        if dtype is None or not file.name.startswith("model"):
            _link(file, target / file.name)
    if dtype is not None:
        config: Any = SuperResolutionConfig if _model_part(source) == "superres" else ModelConfig
        write_weights(target, read_folder(source, config)[1], dtype=dtype)


def _files(folder: Path) -> list[Path]:
    """Files of a model folder, without what training may keep beside them."""
    return [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".md")]


def _link(source: Path, target: Path) -> None:
    """The same file under another name: files are replaced and never changed, so it needs no second copy."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one that has no links
        shutil.copyfile(source, target)


def _check(parts: Mapping[str, Path]) -> None:
    """Refuse parts of different sets of weights, or trained on tokens of other tokenizers."""
    frames = FrameTokenizer.load(parts["frames"])
    text = TextTokenizer(parts["text"], frames.num_codes)
    one, two = (read_folder(parts[part], ModelConfig)[0] for part in ("stage1", "stage2"))
    large = read_folder(parts["superres"], SuperResolutionConfig)[0]
    labels = read_labels(parts["clusters"]) if "clusters" in parts else None
    check_parts(text, frames, one, two, large, labels)
    digests = {"frame_tokenizer": frames.digest, "text_tokenizer": text.digest}
    for part, words in MODELS.items():
        notes = _notes(parts[part])
        for name, digest in digests.items():
            if notes.get(name, digest) != digest:
                what = f"The {words} in {parts[part]} was trained with another {name.replace('_', ' ')}"
                file = parts["frames" if name == "frame_tokenizer" else "text"]
                raise CogVideoError(f"{what} than {file}: name the folder of its own one first.")


def _notes(folder: Path) -> dict[str, Any]:
    return read_json(folder / TRAINED, default={})


def _sampling(parts: Mapping[str, Path]) -> SamplingConfig:
    """As the pipeline.json draws, with the spans that stage 1 was trained with."""
    spans = tuple(_notes(parts["stage1"]).get("spans", ()))
    if "sampling" not in parts:
        if spans:
            return SamplingConfig(spans=spans)
        raise CogVideoError(
            f"{parts['stage1']} does not say which seconds its frames may span: name a pipeline folder, too, "
            "such as demo, whose spans it takes."
        )
    sampling = read_sampling(parts["sampling"].parent)
    if parts["text"].parent.parent != parts["sampling"].parent:
        sampling = replace(sampling, examples=())  # of the words of another text tokenizer
    return replace(sampling, spans=spans or sampling.spans)
