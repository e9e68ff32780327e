"""Attention averaged over the clips of a data set, by head, frame, word, and what the data set says of them.

    attention_averages(pipe, open_dataset("theatre:test?clips=20&language=en").clips, by=("phase", "head"))

Clips are real ones, read as key frames of stage 1. A clip of the demo world says who acts, what is done with
what, and which phase of the action a frame shows; clips of other data sets have their group.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from cogvideo.data.sources import Clip
from cogvideo.errors import CogVideoError
from cogvideo.explore.analysis import attention_table, word_table
from cogvideo.explore.recording import record
from cogvideo.sampling.pipeline import Pipeline

PLACE = ("channel", "layer", "head", "time", "word")
MEASURES = ("text", "begin", "own", "earlier", "later", "entropy", "evenness", "distance", "lag")


def attention_averages(
    pipe: Pipeline, clips: Iterable[Clip], by: Sequence[str] = ("channel", "layer")
) -> Any:
    """DataFrame: a row for every combination of `by` that occurs, with the number of "clips" that show it.

    by: of "channel", "layer", "head", "time" (a frame's number), "word", "group" and the labels of the clips.
    Columns are parts of the attention of generated frames: on "text", "begin"-of-images, and patches of the
    "own" frame, "earlier" and "later" ones; then "entropy", "evenness", "distance" and "lag" as in
    `attention_table`. By "word" there is one, the "weight" on that word.

    Raises: CogVideoError for unknown names, no clips, and clips that the pipeline cannot read.
    """
    import pandas as pd

    tables = []
    for number, clip in enumerate(clips):
        table = _clip_table(pipe, clip, words="word" in by)
        if unknown := [name for name in by if name not in table]:
            known = [name for name in table if name in PLACE or name in _labels(clip, 0.0)]
            raise CogVideoError(f"Clips cannot be averaged by {unknown[0]}: choose of {', '.join(known)}.")
        tables.append(table.assign(clip=number))
    if not tables or not by:
        raise CogVideoError("There is nothing to average: give clips, and what to average by.")
    every: Any = pd.concat(tables, ignore_index=True)
    measures = ["weight"] if "word" in by else list(MEASURES)
    # A clip counts once, however many of its frames and patches a combination has.
    each = every.groupby([*by, "clip"], sort=False)[measures].mean().reset_index()
    means = each.groupby(list(by))[measures].mean()
    return means.assign(clips=each.groupby(list(by))["clip"].nunique()).reset_index()


def key_frames(pipe: Pipeline, clip: Clip) -> tuple[np.ndarray, float, np.ndarray]:
    """The key frames uint8 [T,H,W,3] of a clip, the seconds they span, and their times [T].

    They span the shortest of the trained spans that holds the clip (paper section 3.1).
    """
    c, spans = pipe.stage1.config, sorted(pipe.sampling.spans)
    timeline = clip.timeline()
    span = next((one for one in spans if one >= timeline.times[-1] - 1e-6), spans[-1])
    times = np.linspace(0, span, c.num_frames)
    black = torch.zeros(1, 1, c.frame_tokens, dtype=torch.int64, device=pipe.device)
    size = pipe.pixels(black).shape[2:4]
    wanted = timeline.at(times).tolist()
    found, _ = clip.frames(timeline, set(wanted), [size])
    if missing := [number for number in wanted if number not in found]:
        raise CogVideoError(f"Frame {missing[0]} of {clip.source} cannot be read: leave the clip out.")
    return np.stack([found[number][0] for number in wanted]), span, times


def _clip_table(pipe: Pipeline, clip: Clip, *, words: bool) -> Any:
    frames, span, times = key_frames(pipe, clip)
    ids = pipe._text([clip.caption], [span], pipe.sampling.key_frame_suffix)[0][0]
    recording = record(pipe.stage1, ids, pipe.tokens(frames[None])[0])
    captured = recording.capture(words=pipe.text.pieces(ids.tolist()))
    made = np.isin(captured.queries[:, 0], captured.made)
    table = (word_table if words else attention_table)(captured, made)
    if not words:
        table["own"] = table["frame 0"]
        table["earlier"] = table.filter(regex="^frame -").sum(axis=1)
        table["later"] = table.filter(regex=r"^frame \+").sum(axis=1)
    for time in captured.made:
        for name, value in _labels(clip, float(times[time])).items():
            table.loc[table["time"] == time, name] = value
    return table


def _labels(clip: Clip, seconds: float) -> Mapping[str, str]:
    """What the data set says a clip shows at a time."""
    labels = getattr(clip, "labels", None)
    return {"group": clip.group} if labels is None else labels(seconds)
