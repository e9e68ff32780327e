"""Pictures hold the numbers of the arrays and tables that they are drawn from."""

import matplotlib
from matplotlib.colors import to_rgba

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from explore.small import CONFIGS, MASK, TEXT, clip, small_model

from cogvideo.explore import analysis, capture, gallery, plots
from cogvideo.model import masks

WORDS = ("", "", "a", "red", "3")


@pytest.fixture(scope="module")
def captured():
    config = CONFIGS["windowed stage 1"]
    return capture(small_model(config), TEXT, clip(config), layers=None, text_mask=MASK, words=WORDS)


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(255, size=(5, 24, 32, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def test_bars_of_attention_add_up_to_one(captured):
    tables = {"one": analysis.attention_table(captured), "two": analysis.attention_table(captured)}
    figure = plots.plot_attention(tables)
    assert [axis.get_title() for axis in figure.axes[:2]] == ["one\nspatial channel", "one\ntemporal channel"]
    for axis in figure.axes:
        ends = np.array([[bar.get_x() + bar.get_width() for bar in bars] for bars in axis.containers])
        assert ends.shape == (5, 4)
        np.testing.assert_allclose(ends[-1], 1, atol=1e-5)
    first = tables["one"].query("channel == 'temporal' and layer == 0 and head == 1")["text"].mean()
    assert figure.axes[1].containers[0][1].get_width() == pytest.approx(first)


def test_cells_of_reach_and_frames(captured):
    table = analysis.attention_table(captured)
    figure = plots.plot_reach(table)
    expected = table[table["channel"] == "spatial"].groupby(["layer", "head"])["evenness"].mean().to_numpy()
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected.reshape(2, 2))
    figure = plots.plot_frames({"stage 1": table})
    matrix = np.asarray(figure.axes[1].images[0].get_array())
    weights = captured.patches(captured.temporal[1]).grid.sum((-1, -2)).mean(0).reshape(5, 12, 5).mean(1)
    np.testing.assert_allclose(matrix, weights, atol=1e-5)


def test_a_patch_is_shown_with_its_words_its_frames_and_what_it_cannot_see(captured, pixels):
    figure = plots.plot_patch(captured, pixels, 3, 6, layer=1)
    axes = np.array([axis for axis in figure.axes]).reshape(4, 6)
    row = captured.row(3, 6)
    spatial = captured.patches(captured.spatial[1, :, row].mean(0))
    temporal = captured.patches(captured.temporal[1, :, row].mean(0))
    np.testing.assert_allclose(axes[0, 4].images[0].get_array(), spatial.grid[0])
    assert not np.asarray(axes[0, 1].images[0].get_array()).any()
    for time in range(5):
        np.testing.assert_allclose(axes[1, 1 + time].images[0].get_array(), temporal.grid[time])
        hidden = ~captured.patches(captured.temporal_visible[1, row]).grid[time]
        boxes = [patch for patch in axes[1, 1 + time].patches if patch.get_hatch()]
        assert len(boxes) == hidden.sum()
    assert [bar.get_width() for bar in axes[1, 0].patches] == pytest.approx(temporal.words[2:].tolist())
    known = plots.plot_patch(captured, pixels, 0, 6, layer=1).axes[1]  # held at place 7, marked at patch 6
    weights = captured.patches(captured.spatial[1, :, captured.row(0, 7)].mean(0))
    np.testing.assert_allclose(known.images[0].get_array(), weights.grid[0])
    followed = captured.patches(analysis.rollout(captured)[row])
    np.testing.assert_allclose(axes[3, 2].images[0].get_array(), followed.grid[1])


def test_an_image_model_is_drawn_without_a_temporal_channel(pixels):
    config = CONFIGS["image model"]
    captured = capture(small_model(config), TEXT, clip(config), layers=None, text_mask=MASK)
    assert len(plots.plot_patch(captured, pixels[:1], 0, 6).axes) == 2 * 2


def test_words_are_drawn_over_the_clip(captured, pixels):
    figure = plots.plot_words(captured, pixels, channel="temporal", reduce="max")
    axes = np.array(figure.axes).reshape(3, 5)
    assert [axis.get_ylabel().split("\n")[0] for axis in axes[:, 0]] == list(WORDS[2:])
    heat = analysis.word_heat(captured, 4, "temporal", reduce="max")
    np.testing.assert_allclose(axes[2, 3].images[0].get_array(), heat[3])
    hatched = [sum(bool(patch.get_hatch()) for patch in axis.patches) for axis in axes[2]]
    assert hatched == [1, 0, 0, 0, 0]  # frame 0 is known beforehand: no place holds its last patch


def test_gates_show_mean_and_part(captured):
    figure = plots.plot_gates({"stage 1": captured})
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    table = analysis.gate_table(captured)
    np.testing.assert_allclose(lines["mean of dimensions"], 1 - table["mean"])
    np.testing.assert_allclose(lines["part of the output"], table["temporal part"])


@pytest.mark.parametrize("name", list(gallery.EXAMPLES))
def test_gallery_draws_what_sequence_says(name):
    config = gallery.EXAMPLES[name]
    figure = gallery.plot_stage(config, name)
    channels = 2 if config.window is None else 3
    left, right = figure.axes[: 6 * (channels + 2)], figure.axes[6 * (channels + 2) :]
    lines = np.array(left).reshape(channels + 2, 6)
    numbers = [[int(text.get_text()) for text in axis.texts] for axis in lines[0, 1:]]
    assert [row[0] for row in numbers] == [masks.first_position(config, time)[1] for time in range(5)]
    assert numbers[2] == list(range(numbers[2][0], numbers[2][0] + 16))
    made = masks.trained_frames(config)
    drawn = [[int(text.get_text()) for text in axis.texts] for axis in lines[-1, 1:]]
    assert [drawn[time] for time in made] == masks.decoding_steps(config, made).tolist()
    assert all(not drawn[time] for time in range(5) if time not in made)
    visible = [torch.block_diag(*masks.spatial_visible(config).int()).bool()]
    visible += [masks.temporal_visible(config, layer) for layer in range(channels - 1)]
    for axis, mask in zip(right, visible, strict=False):
        coloured = (np.asarray(axis.images[0].get_array()) != 1).any(-1)
        assert coloured[:, : gallery.TEXT].all() and (coloured[:, gallery.TEXT :] == mask.numpy()).all()
    # What one place sees: the patches before the keys that its row of the mask allows.
    time, place = made[-1], 10
    for line, mask in zip(lines[1:], visible, strict=False):
        seen = mask[time * 16 + place].reshape(5, 16)[:, 1:]
        for frame in range(5):
            colours = [patch.get_facecolor() for patch in line[1 + frame].patches[:15]]
            marked = [not np.allclose(colour, to_rgba("#f2f2f2")) for colour in colours]
            assert marked == seen[frame].tolist()
