"""Long videos become a folder of many short captioned pieces: a data set that trainings read quickly."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cogvideo.data.classes import videos_below
from cogvideo.data.sources import CAPTION_FILES, Dataset, FileClip, open_dataset
from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole

COLUMNS = ("path", "caption", "group")


def cut(
    source: str,
    out: Path,
    *,
    seconds: float = 1.0,
    moment: float | None = None,
    pieces: int = 5,
    side: int = 240,
) -> int:
    """Write pieces of the videos of `source` as mp4 files into `out`, beside a captions.csv -> how many.

    source: captioned clips (see open_dataset), whose captions their pieces have; or a folder of videos
    without captions: each has its file's name as caption, with _ and - for spaces. A video is divided into
    moments of `moment` seconds (None: 5/4 of a piece), which do not overlap; each gives `pieces` pieces of
    `seconds`, which overlap, and is a group of its own: held out whole, or trained on. The shorter side of
    a piece has at most `side` pixels.
    """
    moment = 1.25 * seconds if moment is None else moment
    if not 0 < seconds <= moment or min(pieces, side) < 1:
        raise CogVideoError(
            "Pieces must last more than 0 seconds and no longer than a moment; 1 or more of each."
        )
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for part, fps in tqdm(list(_moments(_videos(source), moment)), desc="cutting", unit="moment"):
        try:
            timeline = part.timeline()
        except CogVideoError:
            continue  # behind the last frame
        slack = timeline.end - seconds
        if slack < -0.5 / fps:
            continue
        scale = min(1.0, side / min(timeline.size))
        size = (round(timeline.size[0] * scale), round(timeline.size[1] * scale))
        frames, _ = part.frames(timeline, range(len(timeline.times)), [size])
        for start in np.unique(np.linspace(0, max(slack, 0), pieces).round(3)):
            name = f"{Path(part.source).stem}-{len(rows):05}.mp4"
            times = start + np.arange(round(seconds * fps)) / fps
            chosen = [frames[number][0] for number in timeline.at(times).tolist() if number in frames]
            write_video(out / name, np.stack(chosen), fps)
            rows.append((name, part.caption, part.group))
    if not rows:
        raise CogVideoError(f"No video of {source} lasts {seconds:g} seconds: ask for shorter pieces.")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows])
    write_whole(out / "captions.csv", text.getvalue())
    return len(rows)


def _moments(videos: Dataset, moment: float) -> Iterator[tuple[FileClip, float]]:
    """Parts of the videos, and the frame rate of the whole video."""
    for clip in videos.clips:
        if not isinstance(clip, FileClip):
            raise CogVideoError(
                f"{videos.label} has no files to be cut: name a folder or captions of videos."
            )
        timeline = clip.timeline()
        length = timeline.end
        for number in range(max(1, round(length / moment))):
            start = clip.start + number * moment
            end = min(start + moment, clip.start + length)
            group = f"{clip.group} {start:.2f}"
            yield FileClip(clip.source, clip.path, clip.caption, group, start, end), timeline.fps


def _videos(source: str) -> Dataset:
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).is_file() for name in CAPTION_FILES):
        return open_dataset(source)
    clips = []
    for path in videos_below(folder):
        words = path.stem.replace("_", " ").replace("-", " ")
        clips.append(FileClip(path.name, path, words, path.relative_to(folder).as_posix()))
    if not clips:
        raise CogVideoError(f"{folder} holds no videos: give one that does.")
    return Dataset(source, clips, [])
