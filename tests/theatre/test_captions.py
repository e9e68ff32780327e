"""The captions of the theatre and the text model that knows their words."""

import numpy as np
import pytest

from cogvideo.theatre.captions import all_captions, train_demo_text_model, words
from cogvideo.theatre.scenes import SPLITS, sample_clips
from cogvideo.tokenizers.text import TextTokenizer

K = 4096


@pytest.fixture(scope="module")
def text() -> TextTokenizer:
    return TextTokenizer(train_demo_text_model(), K)


def test_every_caption_is_known_and_short(text):
    captions = all_captions()
    assert len(captions) == len(set(captions)) == 2 * 12 * 22 * 4
    unknown = K + text.model.unk_id()
    for caption in captions:
        ids = text.encode(caption)
        assert unknown not in ids and len(ids) <= 8
        assert text.decode(ids).replace(" ", "") == caption.replace(" ", "")
        assert not text.unknown_words(caption)


def test_every_word_is_one_piece(text):
    for caption in all_captions():
        if caption.isascii():
            assert text.pieces(text.encode(caption)) == caption.split()
    chinese = {
        "一只狮子非常缓慢地抛一个皮球": ["一只", "狮子", "非常缓慢地", "抛", "一个", "皮球"],
        "一头大象喝牛奶": ["一头", "大象", "喝", "牛奶"],
        "一只猫头鹰快速地推开一列小火车": ["一只", "猫头鹰", "快速地", "推开", "一列", "小火车"],
    }
    for caption, pieces in chinese.items():
        assert text.pieces(text.encode(caption)) == pieces
    assert len(words()) == len(set(words()))


@pytest.mark.parametrize("split", SPLITS)
def test_captions_of_clips_are_known(text, split):
    clips = sample_clips(50, np.random.default_rng(3), split=split)
    captions = set(all_captions())
    for caption in (clips.caption(i, language) for i in range(50) for language in ("en", "zh")):
        assert caption in captions and K + text.model.unk_id() not in text.encode(caption)


def test_what_the_theatre_does_not_know_is_named(text):
    assert text.unknown_words("a lion flies") == ["flies"]
    assert text.unknown_words("一只狮子飞") == ["飞"]
