import re

import numpy as np
import pytest

from cogvideo.errors import CogVideoError
from cogvideo.theatre import scenes
from cogvideo.theatre.scenes import (
    ACTIONS,
    ACTORS,
    ADVERBS,
    BACKGROUNDS,
    OBJECTS,
    PAIRS,
    Clips,
    caption,
    sample_clips,
)

EVERYTHING = [(actor, *pair, duration) for actor in ACTORS for pair in PAIRS for duration in ADVERBS]


def clips_of(split: str, n: int = 20_000) -> Clips:
    return sample_clips(n, np.random.default_rng(3), split=split)


def combinations(clips: Clips) -> set[tuple[str, str, str]]:
    return {clips.names(i) for i in range(len(clips))}


def one_clip(actor: str, action: str, thing: str, duration: float) -> Clips:
    return Clips(
        np.array([list(ACTORS).index(actor)]),
        np.array([PAIRS.index((action, thing))]),
        np.array([0]),
        np.array([duration]),
    )


def test_the_world_is_as_large_as_its_design_asks():
    assert (len(ACTORS), len(OBJECTS), len(ACTIONS), len(PAIRS), len(BACKGROUNDS)) == (12, 16, 8, 22, 4)
    assert {thing for _, thing in PAIRS} == set(OBJECTS)


@pytest.mark.parametrize("action", ACTIONS)
def test_phases_cover_the_17_states_in_order(action):
    names, firsts = zip(*scenes.PHASES[action], strict=True)
    assert (
        firsts[0] == 0
        and firsts[-1] <= 16
        and list(firsts) == sorted(set(firsts))
        and len(set(names)) == len(names)
    )
    assert [scenes.phase(action, first) for first in firsts] == list(names)
    assert scenes.phase(action, 16) == names[-1]


def test_drinking_lifts_before_it_drinks_and_puts_down_after():
    at = [scenes.phase("drinks", state) for state in (0, 2, 4, 8, 12, 16)]
    assert at == ["rests", "reaches", "lifts", "drinks", "puts down", "lets go"]


# Splits


def test_splits_share_no_combination_and_pictures_show_all():
    seen, unseen, only = (combinations(clips_of(split)) for split in ("seen", "unseen", "picture-only"))
    assert not (seen & unseen or seen & only or unseen & only)
    assert combinations(clips_of("train")) == seen
    assert (
        combinations(clips_of("pictures"))
        == seen | unseen | only
        == {(a, *pair) for a in ACTORS for pair in PAIRS}
    )


def test_videos_show_8_actors_and_14_objects_and_leave_out_one_pair_in_eight():
    seen, unseen = combinations(clips_of("train")), combinations(clips_of("unseen"))
    assert len({actor for actor, _, _ in seen}) == 8 and len({thing for _, _, thing in seen}) == 14
    assert {actor for actor, _, _ in seen} == {actor for actor, _, _ in unseen}
    pairs_seen, pairs_unseen = ({(actor, thing) for actor, _, thing in group} for group in (seen, unseen))
    assert not pairs_seen & pairs_unseen
    assert len(pairs_unseen) * 8 == len(pairs_seen | pairs_unseen) == 8 * 14


def test_picture_only_clips_hold_an_actor_or_object_that_no_video_shows():
    seen = combinations(clips_of("train"))
    actors, things = {actor for actor, _, _ in seen}, {thing for _, _, thing in seen}
    assert all(
        actor not in actors or thing not in things
        for actor, _, thing in combinations(clips_of("picture-only"))
    )


def test_videos_show_every_action_with_at_least_two_objects_or_its_only_one():
    seen = combinations(clips_of("train"))
    for action, (_, things) in ACTIONS.items():
        assert len({thing for _, known, thing in seen if known == action}) >= min(2, len(things))


def test_clips_are_reproducible_by_seed():
    def fields(seed):
        clips = sample_clips(50, np.random.default_rng(seed))
        return np.stack([clips.actor, clips.pair, clips.background, clips.duration])

    assert np.array_equal(fields(5), fields(5)) and not np.array_equal(fields(5), fields(6))


def test_all_backgrounds_and_durations_occur():
    clips = clips_of("train", 500)
    assert set(clips.background) == set(range(4)) and set(clips.duration) == {1.0, 2.0, 4.0, 8.0}


def test_an_unknown_split_names_those_that_exist():
    with pytest.raises(CogVideoError, match="'test'.*train, seen, unseen, picture-only, pictures"):
        sample_clips(1, np.random.default_rng(0), split="test")


def test_clips_can_be_picked_from_and_know_their_names():
    clips = clips_of("pictures", 30)
    picked = clips[np.array([4, 2])]
    assert len(picked) == 2 and picked.names(1) == clips.names(2)
    actor, action, thing = clips.names(7)
    assert list(ACTORS)[clips.actor[7]] == actor
    assert list(ACTIONS)[clips.action[7]] == action and list(OBJECTS)[clips.object[7]] == thing


# Captions

ENGLISH = re.compile(
    r"(?P<article>an?) (?P<actor>\w+) "
    r"(?P<action>drinks|eats|throws|puts on|takes off|pushes away|pulls near|rings)"
    r" (?:an? )?(?P<thing>\w+)(?P<adverb>| quickly| slowly| very slowly)"
)
CHINESE = re.compile(
    r"一[只头](?P<actor>.+?)(?P<adverb>|快速地|缓慢地|非常缓慢地)(?P<action>喝|吃|抛|戴上|摘下|推开|拉近|摇响)"
    r"(?:一[个根块只顶副辆列艘])?(?P<thing>.+)"
)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_sentence_is_unique(language):
    sentences = [caption(*scene, language) for scene in EVERYTHING]
    assert len(set(sentences)) == len(EVERYTHING) == 12 * 22 * 4


def test_english_sentences_can_be_read_back():
    for actor, action, thing, duration in EVERYTHING:
        read = ENGLISH.fullmatch(caption(actor, action, thing, duration))
        assert read and (read["actor"], read["action"], read["thing"]) == (actor, action, thing)
        assert (
            read["adverb"].strip() == {1.0: "quickly", 2.0: "", 4.0: "slowly", 8.0: "very slowly"}[duration]
        )
        assert (read["article"] == "an") == (actor[0] in "aeiou")


def test_chinese_sentences_can_be_read_back():
    parts = {"actor": {}, "action": {}, "thing": {}, "adverb": {}}
    for scene in EVERYTHING:
        read = CHINESE.fullmatch(caption(*scene, "zh"))
        assert read
        for (name, known), meant in zip(parts.items(), scene, strict=True):
            assert known.setdefault(read[name], meant) == meant  # one word, one meaning
    assert [len(known) for known in parts.values()] == [12, 8, 16, 4]


def test_sentences_of_the_design():
    assert caption("lion", "drinks", "milk", 4.0) == "a lion drinks milk slowly"
    assert caption("lion", "drinks", "milk", 4.0, "zh") == "一只狮子缓慢地喝牛奶"
    assert caption("elephant", "eats", "apple", 2.0) == "an elephant eats an apple"
    assert caption("pig", "puts on", "glasses", 8.0, "zh") == "一头猪非常缓慢地戴上一副墨镜"
    assert caption("owl", "pushes away", "train", 1.0, "zh") == "一只猫头鹰快速地推开一列小火车"


def test_captions_without_action_say_who_and_what_is_there():
    clip = one_clip("mouse", "takes off", "crown", 8.0)
    assert clip.caption(0, with_action=False) == "a mouse with a crown"
    assert clip.caption(0, "zh", with_action=False) == "一只老鼠和一顶王冠"
    assert clip.caption(0) == "a mouse takes off a crown very slowly"


def test_a_language_that_is_not_written_is_named():
    with pytest.raises(CogVideoError, match="'de'.*en or zh"):
        caption("lion", "drinks", "milk", 2.0, "de")


# Time


@pytest.mark.parametrize("duration", [1.0, 2.0, 4.0, 8.0])
def test_states_are_equally_long_and_the_last_one_stays(duration):
    clip = one_clip("cat", "rings", "bell", duration)
    steps = np.arange(17) * duration / 16
    assert scenes.states(clip, steps[None]).tolist() == [list(range(17))]
    just_before = scenes.states(clip, steps[None, 1:] - duration / 1000)
    assert just_before.tolist() == [list(range(16))]
    assert scenes.states(clip, np.array([[duration * 1.01, 100.0]])).tolist() == [[16, 16]]


def test_frames_at_any_frame_rate_hit_the_states_that_they_should():
    clip = one_clip("cat", "rings", "bell", 8.0)
    for fps in (0.5, 1, 2, 4, 8):
        times = np.arange(int(8 * fps) + 1) / fps
        assert scenes.states(clip, times[None])[0].tolist() == [
            int(16 * k // (8 * fps)) for k in range(len(times))
        ]


@pytest.mark.parametrize("duration", [1.0, 2.0, 4.0, 8.0])
def test_the_span_is_the_shortest_trained_one_that_holds_the_action(duration):
    span = one_clip("cat", "rings", "bell", duration).span(0)
    assert span in scenes.SPANS and span >= duration > max((s for s in scenes.SPANS if s < span), default=0)
