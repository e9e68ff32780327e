"""Batches of the theatre: which frames each stage is shown; a step always gives the same batch."""

import numpy as np
import pytest
import torch
from einops import rearrange

from cogvideo import CogVideoError
from cogvideo.checkpoints.registry import DEMO
from cogvideo.theatre import batches as data
from cogvideo.theatre.batches import FIXED_SPAN, TheatreBatches, clip_times
from cogvideo.theatre.drawing import render
from cogvideo.theatre.scene_tokens import SceneTokens
from cogvideo.theatre.scenes import SPANS, groups, sample_clips, states
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import UNGUIDED_PROMPT, TextTokenizer


@pytest.fixture(scope="module")
def tokenizers():
    frames = FrameTokenizer.load(DEMO / "tokenizers" / "frames.safetensors")
    return TextTokenizer(DEMO / "tokenizers" / "text.model", frames.num_codes), frames


@pytest.fixture(scope="module")
def batches(tokenizers):
    """batches(stage, size, ...): all share one table of tokens."""
    text, frames = tokenizers
    scenes = SceneTokens(frames)

    def make(stage: str, size: int, seed: int = 0, **more) -> TheatreBatches:
        return TheatreBatches(stage, size, text=text, frames=frames, seed=seed, scenes=scenes, **more)

    return make


def drawn(stage: str, n: int = 400):
    rng = np.random.default_rng(0)
    clips = sample_clips(n, rng)
    times, spans = clip_times(stage, clips, rng)
    return clips, times, spans


def test_key_frames_span_the_whole_action_or_less_or_anything():
    clips, times, spans = drawn("sequential", 4000)
    assert times.shape == (4000, 5) and np.all(times[:, 0] == 0)
    assert np.allclose(times, np.array(spans)[:, None] * np.linspace(0, 1, 5)) and set(spans) == set(SPANS)
    ratios = np.array(spans) / clips.duration
    share = {ratio: np.mean(ratios == ratio) for ratio in np.unique(ratios)}
    whole = share.pop(1.0)
    shorter = sum(value for ratio, value in share.items() if ratio < 1)
    # Two in ten have any span: of these one in five is the rule's, half are shorter, the others longer.
    assert abs(whole - (data.WHOLE + 0.2 / 5)) < 0.03
    assert data.SHORTER < shorter < data.SHORTER + 0.2 and sum(v for r, v in share.items() if r > 1) > 0.03


def test_interpolation_meets_the_rounds_of_the_sampler():
    """Sequences begin at multiples of their span, inside the action or in the rest just after it; the finer
    rounds are shown more often, and most clips last as long as their action.
    """
    rng = np.random.default_rng(0)
    clips = sample_clips(4000, rng)
    found = data.Sequences.of(clips, rng)
    starts = found.times[:, 0] / found.spans
    assert np.allclose(starts, found.numbers) and np.array_equal(found.places[:, 0], 4 * found.numbers)
    assert np.allclose(np.diff(found.times, axis=1), found.spans[:, None] / 4)
    assert found.times.max() <= 8 and set(found.spans) == set(SPANS[:-1])
    assert np.all(found.times[:, 0] < clips.duration + found.spans)
    whole = found.spans * 2.0**found.rounds  # seconds of the clips that are filled: up to 8 frames a second
    assert set(whole) <= {1, 2, 4, 8} and np.all(whole / found.rounds >= 1) and found.places.max() <= 64
    assert np.all(found.spans >= 0.5) and abs((whole == clips.duration).mean() - (0.7 + 0.3 / 4)) < 0.03
    counts = np.bincount(found.rounds[whole == 8])[1:]
    assert (np.diff(counts) > 0).all() and len(counts) == data.ROUNDS


def test_stage_2s_batches_say_where_in_the_clip_their_frames_stand(batches):
    batch = batches("interpolation", 64)(3)
    rng = np.random.default_rng([0, 3, False])
    clips = sample_clips(64, rng, split="train")
    drawn_again = data.Sequences.of(clips, rng)
    assert batch.places.tolist() == drawn_again.places.tolist()
    assert batch.rounds.tolist() == drawn_again.rounds.tolist()
    octaves = np.log2(drawn_again.spans / clips.duration)
    assert np.allclose(batch.octaves.numpy(), octaves)
    # At octave 0 with the rounds taken back, a frame's place is the part of the action, and so its state.
    exact = octaves + drawn_again.rounds == 0
    part = drawn_again.places / (4 * 2.0 ** drawn_again.rounds[:, None])
    assert exact.sum() > 20
    assert np.array_equal(np.floor(16 * part[exact] + 1e-6), states(clips, drawn_again.times)[exact])


def test_times_of_the_fixed_rate():
    clips, times, spans = drawn("fixed rate", 2000)
    assert set(spans) == {FIXED_SPAN} and np.allclose(times[:, -1] - times[:, 0], FIXED_SPAN)
    for duration in (1, 2, 4, 8):  # pieces of the whole action
        assert set(times[clips.duration == duration, 0]) == set(range(duration))
    clips, times, spans = drawn("fixed interpolation", 2000)
    assert set(spans) == {FIXED_SPAN / 2} and np.allclose(times[:, -1] - times[:, 0], FIXED_SPAN / 2)
    for duration in (1, 2, 4, 8):
        assert set(times[clips.duration == duration, 0]) == set(np.arange(2 * duration) / 2)


def test_times_of_one_stage():
    clips, times, spans = drawn("one stage")
    assert set(spans) == {0.5} and np.allclose(np.diff(times), 1 / 8)
    assert (times[:, 0] <= clips.duration).all() and len(set(times[:, 0])) > 30


def test_unknown_stages_are_named(batches):
    with pytest.raises(CogVideoError, match="'third'"):
        batches("third", 2)(0)


@pytest.fixture(scope="module")
def pictures(batches):
    """A large batch of the image model, and which clips and states [n] it shows."""
    made, seen = batches("image", 3000), []
    tokens = made.scenes

    def remember(clips, shown, size):
        seen.append((clips, shown[:, 0]))
        return tokens(clips, shown, size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CAPTION_DROPOUT", 0.0)
        patch.setattr(made, "scenes", remember)
        batch = made(0)
    return batch, *seen[0]


def read(text, batch, clips) -> np.ndarray:
    """[n,S+1] bool: which texts are the clips' captions under each of SPANS, and without a span."""
    found = np.zeros((len(clips), len(SPANS) + 1), bool)
    for i, (ids, mask) in enumerate(zip(batch.text_ids, batch.text_mask, strict=True)):
        own = ids[mask].tolist()
        for s, span in enumerate([*SPANS, None]):
            found[i, s] = own in [text.encode_prompt(clips.caption(i, name), span) for name in ("en", "zh")]
    return found


def test_the_image_model_is_given_the_phase_of_stage_1s_frames(tokenizers, pictures):
    batch, clips, shown = pictures
    numbers, octaves, duration = batch.numbers.numpy(), batch.octaves.numpy(), clips.duration
    given = numbers > 0
    assert abs(given.mean() - (1 - data.OPENING - data.ANY_PHASE - data.PLACED)) < 0.03
    assert np.bincount(numbers, minlength=5)[1:].min() > 0.2 * given.sum()
    under = read(tokenizers[0], batch, clips)
    assert under.sum(1).tolist() == [1] * len(clips)
    assert not under[given, -1].any()
    span = np.array([*SPANS, np.nan])[under.argmax(1)]
    assert np.array_equal(shown[given], states(clips[given], (span * numbers / 4)[given, None])[:, 0])
    error = octaves[given] - np.log2(span / duration)[given]
    assert 0.06 < error.std() < 0.08 and abs(error).max() < 0.35 and abs(error.mean()) < 0.02


def test_the_image_model_is_given_the_places_of_stage_2s_frames(tokenizers, pictures):
    batch, clips, shown = pictures
    rounds, octaves, duration = batch.rounds.numpy(), batch.octaves.numpy(), clips.duration
    placed = rounds > 0
    assert abs(placed.mean() - data.PLACED) < 0.03 and not batch.numbers.numpy()[placed].any()
    under = read(tokenizers[0], batch, clips)[placed]
    assert not under[:, -1].any()  # all of them have a frame-rate text
    span = np.array(SPANS)[under.argmax(1)]
    times = (span * batch.places.numpy()[placed, 0] / 4)[:, None]
    assert np.array_equal(shown[placed], states(clips[placed], times)[:, 0])
    error = octaves[placed] - np.log2(span / duration[placed])
    assert 0.18 < error.std() < 0.22 and abs(error.mean()) < 0.03
    assert np.bincount(rounds, minlength=5)[1:].min() > 20


def test_pictures_show_every_group(pictures):
    _, clips, _ = pictures
    group = groups()[clips.actor, clips.pair]
    expected = groups()
    for name in ("seen", "unseen", "picture-only"):
        assert abs((group == name).mean() - (expected == name).mean()) < 0.04


def test_first_frames_come_bare_and_no_phase_is_impossible(tokenizers, pictures):
    batch, clips, shown = pictures
    given = (batch.numbers.numpy() > 0) | (batch.rounds.numpy() > 0)
    under = read(tokenizers[0], batch, clips)
    first, others = under[:, -1], under[:, :-1].any(1) & ~given
    assert abs(first.mean() - data.OPENING) < 0.03 and not shown[first].any() and not given[first].any()
    assert abs(others.mean() - data.ANY_PHASE) < 0.03
    assert np.bincount(shown[others], minlength=17).min() > 20


def test_videos_are_of_the_train_split_and_pictures_of_all(batches):
    assert {stage: batches(stage, 2).split for stage in ("sequential", "interpolation", "one stage")} == {
        "sequential": "train", "interpolation": "train", "one stage": "train",
    }  # fmt: skip
    assert batches("image", 2).split == batches("superres", 2).split == "pictures"


def test_a_step_is_repeatable_and_steps_differ(batches):
    def batch(step, split=None):
        return batches("sequential", 6, seed=3)(step, split=split)

    one, again, next_step, test = batch(7), batch(7), batch(8), batch(7, "seen")
    assert torch.equal(one.frames, again.frames) and torch.equal(one.text_ids, again.text_ids)
    assert not torch.equal(one.frames, next_step.frames) and not torch.equal(one.frames, test.frames)


def test_tokens_and_texts_belong_to_the_clips(tokenizers, batches):
    text, frames = tokenizers
    batch = batches("sequential", 40)(0)
    rng = np.random.default_rng([0, 0, False])
    clips = sample_clips(40, rng, split="train")
    times, spans = clip_times("sequential", clips, rng)
    pictures = rearrange(render(clips, times), "b t c h w -> (b t) c h w")
    assert torch.equal(batch.frames, rearrange(frames.encode(pictures), "(b t) h w -> b t (h w)", t=5))
    texts = [
        text.decode(ids[mask].tolist()) for ids, mask in zip(batch.text_ids, batch.text_mask, strict=True)
    ]
    matched = 0
    for i, words in enumerate(texts):
        known = [clips.caption(i, language) for language in ("en", "zh")] + [UNGUIDED_PROMPT]
        encoded = [text.decode(text.encode_prompt(prompt, spans[i])) for prompt in known]
        assert words in encoded
        matched += words != encoded[-1]
    assert matched > 30  # a twentieth of the captions is dropped


def test_super_resolution_pairs_show_the_same_state(tokenizers, batches, monkeypatch):
    """At both sizes the scene is the same; the table of large frames takes long and is not made."""
    made, asked = batches("superres", 4), []

    def remember(clips, shown, size):
        asked.append((clips, shown, size))
        return torch.zeros(len(clips), 1, (size // 8) ** 2, dtype=torch.long)

    monkeypatch.setattr(made, "scenes", remember)
    batch = made(0)
    assert batch.frames.shape == (4, 1, 64)
    assert batch.high_res is not None and batch.high_res.shape == (4, 576)
    (clips, small, one), (others, large, two) = asked
    assert clips is others and np.array_equal(small, large) and (one, two) == (64, 192)


def test_finite_clips_come_again_and_again(batches):
    def beginnings(clips, split=None):
        made = batches("sequential", 8, seed=3, clips=clips)
        firsts = torch.cat([made(step, split=split).frames[:, 0] for step in range(6)])
        return {tuple(first.tolist()) for first in firsts}

    few = beginnings(4)
    assert 2 <= len(few) <= 4 and few == beginnings(4)
    assert len(beginnings(None)) > 30 and len(beginnings(4, "seen")) > 30
    with pytest.raises(CogVideoError, match="0 clips"):
        beginnings(0)
