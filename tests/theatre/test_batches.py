"""Batches of the demo world: which moments each stage is shown, and that a step always gives the same batch."""

import numpy as np
import pytest
import torch
from einops import rearrange

from cogvideo import CogVideoError
from cogvideo.sampling.pipeline import DEMO
from cogvideo.theatre import batches as data
from cogvideo.theatre.batches import DigitsBatches, clip_times
from cogvideo.theatre.digits import ACTION_NAMES, SPANS, World, is_held_out, render, sample_clips
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import UNGUIDED_PROMPT, TextTokenizer


@pytest.fixture(scope="module")
def tokenizers():
    frames = FrameTokenizer.load(DEMO / "tokenizers" / "frames.safetensors")
    return TextTokenizer(DEMO / "tokenizers" / "text.model", frames.num_codes), frames


def moments(stage: str, n: int = 400):
    rng = np.random.default_rng(0)
    clips = sample_clips(n, rng)
    times, spans = clip_times(stage, clips, rng)
    return clips, times, spans


def test_key_frames_span_halves_of_actions_as_often_as_whole_ones():
    clips, times, spans = moments("sequential", 4000)
    assert times.shape == (4000, 5) and np.all(times[:, 0] == 0)
    assert np.allclose(times, np.array(spans)[:, None] * np.linspace(0, 1, 5)) and set(spans) == set(SPANS)
    ratios = np.array(spans) / clips.duration[:, 0]
    share = {ratio: np.mean(ratios == ratio) for ratio in np.unique(ratios)}
    assert 0.25 < share[0.5] < 0.32 and 0.31 < share[1.0] < 0.39 and 0.13 < share[0.25] < 0.19
    assert min(share[0.125], sum(share[r] for r in (2.0, 4.0, 8.0))) > 0.06 and share[0.0625] > 0.02


def test_interpolation_meets_the_rounds_of_the_sampler():
    """Sequences begin at multiples of their span and lie inside a clip of at most eight seconds."""
    _, times, spans = moments("interpolation")
    starts = times[:, 0] / np.array(spans)
    assert np.allclose(starts, starts.round()) and np.allclose(
        np.diff(times, axis=1), np.array(spans)[:, None] / 4
    )
    assert times.max() <= 8 and set(spans) == set(SPANS[:-1])


@pytest.fixture(scope="module")
def pictures(tokenizers):
    """A large batch of the image model, and which clips and moments [n] it shows."""
    text, frames = tokenizers
    batches, drawn = DigitsBatches("image", 3000, text=text, frames=frames, world=World(), seed=0), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CAPTION_DROPOUT", 0.0)
        patch.setattr(batches, "_scenes", lambda clips, times, device: drawn.append((clips, times[:, 0])))
        batch = batches(0)
    return batch, *drawn[0]


def read(text, batch, clips, **how):
    """[n,S+1] bool: which texts are the clips' captions under each of SPANS, and without a span."""
    found = np.zeros((len(clips), len(SPANS) + 1), bool)
    for i, (ids, mask) in enumerate(zip(batch.text_ids, batch.text_mask, strict=True)):
        for s, span in enumerate([*SPANS, None]):
            known = [text.encode_prompt(clips.caption(i, language, **how), span) for language in ("en", "zh")]
            found[i, s] = ids[mask].tolist() in known
    return found


def test_the_image_model_is_told_the_moment_of_stage_1s_frames(tokenizers, pictures):
    batch, clips, times = pictures
    numbers, octaves, duration = batch.numbers.numpy(), batch.octaves.numpy(), clips.duration[:, 0]
    told = numbers > 0
    assert 0.56 < told.mean() < 0.64 and np.bincount(numbers, minlength=5)[1:].min() > 0.2 * told.sum()
    under = read(tokenizers[0], batch, clips)
    span = np.array([*SPANS, np.nan])[under.argmax(1)]
    told &= under[:, :-1].any(
        1
    )  # not the pictures under captions without an action, whose span no text names
    assert 0.38 < told.mean() < 0.46
    assert np.allclose(times[told], (span * numbers / 4)[told])
    error = octaves[told] - np.log2(span / duration)[told]
    assert 0.06 < error.std() < 0.08 and abs(error).max() < 0.35 and abs(error.mean()) < 0.02
    ratios = (span / duration)[told]
    assert np.mean(ratios == 0.5) > 0.24 and np.mean(ratios == 1.0) > 0.3


def test_pictures_show_every_combination_and_tell_no_action(tokenizers, pictures):
    batch, clips, times = pictures
    untold, numbers = read(tokenizers[0], batch, clips, told=False).any(1), batch.numbers.numpy()
    unseen = is_held_out(clips.kind, clips.color, clips.action)[:, 0]
    assert 0.33 < untold.mean() < 0.39 and 0.2 < unseen[untold].mean() < 0.4 and not unseen[~untold].any()
    # Half of them have a moment that is told, up to one number: the span is not named. The others are from
    # any moment.
    part, told = times / clips.duration[:, 0], untold & (numbers > 0)
    assert 0.45 < told.sum() / untold.sum() < 0.55
    error = np.log2(part[told]) - np.log2(numbers[told] / 4) - batch.octaves.numpy()[told]
    assert abs(error).max() < 0.35
    eighths = (part[untold & ~told] * 8).round().astype(int)
    assert np.bincount(eighths, minlength=9).min() > 20


def test_first_frames_come_bare_and_no_moment_is_impossible(tokenizers, pictures):
    batch, clips, times = pictures
    told, under = batch.numbers.numpy() > 0, read(tokenizers[0], batch, clips)
    first, strays = under[:, -1], under[:, :-1].any(1) & ~told
    assert 0.08 < first.mean() < 0.12 and not times[first].any() and not told[first].any()
    assert 0.1 < strays.mean() < 0.14
    eighths = times[strays] / clips.duration[strays, 0] * 8
    assert np.allclose(eighths, eighths.round()) and np.bincount(eighths.astype(int), minlength=9).min() > 20


def test_the_image_model_sees_actions_with_many_states_more_often(tokenizers):
    text, frames = tokenizers
    batches = DigitsBatches("image", 900, text=text, frames=frames, world=World(), seed=0)
    drawn = batches._clips(np.random.default_rng(0), "train").action[:, 0]
    share = dict(zip(ACTION_NAMES, np.bincount(drawn, minlength=9) / len(drawn), strict=True))
    assert abs(share["turns"] - 4 / 15) < 0.06 and abs(share["grows"] - 2 / 15) < 0.04
    assert max(share[name] for name in ACTION_NAMES[:5]) < 0.1  # those that move: 1 in 15 each


def test_a_step_is_repeatable_and_steps_differ(tokenizers):
    text, frames = tokenizers

    def batch(step, split="train"):
        return DigitsBatches("sequential", 6, text=text, frames=frames, world=World(), seed=3)(
            step, split=split
        )

    one, again, next_step, test = batch(7), batch(7), batch(8), batch(7, "test")
    assert torch.equal(one.frames, again.frames) and torch.equal(one.text_ids, again.text_ids)
    assert not torch.equal(one.frames, next_step.frames) and not torch.equal(one.frames, test.frames)


@pytest.mark.parametrize("world", [World(), World(objects=2), World("handwriting")])
@pytest.mark.parametrize("remembered", [100_000, 20])
def test_scenes_remembered_from_other_places_have_the_tokens_of_fresh_ones(
    tokenizers, world, remembered, monkeypatch
):
    """A scene moved by whole tokens is not drawn again; the tokens are those of drawing every frame, to the bit."""
    text, frames = tokenizers
    monkeypatch.setattr(data, "REMEMBERED", remembered)
    batches = DigitsBatches("interpolation", 8, text=text, frames=frames, world=world, seed=1)
    for step in range(4):
        rng = np.random.default_rng([1, step, False])
        clips = batches._clips(rng, "train")
        pictures = rearrange(
            render(clips, clip_times("interpolation", clips, rng)[0]), "b t c h w -> (b t) c h w"
        )
        assert torch.equal(
            batches(step).frames, rearrange(frames.encode(pictures), "(b t) h w -> b t (h w)", t=5)
        )
    assert 20 < len(batches._known) < 4 * 40 and (remembered > 20 or len(batches._known) < 100)


def test_tokens_and_texts_belong_to_the_clips(tokenizers):
    text, frames = tokenizers
    batches = DigitsBatches("sequential", 40, text=text, frames=frames, world=World(), seed=0)
    batch = batches(0)
    rng = np.random.default_rng([0, 0, False])
    clips = batches._clips(rng, "train")
    times, spans = clip_times("sequential", clips, rng)
    pictures = rearrange(render(clips, times), "b t c h w -> (b t) c h w")
    assert torch.equal(batch.frames, rearrange(frames.encode(pictures), "(b t) h w -> b t (h w)", t=5))
    read = [
        text.decode(ids[mask].tolist()) for ids, mask in zip(batch.text_ids, batch.text_mask, strict=True)
    ]
    matched = 0
    for i, words in enumerate(read):
        known = [clips.caption(i, language) for language in ("en", "zh")] + [UNGUIDED_PROMPT]
        encoded = [text.decode(text.encode_prompt(prompt, spans[i])) for prompt in known]
        assert words in encoded
        matched += words != encoded[-1]
    assert matched > 30  # a tenth of the captions is dropped


def test_super_resolution_pairs_show_the_same_moment(tokenizers):
    text, frames = tokenizers
    batch = DigitsBatches("superres", 4, text=text, frames=frames, world=World(), seed=0)(0)
    assert (
        batch.frames.shape == (4, 1, 64) and batch.high_res is not None and batch.high_res.shape == (4, 576)
    )
    small = frames.decode(rearrange(batch.frames[:, 0], "b (h w) -> b h w", h=8))
    large = frames.decode(rearrange(batch.high_res, "b (h w) -> b h w", h=24))
    assert (torch.nn.functional.avg_pool2d(large, 3) - small).abs().mean() < 0.02


def test_finite_clips_come_again_and_again(tokenizers):
    text, frames = tokenizers

    def beginnings(clips, split="train"):
        batches = DigitsBatches(
            "sequential", 8, text=text, frames=frames, world=World(), seed=3, clips=clips
        )  # fmt: skip
        firsts = torch.cat([batches(step, split=split).frames[:, 0] for step in range(6)])
        return {tuple(first.tolist()) for first in firsts}

    few = beginnings(4)
    assert 2 <= len(few) <= 4 and few == beginnings(4)
    assert len(beginnings(None)) > 30 and len(beginnings(4, "test")) > 30
    with pytest.raises(CogVideoError, match="0 clips"):
        beginnings(0)
