"""Frames of video files at exact times: variable frame rates, rotated recordings and files that break off.

A file is read twice: first its packets, without decoding, for when each frame is shown (Timeline); then the
wanted frames are decoded. Files that end early or are damaged give what is there, with a note that says so.
"""

import errno
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from cogvideo.errors import CogVideoError

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.error import FFmpegError
    from av.video.stream import VideoStream

EXACT = 1e-3  # seconds: containers round times to their ticks
NOT_NOW = {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}  # the file may be whole
Size = tuple[int, int]  # height, width
Decoded = tuple[dict[int, list[np.ndarray]], int]  # frames by number, in each size asked for; the last number


class CannotReadNow(CogVideoError):
    """The system cannot read what may be a whole video: too many open files, a disk or network that fails."""


@dataclass(frozen=True)
class Timeline:
    """When the frames of a clip are shown, in seconds from its beginning."""

    times: np.ndarray  # [n], rising; the first one may be shown since before the beginning
    end: float  # when the last one is no longer shown
    size: Size  # as shown, pixels
    note: str | None = None  # what is wrong with the file

    @property
    def fps(self) -> float:
        """Mean frames a second."""
        return len(self.times) / (self.end - self.times[0])

    def at(self, times: np.ndarray) -> np.ndarray:
        """Numbers of the frames that are shown at `times`; the last frame from the end on."""
        return np.searchsorted(self.times, times + EXACT, side="right").clip(1) - 1

    def until(self, last: int) -> "Timeline":
        """What is left when the frames after number `last` cannot be had."""
        note = f"breaks off at {self.times[last + 1]:.1f} of {self.end:.1f} s"
        return replace(self, times=self.times[: last + 1], end=float(self.times[last + 1]), note=note)


def read_timeline(path: str | Path, start: float = 0.0, end: float | None = None) -> Timeline:
    """When the frames between `start` and `end` (seconds of the file; None: its end) are shown.

    Raises CogVideoError for a file that is missing, is no video, or holds no frames there; CannotReadNow
    where that is not known, for the system cannot read it.
    """
    with opened(path) as (container, stream):
        size, times, broken = None, {}, False
        _seek(container, stream, start)
        origin = _origin(stream)
        for index, packet in enumerate(_packets(container, stream)):
            if size is None:
                size = _first_size(packet)
            if packet.size == 0 or packet.is_discard:
                continue
            time = _time(packet, index, stream) - origin
            if end is not None and packet.dts is not None and _seconds(packet.dts, stream) - origin > end:
                break
            broken |= packet.is_corrupt
            if not packet.is_corrupt:
                times[time] = _seconds(packet.duration or 0, stream)
        stated = _stated_duration(container, stream)
    if size is None or not times:
        raise CogVideoError(f"{path} holds no frames{_where(start, end)}: give a whole video file.")
    shown = np.array(sorted(times))
    last = shown[-1] + times[shown[-1]]
    if last == shown[-1]:  # AVI does not say how long the last frame is shown: as long as the others
        last += (shown[-1] - shown[0]) / (len(shown) - 1) if len(shown) > 1 else 1 / _rate(stream)
    whole = last if end is None else end
    note = "has damaged frames" if broken else None
    behind = end is not None and last >= end - EXACT  # whatever is missing lies behind the part wanted
    if stated and stated - last > 0.25 + 0.02 * stated and not behind:
        note = f"breaks off at {last:.1f} of {stated:.1f} s"
    first = max(np.searchsorted(shown, start + EXACT, side="right") - 1, 0)
    shown = shown[first : np.searchsorted(shown, whole - EXACT)]
    if not len(shown) or min(last, whole) <= start:
        raise CogVideoError(f"{path} holds no frames{_where(start, end)}: it lasts {last:.1f} s.")
    return Timeline(shown - start, min(last, whole) - start, size, note)


def read_frames(
    path: str | Path, timeline: Timeline, wanted: Collection[int], sizes: Sequence[Size], start: float = 0.0
) -> Decoded:
    """Decode frames by number in the timeline -> {number: uint8 [h,w,3] in each of `sizes`}, last number.

    Frames are turned upright and fitted (see fit). A damaged frame is replaced by the one before it. The last
    number is at least the highest wanted one; where decoding breaks off earlier, it is that of the last frame
    that could be decoded.
    """
    found: dict[int, list[np.ndarray]] = {}
    waiting, last, before = sorted(wanted), -1, None
    with opened(path) as (container, stream):
        stream.codec_context.thread_count = 1  # videos are read side by side
        _seek(container, stream, start)
        origin = _origin(stream) + start
        latest = -np.inf
        for index, frame in enumerate(_decoded(container, stream)):
            # In AVI the times of B-frames may be out of order.
            latest = max(latest, _time(frame, index, stream) - origin)
            number = int(np.searchsorted(timeline.times, latest + EXACT, side="right")) - 1
            while waiting and waiting[0] <= number:
                best = frame if waiting[0] == number or before is None else before
                found[waiting.pop(0)] = [fit(upright(best)[None], *size)[0] for size in sizes]
            last, before = max(last, number), frame
            if not waiting:
                break
    return found, last if waiting else max(last, max(wanted))


def fit(clip: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [T,H,W,3] -> uint8 [T,height,width,3]: the largest centred crop, resized with antialiasing."""
    h, w = clip.shape[1:3]
    if (h, w) == (height, width):
        return clip
    scale = min(h / height, w / width)
    part_h, part_w = min(h, round(height * scale)), min(w, round(width * scale))
    top, left = (h - part_h) // 2, (w - part_w) // 2
    part = torch.from_numpy(np.ascontiguousarray(clip[:, top : top + part_h, left : left + part_w])).float()
    part = rearrange(part, "t h w c -> t c h w")
    part = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    return rearrange(part.clamp(0, 255).round().byte(), "t c h w -> t h w c").numpy()


def upright(frame: "av.VideoFrame") -> np.ndarray:
    """A decoded frame as it is to be shown, uint8 [H,W,3]: cameras store how they were held as a rotation."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


@contextmanager
def opened(path: str | Path) -> Iterator[tuple["InputContainer", "VideoStream"]]:
    """A video file and its first video stream; CannotReadNow where the system is at fault, not the file."""
    import av
    from av.error import FFmpegError

    try:
        with av.open(str(path), metadata_errors="replace") as container:  # titles in any encoding
            if not container.streams.video:
                raise CogVideoError(f"{path} holds no video: give a video file.")
            yield container, container.streams.video[0]
    except (OSError, FFmpegError) as error:
        if _cannot_read(path, error):
            raise CannotReadNow(
                f"{path} cannot be read now ({error.strerror}): check the disk and the limit of open files "
                "(ulimit -n), then run again."
            ) from None
        what = f"{path} cannot be read as a video ({error.strerror})"
        raise CogVideoError(f"{what}: give a whole video file.") from None


def _cannot_read(path: str | Path, error: "OSError | FFmpegError") -> bool:
    """Whether the system is at fault, not the file. FFmpeg calls some damage EIO: then the file is read."""
    if error.errno != errno.EIO:
        return error.errno in NOT_NOW
    try:
        with Path(path).open("rb") as file:
            file.read(1)
        return False
    except OSError as own:
        return own.errno == errno.EIO or own.errno in NOT_NOW


def _packets(container: "InputContainer", stream: "VideoStream") -> "Iterator[av.Packet]":
    """All packets up to the end, or to where the file breaks off."""
    from av.error import FFmpegError

    try:
        yield from container.demux(stream)
    except FFmpegError as error:
        if _cannot_read(container.name, error):
            raise


def _decoded(container: "InputContainer", stream: "VideoStream") -> "Iterator[av.VideoFrame]":
    """All frames that can be decoded, in the order of time."""
    from av.error import FFmpegError

    for packet in _packets(container, stream):
        frames = []
        with suppress(FFmpegError):  # a damaged packet; those after it may be whole
            frames = packet.decode()
        yield from (frame for frame in frames if not frame.is_corrupt)


def _first_size(packet: "av.Packet") -> Size | None:
    """Height and width of a frame as shown, once the decoder gives one."""
    from av.error import FFmpegError

    with suppress(FFmpegError):
        for frame in packet.decode():
            turned = round(frame.rotation / 90) % 2
            return (frame.width, frame.height) if turned else (frame.height, frame.width)
    return None


def _seek(container: "InputContainer", stream: "VideoStream", start: float) -> None:
    """Go to the last key frame before `start`; a file that cannot be searched is read from its beginning."""
    from av.error import FFmpegError

    if start > 0:
        with suppress(FFmpegError):
            container.seek(
                round((start + _origin(stream)) / _seconds(1, stream)), stream=stream, backward=True
            )


def _origin(stream: "VideoStream") -> float:
    return _seconds(stream.start_time or 0, stream)


def _time(part: "av.Packet | av.VideoFrame", index: int, stream: "VideoStream") -> float:
    """Seconds on the stream's clock; raw streams have none and are counted."""
    tick = part.pts if part.pts is not None else part.dts
    return index / _rate(stream) if tick is None else _seconds(tick, stream)


def _seconds(ticks: int, stream: "VideoStream") -> float:
    return float(ticks * (stream.time_base or 0))


def _rate(stream: "VideoStream") -> float:
    return float(stream.average_rate or stream.guessed_rate or 25)


def _stated_duration(container: "InputContainer", stream: "VideoStream") -> float | None:
    """Seconds that the file says it lasts."""
    if stream.duration:
        return _seconds(stream.duration, stream)
    return container.duration / 1e6 if container.duration else None


def _where(start: float, end: float | None) -> str:
    if end is None:
        return f" from {start:g} s on" if start else ""
    return f" from {start:g} to {end:g} s"
