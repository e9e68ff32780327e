"""Video files and the `Video` that the pipeline returns: mp4 and GIF through PyAV, playable in a notebook."""

import base64
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from cogvideo.data.reading import opened, upright
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import check_place

if TYPE_CHECKING:
    import av
    from PIL.Image import Image

SUFFIXES = (".mp4", ".gif")
SHOWN_SIZE = 320  # pixels: smaller clips are shown about this large in a notebook or page


@dataclass(frozen=True)
class Video:
    """A clip with what it was made from; plays itself in Jupyter.

    frames: uint8 [T,H,W,3]. fps: frames a second. settings: what to remember of its making, "prompt" first of
    all.
    """

    frames: np.ndarray
    fps: float
    settings: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        t, h, w, _ = self.frames.shape
        prompt = f", {self.settings['prompt']!r}" if "prompt" in self.settings else ""
        return f"Video({t} frames of {w} x {h}, {self.seconds:.3g} s at {self.fps:g} fps{prompt})"

    @property
    def seconds(self) -> float:
        """How long the clip plays; the last frame is shown as long as every other."""
        return len(self.frames) / self.fps

    def save(self, path: str | Path) -> Path:
        """Write an mp4 or GIF file, whole or not at all; see write_video."""
        return write_video(path, self.frames, self.fps)

    def mp4_data_uri(self) -> str:
        """The whole clip as "data:video/mp4;base64,...", for pages that need no other file."""
        with tempfile.TemporaryDirectory() as folder:
            data = self.save(Path(folder) / "clip.mp4").read_bytes()
        return "data:video/mp4;base64," + base64.b64encode(data).decode()

    def contact_sheet(self, columns: int = 5, *, gap: int = 4) -> "Image":
        """`columns` frames, evenly spaced in time, side by side with `gap` white pixels between them."""
        from PIL import Image

        if columns < 1:
            raise CogVideoError(f"A contact sheet of {columns} frames cannot be drawn: ask for 1 or more.")
        count = min(columns, len(self))
        chosen = np.linspace(0, len(self) - 1, count).round().astype(int)
        padded = np.pad(self.frames[chosen], ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
        return Image.fromarray(rearrange(padded, "t h w c -> h (t w) c")[:, : -gap or None])

    def _repr_html_(self) -> str:
        prompt = escape(str(self.settings.get("prompt", "")))
        return f'<figure style="margin:0">{self.video_tag()}<figcaption>{prompt}</figcaption></figure>'

    def video_tag(self) -> str:
        """A <video> element with the clip inside, in a loop; small ones are enlarged with hard edges."""
        h, w = self.frames.shape[1:3]
        width = w * max(1, round(SHOWN_SIZE / max(h, w)))
        style = f"width:{width}px;max-width:100%;aspect-ratio:{w}/{h};image-rendering:pixelated"
        attributes = f'style="{style}" src="{self.mp4_data_uri()}"'
        return f"<video autoplay loop muted playsinline controls {attributes}></video>"


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> Path:
    """Write frames uint8 [T,H,W,3] as .mp4 (H.264, nearly lossless) or .gif (one palette, endless loop).

    mp4 files have even sizes: an odd edge is repeated once. GIF counts time in 1/100 s, so delays of 12.5
    come out as 13 and 12 in turn. The file appears under its name when it is whole.
    """
    from av.error import FFmpegError

    path = check_writable(path)
    frames = np.asarray(frames)
    valid = frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[3] == 3 and 0 not in frames.shape
    if not valid or not fps > 0:
        raise CogVideoError(
            f"Cannot write {path} from {frames.dtype} {list(frames.shape)} at {fps:g} fps: give uint8 "
            "[T,H,W,3] and fps > 0."
        )
    rate = Fraction(fps).limit_denominator(1001)
    # FFmpeg chooses the format by the suffix.
    part = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    unwritten = f"{path} cannot be written (REASON): choose another place or size."
    try:
        with explained(unwritten, OSError, FFmpegError):
            (_write_gif if path.suffix.lower() == ".gif" else _write_mp4)(part, frames, rate)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def check_writable(path: str | Path) -> Path:
    """The path, if a .mp4 or .gif file can be written there; call it before hours of work."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise CogVideoError(
            f"{path} is neither an mp4 nor a GIF file: end its name in {' or '.join(SUFFIXES)}."
        )
    return check_place(path)


def read_video(path: str | Path) -> tuple[np.ndarray, float]:
    """Read any video file that FFmpeg knows -> (frames uint8 [T,H,W,3], frames a second)."""
    with opened(path) as (container, stream):
        decoded = [(frame.pts, upright(frame)) for frame in container.decode(stream)]
        rate, tick = stream.average_rate, stream.time_base
    if not decoded or not rate:
        raise CogVideoError(f"{path} holds no frames: give a whole video file.")
    first, last = decoded[0][0], decoded[-1][0]
    if first is not None and last is not None and last > first and tick:
        # Not average_rate: FFmpeg guesses it, and 8 fps in a GIF's hundredths of a second become 8.33.
        rate = (len(decoded) - 1) / ((last - first) * tick)
    return np.stack([frame for _, frame in decoded]), float(rate)


def _write_mp4(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    import av
    from av.video.reformatter import ColorRange, Colorspace

    h, w = frames.shape[1:3]
    frames = np.pad(frames, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    # Some builds of FFmpeg come without x264, which is GPL.
    codec, options = "mpeg4", {"qscale": "2"}
    if "libx264" in av.codecs_available:
        codec, options = "libx264", {"crf": "14"}
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = w + w % 2, h + h % 2, "yuv420p"
        # Without these tags every player makes its own guess at what the colours mean.
        stream.codec_context.colorspace = Colorspace.ITU709
        stream.codec_context.color_primaries = stream.codec_context.color_trc = 1
        stream.codec_context.color_range = ColorRange.MPEG
        for frame in _av_frames(frames, rate):
            yuv = frame.reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(yuv))
        container.mux(stream.encode(None))


def _write_gif(path: Path, frames: np.ndarray, rate: Fraction) -> None:
    """One palette for the whole clip and no dithering: a still background stays still."""
    import av
    from av.filter import Graph
    from av.video.format import VideoFormat

    t, h, w, _ = frames.shape
    graph = Graph()
    source = graph.add_buffer(width=w, height=h, format=VideoFormat("rgb24"), time_base=1 / rate)
    split, sink = graph.add("split"), graph.add("buffersink")
    palette = graph.add("palettegen", "reserve_transparent=0")
    painted = graph.add("paletteuse", "dither=none")
    source.link_to(split)
    split.link_to(painted, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(painted, 0, 1)
    painted.link_to(sink)
    graph.configure()
    for frame in _av_frames(frames, rate):
        source.push(frame)
    source.push(None)
    with av.open(str(path), "w", options={"loop": "0"}) as container:
        stream = container.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = w, h, "pal8"
        for _ in range(t):
            container.mux(stream.encode(sink.pull()))
        container.mux(stream.encode(None))


def _av_frames(frames: np.ndarray, rate: Fraction) -> "Iterator[av.VideoFrame]":
    import av

    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame.pts, frame.time_base = index, 1 / rate
        yield frame
