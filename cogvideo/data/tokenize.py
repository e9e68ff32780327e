"""A data set to tokens on disk: shard after shard by several processes, going on where a killed run stopped."""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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
from cogvideo.data.frame_rates import FRAMES, KINDS, RATES, check_rates, plan
from cogvideo.data.reading import CannotReadNow
from cogvideo.data.sources import Clip, Dataset, FileClip
from cogvideo.data.tokenized import (
    FINISHING,
    MANIFEST,
    Sample,
    TokenFormat,
    finish,
    group_of,
    read_notes,
    shard_name,
    span_key,
    write_shard,
)
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import UNGUIDED_PROMPT, TextTokenizer

COMPRESS = 8  # pixels along a side of a frame token
ENLARGED = 3  # how many times larger the frames are that super-resolution makes
AT_ONCE = 32  # frames that are encoded together
SETTINGS = "settings.json"
TOLD = 100  # problems that the manifest tells in full; the shards tell all


@dataclass(frozen=True)
class Settings:
    """What sequences are cut: see frame_rates.plan. rates None: those of the paper that the text model can write."""

    kind: str = "sequential"
    rates: tuple[float, ...] | None = None
    minimum: float = 0.0
    per_clip: int = 1
    rate: float = 2.0  # of the kind fixed-rate
    shard_clips: int = 64

    def __post_init__(self):
        if self.kind not in KINDS:
            raise CogVideoError(
                f"There are no training sequences of kind {self.kind!r}: choose {', '.join(KINDS)}."
            )
        if self.per_clip < 1 or self.shard_clips < 1 or self.rate <= 0:
            raise CogVideoError(
                "Sequences per clip and clips per shard must be 1 or more, and the rate more than 0."
            )


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

    load: gives the tokenizers; with workers > 1 it is called in each process, too, and must be picklable. The
    result does not depend on the number of processes. A shard is written when all of its clips are done;
    shards that are there and belong to the same clips are kept, so a stopped run goes on, a finished one is
    left as it is, and a data set that has grown is gone on with. Processes of torchrun (RANK, WORLD_SIZE), on
    one machine or many, share the shards; the last one writes the manifest, the others return one with
    complete False. Clips that are no whole videos are told in it. Raises CogVideoError for a folder with
    other tokens, one that cannot be written, rates that the text model cannot write, data sets without any
    sequence, and videos that the system cannot read now.
    """
    out, parts = Path(out), load()
    settings = _with_rates(settings, parts.text)
    made = _format(settings, parts)
    shards = _shards(dataset, settings.shard_clips)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        _claim(out, made, settings)
        mine = [shard for shard in shards if shard.number % world == rank]
        own = [shard for shard in mine if not _is_done(out, shard)]
        clips, left = (sum(len(shard.clips) for shard in some) for some in (mine, own))
        if own:
            (out / MANIFEST).unlink(missing_ok=True)  # incomplete from here on
            with tqdm(
                total=clips, initial=clips - left, desc="tokenizing", unit="clip", disable=not progress
            ) as bar:
                job = (settings, made, out, device)
                if min(workers, len(own)) > 1:
                    _share((load, *job), own, min(workers, len(own)), bar)
                else:
                    work = _Worker(parts, *job)
                    for shard in own:
                        work(shard, bar.update)
        if not all(_is_done(out, shard) for shard in shards):
            return {"complete": False, "shards": len(own)}
        return _finish(out, shards, made, settings, parts.text, dataset)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CogVideoError(
            f"The tokens cannot be written to {out} ({reason}): make room or choose another."
        ) from None


@dataclass(frozen=True)
class _Shard:
    number: int
    clips: tuple[Clip, ...]
    digest: str  # tells these clips from others


def _shards(dataset: Dataset, size: int) -> list[_Shard]:
    """Shards of `size` clips, whose digests are of names, groups, captions, parts and sizes of the files as they are now."""
    shards = []
    for number, begin in enumerate(range(0, len(dataset.clips), size)):
        clips = tuple(dataset.clips[begin : begin + size])
        facts = [(c.source, c.group, c.caption, _part(c) if isinstance(c, FileClip) else None) for c in clips]
        digest = hashlib.sha256(repr((begin, facts)).encode()).hexdigest()[:16]
        shards.append(_Shard(number, clips, digest))
    return shards


def _part(clip: FileClip) -> tuple[float, float | None, int]:
    """Where a clip begins and ends, and the size of its file."""
    try:
        return clip.start, clip.end, clip.path.stat().st_size
    except OSError as error:
        raise CogVideoError(
            f"{clip.path} is not to be had any more ({error.strerror}): put it back, or run again without it."
        ) from None


def sequences(
    clip: Clip, parts: Tokenizers, settings: Settings, made: TokenFormat, device: str = "cpu"
) -> tuple[list[Sample], str | None]:
    """The training sequences of one clip, and what is wrong with it, if anything.

    A file that breaks off is planned anew for the length that can be decoded. Sequences of the very same
    frames are given once. Raises CogVideoError for a file that cannot be read.
    """
    timeline = clip.timeline()
    size = (COMPRESS * made.frame_height, COMPRESS * made.frame_width)
    sizes = [size, (ENLARGED * size[0], ENLARGED * size[1])][: 2 if settings.kind == "superres" else 1]
    for _ in range(2):
        windows = plan(
            settings.kind, timeline.end, rates=settings.rates or RATES, per_clip=settings.per_clip, rate=settings.rate,
            fps=timeline.fps,
        )  # fmt: skip
        picked = {tuple(timeline.at(window.moments).tolist()): window for window in reversed(windows)}
        if not picked:
            short = f"gives no five frames: it has {timeline.end:.2f} s at {timeline.fps:.3g} frames a second"
            return [], f"{timeline.note}; {short}" if timeline.note else short
        wanted = sorted({index for frames in picked for index in frames})
        frames, last = clip.frames(timeline, wanted, sizes)
        if last >= wanted[-1] or last < 0:
            break
        timeline = timeline.until(last)
    if len(frames) < len(wanted):
        raise CogVideoError(f"{clip.source} has no frames that can be decoded: give a whole video file.")
    tokens = [
        _encode(np.stack([frames[index][i] for index in wanted]), parts.frames, device)
        for i in range(len(sizes))
    ]
    place = {index: i for i, index in enumerate(wanted)}
    samples = []
    for indices, window in reversed(picked.items()):
        rows = [place[index] for index in indices]
        text = parts.text.encode_prompt(clip.caption, window.span)[: made.text_length]
        large = tokens[1][rows[0]] if len(sizes) > 1 else None
        samples.append(Sample(tokens[0][rows], text, window.span, group_of(clip.group), large))
    return samples, timeline.note


def _encode(frames: np.ndarray, tokenizer: FrameTokenizer, device: str) -> Tensor:
    """uint8 [F,H,W,3] -> tokens [F,N] on the CPU."""
    ids = []
    for begin in range(0, len(frames), AT_ONCE):
        pixels = torch.from_numpy(frames[begin : begin + AT_ONCE]).to(device).float() / 255
        ids.append(tokenizer.encode(rearrange(pixels, "f h w c -> f c h w"), COMPRESS).flatten(1).cpu())
    return torch.cat(ids)


def _with_rates(settings: Settings, text: TextTokenizer) -> Settings:
    """Settings whose rates are checked: each can be told by the text model."""

    def written(rate: float) -> bool:
        try:
            return bool(text.encode_prompt(UNGUIDED_PROMPT, (FRAMES - 1) / rate))
        except CogVideoError:
            return False

    rates = check_rates(
        settings.rates or [rate for rate in RATES if written(rate)] or RATES, settings.minimum
    )
    used = (settings.rate,) if settings.kind == "fixed-rate" else rates
    if wrong := [rate for rate in used if not written(rate)]:
        raise CogVideoError(
            f"The text model of these weights cannot write the rate {wrong[0]:g} "
            f"({(FRAMES - 1) / wrong[0]:g} s): choose others."
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
    """Make the folder and note the settings in it; a folder of other tokens is refused, lest both be mixed."""
    out.mkdir(parents=True, exist_ok=True)
    note, text = (
        out / SETTINGS,
        json.dumps({"format": asdict(made), "settings": asdict(settings)}, indent=1) + "\n",
    )
    # First what else is there, then the note: another process may write it, and then shards, at this moment.
    others = any(not path.name.startswith(SETTINGS) for path in out.iterdir())
    wrong = note.read_text("utf-8") != text if note.exists() else others
    if wrong:
        raise CogVideoError(
            f"The folder {out} holds something else, or tokens of other settings: choose an empty one."
        )
    if not note.exists():
        write_whole(note, text)


def _is_done(out: Path, shard: _Shard) -> bool:
    notes = read_notes(out / shard_name(shard.number))
    return notes is not None and notes["clips"] == shard.digest


class _Worker:
    """Makes shards in one process."""

    def __init__(self, parts: Tokenizers, settings: Settings, made: TokenFormat, out: Path, device: str):
        self.parts, self.settings, self.made, self.out, self.device = parts, settings, made, out, device
        self.parts.frames.to(device)

    def __call__(self, shard: _Shard, tick: Callable[[], object]) -> None:
        """Write a shard; tick() is called after every clip."""
        samples, problems = [], []
        for clip in shard.clips:
            try:
                made, problem = sequences(clip, self.parts, self.settings, self.made, self.device)
                samples += made
            except CannotReadNow:
                raise  # it would be told to be the clip's problem for ever
            except (CogVideoError, ValueError) as error:
                problem = str(error)
            if problem:
                problems.append([clip.source, problem])
            tick()
        notes = {"clips": shard.digest, "problems": problems, "rates": _rates(samples)}
        write_shard(self.out / shard_name(shard.number), samples, self.made, notes)


def _rates(samples: list[Sample]) -> dict[str, int]:
    """How many sequences there are of each frame rate; 0 where none is told."""
    return dict(Counter(f"{(FRAMES - 1) / sample.span if sample.span else 0:g}" for sample in samples))


def _share(job: tuple, shards: list[_Shard], workers: int, bar: tqdm) -> None:
    """Let processes make the shards. job: load and the further arguments of _Worker."""
    # Spawned, not forked: torch's and FFmpeg's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    ticks, stop, told = context.Value("q", 0), context.Event(), 0
    with ProcessPoolExecutor(workers, context, _begin, (job, ticks, stop)) as pool:
        pending = {pool.submit(_work, shard) for shard in shards}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                seen = ticks.value
                if seen > told:
                    bar.update(seen - told)
                told = seen
                for future in finished:
                    future.result()
        except BrokenProcessPool:
            raise CogVideoError(
                "A process that tokenizes was ended, perhaps for want of memory: run again with fewer --workers; finished "
                "shards are kept."
            ) from None
        finally:
            stop.set()  # on Ctrl-C and errors: no more clips
            pool.shutdown(cancel_futures=True)


_process: Any = None  # of a spawned process: its worker, the count of clips, the sign to stop


class _Stopped(Exception):
    """The first process wants no more clips."""


def _begin(job: tuple[Any, ...], ticks: Any, stop: Any) -> None:
    global _process
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches every process; the first one tells the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    load, *others = job
    _process = (_Worker(load(), *others), ticks, stop)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for shards forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # only processes of the pool come here
    parent.join()
    os._exit(1)


def _work(shard: _Shard) -> None:
    worker, ticks, stop = _process

    def tick() -> None:
        with ticks.get_lock():
            ticks.value += 1
        if stop.is_set():
            raise _Stopped

    with suppress(_Stopped):
        worker(shard, tick)


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
    for file in (*out.glob(FINISHING + "*"), *out.glob(SETTINGS + ".*")):
        file.unlink(missing_ok=True)
    return manifest


def _finished(out: Path, dataset: Dataset) -> dict[str, Any] | None:
    """The manifest, if it tells the files that are there."""
    with suppress(OSError, ValueError, KeyError):
        manifest = json.loads((out / MANIFEST).read_text("utf-8"))
        if manifest["missing"] == len(dataset.missing) and all(
            (out / name).stat().st_size == facts["bytes"] for name, facts in manifest["files"].items()
        ):
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
        raise CogVideoError(
            f"{dataset.label} gives no training sequences: look at it with `cogvideo data inspect`."
        )
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
        "problems": {"count": len(problems), "first": problems[:TOLD]},
    }
    return finish(out, names, made, unguided=unguided, notes=notes)
