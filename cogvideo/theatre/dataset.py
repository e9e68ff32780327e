"""Captioned clips, drawn on demand or on disk, and the captions that the demo's text model learns from."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from einops import rearrange

from cogvideo.data.reading import Size, Timeline, fit
from cogvideo.data.sources import Dataset, number, parse_spec
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole
from cogvideo.theatre.digits import (
    ACTION_NAMES,
    ACTIONS,
    ADVERBS,
    COLOR_NAMES,
    COLORS,
    DURATIONS,
    FPS,
    FRAME_SIZE,
    SHAPES,
    SUPERSAMPLING,
    Clips,
    World,
    is_held_out,
    render,
    sample_clips,
)
from cogvideo.tokenizers.text import train_text_tokenizer

REST = 1.0  # seconds that a file goes on after the last action has ended
OPTIONS = {
    "digits": {"clips", "seed", "glyphs", "objects", "language"}
}  # of specs "digits:...", see open_clips


@dataclass(frozen=True)
class DigitsClip:
    """A clip of the demo world, 8 frames a second from the beginning of its action to the end; see data.sources.Clip."""

    source: str
    caption: str
    clip: Clips

    @property
    def group(self) -> str:
        return self.source

    def timeline(self) -> Timeline:
        count = round(float(self.clip.duration.max()) * FPS) + 1
        return Timeline(np.arange(count) / FPS, count / FPS, (FRAME_SIZE, FRAME_SIZE))

    def frames(
        self, timeline: Timeline, wanted: Collection[int], sizes: Sequence[Size]
    ) -> tuple[dict[int, list[np.ndarray]], int]:
        """Drawn at the size that comes closest from above."""
        numbers, drawn = sorted(wanted), []
        for size in sizes:
            side = FRAME_SIZE if max(size) <= FRAME_SIZE else FRAME_SIZE * SUPERSAMPLING
            pixels = (render(self.clip, timeline.times[numbers][None], side)[0] * 255).round().byte()
            drawn.append(fit(rearrange(pixels, "t c h w -> t h w c").numpy(), *size))
        return {number: [d[i] for d in drawn] for i, number in enumerate(numbers)}, len(timeline.times) - 1


def open_clips(spec: str) -> Dataset:
    """digits:train?clips=1000, or digits:test; seed, glyphs, objects, language=en, zh or both (in turn, default)."""
    _, split, options = parse_spec(spec, OPTIONS) or ("", "", {})
    count, seed, objects = (
        int(number(options.get(name, default), spec))
        for name, default in (("clips", 1000), ("seed", 0), ("objects", 1))
    )
    language = options.get("language", "both")
    if count < 1 or seed < 0 or language not in ("en", "zh", "both"):
        raise CogVideoError(
            f"{spec} should have clips of 1 or more, seed of 0 or more, and language=en, zh or both."
        )
    world = World(options.get("glyphs", "clean"), objects)
    clips = []
    for index in range(count):
        clip = digits_clip(split, seed, index, world)
        caption = clip.caption(0, language if language != "both" else ("en", "zh")[index % 2])
        clips.append(DigitsClip(f"{split}-{world.glyphs}-{objects}-{seed}-{index:06d}", caption, clip))
    return Dataset(spec, clips, [])


def digits_clip(split: str, seed: int, index: int, world: World = World()) -> Clips:
    """Clip `index` of the demo world; it depends on seed, index and split alone."""
    # The split takes part, lest clean digits of train and test be the same clips.
    return sample_clips(1, np.random.default_rng([seed, split == "train", index]), split=split, world=world)


def demo_captions() -> list[str]:
    """All captions of clips with one object, of digits and of shapes, English and Chinese in turn."""
    captions = []
    for world in (World("clean"), World("shapes")):
        choices = np.indices((len(world.names), len(COLORS), len(ACTIONS), len(DURATIONS)))
        kind, color, action, adverb = rearrange(choices, "field k c a d -> field (k c a d) 1")
        nowhere = np.zeros_like(kind)
        clips = Clips(
            kind, color, action, np.array(DURATIONS)[adverb], nowhere, nowhere, nowhere, world, "test"
        )
        captions += [clips.caption(i, language) for i in range(len(clips)) for language in ("en", "zh")]
    return captions


def demo_words() -> list[str]:
    """The words of the captions as SentencePiece pieces ("▁" = a space or the beginning of the text)."""
    english = {word for caption in demo_captions() if caption.isascii() for word in caption.split()}
    spaced = ["▁" + word for word in [*sorted(english), "and"] if not word.isdigit()]
    colors, adverbs = [zh for zh, _ in COLORS.values()], [zh for _, zh in ADVERBS.values() if zh]
    return [*spaced, "▁一个", "一个", "的", "，", *colors, *ACTIONS.values(), *adverbs, *SHAPES.values()]


def train_demo_text_model() -> bytes:
    """The demo's text model: every word of the captions and every frame-rate text is one piece."""
    return train_text_tokenizer(demo_captions(), vocab_size=256, words=demo_words())


def make_digits(
    out: str | Path,
    *,
    clips: int,
    seed: int,
    split: str = "train",
    world: World = World(),
    seconds: float | None = None,
    size: int = FRAME_SIZE * SUPERSAMPLING,
    progress: bool = True,
) -> Path:
    """Writes clips of the digits world to the folder `out` and returns the path of its captions.jsonl.

    Files: 000000.mp4, ... (size x size pixels, 8 frames a second, the first frame at 0 s and the last at `seconds`),
    captions.jsonl (one line per clip: file, captions, span and the exact truth) and dataset.json (the arguments).
    seconds: how long each clip goes on; None takes its longest action and one second of rest.
    Clip i depends on seed and i alone. Files that exist are kept, so a run that was stopped goes on where it was, and
    more clips may be asked for later. captions.jsonl comes last: a folder that has it is complete.
    Raises CogVideoError for arguments that make no clip, and for a folder of other clips or one that cannot be written.
    """
    if clips < 0 or seed < 0:
        raise CogVideoError(
            f"A data set of {clips} clips with seed {seed} cannot be made: give numbers of 0 or more."
        )
    if seconds is not None and not 0 < seconds <= 60:
        raise CogVideoError(f"Clips cannot last {seconds} seconds: choose more than 0 and at most 60.")
    if size not in (FRAME_SIZE, FRAME_SIZE * SUPERSAMPLING):
        raise CogVideoError(f"The digits world is drawn at 64 or 192 pixels, not {size}.")
    drawn = [
        sample_clips(1, np.random.default_rng([seed, i]), split=split, world=world) for i in range(clips)
    ]
    lengths = [float(clip.duration.max() + REST if seconds is None else seconds) for clip in drawn]
    paths = [Path(out, f"{index:06d}.mp4") for index in range(clips)]
    captions = Path(out, "captions.jsonl")
    try:
        _claim_folder(
            Path(out), {"seed": seed, "split": split, "world": vars(world), "seconds": seconds, "size": size}
        )
        for path, clip, length in _with_progress(list(zip(paths, drawn, lengths, strict=True)), progress):
            if not path.exists():
                _write_clip(path, clip, length, size)
        records = [
            {"file": path.name, "seed": seed, "index": index, "seconds": length, **_truth(clip)}
            for index, (path, clip, length) in enumerate(zip(paths, drawn, lengths, strict=True))
        ]
        write_text(captions, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    except OSError as error:
        reason = error.strerror or error
        raise CogVideoError(f"The folder {out} cannot be written ({reason}): choose another one.") from error
    return captions


def _claim_folder(out: Path, arguments: dict) -> None:
    """Makes the folder and notes the arguments in it; a folder of other clips is refused, lest both be mixed."""
    out.mkdir(parents=True, exist_ok=True)
    note, text = out / "dataset.json", json.dumps(arguments, indent=1) + "\n"
    others = note.read_text(encoding="utf-8") != text if note.exists() else any(out.glob("*.mp4"))
    if others:
        raise CogVideoError(
            f"The folder {out} holds clips made with other arguments: choose an empty folder."
        )
    write_text(note, text)
    # A killed run may have left what write_video and write_text work on.
    for unfinished in (*out.glob(".*.mp4"), *out.glob("*.part")):
        unfinished.unlink()


def _truth(clip: Clips) -> dict:
    """What one clip shows, for captions.jsonl. Pixels are those of the 64 x 64 frame, times are seconds."""
    fields = (clip.kind, clip.color, clip.action, clip.duration, clip.x, clip.y, clip.scan)
    return {
        "caption": clip.caption(0, "en"),
        "caption_zh": clip.caption(0, "zh"),
        "span": clip.span(0),
        "split": clip.split,
        "objects": [
            {
                "name": clip.world.names[kind],
                "color": COLOR_NAMES[color],
                "action": ACTION_NAMES[action],
                "start": 0.0,
                "duration": float(duration),
                "x": int(x),
                "y": int(y),
                "scan": int(scan),
                "held_out": bool(is_held_out(kind, color, action)),
            }
            for kind, color, action, duration, x, y, scan in zip(*(field[0] for field in fields), strict=True)
        ],
    }


def _write_clip(path: Path, clip: Clips, seconds: float, size: int) -> None:
    from cogvideo.data.video import write_video

    frames = render(clip, np.arange(round(seconds * FPS) + 1)[None] / FPS, size)[0]
    pixels = rearrange((frames * 255).round().byte(), "t c h w -> t h w c").numpy()
    write_video(path, pixels, FPS)


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; one that holds the text already is left alone."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)


def _with_progress(items: list, progress: bool):
    if not progress:
        return items
    from tqdm import tqdm

    return tqdm(items, desc="digits", unit="clip")
