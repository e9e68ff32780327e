"""The masks against a slow oracle written from the words of the reference page, at several geometries."""

from dataclasses import replace

import pytest
import torch

from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.model import masks

GEOMETRIES = [  # height, width, frames, order, window
    (4, 4, 5, "sequential", None),
    (4, 4, 5, "sequential", 2),
    (5, 3, 2, "sequential", 3),
    (3, 5, 9, "interpolation", None),
    (6, 4, 5, "interpolation", 3),
    (5, 7, 4, "interpolation", 4),
    (3, 3, 7, "sequential", 5),
    (7, 2, 3, "interpolation", 2),
    (4, 6, 8, "sequential", 4),
]


def config(height, width, frames, order, window) -> ModelConfig:
    n = height * width
    return replace(
        COGVIDEO_9B,
        frame_height=height,
        frame_width=width,
        num_frames=frames,
        order=order,
        window=window,
        first_frame_position=9,
        base_positions=9 + n,
        extra_positions=frames * n,
    )


def cut(length: int, window: int, layer: int) -> list[set[int]]:
    """The windows along one axis: from place 0 in even layers, first one window // 2 long in odd layers."""
    start = 0 if layer % 2 == 0 else -(window - window // 2)
    pieces = []
    while start < length:
        piece = {i for i in range(start, start + window) if 0 <= i < length}
        pieces += [piece] if piece else []
        start += window
    return pieces


def in_one_window(a: int, b: int, length: int, window: int, layer: int) -> bool:
    return any(a in piece and b in piece for piece in cut(length, window, layer))


def rolled_window(a: int, b: int, length: int, window: int, layer: int) -> bool:
    """The released sampler's cut for given frames: roll the axis by -window // 2, then cut from place 0."""
    axis = list(range(length))
    shift = window // 2 if layer % 2 else 0
    rolled = axis[shift:] + axis[:shift]
    return rolled.index(a) // window == rolled.index(b) // window


def oracle(c: ModelConfig, layer: int, query, key, quirks: bool = False) -> bool:
    (t, y, x), (s, v, u) = query, key
    given = [time % 2 == 0 and c.order == "interpolation" for time in range(c.num_frames)]
    if c.order == "sequential":
        visible = (s, v, u) <= (t, y, x)
    elif given[t]:
        visible = given[s]
    else:
        visible = given[s] or (s, v, u) <= (t, y, x)
    if c.window is None or not visible:
        return visible
    same = rolled_window if quirks and given[t] else in_one_window
    return same(y, v, c.frame_height, c.window, layer) and same(x, u, c.frame_width, c.window, layer)


def places(c: ModelConfig):
    return [
        (t, y, x) for t in range(c.num_frames) for y in range(c.frame_height) for x in range(c.frame_width)
    ]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("layer", [0, 1])
def test_temporal_mask_equals_the_oracle(geometry, layer):
    c = config(*geometry)
    expected = torch.tensor([[oracle(c, layer, q, k) for k in places(c)] for q in places(c)])
    assert torch.equal(masks.temporal_visible(c, layer), expected)


@pytest.mark.parametrize("geometry", [g for g in GEOMETRIES if g[3] == "interpolation"], ids=str)
def test_release_quirks_wrap_the_given_frames_windows(geometry):
    c = config(*geometry)
    expected = torch.tensor([[oracle(c, 1, q, k, quirks=True) for k in places(c)] for q in places(c)])
    assert torch.equal(masks.temporal_visible(c, 1, release_quirks=True), expected)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_spatial_mask_is_causal_in_generated_and_full_in_given_frames(geometry):
    c = config(*geometry)
    visible = masks.spatial_visible(c)
    for time in range(c.num_frames):
        given = c.order == "interpolation" and time in range(0, c.num_frames, 2)
        for q in range(c.frame_tokens):
            assert visible[time, q].tolist() == [given or k <= q for k in range(c.frame_tokens)]


def test_released_windows_are_cut_as_the_reference_says():
    odd = masks.windows(replace(COGVIDEO_9B, window=10), layer=1).view(20, 20)
    rows, columns = odd[:, 0].tolist(), odd[0].tolist()
    for line in (rows, columns):
        sizes = [line.count(window) for window in dict.fromkeys(line)]
        assert sizes == [5, 10, 5]  # 0-4, 5-14, 15-19


def test_positions_of_the_release():
    assert masks.first_position(COGVIDEO_9B, 0) == (True, 512)
    for time in range(1, 5):  # the extra table has row (position - 912), and place p has position 512 + p
        assert masks.first_position(COGVIDEO_9B, time) == (False, 512 + 400 * time - 912)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
    assert masks.text_positions(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


def test_frame_order_and_trained_frames():
    assert masks.frame_order(config(2, 2, 5, "interpolation", None)) == [0, 2, 4, 1, 3]
    assert masks.frame_order(config(2, 2, 5, "sequential", None)) == [0, 1, 2, 3, 4]
    assert masks.trained_frames(config(2, 2, 5, "interpolation", None)) == [1, 3]
    assert masks.trained_frames(config(2, 2, 5, "sequential", None)) == [1, 2, 3, 4]


def slow_schedule(c: ModelConfig, times: list[int]) -> list[list[int]]:
    """Step after step.

    Decode a token as soon as its input and all that it may see, in any layer, is there.
    """
    seen = masks.temporal_visible(c, 0) | masks.temporal_visible(c, 1)
    n, step = c.frame_tokens, 0
    done = {(time, place): 0 for time in range(c.num_frames) if time not in times for place in range(n)}
    while len(done) < c.num_frames * n:
        step += 1
        ready = {
            (t, p)
            for t in times
            for p in range(n)
            if (t, p) not in done and (p == 0 or done.get((t, p - 1), step) < step)
        }
        while True:  # tokens of one step may see each other
            there = done.keys() | ready
            kept = {
                (t, p)
                for t, p in ready
                if all(divmod(k, n) in there for k in seen[t * n + p].nonzero().flatten().tolist())
            }
            if kept == ready:
                break
            ready = kept
        done |= dict.fromkeys(ready, step)
    return [[done[time, place] for place in range(n)] for time in times]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_decoding_steps_equal_the_slow_schedule(geometry):
    c = config(*geometry)
    times = [t for t in range(c.num_frames) if (t % 2 == 1 if c.order == "interpolation" else t > 0)]
    steps = masks.decoding_steps(c, times)
    assert steps.tolist() == slow_schedule(c, times)
    for step in range(
        1, int(steps.max()) + 1
    ):  # frames that are decoded together follow each other: model.cache.CacheWrite
        frames = (steps == step).nonzero()[:, 0].tolist()
        assert frames == list(range(frames[0], frames[-1] + 1))


@pytest.mark.parametrize("window, stage_1, stage_2", [(None, 1597, 799), (10, 967, 589), (5, 652, 484)])
def test_steps_at_the_released_geometry(window, stage_1, stage_2):
    """With full attention only the first place of a frame meets the last one of the frame before it."""
    c = replace(COGVIDEO_9B, window=window)
    assert masks.decoding_steps(c, [1, 2, 3, 4]).max() == stage_1
    assert masks.decoding_steps(replace(c, order="interpolation"), [1, 3]).max() == stage_2
