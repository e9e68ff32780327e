"""What a data set holds: lengths, the frame rates that the rule chooses, files that cannot be read."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cogvideo.data.frame_rates import FRAMES, RATES, choose_rate, plan
from cogvideo.data.reading import Timeline
from cogvideo.data.sources import NO_CAPTION, Clip, Dataset
from cogvideo.errors import CogVideoError, explained
from cogvideo.tokenizers.text import TextTokenizer

BAR = 40  # characters of the longest bar of the histogram
SHOWN = 10  # files with something wrong that are named
CELL = 128  # pixels along a frame of the contact sheet


@dataclass(frozen=True)
class Inspection:
    """What was found. By clip: timelines (None: cannot be read) and rates (None: gives no five frames)."""

    dataset: Dataset
    timelines: list[Timeline | None]
    rates: list[float | None]
    errors: dict[int, str]  # of clips that cannot be read

    @property
    def readable(self) -> list[int]:
        return [i for i, timeline in enumerate(self.timelines) if timeline is not None]


def inspect(dataset: Dataset, rates: Sequence[float] = RATES, *, progress: bool = True) -> Inspection:
    """Read the packets of every clip (only the first picture is decoded) and choose its frame rate."""

    def look(clip: Clip) -> Timeline | str:
        try:
            return clip.timeline()
        except (CogVideoError, OSError, ValueError) as error:
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # FFmpeg works outside of Python's lock
        looked = pool.map(look, dataset.clips)
        bar = tqdm(looked, total=len(dataset.clips), desc="inspecting", unit="clip", disable=not progress)
        found = list(bar)
    timelines = [None if isinstance(one, str) else one for one in found]
    chosen = [None if one is None else choose_rate(one.end, rates, fps=one.fps) for one in timelines]
    errors = {i: one for i, one in enumerate(found) if isinstance(one, str)}
    return Inspection(dataset, timelines, chosen, errors)


def unknown_line(words: Mapping[str, int]) -> str:
    """A sentence on the words that a text model does not know; empty where there are none."""
    if not words:
        return ""
    named = ", ".join(f"{word} ({count})" for word, count in list(words.items())[:SHOWN])
    return (
        f"words that the text tokenizer does not know, and how often: {named}{', ...' * (len(words) > SHOWN)}"
    )


def report(found: Inspection, text: TextTokenizer | None = None) -> str:
    """The counts, lengths, sizes, histogram of frame rates, and what is wrong with which files, as lines.

    text: whose unknown words are told, too.
    """
    readable = [one for one in found.timelines if one is not None]
    silent = [clip.source for clip in found.dataset.clips if not clip.caption.strip()]
    broken = {i: one.note for i, one in enumerate(found.timelines) if one is not None and one.note}
    short = [i for i in found.readable if found.rates[i] is None]
    captions = {clip.caption for clip in found.dataset.clips}
    lines = [
        f"{found.dataset.label}: {len(found.dataset.clips)} clips, {len(captions)} different captions",
        f"readable {len(readable)}, unreadable {len(found.errors)}, missing {len(found.dataset.missing)}, "
        f"breaking off or damaged {len(broken)}, without five frames {len(short)}"
        + (f", without a caption {len(silent)}" if silent else ""),
    ]
    if text and (words := unknown_line(dict(text.count_unknown(captions).most_common()))):
        lines.append(words)
    if readable:
        seconds, fps = np.array([(one.end, one.fps) for one in readable]).T
        sizes = Counter(f"{one.size[1]} x {one.size[0]}" for one in readable).most_common(4)
        lines += [
            f"seconds: shortest {seconds.min():.2f}, median {np.median(seconds):.2f}, longest "
            f"{seconds.max():.2f}, all {seconds.sum():.0f}",
            f"frames a second: lowest {fps.min():.3g}, median {np.median(fps):.3g}, highest {fps.max():.3g}",
            f"pixels: {', '.join(f'{size} ({count})' for size, count in sizes)}",
        ]
    counts = Counter(rate for rate in found.rates if rate is not None)
    lines += ["", "frame rate that the rule chooses (seconds that five frames span): clips"]
    for rate, count in sorted(counts.items()):
        bar = "#" * max(1, round(BAR * count / max(counts.values())))
        lines.append(f"{rate:>6g} a second ({(FRAMES - 1) / rate:g} s) {bar} {count}")
    wrong = [f"missing: {name}" for name in found.dataset.missing]
    wrong += [f"{source} {NO_CAPTION}" for source in silent]
    wrong += [f"unreadable: {sentence}" for sentence in found.errors.values()]
    wrong += [f"{found.dataset.clips[i].source} {note}" for i, note in broken.items()]
    wrong += [
        f"{found.dataset.clips[i].source} gives no five frames: {one.end:.2f} s at {one.fps:.3g} frames a "
        "second"
        for i in short
        if (one := found.timelines[i]) is not None
    ]
    if wrong:
        lines += ["", *wrong[:SHOWN]]
    if len(wrong) > SHOWN:
        lines.append(f"and {len(wrong) - SHOWN} more")
    return "\n".join(lines)


def contact_sheet(found: Inspection, path: Path, rates: Sequence[float], rows: int = 8) -> list[str]:
    """A picture with a row for each of some clips, spread over the data set: the five frames for stage 1.

    Frames are cut to squares, as for training. Returns a line for each row: its number, frame rate, times,
    file, caption.
    """
    from PIL import Image, ImageDraw

    useful = [i for i in found.readable if found.rates[i] is not None]
    if not useful:
        raise CogVideoError(
            f"{found.dataset.label} has no clip that gives five frames: there is nothing to show."
        )
    chosen = [useful[i] for i in np.unique(np.linspace(0, len(useful) - 1, rows).round().astype(int))]
    gap = 4
    sheet = Image.new("RGB", (FRAMES * (CELL + gap) + 60, len(chosen) * (CELL + gap)), "white")
    draw, lines = ImageDraw.Draw(sheet), []
    for row, i in enumerate(chosen):
        clip, timeline, top = found.dataset.clips[i], found.timelines[i], row * (CELL + gap)
        if timeline is None:  # not among the readable ones
            continue
        (window,) = plan("sequential", timeline.end, rates=rates, fps=timeline.fps)
        numbers = timeline.at(window.times).tolist()
        frames, _ = clip.frames(timeline, set(numbers), [(CELL, CELL)])
        for column, number in enumerate(numbers):
            if number in frames:  # the rest of a broken file stays white
                sheet.paste(Image.fromarray(frames[number][0]), (60 + column * (CELL + gap), top))
        draw.text((4, top + CELL // 2 - 16), f"{row + 1}\n{window.rate:g} fps", fill="black")
        times = f"{window.times[0]:.2f} to {window.times[-1]:.2f} s"
        lines.append(f"{row + 1}  {window.rate:g} fps, {times}, {clip.source}: {clip.caption}")
    unwritten = f"The contact sheet cannot be written to {path} (REASON): name a .png file."
    with explained(unwritten, OSError, ValueError):
        sheet.save(path)
    return lines
