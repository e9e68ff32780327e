"""Captioned clips of the theatre, drawn on demand or written to disk with their exact truth."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cogvideo.data.reading import Size, Timeline, fit
from cogvideo.data.sources import Dataset, number, parse_spec
from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole
from cogvideo.theatre.drawing import FRAME_SIZE, LARGE_SIZE, SIZES, draw
from cogvideo.theatre.scenes import (
    BACKGROUNDS,
    FPS,
    LAST_STATE,
    PHASES,
    SPLITS,
    Clips,
    groups,
    phase,
    sample_clips,
    states,
)

REST = 1.0  # seconds that a file goes on after the action has ended
OPTIONS = {"theatre": {"clips", "seed", "language"}}  # of specs "theatre:...", see open_clips


@dataclass(frozen=True)
class TheatreClip:
    """A clip of the theatre at 8 frames a second, as long as its action; see data.sources.Clip."""

    source: str
    caption: str
    clip: Clips

    @property
    def group(self) -> str:
        """The same for clips that look the same: the theatre is finite."""
        names, background = self.clip.names(0), BACKGROUNDS[self.clip.background[0]]
        return ", ".join((*names, background, f"{self.clip.duration[0]:g} s"))

    def labels(self, seconds: float) -> dict[str, str]:
        """What the clip shows, and the phase of its action at a time; see explore.averages."""
        actor, action, thing = self.clip.names(0)
        state = int(states(self.clip, np.array([[seconds]]))[0, 0])
        shown = phase(action, state)
        return {"actor": actor, "action": action, "object": thing, "phase": shown, "group": self.group}

    def timeline(self) -> Timeline:
        count = round(float(self.clip.duration[0]) * FPS) + 1
        return Timeline(np.arange(count) / FPS, count / FPS, (FRAME_SIZE, FRAME_SIZE))

    def frames(
        self, timeline: Timeline, wanted: Collection[int], sizes: Sequence[Size]
    ) -> tuple[dict[int, list[np.ndarray]], int]:
        """Drawn at the size that comes closest from above."""
        numbers, drawn = sorted(wanted), []
        for size in sizes:
            side = FRAME_SIZE if max(size) <= FRAME_SIZE else LARGE_SIZE
            drawn.append(fit(pixels(self.clip, timeline.times[numbers], side), *size))
        return {number: [d[i] for d in drawn] for i, number in enumerate(numbers)}, len(timeline.times) - 1


def open_clips(spec: str) -> Dataset:
    """theatre:SPLIT?clips=1000; seed=0, language=en, zh or both (in turn, default). SPLIT: see one_clip."""
    _, split, options = parse_spec(spec, OPTIONS) or ("", "", {})
    count, seed = (
        int(number(options.get(name, default), spec)) for name, default in (("clips", 1000), ("seed", 0))
    )
    language = options.get("language", "both")
    if count < 1 or seed < 0 or language not in ("en", "zh", "both"):
        raise CogVideoError(
            f"{spec} should have clips of 1 or more, seed of 0 or more, and language=en, zh or both."
        )
    clips = []
    for index in range(count):
        clip = one_clip(split, seed, index)
        caption = clip.caption(0, language if language != "both" else ("en", "zh")[index % 2])
        clips.append(TheatreClip(f"{split}-{seed}-{index:06d}", caption, clip))
    return Dataset(spec, clips, [])


def one_clip(split: str, seed: int, index: int) -> Clips:
    """Clip `index` of a split of scenes.SPLITS ("test": "seen"); it depends on these three arguments alone.

    Raises: CogVideoError when the split is unknown.
    """
    split = "seen" if split == "test" else split
    known = SPLITS.index(split) if split in SPLITS else 0  # sample_clips refuses others
    return sample_clips(1, np.random.default_rng([seed, known, index]), split=split)


def pixels(clip: Clips, times: np.ndarray, size: int = FRAME_SIZE) -> np.ndarray:
    """Frames uint8 [T, size, size, 3] of one clip at `times` [T] seconds; size 64 or 192."""
    names, background = clip.names(0), BACKGROUNDS[clip.background[0]]
    return np.stack([draw(*names, state, background, size) for state in states(clip, times[None])[0]])


def make_theatre(
    out: str | Path,
    *,
    clips: int,
    seed: int,
    split: str = "train",
    seconds: float | None = None,
    size: int = LARGE_SIZE,
    progress: bool = True,
) -> Path:
    """Write clips of the theatre to the folder `out` -> the path of its captions.jsonl.

    Files: 000000.mp4, ... (size x size pixels, 8 frames a second, the first frame at 0 s and the last at
    `seconds`), captions.jsonl (one line a clip: file, captions, span and the exact truth) and dataset.json
    (the arguments). seconds: how long each clip is; None: its action and one second of rest.
    Clip i is that of one_clip. Files that exist are kept, so a run that was stopped resumes, and more clips
    may be asked for later. captions.jsonl comes last: a folder that has it is complete.

    Raises: CogVideoError for arguments that make no clip, a folder of other clips, and one that cannot be
    written.
    """
    if clips < 0 or seed < 0:
        raise CogVideoError(
            f"A data set of {clips} clips with seed {seed} cannot be made: give numbers of 0 or more."
        )
    if seconds is not None and not 0 < seconds <= 60:
        raise CogVideoError(f"Clips cannot last {seconds} seconds: choose more than 0 and at most 60.")
    if size not in SIZES:
        raise CogVideoError(f"The theatre is drawn at 64 or 192 pixels, not {size}: choose one of these.")
    one_clip(split, seed, 0)  # refuses an unknown split
    drawn = [one_clip(split, seed, index) for index in range(clips)]
    lengths = [float(clip.duration[0] + REST if seconds is None else seconds) for clip in drawn]
    paths = [Path(out, f"{index:06d}.mp4") for index in range(clips)]
    captions = Path(out, "captions.jsonl")
    arguments = {"world": "theatre", "seed": seed, "split": split, "seconds": seconds, "size": size}
    todo = partial(tqdm, desc="theatre", unit="clip", total=clips, disable=not progress)
    try:
        _claim_folder(Path(out), arguments)
        for path, clip, length in todo(zip(paths, drawn, lengths, strict=True)):
            if not path.exists():
                write_video(path, pixels(clip, _times(length), size), FPS)
        records = [
            {"file": path.name, "seed": seed, "index": index, "seconds": length, "split": split}
            | _truth(clip, length)
            for index, (path, clip, length) in enumerate(zip(paths, drawn, lengths, strict=True))
        ]
        _write_text(captions, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except OSError as error:
        reason = error.strerror or error
        raise CogVideoError(f"The folder {out} cannot be written ({reason}): choose another one.") from error
    return captions


def _times(seconds: float) -> np.ndarray:
    """When the frames of a file are shown."""
    return np.arange(round(seconds * FPS) + 1) / FPS


def _claim_folder(out: Path, arguments: dict) -> None:
    """Make the folder and note the arguments in it; a folder of other clips is refused, lest both mix."""
    out.mkdir(parents=True, exist_ok=True)
    note, text = out / "dataset.json", json.dumps(arguments, indent=1) + "\n"
    others = note.read_text(encoding="utf-8") != text if note.exists() else any(out.glob("*.mp4"))
    if others:
        raise CogVideoError(
            f"The folder {out} holds clips made with other arguments: choose an empty folder."
        )
    _write_text(note, text)
    # A killed run may have left what write_video and write_text work on.
    for unfinished in (*out.glob(".*.mp4"), *out.glob("*.part")):
        unfinished.unlink()


def _truth(clip: Clips, seconds: float) -> dict:
    """What one clip of so many seconds shows, for captions.jsonl; times are seconds."""
    actor, action, thing = clip.names(0)
    duration = float(clip.duration[0])
    starts = [(name, first / LAST_STATE * duration) for name, first in PHASES[action]]
    return {
        "caption": clip.caption(0, "en"),
        "caption_zh": clip.caption(0, "zh"),
        "span": clip.span(0),
        "group": str(groups()[clip.actor[0], clip.pair[0]]),
        "actor": actor,
        "action": action,
        "object": thing,
        "background": BACKGROUNDS[clip.background[0]],
        "duration": duration,
        "phases": [
            {"name": name, "start": start, "end": end}
            for (name, start), (_, end) in pairwise([*starts, ("", seconds)])
            if start < seconds
        ],
        "states": states(clip, _times(seconds)[None])[0].tolist(),
    }


def _write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; one that holds the text already is left alone."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
