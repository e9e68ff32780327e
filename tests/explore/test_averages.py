"""Averages over clips against the tables of the same clips, one by one."""

import csv

import numpy as np
import pandas as pd
import pytest
import torch

import cogvideo
from cogvideo.data.sources import open_dataset
from cogvideo.errors import CogVideoError
from cogvideo.explore import record
from cogvideo.explore.analysis import attention_table, word_table
from cogvideo.explore.averages import attention_averages, key_frames
from cogvideo.theatre.scenes import PHASES, states

SPEC = "theatre:test?clips=3&language=en"


@pytest.fixture(scope="module")
def pipe() -> cogvideo.Pipeline:
    return cogvideo.Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def captured(pipe):
    """(clip, what is captured of it) of each."""
    made = []
    for clip in open_dataset(SPEC).clips:
        frames, span, _ = key_frames(pipe, clip)
        ids = torch.tensor(pipe.text.encode_prompt(clip.caption, span))
        recording = record(pipe.stage1, ids, pipe.tokens(frames[None])[0])
        made.append((clip, recording.capture(words=pipe.text.pieces(ids.tolist()))))
    return made


def test_by_phase_and_layer(pipe, captured):
    table = attention_averages(pipe, [clip for clip, _ in captured], ("phase", "channel", "layer"))
    seen: dict[tuple[str, str, int], list[float]] = {}
    for clip, one in captured:
        action = clip.clip.names(0)[1]
        own = attention_table(one, one.queries[:, 0] > 0)
        span = clip.clip.span(0)
        shown = states(clip.clip, np.linspace(0, span, 5)[None])[0]
        own["phase"] = [
            [name for name, first in PHASES[action] if first <= shown[time]][-1] for time in own["time"]
        ]
        for (phase, channel, layer), rows in own.groupby(["phase", "channel", "layer"]):
            seen.setdefault((phase, channel, layer), []).append(rows["text"].mean())
    assert len(table) == len(seen)
    for row in table.itertuples():
        values = seen[row.phase, row.channel, row.layer]
        assert row.clips == len(values) and row.text == pytest.approx(np.mean(values), abs=1e-5)
    whole = table[["text", "begin", "own", "earlier", "later"]].sum(axis=1)
    np.testing.assert_allclose(whole, 1, atol=1e-5)


def test_by_word_and_head(pipe, captured):
    table = attention_averages(pipe, [clip for clip, _ in captured], ("word", "head"))
    tables = [word_table(one, one.queries[:, 0] > 0) for _, one in captured]
    for word in ("a", tables[0]["word"].iloc[1]):
        means = [
            t[t["word"] == word].groupby("head")["weight"].mean() for t in tables if (t["word"] == word).any()
        ]
        found = table[table["word"] == word].set_index("head")
        np.testing.assert_allclose(found["weight"], pd.concat(means, axis=1).mean(axis=1), atol=1e-6)
        assert (found["clips"] == len(means)).all()


def test_what_cannot_be_averaged_is_one_sentence(pipe):
    clips = open_dataset(SPEC).clips[:1]
    with pytest.raises(CogVideoError, match="averaged by mood: choose of channel, layer, head, time, actor"):
        attention_averages(pipe, clips, ("mood",))
    with pytest.raises(CogVideoError, match="nothing to average"):
        attention_averages(pipe, [], ("layer",))


def test_from_the_command_line(run, tmp_path):
    out = tmp_path / "attention.csv"
    code, told, _ = run("evaluate", "attention", "theatre:test?clips=1", "--by", "actor,head", "-o", out)
    assert code == 0 and told == f"{out}: 4 rows\n"
    rows = list(csv.DictReader(out.open()))
    assert [row["head"] for row in rows] == ["0", "1", "2", "3"] and rows[0]["clips"] == "1"
    code, _, err = run("evaluate", "attention", "theatre:test?clips=1", "--by", "x", "-o", out)
    assert code == 2 and "Error: Clips cannot be averaged by x" in err  # after the bar
