"""Text ids: the layout of icetk, frame-rate texts, padding, unknown words, and the demo's own text model."""

import io

import numpy as np
import pytest
import sentencepiece
import torch

from cogvideo.errors import CogVideoError
from cogvideo.theatre.dataset import demo_captions, train_demo_text_model
from cogvideo.theatre.digits import SPANS, World, sample_clips
from cogvideo.tokenizers.text import FIRST_FRAME_SUFFIX, UNGUIDED_PROMPT, TextTokenizer, train_text_tokenizer

K = 1024


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_demo_text_model()


@pytest.fixture(scope="module")
def text(model) -> TextTokenizer:
    return TextTokenizer(model, K)


def test_ids_are_image_tokens_then_pieces_then_appended_specials(model, text):
    plain = sentencepiece.SentencePieceProcessor(model_proto=model)
    for caption in demo_captions()[::97]:
        assert text.encode(caption) == [K + i for i in plain.encode(caption)]
    assert text.pad_id == K + plain.piece_to_id("<pad>") and text.newline_id == K + plain.piece_to_id("<n>")
    assert text.begin_of_image == K + len(plain) and text.vocab_size == K + len(plain) + 3
    specials = text.pieces(range(text.begin_of_image, text.vocab_size))
    assert specials == ["<start_of_image>", "<start_of_english>", "<start_of_chinese>"]


def test_begin_of_image_with_the_sizes_of_the_release():
    # The released model has 130000 pieces; a true one of that size needs only a list of words, no training
    # text.
    words = [f"▁w{i:x}" for i in range(129_000)]
    released_size = TextTokenizer(train_text_tokenizer(["w"], 130_000, words), 20_000)
    missing = 130_000 - released_size.text_pieces
    exact = TextTokenizer(
        train_text_tokenizer(["w"], 130_000, [*words, *(f"▁v{i:x}" for i in range(missing))]), 20_000
    )
    assert exact.begin_of_image == 150_000 and exact.vocab_size == 150_003


def test_decode_leaves_out_what_is_no_text(text):
    ids = text.encode("a red circle moves left")
    assert text.decode([5, *ids, text.begin_of_image, K - 1]) == "a red circle moves left"


def test_pieces_are_labels(text):
    ids = [*text.encode_prompt("a red 3 fades in", 4), text.begin_of_image, 17]
    assert text.pieces(ids) == [
        "4.0秒",
        "<n>",
        "a",
        "red",
        "3",
        "fades",
        "in",
        "<start_of_image>",
        "image 17",
    ]
    with pytest.raises(CogVideoError, match="is not one of"):
        text.pieces([text.vocab_size])


@pytest.mark.parametrize("seconds", SPANS)
def test_each_frame_rate_text_is_one_piece_of_its_own(text, seconds):
    ids = text.encode_prompt("a red 4 turns", seconds)
    assert text.pieces(ids[:1]) == [f"{seconds}秒"] and ids[1] == text.newline_id
    assert ids[2:] == text.encode("a red 4 turns") == text.encode_prompt("a red 4 turns")
    assert ids[0] not in {i for caption in demo_captions() for i in text.encode(caption)}
    assert text.encode_prompt("x", int(seconds) or seconds)[0] == ids[0]


def test_seconds_that_were_never_trained_are_refused(text):
    with pytest.raises(CogVideoError, match=r"7\.0 s"):
        text.encode_prompt("a red 4 turns", 7)


def test_every_caption_is_known_and_short(text):
    captions = demo_captions()
    assert len(captions) == len(set(captions)) == 2 * 16 * 6 * 9 * 4
    unknown = K + text.model.unk_id()
    for caption in captions:
        ids = text.encode(caption)
        assert unknown not in ids and len(ids) <= 7
        assert text.decode(ids).replace(" ", "") == caption.replace(" ", "")
    assert not text.unknown_words(" ".join(captions[:200]))


def test_every_word_is_one_piece(text):
    for caption in demo_captions():
        if caption.isascii():
            assert text.pieces(text.encode(caption)) == caption.split()
    assert text.pieces(text.encode("一个红色的3非常缓慢地向左移动")) == [
        "一个",
        "红色",
        "的",
        "3",
        "非常缓慢地",
        "向左移动",
    ]


@pytest.mark.parametrize("glyphs", ["clean", "handwriting", "shapes"])
def test_captions_with_two_objects_are_known(text, glyphs):
    clips = sample_clips(50, np.random.default_rng(3), split="test", world=World(glyphs, 2))
    for caption in (clips.caption(i, language) for i in range(50) for language in ("en", "zh")):
        assert not text.unknown_words(caption) and K + text.model.unk_id() not in text.encode(caption)


def test_a_digit_has_one_id_in_both_languages(text):
    for digit in "0123456789":
        (shared,) = set(text.encode(f"a red {digit} turns")) & set(text.encode(f"一个红色的{digit}旋转"))
        assert text.pieces([shared]) == [digit]


def test_upper_case_full_width_and_spaces_do_not_matter(text):
    assert text.encode("A  Red\t ３ \n turns\u3000") == text.encode("a red 3 turns")


def test_the_texts_that_sampling_adds_are_one_piece_each(text):
    assert len(text.encode_prompt(UNGUIDED_PROMPT)) == 1
    for suffix in (UNGUIDED_PROMPT, FIRST_FRAME_SUFFIX):
        assert text.encode(f"a red 3 turns {suffix}") == text.encode("a red 3 turns") + text.encode(suffix)


def test_unknown_words_are_named(text):
    assert text.unknown_words("an orange 3 jumps and an apple 橙色的3跳 moves") == [
        "an",
        "orange",
        "jumps",
        "apple",
        "橙色",
        "跳",
    ]
    assert text.unknown_words("a red 3 moves left") == []


@pytest.mark.parametrize("prompt", ["", "  ", "\n\t", "\u3000"])
def test_an_empty_prompt_is_refused(text, prompt):
    with pytest.raises(CogVideoError, match="empty"):
        text.encode_prompt(prompt, 4)


def test_left_pad(text):
    ids, mask = text.left_pad([[7, 8, 9], [5]])
    assert ids.dtype == torch.int64 and ids.tolist() == [[7, 8, 9], [text.pad_id, text.pad_id, 5]]
    assert mask.dtype == torch.bool and mask.tolist() == [[True] * 3, [False, False, True]]
    ids, mask = text.left_pad([[7, 8, 9], [5]], 4)
    assert ids.shape == mask.shape == (2, 4) and ids[0, 0] == text.pad_id and mask.sum() == 4


def test_a_prompt_longer_than_the_slots_is_refused(text):
    with pytest.raises(CogVideoError, match="has 5 tokens but the model has 4 text slots: shorten"):
        text.left_pad([[1], [1] * 5], 4)


def test_the_model_is_the_same_every_time_and_everywhere(model, tmp_path, monkeypatch):
    assert train_demo_text_model() == model
    monkeypatch.setattr(
        "tempfile.tempdir", str(tmp_path)
    )  # where the trainer's rules lie must not be seen in the model
    assert train_demo_text_model() == model


def test_other_captions_are_learned_too():
    captions = ["a dog runs on the beach", "the dog sleeps", "一只狗在海滩上奔跑"] * 5
    text = TextTokenizer(train_text_tokenizer(captions, 90), 10)
    assert all(not text.unknown_words(caption) for caption in captions)
    assert text.decode(text.encode(captions[0])) == captions[0]


def test_a_vocabulary_that_is_too_small_is_refused():
    with pytest.raises(CogVideoError, match="raise vocab_size"):
        train_text_tokenizer(["a b"], 5)


def test_missing_and_damaged_models_are_refused(tmp_path, model):
    with pytest.raises(CogVideoError, match=r"nowhere\.model cannot be read"):
        TextTokenizer(tmp_path / "nowhere.model", K)
    with pytest.raises(CogVideoError, match="cannot be read"):
        TextTokenizer(tmp_path, K)
    for length in range(0, len(model), 5):
        with pytest.raises(CogVideoError, match="damaged"):
            TextTokenizer(model[:length], K)
    damaged = tmp_path / "text.model"
    damaged.write_bytes(b"no model" * 100)
    with pytest.raises(CogVideoError, match=r"text\.model is no SentencePiece model"):
        TextTokenizer(damaged, K)


def test_a_model_without_pad_is_refused():
    plain = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"]),
        model_writer=plain,
        vocab_size=10,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(CogVideoError, match="no piece <pad>"):
        TextTokenizer(plain.getvalue(), K)
