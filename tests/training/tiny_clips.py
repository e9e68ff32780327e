"""Short captioned clips of moving squares, for tests."""

from pathlib import Path

import numpy as np

from cogvideo.data.video import write_video

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}


def write_clips(folder: Path, *, clips: int = 4, frames: int = 9, size: int = 32) -> Path:
    """mp4 files of one second, in which a square of one colour goes to the right, and captions.csv."""
    folder.mkdir(parents=True)
    lines = ["path,caption"]
    for number in range(clips):
        colour = list(COLOURS)[number % len(COLOURS)]
        pixels = np.full((frames, size, size, 3), 90, np.uint8)
        for time in range(frames):
            pixels[time, 8:20, time : time + 12] = COLOURS[colour]
        write_video(folder / f"{number}.mp4", pixels, fps=frames - 1)
        lines.append(f"{number}.mp4,a {colour} square goes to the right")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder
