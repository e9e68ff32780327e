"""Captioned clips to train on, in the layouts that data sets come in: see open_dataset."""

import csv
import importlib
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import unquote

from cogvideo.data import classes
from cogvideo.data.reading import Decoded, Size, Timeline, read_frames, read_timeline
from cogvideo.errors import CogVideoError, explained

WORLDS = {"theatre": "cogvideo.theatre.dataset"}  # the module that draws the clips of a spec "theatre:..."
OPTIONS = {
    "ucf101": {"split", "prompts"},
    "kinetics": {"split", "prompts"},
    "vatex": {"captions", "language", "each"},
    "webvid": {"captions"},
}
CAPTION_FILES = ("captions.jsonl", "captions.csv")
NO_CAPTION = "has no caption"
PATH_KEYS = ("path", "file", "video")


class Clip(Protocol):
    """What data sets consist of: a captioned clip whose frames can be read at any time."""

    @property
    def source(self) -> str:
        """Its name in the data set."""
        ...

    @property
    def caption(self) -> str: ...

    @property
    def group(self) -> str:
        """The same for clips filmed together: no group is both trained on and tested with."""
        ...

    def timeline(self) -> Timeline: ...

    def frames(self, timeline: Timeline, wanted: Collection[int], sizes: Sequence[Size]) -> Decoded:
        """See reading.read_frames."""
        ...


@dataclass(frozen=True)
class FileClip:
    """A video file, or the part of it from `start` to `end` seconds, and its caption; see Clip."""

    source: str
    path: Path
    caption: str
    group: str
    start: float = 0.0
    end: float | None = None

    def timeline(self) -> Timeline:
        return read_timeline(self.path, self.start, self.end)

    def frames(self, timeline: Timeline, wanted: Collection[int], sizes: Sequence[Size]) -> Decoded:
        return read_frames(self.path, timeline, wanted, sizes, self.start)


@dataclass(frozen=True)
class Dataset:
    label: str
    clips: Sequence[Clip]
    missing: list[str]  # files that captions name but that are not there


def open_dataset(spec: str) -> Dataset:
    """The captioned clips that `spec` names, always in the same order.

    FOLDER, or FILE.jsonl or FILE.csv: captions.jsonl or captions.csv of the folder; each row has path
    (relative to the file), caption, and may have start and end in seconds, and group: the same for what was
    filmed together, by default the file.
    ucf101:FOLDER?split=trainlist01.txt and kinetics:FOLDER?split=train.csv: folders of classes; the caption
    is the class in words, or what prompts=FILE says of it (classes.class_prompts).
    vatex:FOLDER?captions=vatex_training_v1.0.json: files videoID.mp4; language=en (default) or zh, the first
    each=1 captions. webvid:FOLDER?captions=results_2M_train.csv: files videoid.mp4, wherever in the folder.
    theatre:train?clips=1000: the demo world; the split may be train, test (seen), unseen, picture-only or
    pictures; seed; language=en, zh or both (in turn, default).

    Raises CogVideoError for what is not there, for unknown options and files that do not hold what they
    should.
    """
    scheme, colon, _ = spec.partition(":")
    if colon and scheme in WORLDS:
        dataset = world(scheme).open_clips(spec)
    elif named := parse_spec(spec, OPTIONS):
        kind, place, options = named
        dataset = {"vatex": _vatex, "webvid": _webvid}.get(kind, _classes)(spec, place, options)
    else:
        dataset = _captioned(spec)
    if not dataset.clips:
        why = f"; {dataset.missing[0]}, the first of its files, is missing" if dataset.missing else ""
        raise CogVideoError(f"{spec} holds no clips{why}: check the paths and the split.")
    return dataset


def world(scheme: str) -> ModuleType:
    """The module behind a scheme of WORLDS, imported on demand: data/ itself knows no world.

    It has open_clips(spec) -> Dataset; one_clip(split, seed, index) -> the truth of a clip, which has
    caption(0); pixels(clip, times) -> its frames uint8 [T,H,W,3] at times [T]; FPS.
    """
    return importlib.import_module(WORLDS[scheme])


def parse_spec(spec: str, known: Mapping[str, set[str]]) -> tuple[str, str, dict[str, str]] | None:
    """ "kind:place?a=b" -> (kind, place, options), if the kind is known; its options are checked."""
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in known:
        return None
    place, options = rest.partition("?")[0], read_options(spec)
    if unknown := options.keys() - known[kind]:
        choice = ", ".join(sorted(known[kind]))
        raise CogVideoError(f"{spec} has the unknown option {min(unknown)}: choose {choice}.")
    return kind, place, options


def read_options(spec: str) -> dict[str, str]:
    """What follows the first ? of a spec: a=b&c=d, where & is written %26, as in a URL; a + is a plus."""
    options = {}
    for part in filter(None, spec.partition("?")[2].split("&")):
        name, _, value = part.partition("=")
        if not value:
            raise CogVideoError(f"The option {name} in {spec} has no value: write {name}=VALUE.")
        options[unquote(name)] = unquote(value)
    return options


def number(text: str | float, spec: str) -> float:
    """The finite number in an option."""
    try:
        if math.isfinite(value := float(text)):
            return value
    except ValueError:
        pass
    raise CogVideoError(f"{text!r} in {spec} is no number: correct it.")


def read_captions(file: Path) -> list[dict[str, Any]]:
    """Rows {path, caption, start, end, group} of a .jsonl or .csv file; the last three may be None.

    The key of the path may also be file or video. A caption may be empty: that is for the clip to answer for.
    """
    rows = []
    for line, row in _rows(file):
        wrong = "must have path and caption, and start before end where it has them: correct it."
        with explained(f"Line {line} of {file} {wrong}", StopIteration, KeyError, TypeError, ValueError):
            path = next(row[key] for key in PATH_KEYS if row.get(key))
            start, end = (None if row.get(key) in (None, "") else float(row[key]) for key in ("start", "end"))
            caption = str(row["caption"] or "").strip()
            if (start or 0) < 0 or (end is not None and end <= (start or 0)):
                raise ValueError
        rows.append({"path": str(path), "caption": caption, "start": start, "end": end})
        rows[-1]["group"] = str(row["group"]) if row.get("group") else None
    return rows


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and rows of a .jsonl or .csv file."""
    unread = explained(f"The captions {file} cannot be read (REASON): check the path.", OSError)
    damaged = f"{file} is damaged (REASON): it must be UTF-8, one JSON object a line or CSV."
    wrong = explained(damaged, ValueError, csv.Error, RecursionError)
    with unread, wrong, file.open(newline="", encoding="utf-8-sig") as lines:
        if file.suffix.lower() == ".csv":
            reader = csv.DictReader(lines)
            for row in reader:
                yield reader.line_num, row
        else:
            for line, text in enumerate(lines, 1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {line} is no object")
                    yield line, row


def _captioned(spec: str) -> Dataset:
    place = Path(spec)
    file = next((place / name for name in CAPTION_FILES if (place / name).is_file()), place)
    if not file.is_file():
        what = (
            f"no {' or '.join(CAPTION_FILES)} in {place}"
            if place.is_dir()
            else f"no folder or captions file {place}"
        )
        raise CogVideoError(
            f"There is {what}: write one with a line "
            '{"path": "clip.mp4", "caption": "what happens"}'
            f" for each clip, or name the layout: one of {', '.join((*WORLDS, *OPTIONS))}, and a colon."
        )
    clips, missing = [], []
    for row in read_captions(file):
        path = file.parent / row["path"]
        if path.is_file():
            name = row["group"] or os.path.normpath(row["path"])
            clips.append(FileClip(row["path"], path, row["caption"], name, row["start"] or 0.0, row["end"]))
        else:
            missing.append(row["path"])
    return Dataset(spec, clips, missing)


def _classes(spec: str, place: str, options: dict[str, str]) -> Dataset:
    folder, kind, split = Path(place), spec.partition(":")[0], options.get("split")
    videos = classes.class_videos(kind, folder, split)
    labels = classes.kinetics_labels(folder, split) if kind == "kinetics" else {}
    parts = classes.kinetics_parts(classes.find_split(folder, split)) if kind == "kinetics" and split else {}
    names = [classes.class_of(video, folder, labels) for video in videos]
    texts = classes.class_prompts(sorted(set(names)), options.get("prompts"))
    clips: list[Clip] = []
    for video, name in zip(videos, names, strict=True):
        start, end = parts.get(video.stem) or (0.0, None)
        # v_TaiChi_g01_c02: what has the same g.. was filmed in one place; kinetics: ID_000010_000020 is a
        # part of a video.
        group = re.sub(r"_c\d+$" if kind == "ucf101" else r"_\d{6}_\d{6}$", "", video.stem)
        clips.append(FileClip(video.relative_to(folder).as_posix(), video, texts[name], group, start, end))
    return Dataset(spec, clips, [])


def _vatex(spec: str, place: str, options: dict[str, str]) -> Dataset:
    """videoID is ID_START_END, such as "G9zN5TTuGO4_000179_000189"; files hold the part, or all (ID.mp4)."""
    file, files = _captions_file(spec, place, options), _by_stem(Path(place))
    keys = {"en": "enCap", "zh": "chCap"}
    language, each = options.get("language", "en"), int(number(options.get("each", 1), spec))
    if language not in keys or each < 1:
        raise CogVideoError(f"{spec} should have language=en or zh and each=1 or more.")
    clips, missing = [], []
    unread = explained(f"The captions {file} cannot be read (REASON): check the path.", OSError)
    wrong = f"{file} is no VATEX file: a list of objects with videoID and {keys[language]}."
    with unread, explained(wrong, ValueError, KeyError, TypeError, RecursionError):
        for row in json.loads(file.read_text("utf-8")):
            name, captions = str(row["videoID"]), [str(text) for text in row[keys[language]]]
            video, start, end = name.rsplit("_", 2)
            if name in files:
                part = (files[name], 0.0, None)
            elif video in files:
                part = (files[video], float(start), float(end))
            else:
                missing.append(name)
                continue
            for caption in captions[:each]:
                clips.append(FileClip(name, part[0], caption, video, part[1], part[2]))
    return Dataset(spec, clips, missing)


def _webvid(spec: str, place: str, options: dict[str, str]) -> Dataset:
    file, files = _captions_file(spec, place, options), _by_stem(Path(place))
    clips, missing = [], []
    for line, row in _rows(file):
        if not row.get("videoid") or row.get("name") is None:
            raise CogVideoError(f"Line {line} of {file} has no videoid or name: give a CSV file of WebVid.")
        name = str(row["videoid"])
        if name in files:
            clips.append(FileClip(name, files[name], str(row["name"]), name))
        else:
            missing.append(name)
    return Dataset(spec, clips, missing)


def _captions_file(spec: str, place: str, options: dict[str, str]) -> Path:
    """The file that the option `captions` names, by its path or in the folder."""
    if "captions" not in options:
        raise CogVideoError(f"{spec} does not name the captions: add ?captions=FILE.")
    beside = Path(place) / options["captions"]
    return beside if beside.is_file() else Path(options["captions"])


def _by_stem(folder: Path) -> dict[str, Path]:
    if not (files := {path.stem: path for path in classes.videos_below(folder)}):
        raise CogVideoError(f"{folder} holds no videos ({' '.join(classes.VIDEOS)}): give one that does.")
    return files
