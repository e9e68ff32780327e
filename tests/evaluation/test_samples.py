"""Samples for the paper's protocols on small data sets: classes as prompts, prediction in windows."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from sampling.test_decode import tiny

from cogvideo.data.classes import class_prompts, words
from cogvideo.data.reading import fit
from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation import samples
from cogvideo.evaluation.recipes import choose_clip, find_recipe
from cogvideo.evaluation.samples import predict_frames
from cogvideo.evaluation.sources import open_side
from cogvideo.sampling.decode import generate_key_frames
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.dataset import one_clip
from cogvideo.theatre.dataset import pixels as draw
from cogvideo.theatre.scenes import FPS

PROMPT = "a lion drinks milk"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))


def clip(seed: int, frames: int = 18) -> np.ndarray:
    """A real clip of the demo world, uint8 [frames,64,64,3]."""
    return draw(one_clip("train", seed, 0), np.arange(frames) / FPS)


def ucf101(folder: Path, counts: dict[str, int], frames: int = 18) -> Path:
    """Videos in class folders; the training split holds all but the first of each class."""
    lines = []
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            stem = f"v_{name}_g{i + 1:02d}_c01"
            write_video(folder / name / f"{stem}.mp4", clip(10 * number + i, frames), FPS)
            lines += [f"{name}/{stem}.avi {number + 1}\n"] if i else []
    (folder / "trainlist01.txt").write_text("".join(lines))
    return folder


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("YoYo", "yo yo"),
        ("Archery", "archery"),
        ("HandstandPushups", "handstand pushups"),
        ("riding a bike", "riding a bike"),
        ("using_remote_controller_(not_gaming)", "using remote controller (not gaming)"),
        ("playing TV", "playing tv"),
    ],
)
def test_classes_become_words(name, text):
    assert words(name) == text


def test_own_prompts(tmp_path):
    classes = ["TaiChi", "YoYo"]
    (tmp_path / "a.json").write_text(json.dumps({"TaiChi": "打太极", "YoYo": "玩悠悠球"}), "utf-8")
    (tmp_path / "a.csv").write_text("class,prompt\nYoYo,玩悠悠球\nTaiChi,打太极\n", "utf-8-sig")
    assert class_prompts(classes, tmp_path / "a.json") == class_prompts(classes, tmp_path / "a.csv")
    assert class_prompts(classes, tmp_path / "a.csv")["TaiChi"] == "打太极"
    with pytest.raises(CogVideoError, match="no prompt for Archery"):
        class_prompts(["Archery", "YoYo"], tmp_path / "a.json")
    (tmp_path / "b.csv").write_text("YoYo,a,b\n")
    (tmp_path / "b.json").write_text("[1]")
    for wrong in ("b.csv", "b.json"):
        with pytest.raises(CogVideoError, match="must be JSON"):
            class_prompts(classes, tmp_path / wrong)
    with pytest.raises(CogVideoError, match="cannot be read"):
        class_prompts(classes, tmp_path / "none.csv")


def test_classes_are_drawn_in_the_proportion_of_the_split(tmp_path, monkeypatch):
    folder = ucf101(tmp_path / "ucf", {"TaiChi": 4, "YoYo": 2, "Archery": 1}, frames=1)
    made = []
    monkeypatch.setattr(
        samples,
        "sampler",
        lambda _, prompts, __: lambda some: made.extend(prompts[i] for i in some) or [None] * len(some),
    )
    side = open_side(f"ucf101-samples:{folder}?weights=demo&split=trainlist01.txt", 400, progress=False)
    counts = Counter(side.prompts.values())
    assert set(counts) == {"tai chi", "yo yo"}  # Archery is in the test split alone
    assert abs(counts["tai chi"] - 300) < 4 * (400 * 0.75 * 0.25) ** 0.5
    assert made == []  # sides are opened before the work, so that mistakes are told first
    side.make()
    assert made == [side.prompts[name] for name in side.names]
    fewer = open_side(f"ucf101-samples:{folder}?weights=demo&split=trainlist01.txt", 7, progress=False)
    assert fewer.names == side.names[:7]
    whole = open_side(f"ucf101-samples:{folder}?weights=demo", 400, progress=False)
    assert set(whole.prompts.values()) == {"tai chi", "yo yo", "archery"}
    assert (
        open_side(f"ucf101-samples:{folder}?weights=demo", 400, seed=1, progress=False).names != whole.names
    )


def test_tokens_are_those_of_frames_one_by_one(pipe):
    frames = np.stack([clip(0, 3), clip(1, 3)])
    tokens = pipe.tokens(frames)
    for i, t in np.ndindex(2, 3):
        pixels = rearrange(torch.from_numpy(frames[i, t]).float() / 255, "h w c -> 1 c h w")
        assert torch.equal(tokens[i, t], pipe.frames.encode(pixels).flatten())
    assert pipe.pixels(tokens).shape == frames.shape
    assert np.abs(pipe.pixels(tokens).astype(int) - frames).mean() < 8


def test_given_frames_come_back_and_all_are_made(pipe):
    given = np.stack([clip(0)[:5], clip(1)[:5]])
    made = predict_frames(pipe, given, [PROMPT] * 2, frames=3, seed=0)
    assert made.shape == (2, 8, 64, 64, 3) and made.dtype == np.uint8
    assert np.array_equal(made[:, :5], given)
    assert made[:, 5:].max() > 100  # something is to be seen


def test_prediction_depends_on_its_own_seed_alone(pipe):
    given = np.stack([clip(0)[:5], clip(1)[:5]])
    pipe = pipe.with_sampling(
        temperature=1.0, top_k=100
    )  # the demo's own settings hardly ever draw another token
    both = predict_frames(pipe, given, [PROMPT, "a bear eats an apple"], frames=3, seed=[4, 5])
    again = predict_frames(pipe, given, [PROMPT, "a bear eats an apple"], frames=3, seed=[4, 5])
    alone = predict_frames(pipe, given[1:], ["a bear eats an apple"], frames=3, seed=5)
    other = predict_frames(pipe, given[1:], ["a bear eats an apple"], frames=3, seed=6)
    assert np.array_equal(both, again) and np.array_equal(both[1:], alone)
    assert not np.array_equal(alone, other)


@pytest.mark.parametrize("overlap", [1, 3, 4])
def test_windows_slide_over_tokens(pipe, overlap):
    """A slow oracle: every window is made by hand of the tokens before it."""
    given = clip(2)[None, :5]
    made = predict_frames(pipe, given, [PROMPT], frames=4, seconds=1.0, seed=3, overlap=overlap)
    tokens = pipe.tokens(given)
    window = 0
    while tokens.shape[1] < 9:
        sequence = pipe.later_key_frame_tokens(tokens[:, -overlap:], [PROMPT], 1.0, 3000 + window)
        assert torch.equal(sequence[:, :overlap], tokens[:, -overlap:])
        tokens = torch.cat([tokens, sequence[:, overlap:]], 1)
        window += 1
    assert window == {1: 1, 3: 2, 4: 4}[overlap]
    assert np.array_equal(made[:, 5:], pipe.pixels(tokens[:, 5:9]))
    assert torch.equal(tokens[:, :5], pipe.tokens(given))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("wavefront", [False, True])
@pytest.mark.parametrize("given", [1, 2, 4])
@torch.no_grad()
def test_a_sequence_goes_on_from_any_of_its_frames(window, wavefront, given):
    """Against the training forward: each token drawn is the best that it sees after the frames before."""
    model, text = tiny("sequential", window), torch.tensor([[11, 12, 13], [14, 15, 16]])
    first = torch.randint(10, (2, given, 12), generator=torch.Generator().manual_seed(0))

    def best(logits, step):
        return logits.argmax(-1)

    clips = generate_key_frames(model, text, first, strategy=best, wavefront=wavefront)
    assert torch.equal(clips[:, :given], first)
    logits = model(text, clips)[:, given * 12 :]
    assert torch.equal(clips[:, given:].flatten(1), logits.argmax(-1))


def test_sequences_without_room_are_refused():
    with pytest.raises(CogVideoError, match="1 to 4 frames to begin with, not 5"):
        generate_key_frames(
            tiny("sequential", None),
            torch.tensor([[12]]),
            torch.zeros(1, 5, 12).long(),
            strategy=torch.argmax,
        )


def test_windows_that_do_not_fit_are_refused(pipe):
    for overlap in (0, 5):
        with pytest.raises(CogVideoError, match="overlap by 1 to 4"):
            predict_frames(pipe, clip(0)[None, :5], [PROMPT], overlap=overlap)
    with pytest.raises(CogVideoError, match="overlap by 1 to 2"):
        predict_frames(pipe, clip(0)[None, :2], [PROMPT], overlap=3)


def test_frames_of_another_size_are_cropped_at_the_centre():
    ramp = np.zeros((2, 32, 96, 3), np.uint8)
    ramp[..., 0] = 2 * np.arange(96)
    square = fit(ramp, 32, 32)
    assert np.array_equal(square, ramp[:, :, 32:64])
    small = fit(ramp, 16, 16)  # antialiased: weights 1 3 3 1 over columns, but at the border
    assert small.shape == (2, 16, 16, 3) and np.array_equal(small[0, 0, 1:-1, 0], np.arange(69, 124, 4))
    assert fit(ramp, 64, 64).shape == (2, 64, 64, 3)
    assert fit(ramp, 32, 96) is ramp


def kinetics(folder: Path) -> Path:
    """Two classes of two videos each in sizes of their own, and a split of three of them."""
    for number, name in enumerate(("playing chess", "zumba")):
        (folder / name).mkdir(parents=True)
        for i in range(2):
            frames = clip(7 * number + i, 20)
            frames = frames if i else np.pad(frames, ((0, 0), (0, 0), (8, 8), (0, 0)))
            write_video(folder / name / f"id{number}{i}_000010_000020.mp4", frames, FPS)
    rows = [f"{name},id{number}{i},10,20,test\n" for number, name in enumerate("ab") for i in range(2)]
    (folder / "test.csv").write_text("label,youtube_id,time_start,time_end,split\n" + "".join(rows[:3]))
    return folder


def test_predictions_follow_the_clips_of_the_real_side(tmp_path, pipe, monkeypatch):
    folder = kinetics(tmp_path / "k600")
    real = open_side(f"kinetics:{folder}?split=test.csv", 3, seed=2)
    side = open_side(
        f"kinetics-predictions:{folder}?split=test.csv&weights=demo&overlap=4", 3, seed=2, progress=False
    )
    assert len(side.names) == len(real.names) == 3
    for i, (name, original) in enumerate(zip(side.names, real.names, strict=True)):
        frames = side.read(name)
        assert frames.shape == (16, 64, 64, 3) and side.prompts[name] == words(Path(original).parent.name)
        chosen = choose_clip(
            real.read(original), find_recipe("paper-kinetics"), np.random.default_rng([2, i])
        )
        assert np.array_equal(frames[:5], fit(chosen[:5], 64, 64))
    monkeypatch.setattr(samples, "predict_frames", lambda *_, **__: pytest.fail("made anew"))
    again = open_side(
        f"kinetics-predictions:{folder}?split=test.csv&weights=demo&overlap=4", 2, seed=2, progress=False
    )
    assert np.array_equal(again.read(again.names[1]), side.read(side.names[1]))


def test_unreadable_and_short_videos(tmp_path, monkeypatch):
    monkeypatch.setattr(
        samples, "predict_frames", lambda pipe, given, *_, **__: np.repeat(given, 4, 1)[:, :16]
    )
    folder = kinetics(tmp_path / "k600")
    (folder / "zumba" / "id11_000010_000020.mp4").write_bytes(b"damaged")
    side = open_side(f"kinetics-predictions:{folder}?weights=demo", 4, progress=False)
    messages = []
    for name in side.names:
        try:
            side.read(name)
        except CogVideoError as error:
            messages.append(str(error))
    assert len(messages) == 1 and "id11" in messages[0]
    write_video(folder / "zumba" / "short.mp4", clip(0, 10), FPS)
    with pytest.raises(CogVideoError, match="has 10 frames and preset paper-kinetics takes 16"):
        open_side(f"kinetics-predictions:{folder}?weights=demo", 5, seed=1, progress=False).make()


def test_labels_of_a_flat_folder(tmp_path, monkeypatch):
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in kinetics(tmp_path / "k600").rglob("id*.mp4"):
        file.rename(flat / file.name)
    (tmp_path / "k600" / "test.csv").rename(flat / "test.csv")
    side = open_side(f"kinetics-predictions:{flat}?weights=demo&split=test.csv", 3, progress=False)
    assert sorted(side.prompts.values()) == ["a", "a", "b"]
    with pytest.raises(CogVideoError, match="class of .* is unknown"):
        open_side(f"kinetics-predictions:{flat}?weights=demo", 3, progress=False)


def test_samples_of_own_captions(tmp_path):
    """Each caption is one of the data's, a larger n only adds, and clips without a caption are left out."""
    rows = [{"path": "a.mp4", "caption": text} for text in ("a lion drinks milk", " ", "a rabbit eats")]
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    spec = f"samples:{tmp_path}?weights=demo&seconds=1"
    many, few = (open_side(spec, n, progress=False) for n in (40, 5))
    assert set(many.prompts.values()) == {"a lion drinks milk", "a rabbit eats"} and len(many.names) == 40
    assert [Path(name).name for name in few.names] == [Path(name).name for name in many.names[:5]]
    with pytest.raises(CogVideoError, match="not trained"):
        open_side(spec.replace("=1", "=3"), 5)
    with pytest.raises(CogVideoError, match="does not name weights"):
        open_side(f"samples:{tmp_path}", 5)
