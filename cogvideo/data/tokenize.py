"""A data set to tokens on disk: several processes make shards, and a new run resumes where one was killed."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from cogvideo.checkpoints.tokenizers import Tokenizers
from cogvideo.data.frame_rates import FRAMES, KINDS, RATES, Window, check_rates, plan
from cogvideo.data.reading import CannotReadNow, Decoded, Size, Timeline
from cogvideo.data.sources import NO_CAPTION, Clip, Dataset, FileClip
from cogvideo.data.tokenized import (
    INDEX,
    MANIFEST,
    Sample,
    TokenFormat,
    finish,
    group_of,
    read_notes,
    shard_name,
    span_key,
    write_shard,
)  # fmt: skip
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import read_json, write_json
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import UNGUIDED_PROMPT, TextTokenizer

COMPRESS = 8  # pixels along a side of a frame token
ENLARGED = 3  # how many times larger super-resolution makes the frames
AT_ONCE = 32  # frames that are encoded together
SETTINGS = "settings.json"
LISTED = 100  # problems that the manifest lists; the shards list all


@dataclass(frozen=True)
class Settings:
    """Which sequences are cut (frame_rates.plan). rates None: the paper's that the text model can write."""

    kind: str = "sequential"
    rates: tuple[float, ...] | None = None
    minimum: float = 0.0
    per_clip: int = 1
    rate: float = 2.0  # of the kind fixed-rate
    shard_clips: int = 64

    def __post_init__(self):
        if self.kind not in KINDS:
            raise CogVideoError(f"Sequences of kind {self.kind!r} are unknown: choose {', '.join(KINDS)}.")
        if self.per_clip < 1 or self.shard_clips < 1 or self.rate <= 0:
            raise CogVideoError("Sequences per clip and clips per shard must be 1 or more, the rate above 0.")


def tokenize(
    dataset: Dataset,
    out: str | Path,
    load: Callable[[], Tokenizers],
    settings: Settings = Settings(),
    *,
    workers: int = 1,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Write the training sequences of a data set to the folder `out` (see data/tokenized.py) -> its manifest.

    load: returns the tokenizers; with workers > 1 each process calls it, so that it must be picklable. The
    result does not depend on the number of processes. A shard is written once all of its clips are done;
    existing shards of the same clips are kept, so that a new run resumes a stopped one, leaves a finished one
    as it is, and appends to a data set that has grown. Processes of torchrun (RANK, WORLD_SIZE), on one
    machine or many, divide the shards among themselves; the last one writes the manifest, the others return
    one with complete False. The manifest lists clips that are no whole videos.
    """
    out, parts = Path(out), load()
    settings = _with_rates(settings, parts.text)
    made = _format(settings, parts)
    shards = _shards(dataset, settings.shard_clips)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    unwritten = f"The tokens cannot be written to {out} (REASON): make room or choose another."
    with explained(unwritten, OSError, SafetensorError):
        _claim(out, made, settings)
        mine = [shard for shard in shards if shard.number % world == rank]
        own = [shard for shard in mine if not _is_done(out, shard)]
        clips, left = (sum(len(shard.clips) for shard in some) for some in (mine, own))
        if own:
            (out / MANIFEST).unlink(missing_ok=True)  # incomplete from here on
            silent, job = not progress, (settings, made, out, device)
            bar = tqdm(total=clips, initial=clips - left, desc="tokenizing", unit="clip", disable=silent)
            with bar:
                if min(workers, len(own)) > 1:
                    _in_processes(min(workers, len(own)), (load, *job), own, bar)
                else:
                    for shard in own:
                        _Worker(parts, *job)(shard, bar.update)
        if not all(_is_done(out, shard) for shard in shards):
            return {"complete": False, "shards": len(own)}
        return _finish(out, shards, made, settings, parts.text, dataset)


@dataclass(frozen=True)
class _Shard:
    number: int
    clips: tuple[Clip, ...]
    digest: str  # tells these clips from others


def _shards(dataset: Dataset, size: int) -> list[_Shard]:
    """Shards of `size` clips; digests cover names, groups, captions, parts and present sizes of the files."""
    shards = []
    for number, begin in enumerate(range(0, len(dataset.clips), size)):
        clips = tuple(dataset.clips[begin : begin + size])
        facts = [(c.source, c.group, c.caption, _part(c) if isinstance(c, FileClip) else None) for c in clips]
        digest = hashlib.sha256(repr((begin, facts)).encode()).hexdigest()[:16]
        shards.append(_Shard(number, clips, digest))
    return shards


def _part(clip: FileClip) -> tuple[float, float | None, int]:
    """Where a clip begins and ends, and the size of its file."""
    gone = f"{clip.path} cannot be read any more (REASON): put it back, or run again without it."
    with explained(gone, OSError):
        return clip.start, clip.end, clip.path.stat().st_size


def sequences(
    clip: Clip, parts: Tokenizers, settings: Settings, made: TokenFormat, device: str = "cpu"
) -> tuple[list[Sample], str | None]:
    """The training sequences of one clip, and what is wrong with it, if anything.

    Sequences of the very same frames are given once.
    """
    if not clip.caption.strip():
        return [], NO_CAPTION
    size = (COMPRESS * made.frame_height, COMPRESS * made.frame_width)
    sizes = [size, (ENLARGED * size[0], ENLARGED * size[1])][: 2 if settings.kind == "superres" else 1]
    timeline = clip.timeline()
    picked = _pick(timeline, settings)
    frames, last = _decode(clip, timeline, picked, sizes)
    # the file breaks off: for the length that can be decoded
    if picked and -1 < last < max(map(max, picked)):
        timeline = timeline.until(last)
        picked = _pick(timeline, settings)
        frames, _ = _decode(clip, timeline, picked, sizes)
    if not picked:
        short = f"gives no five frames: it has {timeline.end:.2f} s at {timeline.fps:.3g} frames a second"
        return [], f"{timeline.note}; {short}" if timeline.note else short
    wanted = sorted({index for indices in picked for index in indices})
    if len(frames) < len(wanted):
        raise CogVideoError(f"{clip.source} has no frames that can be decoded: give a whole video file.")
    tokens = [
        _encode(np.stack([frames[index][i] for index in wanted]), parts.frames, device)
        for i in range(len(sizes))
    ]
    row_of = {index: i for i, index in enumerate(wanted)}
    samples = []
    for indices, window in reversed(picked.items()):
        rows = [row_of[index] for index in indices]
        text = parts.text.encode_prompt(clip.caption, window.span)[: made.text_length]
        large = tokens[1][rows[0]] if len(sizes) > 1 else None
        samples.append(Sample(tokens[0][rows], text, window.span, group_of(clip.group), large))
    return samples, timeline.note


def _pick(timeline: Timeline, settings: Settings) -> dict[tuple[int, ...], Window]:
    """Numbers of the frames of each sequence -> its window, the last sequence first."""
    s, rates = settings, settings.rates or RATES
    windows = plan(s.kind, timeline.end, rates=rates, per_clip=s.per_clip, rate=s.rate, fps=timeline.fps)
    return {tuple(timeline.at(window.times).tolist()): window for window in reversed(windows)}


def _decode(
    clip: Clip, timeline: Timeline, picked: Collection[tuple[int, ...]], sizes: list[Size]
) -> Decoded:
    """The frames of all sequences, and the number of the last one that can be decoded."""
    wanted = {index for indices in picked for index in indices}
    return clip.frames(timeline, wanted, sizes) if wanted else ({}, -1)


def _encode(frames: np.ndarray, tokenizer: FrameTokenizer, device: str) -> Tensor:
    """uint8 [F,H,W,3] -> tokens [F,N] on the CPU."""
    ids = []
    for begin in range(0, len(frames), AT_ONCE):
        pixels = torch.from_numpy(frames[begin : begin + AT_ONCE]).to(device).float() / 255
        ids.append(tokenizer.encode(rearrange(pixels, "f h w c -> f c h w"), COMPRESS).flatten(1).cpu())
    return torch.cat(ids)


def _with_rates(settings: Settings, text: TextTokenizer) -> Settings:
    """Settings whose rates are checked: the text model can write each of them."""

    def written(rate: float) -> bool:
        try:
            return bool(text.encode_prompt(UNGUIDED_PROMPT, (FRAMES - 1) / rate))
        except CogVideoError:
            return False

    rates = settings.rates or [rate for rate in RATES if written(rate)] or RATES
    rates = check_rates(rates, settings.minimum)
    used = (settings.rate,) if settings.kind == "fixed-rate" else rates
    if wrong := [rate for rate in used if not written(rate)]:
        raise CogVideoError(
            f"The text model of these weights cannot write the rate {wrong[0]:g} ({(FRAMES - 1) / wrong[0]:g}"
            " s): choose others."
        )
    return replace(settings, rates=rates)


def _format(settings: Settings, parts: Tokenizers) -> TokenFormat:
    return TokenFormat(
        kind=settings.kind,
        num_frames=1 if settings.kind in ("image", "superres") else FRAMES,
        frame_height=parts.frame_height,
        frame_width=parts.frame_width,
        image_tokens=parts.frames.num_codes,
        begin_of_image=parts.text.begin_of_image,
        pad_id=parts.text.pad_id,
        text_length=parts.text_length,
        frame_tokenizer=parts.frames.digest,
        text_tokenizer=parts.text.digest,
    )


def _claim(out: Path, made: TokenFormat, settings: Settings) -> None:
    """Make the folder and note the settings in it; refuse a folder of other tokens."""
    out.mkdir(parents=True, exist_ok=True)
    note, values = out / SETTINGS, {"format": asdict(made), "settings": asdict(settings)}
    # First what else is there, then the note: another process may write it, and then shards, at this moment.
    others = any(not path.name.startswith(SETTINGS) for path in out.iterdir())
    same = note.exists() and read_json(note) == json.loads(json.dumps(values))
    if not (same if note.exists() else not others):
        raise CogVideoError(f"{out} holds something else, or tokens of other settings: choose an empty one.")
    if not note.exists():
        write_json(note, values)


def _is_done(out: Path, shard: _Shard) -> bool:
    notes = read_notes(out / shard_name(shard.number))
    return notes is not None and notes["clips"] == shard.digest


@dataclass(frozen=True)
class _Worker:
    """Makes shards in one process."""

    parts: Tokenizers
    settings: Settings
    made: TokenFormat
    out: Path
    device: str

    def __call__(self, shard: _Shard, tick: Callable[[], object] = lambda: None) -> int:
        """Write a shard -> its clips; tick() is called after every clip."""
        self.parts.frames.to(self.device)
        samples, problems = [], []
        for clip in shard.clips:
            try:
                made, problem = sequences(clip, self.parts, self.settings, self.made, self.device)
                samples += made
            except CannotReadNow:
                raise  # it is no problem of the clip
            except (CogVideoError, ValueError) as error:
                problem = str(error)
            if problem:
                problems.append([clip.source, problem])
            tick()
        rates = Counter(f"{(FRAMES - 1) / s.span if s.span else 0:g}" for s in samples)  # 0: without one
        notes = {"clips": shard.digest, "problems": problems, "rates": rates}
        write_shard(self.out / shard_name(shard.number), samples, self.made, notes)
        return len(shard.clips)


def _in_processes(workers: int, job: tuple[Any, ...], shards: list[_Shard], bar: tqdm) -> None:
    """Make the shards in processes of their own. job: load and the further arguments of _Worker."""
    others = set(multiprocessing.active_children())
    # Spawned, not forked: torch's and FFmpeg's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, job) as pool:
        try:
            for done in as_completed([pool.submit(_work, shard) for shard in shards]):
                bar.update(done.result())
        except BaseException as error:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # a shard is written whole or not at all
            if not isinstance(error, BrokenProcessPool):
                raise
            why = "perhaps because memory ran out: run again with fewer --workers; finished shards are kept."
            raise CogVideoError(f"A process that tokenizes was killed, {why}") from None


_worker: _Worker  # of a spawned process


def _begin(load: Callable[[], Tokenizers], *job: Any) -> None:
    global _worker
    # Ctrl-C reaches every process; the first one ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _worker = _Worker(load(), *job)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for shards forever."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _work(shard: _Shard) -> int:
    return _worker(shard)


def _finish(
    out: Path,
    shards: list[_Shard],
    made: TokenFormat,
    settings: Settings,
    text: TextTokenizer,
    dataset: Dataset,
) -> dict[str, Any]:
    """Remove what earlier runs left and write the manifest, unless it is there."""
    names = [shard_name(shard.number) for shard in shards]
    for file in out.glob("*shard-*"):
        if file.name not in names:
            file.unlink(missing_ok=True)
    try:
        manifest = _finished(out, dataset) or _write_manifest(out, names, made, settings, text, dataset)
    except FileNotFoundError:  # another process was faster, and took ours for what a killed one left
        if not (manifest := _finished(out, dataset)):
            raise
    for file in (*out.glob(INDEX + ".*"), *out.glob(SETTINGS + ".*")):
        file.unlink(missing_ok=True)
    return manifest


def _finished(out: Path, dataset: Dataset) -> dict[str, Any] | None:
    """The manifest, if it is that of the files that are there."""
    with suppress(CogVideoError, OSError, KeyError):
        manifest = read_json(out / MANIFEST)
        sizes = {name: facts["bytes"] for name, facts in manifest["files"].items()}
        whole = all((out / name).stat().st_size == size for name, size in sizes.items())
        if whole and manifest["missing"] == len(dataset.missing):
            return manifest
    return None


def _write_manifest(
    out: Path, names: list[str], made: TokenFormat, settings: Settings, text: TextTokenizer, dataset: Dataset
) -> dict[str, Any]:
    problems, rates = [], Counter()
    for name in names:
        notes = read_notes(out / name) or {}
        problems += notes["problems"]
        rates.update(notes["rates"])
    if not rates:
        raise CogVideoError(f"{dataset.label} gives no training sequences: see `cogvideo data inspect`.")
    spans = {None, *((FRAMES - 1) / rate for rate in settings.rates or ()), (FRAMES - 1) / settings.rate}
    unguided = {}
    for span in spans:
        with suppress(CogVideoError):  # the fixed rate need not be one that the text model knows
            unguided[span_key(span)] = text.encode_prompt(UNGUIDED_PROMPT, span)
    notes = {
        "complete": True,
        "data": dataset.label,
        "clips": len(dataset.clips),
        "missing": len(dataset.missing),
        "rates": dict(sorted(rates.items(), key=lambda pair: float(pair[0]))),
        "settings": asdict(settings),
        "problems": {"count": len(problems), "first": problems[:LISTED]},
        "unknown_words": dict(text.count_unknown(clip.caption for clip in dataset.clips).most_common(LISTED)),
    }
    return finish(out, names, made, unguided=unguided, notes=notes)
