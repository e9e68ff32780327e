"""Tiled local attention against a loop over queries and window slots, written from the reference page."""

import pytest
import torch

from cogvideo.superres.local_attention import Window, local_attention, make_tiles


def slow(q, k, v, height, width, windows, always):
    """One query at a time: collect the keys of its windows one by one, then softmax."""
    out = torch.zeros_like(q)
    for y in range(height):
        for x in range(width):
            seen = list(range(always))
            offset = always
            for window in windows:
                rows, columns = height // window.scale, width // window.scale
                for i in range(window.rows):
                    for j in range(window.columns):
                        row = y // window.scale - window.rows // 2 + i
                        column = x // window.scale - window.columns // 2 + j
                        if 0 <= row < rows and 0 <= column < columns:
                            seen.append(offset + row * columns + column)
                offset += rows * columns
            query = q[:, :, y * width + x]
            scores = torch.einsum("bhd,bhkd->bhk", query, k[:, :, seen]) / q.shape[-1] ** 0.5
            out[:, :, y * width + x] = torch.einsum("bhk,bhkd->bhd", scores.softmax(-1), v[:, :, seen])
    return out


@pytest.mark.parametrize(
    ("height", "width", "windows", "always", "tile"),
    [
        (12, 18, (Window(3, 5, 5), Window(1, 9, 5)), 0, 6),
        (
            6,
            21,
            (Window(3, 3, 5), Window(1, 3, 1)),
            0,
            7,
        ),  # tiles that begin inside a low-resolution position
        (7, 10, (Window(1, 9, 5),), 3, 5),
        (5, 5, (Window(5, 1, 1), Window(1, 9, 11)), 1, 12),  # windows larger than the map
        (
            10,
            4,
            (Window(2, 4, 2), Window(1, 2, 4)),
            2,
            3,
        ),  # even windows reach one further before than behind
    ],
)
def test_equals_the_slow_oracle(height, width, windows, always, tile):
    positions = always + sum((height // w.scale) * (width // w.scale) for w in windows)
    torch.manual_seed(0)
    q = torch.randn(2, 3, height * width, 4, dtype=torch.double, requires_grad=True)
    k, v = (torch.randn(2, 3, positions, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    weight = torch.randn_like(q)
    tiles = make_tiles(height, width, windows, always, tile).to(q)
    assert tiles.down * tiles.across > 1 or tile > height
    fast, expected = local_attention(q, k, v, tiles), slow(q, k, v, height, width, windows, always)
    torch.testing.assert_close(fast, expected)
    gradients = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (fast, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tile_size_does_not_matter():
    windows = Window(3, 5, 5), Window(1, 9, 5)
    torch.manual_seed(0)
    q = torch.randn(1, 2, 576, 8)
    k, v = torch.randn(2, 1, 2, 640, 8)
    one, many = (local_attention(q, k, v, make_tiles(24, 24, windows, 0, tile)) for tile in (24, 4))
    torch.testing.assert_close(one, many)


def test_tiles_made_in_inference_mode_serve_training():
    windows = (Window(1, 3, 3),)
    q = torch.randn(1, 1, 35, 4, requires_grad=True)
    with torch.inference_mode():
        local_attention(q, q, q, make_tiles(5, 7, windows))
    local_attention(q, q, q, make_tiles(5, 7, windows)).sum().backward()
    assert q.grad is not None and q.grad.abs().max() > 0
