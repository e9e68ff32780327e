"""UCF-101 and Kinetics in their own layouts: class folders, split files, names of classes in captions."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from cogvideo.errors import CogVideoError

VIDEOS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".m4v", ".gif")


def videos_below(folder: Path, suffixes: tuple[str, ...] = VIDEOS) -> list[Path]:
    """All video files in a folder and in those below it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


def class_videos(kind: str, folder: Path, split: str | None) -> list[Path]:
    """Videos of UCF-101 ("ucf101") or Kinetics ("kinetics"), or those of a split file (see find_split)."""
    if not folder.is_dir():
        raise CogVideoError(
            f"There is no folder {folder}: give the folder of {kind} with a folder for each class."
        )
    videos = videos_below(folder)
    if split is None:
        return videos
    file = find_split(folder, split)
    wanted = _ucf101_stems(file) if kind == "ucf101" else kinetics_parts(file).keys()
    return [path for path in videos if path.stem in wanted]


def find_split(folder: Path, split: str) -> Path:
    """A split file by its path, or its name in `folder` or in its folder ucfTrainTestlist."""
    places = [Path(split), folder / split, folder / "ucfTrainTestlist" / split]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise CogVideoError(f"There is no split file {split}, not in {folder} either: give its path.")
    return file


def _ucf101_stems(file: Path) -> set[str]:
    """Lines such as "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1"; test lists have no number."""
    try:
        return {Path(line.split()[0]).stem for line in file.read_text("utf-8").splitlines() if line.strip()}
    except UnicodeDecodeError:
        raise CogVideoError(
            f"{file} is no split file of UCF-101: it should hold a video on each line."
        ) from None


def kinetics_parts(file: Path) -> dict[str, tuple[float, float] | None]:
    """Stems of the files of a split -> the part of the file, in seconds, or None for the whole of it.

    Rows have youtube_id, time_start, time_end. Files are named id.mp4 (all of the video) or
    id_000010_000020.mp4 (the part).
    """
    parts: dict[str, tuple[float, float] | None] = {}
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                start, end = float(row["time_start"]), float(row["time_end"])
                parts[row["youtube_id"]] = (start, end)
                parts[f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"] = None
    except (KeyError, TypeError, ValueError, csv.Error):  # text that is no UTF-8 among them
        raise CogVideoError(
            f"{file} is no Kinetics split: its columns must be youtube_id, time_start and time_end."
        ) from None
    return parts


def kinetics_labels(folder: Path, split: str | None) -> dict[str, str]:
    """youtube_id -> label, where the split has labels."""
    if split is None:
        return {}
    with find_split(folder, split).open(newline="", encoding="utf-8") as rows:
        return {row["youtube_id"]: row["label"] for row in csv.DictReader(rows) if row.get("label")}


def class_of(video: Path, folder: Path, labels: Mapping[str, str]) -> str:
    """The class of a video: its folder's name, or the split's label where it lies in `folder` itself."""
    if video.parent != folder:
        return video.parent.name
    stem = re.sub(r"_\d{6}_\d{6}$", "", video.stem)
    if stem not in labels:
        raise CogVideoError(
            f"The class of {video} is unknown: put it into the folder of its class or give a split with "
            "labels."
        )
    return labels[stem]


def class_prompts(classes: Sequence[str], file: str | Path | None = None) -> dict[str, str]:
    """A prompt for each class: its name in words, or what a file says of it.

    The file is JSON {class: prompt} or CSV with two columns, class and prompt (a first line "class,prompt" is
    skipped); the released weights want Chinese.
    """
    if file is None:
        return {name: words(name) for name in classes}
    try:
        text = Path(file).read_text("utf-8-sig")
        if Path(file).suffix.lower() == ".json":
            found = {str(name): str(prompt) for name, prompt in json.loads(text).items()}
        else:
            found = {name.strip(): prompt.strip() for name, prompt in csv.reader(text.splitlines())}
    except OSError as error:
        raise CogVideoError(
            f"The prompts {file} cannot be read ({error.strerror}): check the path."
        ) from None
    except (ValueError, AttributeError):
        raise CogVideoError(
            f"The prompts {file} must be JSON {{class: prompt}} or CSV with two columns."
        ) from None
    if missing := [name for name in classes if not found.get(name)]:
        raise CogVideoError(f"{file} has no prompt for {missing[0]} ({len(missing)} are missing): add it.")
    return {name: found[name] for name in classes}


def words(name: str) -> str:
    """A class in words: "ApplyEyeMakeup" -> "apply eye makeup", "riding_a_bike" -> "riding a bike"."""
    parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).replace("_", " ")
    return " ".join(parts.lower().split())
