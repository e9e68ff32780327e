"""Real video files for tests: each frame's grey level tells its number, a red corner which way is up."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICK = Fraction(1, 1000)
QUARTER = bytes.fromhex(
    "00000000000100000000000000000000ffff0000"
)  # a, b, u, c, d: turned by 90 degrees clockwise


def grey(number: int) -> int:
    return 20 + 5 * (number % 43)


def number_of(frame: np.ndarray) -> int:
    """The number (below 43) that a frame shows, read from its middle."""
    h, w = frame.shape[:2]
    return round((float(frame[h // 2 :, w // 2 :].mean()) - 20) / 5)


def make_video(
    path: Path,
    times: Sequence[float],
    *,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    keys: int = 12,
) -> Path:
    """A file whose frames are shown at `times` (seconds); the last one for 0.04 s."""
    h, w = size
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"g": str(keys), "crf": "10"} if codec == "libx264" else {"g": str(keys)}
    with av.open(
        str(path), "w", options={"movflags": "+faststart"} if path.suffix in (".mp4", ".mov") else {}
    ) as file:
        stream = file.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        stream.codec_context.time_base, stream.bit_rate = TICK, 4_000_000
        for number, time in enumerate(times):
            pixels = np.full((h, w, 3), grey(number), np.uint8)
            pixels[: h // 4, : w // 4] = (220, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / TICK), TICK
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def turn(path: Path) -> Path:
    """Write a quarter turn clockwise into an mp4 file's track header, as an upright camera does."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 20] = QUARTER
    path.write_bytes(content)
    return path


def cut(path: Path, share: float) -> Path:
    """Keep only the first part of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    return path
