"""Settings: nested YAML to dataclasses, overrides, and errors that name the key."""

from dataclasses import dataclass
from typing import Any

import pytest

from cogvideo.config import ModelConfig, from_dict, load_yaml, to_dict
from cogvideo.errors import CogVideoError


@dataclass(frozen=True)
class Part:
    lr: float
    betas: tuple[float, ...] = (0.9,)
    name: str | None = None


@dataclass(frozen=True)
class Whole:
    part: Part
    steps: int = 1


def read(tmp_path, text, overrides=()):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return from_dict(Whole, load_yaml(path, list(overrides)), path.name)


def test_values_and_overrides(tmp_path):
    whole = read(tmp_path, "part: {lr: 2e-3, betas: [1, 2.5]}", ["steps=7", "part.name=x"])
    assert whole == Whole(Part(0.002, (1.0, 2.5), "x"), 7)
    assert from_dict(Whole, to_dict(whole), "again") == whole


@pytest.mark.parametrize(
    "text, overrides, message",
    [
        ("part: {lr: 1, lrr: 2}", [], "lrr"),
        ("part: {lr: fast}", [], "lr must be of type float"),
        ("part: {}", [], "lr"),
        ("part: 3", [], "Part"),
        ("steps: [1", [], "YAML"),
        ("- 1", [], "keys and values"),
        ("part: {lr: 1}", ["steps"], "key=value"),
        ("part: {lr: 1}", ["steps=true"], "steps must be of type int"),
        ("part: {lr: 1}", ["part.lr.x=1"], "lr"),
    ],
)
def test_mistakes_are_named(tmp_path, text, overrides, message):
    with pytest.raises(CogVideoError, match=message):
        read(tmp_path, text, overrides)


def test_a_missing_file_is_named():
    with pytest.raises(CogVideoError, match="nowhere.yaml"):
        load_yaml("nowhere.yaml")


def test_contradictory_geometry_is_refused():
    fine: dict[str, Any] = dict(
        num_layers=1, hidden_size=8, num_heads=2, frame_height=2, frame_width=2, num_frames=1,
        text_length=2, first_frame_position=2, image_tokens=4, vocab_size=8, begin_of_image=7,
        base_positions=6, temporal=False,
    )  # fmt: skip
    ModelConfig(**fine)
    for change in (
        {"num_heads": 3},
        {"base_positions": 5},
        {"num_frames": 2},
        {"order": "backwards"},
        {"num_frames": 3, "temporal": True},
    ):
        with pytest.raises(CogVideoError):
            ModelConfig(**(fine | dict[str, Any](change)))
