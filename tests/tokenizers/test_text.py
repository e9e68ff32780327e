"""Text ids: the layout of icetk, frame-rate texts, padding, unknown words, and the demo's own text model."""

import io

import pytest
import sentencepiece
import torch

from cogvideo.errors import CogVideoError
from cogvideo.theatre.captions import all_captions, train_demo_text_model
from cogvideo.theatre.scenes import SPANS
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
    for caption in all_captions()[::97]:
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
    ids = text.encode("a lion throws a ball")
    assert text.decode([5, *ids, text.begin_of_image, K - 1]) == "a lion throws a ball"


def test_pieces_are_labels(text):
    ids = [*text.encode_prompt("a lion puts on a hat", 4), text.begin_of_image, 17]
    assert text.pieces(ids) == [
        "4.0秒",
        "<n>",
        "a",
        "lion",
        "puts",
        "on",
        "a",
        "hat",
        "<start_of_image>",
        "image 17",
    ]
    with pytest.raises(CogVideoError, match="is not one of"):
        text.pieces([text.vocab_size])


@pytest.mark.parametrize("seconds", SPANS)
def test_each_frame_rate_text_is_one_piece_of_its_own(text, seconds):
    ids = text.encode_prompt("a cat rings a bell", seconds)
    assert text.pieces(ids[:1]) == [f"{seconds}秒"] and ids[1] == text.newline_id
    assert ids[2:] == text.encode("a cat rings a bell") == text.encode_prompt("a cat rings a bell")
    assert ids[0] not in {i for caption in all_captions() for i in text.encode(caption)}
    assert text.encode_prompt("x", int(seconds) or seconds)[0] == ids[0]


def test_seconds_that_were_never_trained_are_refused(text):
    with pytest.raises(CogVideoError, match=r"7\.0 s"):
        text.encode_prompt("a cat rings a bell", 7)


def test_a_number_has_one_id_in_both_languages(text):
    for digit in "0123456789":
        (shared,) = set(text.encode(f"a lion {digit} drinks")) & set(text.encode(f"一只狮子{digit}喝"))
        assert text.pieces([shared]) == [digit]


def test_upper_case_full_width_and_spaces_do_not_matter(text):
    assert text.encode("A  Cat\t ３ \n drinks\u3000") == text.encode("a cat 3 drinks")


def test_the_texts_that_sampling_adds_are_one_piece_each(text):
    assert len(text.encode_prompt(UNGUIDED_PROMPT)) == 1
    for suffix in (UNGUIDED_PROMPT, FIRST_FRAME_SUFFIX):
        both = text.encode("a cat drinks tea") + text.encode(suffix)
        assert text.encode(f"a cat drinks tea {suffix}") == both


def test_unknown_words_are_named(text):
    assert text.unknown_words("a blue lion jumps over an apple 一只狮子飞过苹果 jumps") == [
        "blue",
        "jumps",
        "over",
        "飞过",
    ]
    assert text.unknown_words("a lion throws a ball") == []


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
