"""The demo world: what the truth says is what the pixels show; splits, determinism, and clips on disk."""

import itertools
import json
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cogvideo.errors import CogVideoError
from cogvideo.theatre.dataset import REST, make_digits
from cogvideo.theatre.digits import (
    ACTION_NAMES,
    ACTIONS,
    ADVERBS,
    COLOR_NAMES,
    COLORS,
    DURATIONS,
    FADE_START,
    FRAME_SIZE,
    LARGE,
    SHAPES,
    SMALL,
    SPANS,
    STAGES,
    Clips,
    World,
    _glyphs,
    is_held_out,
    object_states,
    random_frames,
    render,
    sample_clips,
)
from cogvideo.tokenizers.text import TRAINED_SECONDS

WORLDS = [World(glyphs, objects) for glyphs in ("clean", "handwriting", "shapes") for objects in (1, 2)]
DURATION_OF = {"quickly": 1.0, "": 2.0, "slowly": 4.0, "very slowly": 8.0}


def clips_of(world: World, n: int = 300, split: str = "train", seed: int = 0) -> Clips:
    return sample_clips(n, np.random.default_rng(seed), split=split, world=world)


def fractions(clips: Clips, shares) -> np.ndarray:
    """Times [n, T] at these shares of each clip's longest action."""
    return clips.duration.max(1, keepdims=True) * np.asarray(shares)[None]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_a_seed_draws_the_same_clips_and_pixels(world):
    once, again, other = (clips_of(world, 6, seed=seed) for seed in (5, 5, 6))
    fields = ("kind", "color", "action", "duration", "x", "y", "scan")
    assert all((getattr(once, f) == getattr(again, f)).all() for f in fields)
    assert any((getattr(once, f) != getattr(other, f)).any() for f in fields)
    times = fractions(once, [0, 0.4])
    assert torch.equal(render(once, times), render(again, times))
    assert torch.equal(random_frames(5, 3, world=world), random_frames(5, 3, world=world))


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_train_never_draws_a_held_out_combination_and_test_does(world):
    train, test = (clips_of(world, 3000, split) for split in ("train", "test"))
    assert not is_held_out(train.kind, train.color, train.action).any()
    assert 0.05 < is_held_out(test.kind, test.color, test.action).mean() < 0.14  # one in eleven
    pictures = sample_clips(len(train), np.random.default_rng(0), world=world, all_combinations=True)
    assert pictures.split == "train" and is_held_out(pictures.kind, pictures.color, pictures.action).any()
    for field, choices in (("kind", world.names), ("color", COLORS), ("action", ACTIONS)):
        assert set(np.unique(getattr(train, field))) == set(range(len(choices)))
    assert set(np.unique(train.duration)) == set(DURATIONS)


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_no_word_of_train_is_rare(world):
    train = clips_of(world, 4000)
    for field, choices in (("kind", len(world.names)), ("color", len(COLORS)), ("action", len(ACTIONS))):
        shares = np.bincount(getattr(train, field).ravel(), minlength=choices) / train.kind.size
        assert shares.min() > 0.6 / choices and shares.max() < 1.6 / choices


def test_handwriting_of_test_is_never_in_train():
    train, test = _glyphs("handwriting", "train", 10_000), _glyphs("handwriting", "test", 10_000)
    assert train.shape[0] > 100 and test.shape[0] > 20  # that many scans of every digit
    seen = {scan.tobytes() for scan in train.reshape(-1, 96 * 96)}
    assert not seen & {scan.tobytes() for scan in test.reshape(-1, 96 * 96)}


def test_handwriting_shows_the_digit_that_the_caption_says():
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    images, labels = load_digits(return_X_y=True)
    scans = torch.from_numpy(_glyphs("handwriting", "test", 20))
    small = F.interpolate(scans, size=(10, 10), mode="area")[:, :, 1:-1, 1:-1].reshape(-1, 64) * 16
    guess = KNeighborsClassifier(3).fit(images[:1500], labels[:1500]).predict(small.numpy())
    assert (guess == np.tile(np.arange(10), len(scans))).mean() > 0.9


def oracle(caption: str, time: float) -> dict[str, float]:
    """How far a clip with this caption has come, by its words alone: shift in px, scale, degrees, brightness, part."""
    _, _, _, rest = caption.split(" ", 3)
    action = max((name for name in ACTIONS if rest.startswith(name)), key=len)
    part = min(1.0, time / DURATION_OF[rest.removeprefix(action).strip()])
    state = {"x": 0.0, "y": 0.0, "scale": 1.0, "degrees": 0.0, "brightness": 1.0, "part": part}
    if action == "moves left":
        state["x"] = -32 * part
    elif action == "moves right":
        state["x"] = 32 * part
    elif action == "moves up":
        state["y"] = -32 * part
    elif action == "moves down":
        state["y"] = 32 * part
    elif action == "bounces":
        state["y"] = 64 * part if part < 0.5 else 64 * (1 - part)
    elif action == "grows":
        state["scale"] = SMALL + (LARGE - SMALL) * part
    elif action == "shrinks":
        state["scale"] = LARGE - (LARGE - SMALL) * part
    elif action == "turns":
        state["degrees"] = 90 * part
    elif action == "fades in":
        state["brightness"] = FADE_START + (1 - FADE_START) * part
    return state


def test_states_follow_the_caption():
    """At any moment a state is the one that was reached last: less than a step behind what the words say, never ahead."""
    clips = clips_of(World(), 400, "test")
    times = np.random.default_rng(1).uniform(0, 9, (400, 7))
    states = object_states(clips, times)
    step = {
        "x": 4,
        "y": 4,
        "scale": (LARGE - SMALL) / 4,
        "degrees": 90 / 4,
        "brightness": (1 - FADE_START) / 4,
    }
    for i, t in np.ndindex(times.shape):
        start, wanted = (oracle(clips.caption(i), time) for time in (0.0, float(times[i, t])))
        assert states["part"][i, t, 0] == wanted["part"]
        for key, size in step.items():
            origin = getattr(clips, key)[i, 0] if key in "xy" else 0.0
            behind = (wanted[key] + origin - states[key][i, t, 0]) * np.sign(wanted[key] - start[key])
            rising = "bounces" in clips.caption(i) and wanted["part"] > 0.5  # on the way back
            assert -1e-9 <= (-behind if rising else behind) < size, (clips.caption(i), key)


def test_states_are_exact_at_the_shares_that_key_frames_meet():
    clips = clips_of(World(), 300, "test")
    states = object_states(clips, fractions(clips, STAGES))
    for i, (t, share) in itertools.product(range(300), enumerate(STAGES)):
        wanted = oracle(clips.caption(i), share * clips.duration[i, 0])
        wanted |= {"x": wanted["x"] + clips.x[i, 0], "y": wanted["y"] + clips.y[i, 0]}
        assert all(abs(states[key][i, t, 0] - value) < 1e-9 for key, value in wanted.items()), clips.caption(
            i
        )


def test_five_frames_show_the_part_of_the_action_that_their_span_holds():
    clips = clips_of(World(), 200)
    for span in SPANS:
        last = object_states(clips, np.full((200, 1), span))["part"][:, 0, 0]
        assert np.array_equal(last, np.minimum(1, span / clips.duration[:, 0]))
    assert all(
        clips.span(i) == clips.duration[i, 0] for i in range(200)
    )  # the shortest span with the whole action
    pairs = clips_of(World(objects=2), 100)
    assert all(pairs.span(i) == pairs.duration[i].max() for i in range(100))
    assert SPANS == TRAINED_SECONDS  # the text model writes each of them as one piece


def ink(frames: torch.Tensor) -> torch.Tensor:
    """Frames [n,T,3,H,W] -> brightness [n,T,H,W] whose largest value is 1."""
    light = frames.sum(2)
    return light / light.amax((-1, -2), keepdim=True)


def test_symmetric_shapes_have_their_centroid_where_the_truth_says():
    clips = clips_of(World("shapes"), 60, "test")
    clips = Clips(
        **{**vars(clips), "kind": np.where(clips.kind == list(SHAPES).index("triangle"), 0, clips.kind)}
    )
    times = fractions(clips, [0, 0.3, 0.5, 1.2])
    light, states = ink(render(clips, times)), object_states(clips, times)
    places = torch.arange(FRAME_SIZE) + 0.5  # centres of pixels
    total = light.sum((-1, -2))
    x, y = (light.sum(-2) * places).sum(-1) / total, (light.sum(-1) * places).sum(-1) / total
    assert np.abs(x.numpy() - states["x"][..., 0]).max() < 1
    assert np.abs(y.numpy() - states["y"][..., 0]).max() < 1


def test_digits_stand_where_the_truth_says():
    clips = clips_of(World("clean"), 40, "test")
    times = fractions(clips, [0, 0.3, 0.5, 1.2])
    inked, states = ink(render(clips, times, 192)) > 0.5, object_states(clips, times)
    upright = clips.action[:, 0] != ACTION_NAMES.index("turns")
    for axis, key in ((-2, "x"), (-1, "y")):
        line = inked.any(axis).float()  # [n, T, 192]
        first, last = line.argmax(-1), 191 - line.flip(-1).argmax(-1)
        middle = (first + last + 1).numpy() / 2 / 3
        assert np.abs(middle - states[key][..., 0])[upright].max() < 1


def test_sizes_colours_and_brightness_are_those_of_the_truth():
    clips = clips_of(World("shapes"), 60, "test")
    circle, action = np.zeros_like(clips.kind), np.arange(60)[:, None] % len(ACTIONS)
    clips = Clips(**{**vars(clips), "kind": circle, "action": action, "x": circle + 32, "y": circle + 32})
    times = fractions(clips, [0, 0.25, 1.0])
    frames, states = render(clips, times), object_states(clips, times)
    area = ink(frames).sum((-1, -2)).numpy()
    expected = math.pi * (0.9 * 12 * states["scale"][..., 0]) ** 2
    inside = (states["x"][..., 0] > 12) & (states["x"][..., 0] < 52) & (abs(states["y"][..., 0] - 32) < 20)
    assert inside.mean() > 0.7 and np.abs(area / expected - 1)[inside].max() < 0.05
    for i, t in np.ndindex(times.shape):
        color = torch.tensor(COLORS[COLOR_NAMES[clips.color[i, 0]]][1]) / 255 * states["brightness"][i, t, 0]
        assert (frames[i, t].amax((-1, -2)) - color).abs().max() < 1.5 / 255


def test_turning_is_clockwise_by_a_quarter():
    clips = clips_of(World("clean"), 10, "test")
    seven = {"kind": np.full((10, 1), 7), "action": np.full((10, 1), ACTION_NAMES.index("turns"))}
    centre = {"x": np.full((10, 1), 32), "y": np.full((10, 1), 32)}
    clips = Clips(**{**vars(clips), **seven, **centre})
    before, after = render(clips, fractions(clips, [0, 1])).unbind(1)
    assert (torch.rot90(before, -1, (-2, -1)) - after).abs().mean() < 0.005


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_small_frames_are_averages_of_the_enlarged_ones(world):
    clips = clips_of(world, 8)
    times = fractions(clips, [0, 0.37, 1])
    small, large = render(clips, times), render(clips, times, 192)
    assert small.shape == (8, 3, 3, 64, 64) and large.shape == (8, 3, 3, 192, 192)
    pooled = F.avg_pool2d(large.flatten(0, 1), 3).view_as(small)
    if world.objects == 1:
        assert (pooled - small).abs().max() <= 1 / 255 + 1e-6
    assert (pooled - small).abs().mean() < 1e-3  # where two objects cross, their soft edges mix otherwise
    assert torch.equal((small * 255).round() / 255, small) and small.min() >= 0 and small.max() <= 1


@pytest.mark.parametrize("world", WORLDS, ids=str)
@pytest.mark.parametrize("split", ["train", "test"])
def test_objects_stay_inside_the_frame_all_the_time(world, split):
    clips = clips_of(world, 2000, split)
    states = object_states(clips, fractions(clips, np.linspace(0, 1.25, 41)))
    turning = np.deg2rad(states["degrees"])
    half = 12 * states["scale"] * (np.cos(turning) + np.sin(turning))  # of the box around a turned box
    for key in ("x", "y"):
        assert (states[key] - half).min() >= 0 and (states[key] + half).max() <= FRAME_SIZE


@pytest.mark.parametrize("glyphs", ["clean", "handwriting", "shapes"])
def test_no_ink_is_lost_at_the_border(glyphs):
    clips = clips_of(World(glyphs), 60, "test")
    moving = clips.action[:, 0] < ACTION_NAMES.index("grows")
    mass = render(clips, fractions(clips, np.linspace(0, 1, 9))).sum((2, 3, 4))[torch.from_numpy(moving)]
    assert ((mass / mass[:, :1] - 1).abs() < 0.02).all()


@pytest.mark.parametrize("glyphs", ["clean", "handwriting", "shapes"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_two_objects_do_not_overlap_at_the_beginning(glyphs, split):
    clips = clips_of(World(glyphs, 2), 200, split)
    start = np.zeros((200, 1))
    both = render(clips, start)

    def alone(o):
        fields = {
            key: value[:, o : o + 1] for key, value in vars(clips).items() if isinstance(value, np.ndarray)
        }
        return render(Clips(**fields, world=World(glyphs), split=split), start)

    first, second = alone(0), alone(1)
    assert not ((first.amax(2) > 0) & (second.amax(2) > 0)).any()
    assert torch.equal(both, first + second)


def test_every_pair_of_actions_is_drawn_for_two_objects():
    clips = clips_of(World(objects=2), 5000)
    counts = np.zeros((9, 9), int)
    np.add.at(counts, (clips.action[:, 0], clips.action[:, 1]), 1)
    assert counts.min() > 25  # about 62 of each


def test_captions_say_the_truth_in_both_languages():
    clips = clips_of(World(), 200, "test")
    for i in range(200):
        color, action = COLOR_NAMES[clips.color[i, 0]], ACTION_NAMES[clips.action[i, 0]]
        adverb_en, adverb_zh = ADVERBS[clips.duration[i, 0]]
        assert clips.caption(i) == " ".join(f"a {color} {clips.kind[i, 0]} {action} {adverb_en}".split())
        assert (
            clips.caption(i, "zh")
            == f"一个{COLORS[color][0]}的{clips.kind[i, 0]}{adverb_zh}{ACTIONS[action]}"
        )
        assert clips.caption(i, told=False) == f"a {color} {clips.kind[i, 0]}"
        assert clips.caption(i, "zh", told=False) == f"一个{COLORS[color][0]}的{clips.kind[i, 0]}"
    pairs = clips_of(World("shapes", 2), 20)
    assert all(re.fullmatch(r"a \w+ \w+ .+ and a \w+ \w+ .+", pairs.caption(i)) for i in range(20))
    assert all(pairs.caption(i, "zh").count("一个") == 2 for i in range(20))


def test_wrong_worlds_splits_and_sizes_are_refused():
    for wrong in (
        lambda: World("letters"),
        lambda: World(objects=3),
        lambda: clips_of(World(), 1, "validation"),
    ):
        with pytest.raises(CogVideoError):
            wrong()
    with pytest.raises(CogVideoError, match="64 or 192"):
        render(clips_of(World(), 1), np.zeros((1, 1)), 100)


def lines(captions) -> list[dict]:
    return [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]


def test_make_digits_writes_clips_and_their_truth(tmp_path):
    av = pytest.importorskip("av", reason="PyAV reads the files again")
    captions = make_digits(
        tmp_path / "a" / "b", clips=2, seed=254, split="test", world=World("shapes", 2), progress=False
    )
    records = lines(captions)
    assert sorted(p.name for p in captions.parent.iterdir()) == [
        *(f"{i:06d}.mp4" for i in range(2)),
        "captions.jsonl",
        "dataset.json",
    ]
    for i, record in enumerate(records):
        clip = sample_clips(1, np.random.default_rng([254, i]), split="test", world=World("shapes", 2))
        assert (record["file"], record["index"], record["seed"]) == (f"{i:06d}.mp4", i, 254)
        assert (record["caption"], record["caption_zh"]) == (clip.caption(0), clip.caption(0, "zh"))
        assert record["span"] == clip.span(0) and record["seconds"] == clip.duration.max() + REST
        for o, truth in enumerate(record["objects"]):
            assert truth["name"] in SHAPES and truth["action"] in ACTIONS and truth["color"] in COLORS
            assert (truth["start"], truth["duration"]) == (0.0, clip.duration[0, o])
            assert (truth["x"], truth["y"], truth["scan"]) == (clip.x[0, o], clip.y[0, o], clip.scan[0, o])
            assert truth["held_out"] == is_held_out(clip.kind[0, o], clip.color[0, o], clip.action[0, o])
        with av.open(str(captions.parent / record["file"])) as video:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
            assert video.streams.video[0].average_rate == 8
        steps = np.arange(round(record["seconds"] * 8) + 1)
        expected = render(clip, steps[None] / 8, 192)[0].permute(0, 2, 3, 1).numpy() * 255
        assert frames.shape == expected.shape and np.abs(frames - expected).mean() < 6


def test_make_digits_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    arguments = {"clips": 4, "seed": 1, "seconds": 0.5, "size": 64, "progress": False}
    whole = make_digits(tmp_path / "whole", **arguments)

    import cogvideo.data.video

    write, written = cogvideo.data.video.write_video, []

    def dies_at_the_third(path, frames, fps):
        written.append(path)
        if len(written) == 3:
            path.with_name(f".{path.stem}.99.mp4").write_bytes(b"what a killed write_video leaves")
            raise KeyboardInterrupt
        return write(path, frames, fps)

    monkeypatch.setattr(cogvideo.data.video, "write_video", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "stopped", **arguments)
    names = sorted(p.name for p in (tmp_path / "stopped").iterdir())
    assert names == [
        ".000002.99.mp4",
        "000000.mp4",
        "000001.mp4",
        "dataset.json",
    ]  # no list of clips that are missing
    (tmp_path / "stopped" / "captions.jsonl.0a1b2c3d.part").write_text("what a killed write_text leaves")
    make_digits(tmp_path / "stopped", **arguments)
    assert len(written) == 5  # two, the one that failed, and the two that were left
    assert len(list((tmp_path / "stopped").iterdir())) == 6
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "stopped" / path.name).read_bytes() == path.read_bytes()

    times = {path.name: path.stat().st_mtime_ns for path in whole.parent.iterdir()}
    make_digits(tmp_path / "whole", **arguments)
    assert len(written) == 5 and times == {
        path.name: path.stat().st_mtime_ns for path in whole.parent.iterdir()
    }

    more = make_digits(tmp_path / "whole", **{**arguments, "clips": 5})
    assert len(written) == 6 and len(lines(more)) == 5


def test_make_digits_refuses_what_it_cannot_do(tmp_path):
    def make(out=tmp_path / "new", **arguments):
        return make_digits(
            out, **{"clips": 1, "seed": 0, "seconds": 0.25, "size": 64, "progress": False, **arguments}
        )

    for wrong in (
        {"clips": -1},
        {"seed": -1},
        {"seconds": 0},
        {"seconds": 61},
        {"size": 100},
        {"split": "dev"},
    ):
        with pytest.raises(CogVideoError):
            make(**wrong)
        assert not (tmp_path / "new").exists()  # nothing half-written
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CogVideoError, match="cannot be written"):
        make(tmp_path / "file")
    with pytest.raises(CogVideoError, match="cannot be written"):
        make(tmp_path / "file" / "below")
    make()
    with pytest.raises(CogVideoError, match="other arguments"):
        make(seed=1)
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "holiday.mp4").write_bytes(b"")
    with pytest.raises(CogVideoError, match="empty folder"):
        make(tmp_path / "album")
    assert make(tmp_path / "none", clips=0).read_text() == ""
