"""Tokenized data sets on disk: shards of frame tokens and text ids, mapped into memory, and batches.

A folder holds shard-00000.safetensors, .., index.safetensors and, once it is complete, manifest.json with
what the tokens are (TokenFormat), how they were made, and the size and SHA-256 of every file. In a shard, n
samples:
    frames [n,T,N]  tokens; high_res [n,9N] (superres only)
    text [sum L], text_end [n]  ids of the frame-rate texts and captions, joined; where each sample's end
    span [n]  seconds that the frames span, 0 without a frame-rate text
    group [n]  what tells its video file from others
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cogvideo.config import ModelConfig, from_dict, to_dict
from cogvideo.data.inspect import unknown_line
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import file_hash, read_json, write_json
from cogvideo.runtime.tensors import save_tensors
from cogvideo.tokenizers.text import left_pad

MANIFEST, INDEX = "manifest.json", "index.safetensors"
AGAIN = "delete it and run `cogvideo data tokenize` again"
CAPTION_DROPOUT = 0.1  # captions replaced by the unguided prompt, for classifier-free guidance
TEST_SHARE = 0.05  # of the video files


@dataclass
class Batch:
    """text_ids, text_mask [B,L]; frames [B,T,N] tokens; high_res [B,9N] (super-resolution only)."""

    text_ids: Tensor
    text_mask: Tensor
    frames: Tensor
    high_res: Tensor | None = None

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a transformer's loss takes: text ids, frames, text mask."""
        return self.text_ids, self.frames, self.text_mask


@dataclass(frozen=True)
class TokenFormat:
    """What the tokens of a folder are: all that a model has to agree with."""

    kind: str  # of data.frame_rates.KINDS
    num_frames: int
    frame_height: int  # tokens
    frame_width: int
    image_tokens: int
    begin_of_image: int
    pad_id: int
    text_length: int  # slots; longer captions were cut
    frame_tokenizer: str  # digests: tokens of another tokenizer mean something else
    text_tokenizer: str

    @property
    def frame_tokens(self) -> int:
        return self.frame_height * self.frame_width


@dataclass(frozen=True)
class Sample:
    """One training sequence. frames [T,N], high_res [9N] int64; text: ids; group: see above."""

    frames: Tensor
    text: Sequence[int]
    span: float | None
    group: int
    high_res: Tensor | None = None


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def group_of(name: str) -> int:
    """A number that tells a video file from others, the same wherever it is computed."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def write_shard(path: Path, samples: Sequence[Sample], made: TokenFormat, notes: Mapping[str, Any]) -> None:
    """Write samples as one file, whole or not at all. notes: kept beside them as JSON (see read_notes)."""
    whole = torch.int16 if made.image_tokens <= 2**15 else torch.int32

    def column(values: list, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.stack(values).to(dtype) if values else torch.zeros(0, *shape, dtype=dtype)

    lengths = torch.tensor([len(sample.text) for sample in samples], dtype=torch.int64)
    tensors = {
        "frames": column([s.frames for s in samples], whole, made.num_frames, made.frame_tokens),
        "text": torch.tensor([i for s in samples for i in s.text], dtype=torch.int32),
        "text_end": lengths.cumsum(0),
        "span": torch.tensor([s.span or 0.0 for s in samples], dtype=torch.float64),  # exact, for span_key
        "group": torch.tensor([s.group for s in samples], dtype=torch.int64),
    }
    if made.kind == "superres":
        large = [s.high_res for s in samples if s.high_res is not None]
        tensors["high_res"] = column(large, whole, 9 * made.frame_tokens)
    # Another process may write the same shard at the same time; the last one wins, with the same content.
    save_tensors(tensors, path, metadata={"notes": json.dumps(notes, ensure_ascii=False, sort_keys=True)})


def read_notes(path: Path) -> dict[str, Any] | None:
    """The notes of a shard; None where there is no whole one."""
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["notes"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def finish(
    folder: Path,
    names: Sequence[str],
    made: TokenFormat,
    *,
    unguided: Mapping[str, Sequence[int]],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the index over the shards `names`, then the manifest (which makes a folder complete); return it.

    unguided: ids of the unguided prompt by span (span_key), for caption dropout. notes: what else the
    manifest is to tell.
    """
    columns: dict[str, list[Tensor]] = {"shard": [], "row": [], "group": [], "text_length": []}
    for number, name in enumerate(names):
        with safe_open(folder / name, framework="pt") as file:
            ends, group = file.get_tensor("text_end"), file.get_tensor("group")
        columns["shard"].append(torch.full((len(group),), number, dtype=torch.int32))
        columns["row"].append(torch.arange(len(group), dtype=torch.int32))
        columns["group"].append(group)
        columns["text_length"].append(torch.diff(ends, prepend=torch.zeros(1, dtype=torch.int64)).int())
    index = {name: torch.cat(parts) for name, parts in columns.items()}
    save_tensors(index, folder / INDEX)
    manifest = {
        "version": 1,
        "format": to_dict(made),
        "samples": len(index["group"]),
        **notes,
        "unguided": {span: list(ids) for span, ids in sorted(unguided.items())},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": file_hash(folder / name)}
            for name in [*names, INDEX]
        },
    }
    return read_json(write_json(folder / MANIFEST, manifest))


def span_key(span: float | None) -> str:
    """How the manifest writes a span; 0.0 stands for no frame-rate text."""
    return str(float(span or 0.0))


def summary(manifest: dict[str, Any]) -> str:
    """What `tokenize` returned, in lines for people."""
    if not manifest["complete"]:
        return f"this process has done its {manifest['shards']} shards; others are still at work"
    rates = ", ".join(f"{count} at {rate} fps" for rate, count in manifest["rates"].items() if rate != "0")
    lines = [f"{manifest['samples']} sequences of {manifest['clips']} clips{f' ({rates})' if rates else ''}"]
    if words := unknown_line(manifest.get("unknown_words", {})):
        lines.append(words)
    problems, missing = manifest["problems"], manifest["missing"]
    if problems["count"] or missing:
        count = problems["count"]
        lines.append(f"{count} clips have something wrong, {missing} are missing; see manifest.json:")
        lines += [f"  {source}: {sentence}" for source, sentence in problems["first"][:5]]
    return "\n".join(lines)


class TokenizedBatches:
    """Batches of a tokenized folder. The batch of a step depends on seed, step and batch size alone.

    batch_size: of the global batch; with world_size processes, each asks with its rank and gets its rows of
    the same batch. text_length: pad texts to so many slots; None pads to the longest of the global batch.
    caption_dropout: share of captions that are replaced by the unguided prompt, in training alone.
    test_share: of the video files, at least one; the "test" split holds all sequences of these and "train"
    none of them (where there is only one file, both are the same). Samples are shuffled anew every epoch.
    Raises CogVideoError for folders without a manifest, and for shards that are missing or damaged (the size
    when the folder is opened, the hash when a shard is first read).
    """

    def __init__(
        self,
        folder: str | Path,
        batch_size: int,
        *,
        seed: int,
        text_length: int | None = None,
        caption_dropout: float = CAPTION_DROPOUT,
        test_share: float = TEST_SHARE,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.folder, self.batch_size, self.seed = Path(folder), batch_size, seed
        if batch_size < 1 or batch_size % world_size:
            raise CogVideoError(
                f"A batch of {batch_size} cannot be shared by {world_size} processes: give a multiple."
            )
        self.rank, self.world_size, self.caption_dropout = rank, world_size, caption_dropout
        self.manifest = read_manifest(self.folder)
        self.format = from_dict(TokenFormat, self.manifest["format"], str(self.folder / MANIFEST))
        self.text_length = text_length
        self._sound: set[str] = set()  # files whose hash was found right
        self._names = list(self.manifest["files"])
        self._names.remove(INDEX)
        for name, facts in self.manifest["files"].items():
            file = self.folder / name
            if not file.is_file() or file.stat().st_size != facts["bytes"]:
                what = "cut off" if file.is_file() else "missing"
                raise CogVideoError(f"{file} is {what}: run `cogvideo data tokenize` again.")
        with self._checked(INDEX) as index:
            columns = [index.get_tensor(name).numpy() for name in ("shard", "row", "group", "text_length")]
        self._shard_of, self._row_of, group, lengths = columns
        self._lengths = np.array(lengths)
        self._splits = split_groups(np.array(group), test_share)
        self._shard = lru_cache(256)(lambda number: self._checked(self._names[number]))
        self._order = lru_cache(2)(self._permutation)

    def count(self, split: str = "train") -> int:
        """Sequences in a split."""
        return len(self._splits[split])

    def check(
        self, config: ModelConfig, *, frame_tokenizer: str | None = None, text_tokenizer: str | None = None
    ) -> None:
        """Raise CogVideoError unless a model of this geometry, with these tokenizers, can train on them.

        Digests that are not given are not compared.
        """
        f, where = self.format, f"in {self.folder}"
        problems = [
            f"tokens {where} have {name} {getattr(f, name)}, the model {getattr(config, name)}"
            for name in ("num_frames", "frame_height", "frame_width", "image_tokens", "begin_of_image")
            if getattr(config, name) != getattr(f, name)
        ]
        if f.text_length > config.text_length:
            slots = f"{config.text_length} text slots"
            problems.append(f"texts {where} have up to {f.text_length} ids, the model has {slots}")
        if f.pad_id >= config.vocab_size:
            ids = config.vocab_size
            problems.append(f"texts {where} have the id {f.pad_id}, the model only {ids} of them")
        problems += [
            f"tokens {where} were made by another {name.replace('_', ' ')} than the model's"
            for name, digest in (("frame_tokenizer", frame_tokenizer), ("text_tokenizer", text_tokenizer))
            if digest not in (None, getattr(f, name))
        ]
        if problems:
            raise CogVideoError(f"The {problems[0]}: tokenize the videos with the weights that are trained.")
        order = "interpolation" if f.kind == "interpolation" else "sequential"
        if config.num_frames > 1 and config.order != order:
            raise CogVideoError(
                f"The tokens {where} were made for {f.kind} training, the model is {config.order}: tokenize "
                f"with --kind {config.order}."
            )

    def __call__(self, step: int, device: str | torch.device = "cpu", split: str = "train") -> Batch:
        """This process's rows of the batch of a step."""
        if split not in self._splits:
            raise CogVideoError(f"Split {split!r} is unknown: choose train or test.")
        chosen, length = self._chosen(step, split), self.text_length
        drawn = np.random.default_rng([self.seed, step]).random(self.batch_size)
        dropped = (drawn < self.caption_dropout) & (split == "train")
        if length is None:  # of the global batch, so that a row is the same however many processes share it
            length = max(int(self._lengths[chosen].max()), *map(len, self.manifest["unguided"].values()))
        own = slice(*(self.batch_size * r // self.world_size for r in (self.rank, self.rank + 1)))
        rows = [self._read(i, drop) for i, drop in zip(chosen[own], dropped[own], strict=True)]
        ids, mask = left_pad([text for text, *_ in rows], self.format.pad_id, length)
        frames = torch.stack([frames for _, frames, _ in rows]).to(device, torch.int64)
        large = [high_res for *_, high_res in rows if high_res is not None]
        high_res = torch.stack(large).to(device, torch.int64) if large else None
        return Batch(ids.to(device), mask.to(device), frames, high_res)

    def _chosen(self, step: int, split: str) -> np.ndarray:
        """Numbers of the global batch's samples: from step * batch_size on in the shuffled epochs, joined."""
        count = self.count(split)
        entries = step * self.batch_size + np.arange(self.batch_size)
        return np.array([self._splits[split][self._order(split, at // count)[at % count]] for at in entries])

    def _permutation(self, split: str, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, split == "test", epoch]).permutation(self.count(split))

    def _read(self, number: int, drop: bool) -> tuple[list[int], Tensor, Tensor | None]:
        """Text ids, frames [T,N], high_res [9N] of a sample; only its own bytes are read."""
        shard, row = self._shard(int(self._shard_of[number])), int(self._row_of[number])
        if drop:
            span = float(shard.get_slice("span")[row])
            text = self.manifest["unguided"][span_key(span)]
        else:
            end = int(shard.get_slice("text_end")[row])
            text = shard.get_slice("text")[end - int(self._lengths[number]) : end].tolist()
        large = shard.get_slice("high_res")[row] if self.format.kind == "superres" else None
        return text, shard.get_slice("frames")[row], large

    def _checked(self, name: str) -> Any:
        """A file of the folder, mapped into memory, once its hash is found right; that is looked at once."""
        file = self.folder / name
        with explained(f"{file} is missing or damaged: {AGAIN}.", OSError, SafetensorError):
            if name not in self._sound and file_hash(file) != self.manifest["files"][name]["sha256"]:
                raise OSError
            self._sound.add(name)
            return safe_open(file, framework="pt")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder; CogVideoError where it is missing or damaged."""
    if not (folder / MANIFEST).exists():
        raise CogVideoError(f"{folder} holds no complete tokens: run `cogvideo data tokenize` to its end.")
    manifest = read_json(folder / MANIFEST, advice=AGAIN)
    listed = isinstance(manifest.get("files"), dict) and "samples" in manifest
    if manifest.get("version") != 1 or not listed:
        raise CogVideoError(f"{folder / MANIFEST} is damaged: {AGAIN}.")
    if not manifest["samples"]:
        raise CogVideoError(f"{folder} holds no training sequences: see `cogvideo data inspect`.")
    return manifest


def split_groups(group: np.ndarray, test_share: float) -> dict[str, np.ndarray]:
    """Sample numbers of train and test. Groups are sorted by their hashes; the first ones are the test's."""
    groups = np.unique(group)
    test = np.isin(group, groups[: max(1, round(test_share * len(groups)))])
    if len(groups) == 1:
        return {"train": np.arange(len(group)), "test": np.arange(len(group))}
    return {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
