"""Tables against sums over one key after another."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from explore.small import CONFIGS, MASK, TEXT, clip, small_model

from cogvideo.errors import CogVideoError
from cogvideo.explore import analysis, capture, record

L, N, WIDTH = len(TEXT), 12, 4


@pytest.fixture(scope="module", params=list(CONFIGS))
def captured(request):
    config = CONFIGS[request.param]
    return capture(small_model(config), TEXT, clip(config), layers=None, text_mask=MASK)


def keys_of(channel: str, time: int, count: int) -> Iterator[tuple[Any, ...]]:
    """Every key of a row in order: ("text", slot), ("begin", frame) or ("patch", frame, row, column)."""
    yield from (("text", slot) for slot in range(L))
    for frame in [time] if channel == "spatial" else range(count):
        yield "begin", frame
        yield from (("patch", frame, *divmod(position - 1, WIDTH)) for position in range(1, N))


def test_shares_entropy_and_distances_are_sums_over_keys(captured):
    where = np.arange(len(captured.queries)) % 3 != 1
    table = analysis.attention_table(captured, where)
    t = len(captured.frames)
    channels = ["spatial", "temporal"][: 1 + (captured.temporal is not None)]
    assert len(table) == len(channels) * 2 * 2 * t
    parts = table.filter(regex="text|begin|frame")
    np.testing.assert_allclose(parts.sum(axis=1), 1, atol=1e-5)
    for channel in channels:
        maps, visible = captured.maps(channel), captured.visible(channel)
        for layer, head, time in np.ndindex(2, 2, t):
            sums: dict[str, list[float]] = {}
            for q in np.flatnonzero(where & (captured.queries[:, 0] == time)):
                known = t > 1 and (time == 0 or (captured.config.order == "interpolation" and time % 2 == 0))
                patch = captured.queries[q, 1] - known  # in a known frame, the one that is held there
                row, column = divmod(patch, WIDTH)
                one = {"text": 0.0, "begin": 0.0, "entropy": 0.0, "distance": 0.0, "lag": 0.0, "patches": 0.0}
                one |= {f"frame {f - time:+d}" if f != time else "frame 0": 0.0 for f in range(t)}
                for weight, key in zip(maps[layer, head, q], keys_of(channel, time, t), strict=True):
                    one["entropy"] -= weight * math.log(weight) if weight else 0
                    if key[0] != "patch":
                        one[key[0]] += weight
                        continue
                    frame, y, x = key[1:]
                    one[f"frame {frame - time:+d}" if frame != time else "frame 0"] += weight
                    one["patches"] += weight
                    one["distance"] += weight * math.hypot(y - row, x - column)
                    one["lag"] += weight * (time - frame)
                one["evenness"] = one["entropy"] / math.log(visible[layer, q].sum())
                patches = one.pop("patches")
                for name in ("distance", "lag"):
                    one[name] = one[name] / patches if patches else math.nan
                if patch < 0:
                    one["distance"] = math.nan
                for name, value in one.items():
                    sums.setdefault(name, []).append(value)
            found = table.query(
                "channel == @channel and layer == @layer and head == @head and time == @time"
            ).iloc[0]
            for name, values in sums.items():
                if channel == "spatial" and name.startswith("frame") and name != "frame 0":
                    assert math.isnan(found[name])
                else:
                    assert found[name] == pytest.approx(np.nanmean(values), abs=1e-4), (channel, name)


def test_weights_on_words_are_those_of_the_text_share(captured):
    words, table = analysis.word_table(captured), analysis.attention_table(captured)
    assert set(words["slot"]) == {2, 3, 4} and set(words["word"]) == {"12", "13", "14"}
    by = ["channel", "layer", "head", "time"]
    merged = words.groupby(by)["weight"].sum().reset_index().merge(table, on=by)
    assert len(merged) == len(table)
    np.testing.assert_allclose(merged["weight"], merged["text"], atol=1e-5)
    row = words.query("channel == 'spatial' and layer == 1 and head == 0 and time == 0 and slot == 3").iloc[0]
    assert row["weight"] == pytest.approx(captured.spatial[1, 0, :N, 3].mean(), abs=1e-6)


def test_gates_by_layer(captured):
    if captured.gate is None:
        with pytest.raises(CogVideoError, match="An image model has no gates"):
            analysis.gate_table(captured)
        return
    table = analysis.gate_table(captured)
    assert table["layer"].tolist() == [0, 1]
    for row, gate in zip(table.itertuples(), captured.gate, strict=True):
        ordered = np.sort(gate)
        assert (row.least, row.most) == (ordered[0], ordered[-1]) and row.mean == pytest.approx(gate.mean())
        assert ordered[7] <= row.median <= ordered[8] and row.lower < row.median < row.upper
        weight, s, t = gate.mean(), captured.spatial_norm[row.layer], captured.temporal_norm[row.layer]
        expected = np.mean((1 - weight) * t / (weight * s + (1 - weight) * t))
        assert row[-1] == pytest.approx(expected, rel=1e-5) and row.spatial == pytest.approx(s.mean())


def test_rollout_follows_every_path(captured):
    """Against the sum over all paths of two layers, position by position."""
    found = analysis.rollout(captured)
    t = len(captured.frames)
    total = L + t * N
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-4)
    steps = []
    for layer in range(2):
        step = np.zeros((total, total))
        step[range(L), range(L)] = 1  # what has reached a word stays
        part = analysis.spatial_part(captured)[layer]
        for q, (time, position) in enumerate(captured.queries):
            row = L + time * N + position
            step[row, row] += 0.5
            own = [*range(L), *range(L + time * N, L + (time + 1) * N)]
            step[row, own] += 0.5 * part[q] * captured.spatial[layer, :, q].mean(0)
            if captured.temporal is not None:
                step[row] += 0.5 * (1 - part[q]) * captured.temporal[layer, :, q].mean(0)
        steps.append(step)
    np.testing.assert_allclose(found, (steps[1] @ steps[0])[L:], atol=1e-5)


def test_heat_of_a_word_over_the_clip(captured):
    heat = analysis.word_heat(captured, 3, "spatial")
    assert heat.shape == (len(captured.frames), 3, 4)
    reader = (
        6 if captured.gate is None else 7
    )  # frame 0 of a video is known: its patches are held one position later
    assert heat[0, 1, 2] == pytest.approx(captured.spatial[:, :, captured.row(0, reader), 3].mean())
    most = analysis.word_heat(captured, 3, "spatial", reduce="max")
    assert most[0, 1, 2] == captured.spatial[:, :, reader, 3].max()
    assert np.isnan(most[0, -1, -1]) == (captured.gate is not None)
    if captured.gate is not None:
        assert heat[1, 1, 2] == pytest.approx(captured.spatial[:, :, captured.row(1, 6), 3].mean())
    for slot in (0, 5):
        with pytest.raises(CogVideoError, match=r"no word in text slot \d: choose one of 2\.\.4"):
            analysis.word_heat(captured, slot, "spatial")
    with pytest.raises(CogVideoError, match="mean or max over layers and heads, not 'sum'"):
        analysis.word_heat(captured, 3, "spatial", reduce="sum")


def test_whole_clips_are_asked_for_where_they_are_needed():
    config = CONFIGS["stage 1"]
    some = capture(small_model(config), TEXT, clip(config), layers=[0], queries=[(1, 3)])
    for need in (lambda: analysis.rollout(some), lambda: analysis.word_heat(some, 3, "spatial")):
        with pytest.raises(
            CogVideoError, match="needs all positions of the clip: capture it with queries=None"
        ):
            need()


def test_tables_side_by_side():
    table = analysis.side_by_side({"a": pd.DataFrame({"x": [1, 2]}), "b": pd.DataFrame({"x": [3]})}, "prompt")
    assert table.to_dict("list") == {"prompt": ["a", "a", "b"], "x": [1, 2, 3]}


def test_a_patch_has_changed_when_it_is_not_as_in_the_first_frame():
    frames = np.array([[7, 7, 3, 7], [7, 5, 3, 7], [7, 7, 3, 8]])
    assert analysis.changed_patches(frames).tolist() == [
        [False, False, False, False],
        [False, True, False, False],
        [False, False, False, True],
    ]


@torch.no_grad()
def test_value_weighted_rows_are_lengths_of_what_each_key_adds(captured):
    """For each head, ||weight * value @ dense||, computed key by key from the model's own projections."""
    config = captured.config
    model = small_model(config)
    recording = record(model, TEXT, clip(config), text_mask=MASK)
    for channel in ["spatial", "temporal"][: 1 + (captured.temporal is not None)]:
        found = analysis.value_weighted(captured, channel)
        np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)
        for row in range(0, len(captured.queries), 11):
            time = captured.queries[row, 0]
            _, _, v, _ = recording.project(model.blocks[1], 1, channel)
            dense = getattr(model.blocks[1], channel).dense.weight
            size = dense.shape[1] // config.num_heads
            for head in range(config.num_heads):
                values = v[time if channel == "spatial" else 0, head]
                adds = (values @ dense[:, head * size : (head + 1) * size].T).norm(dim=-1).detach().numpy()
                expected = captured.maps(channel)[1, head, row] * adds
                np.testing.assert_allclose(found[1, head, row], expected / expected.sum(), atol=1e-5)


def test_rollout_layer_by_layer_is_that_of_all_maps(captured):
    if captured.temporal is None:
        pytest.skip("an image model has one channel")
    recording = record(small_model(captured.config), TEXT, clip(captured.config), text_mask=MASK)
    np.testing.assert_allclose(analysis.rollout_of(recording), analysis.rollout(captured), atol=1e-5)


def test_broken_weights_are_one_sentence():
    model = small_model(CONFIGS["stage 1"])
    model.blocks[1].mlp.up.weight.data[0, 0] = float("nan")
    recording = record(model, TEXT, clip(CONFIGS["stage 1"]), text_mask=MASK)
    assert recording.capture(layers=[1]).spatial is not None  # it reads what comes before its own MLP
    model.blocks[0].mlp.up.weight.data[0, 0] = float("nan")
    with pytest.raises(CogVideoError, match="Layer 1 .* not finite .*: its weights are damaged"):
        record(model, TEXT, clip(CONFIGS["stage 1"]), text_mask=MASK).capture(layers=[1])
