"""Text to ids and back: SentencePiece in the id layout of icetk, the tokenizer of the release.

Ids (K = image_tokens, S = pieces of the SentencePiece model):
    0 .. K-1                  image tokens
    K .. K+S-1                text pieces; `<pad>` and `<n>` (new line) are two of them
    K+S, K+S+1, K+S+2         <start_of_image> (begin-of-image), <start_of_english>, <start_of_chinese>
"""

import hashlib
import io
import re
import string
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cogvideo.errors import CogVideoError

SPECIAL_PIECES = ("<start_of_image>", "<start_of_english>", "<start_of_chinese>")
UNGUIDED_PROMPT = "视频"  # "video": the prompt of the unguided rows, and the suffix of stage 1
FIRST_FRAME_SUFFIX = "高清摄影"
TRAINED_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)

_NORMALIZER_FIELD = 3  # of the protobuf message in a model file; it stands behind all pieces
_FIRST_CJK = "\u2e80"
_WORD = re.compile(rf"[^\s{_FIRST_CJK}-\U0010ffff]+|[{_FIRST_CJK}-\U0010ffff]+")


def frame_rate_text(seconds: float) -> str:
    """The text that says how many seconds five frames span, such as "4.0秒" (paper section 3.1)."""
    return f"{float(seconds)}秒"


class TextTokenizer:
    """Encodes text with a SentencePiece model.

    model: a file such as the released ice_text.model, or its bytes.
    image_tokens: size of the frame tokenizer's codebook; those ids come first.
    """

    def __init__(self, model: str | Path | bytes, image_tokens: int):
        import sentencepiece

        where = "The text model" if isinstance(model, bytes) else f"The text model {model}"
        try:
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
        except OSError as error:
            raise CogVideoError(f"{where} cannot be read ({error.strerror}): check the path.") from error
        self.model = sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(content)
            self.text_pieces = self.model.get_piece_size()
            if _NORMALIZER_FIELD not in _field_numbers(content):
                raise RuntimeError("the file ends early")  # SentencePiece loads a file cut between two pieces
        except RuntimeError as error:
            raise CogVideoError(
                f"{where} is no SentencePiece model or is damaged: fetch or train it again."
            ) from error
        self.image_tokens = image_tokens
        self.pad_id, self.newline_id = self._piece_id("<pad>", where), self._piece_id("<n>", where)
        self.begin_of_image = image_tokens + self.text_pieces
        self.vocab_size = self.begin_of_image + len(SPECIAL_PIECES)  # rows of a word embedding, at least
        self.digest = hashlib.sha256(content).hexdigest()[:16]

    def _piece_id(self, piece: str, where: str) -> int:
        found = self.model.piece_to_id(piece)
        if found == self.model.unk_id():
            raise CogVideoError(f"{where} has no piece {piece}: take ice_text.model or train one.")
        return self.image_tokens + found

    def encode(self, text: str) -> list[int]:
        """Ids of any text, without special pieces; any run of blanks and new lines counts as one space."""
        return [self.image_tokens + i for i in self.model.encode(" ".join(text.split()))]

    def encode_prompt(self, prompt: str, seconds: float | None = None) -> list[int]:
        """Ids of the text in front of the frames (COGVIDEO.md, "Sizes and ids").

        seconds: the duration that the five frames span; its text comes first, encoded on its own, then `<n>`.
        None (the first frame, drawn by the image model): the bare prompt.
        """
        if not prompt.strip():
            raise CogVideoError(
                'The prompt is empty: describe the clip in words, such as "a lion drinks milk".'
            )
        if seconds is None:
            return self.encode(prompt)
        frame_rate = self.encode(frame_rate_text(seconds))
        if self.image_tokens + self.model.unk_id() in frame_rate:
            raise CogVideoError(
                f"This text model knows no frames that span {float(seconds)} s: choose another span."
            )
        return [*frame_rate, self.newline_id, *self.encode(prompt)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; image tokens and the appended special pieces have none."""
        text = [int(i) - self.image_tokens for i in ids]
        return self.model.decode([i for i in text if 0 <= i < self.text_pieces])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One readable label per id, for plots: the piece without its mark of a space, or `image 17`."""
        labels = []
        for i in map(int, ids):
            if not 0 <= i < self.vocab_size:
                last = self.vocab_size - 1
                raise CogVideoError(f"Id {i} is not one of 0..{last}: use the text model that made it.")
            if i < self.image_tokens:
                labels.append(f"image {i}")
            elif i >= self.begin_of_image:
                labels.append(SPECIAL_PIECES[i - self.begin_of_image])
            else:
                labels.append(self.model.id_to_piece(i - self.image_tokens).strip("▁") or "▁")
        return labels

    def unknown_words(self, prompt: str) -> list[str]:
        """Words of the prompt that the model has no piece for, each once, in order."""
        return list(self.count_unknown([prompt]))

    def count_unknown(self, captions: Iterable[str]) -> Counter[str]:
        """Words that the model has no piece for, in order -> how often they stand in the captions."""
        found, unk = Counter(), self.model.unk_id()
        for word, count in Counter(word for text in captions for word in _WORD.findall(text)).items():
            pieces = self.model.encode(word, out_type=str)
            if unknown := [piece for piece in pieces if self.model.piece_to_id(piece) == unk]:
                # Chinese has no spaces: the unknown characters are named instead of the whole sentence.
                found.update(dict.fromkeys([word] if word[0] < _FIRST_CJK else unknown, count))
        return found

    def left_pad(self, prompts: Sequence[Sequence[int]], length: int | None = None) -> tuple[Tensor, Tensor]:
        """The function left_pad with `<pad>`."""
        return left_pad(prompts, self.pad_id, length)


def left_pad(
    prompts: Sequence[Sequence[int]], pad_id: int, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """Pad lists of ids on the left -> ids int64 [B,L], mask bool [B,L] (True: real text); L: the longest."""
    sizes = torch.tensor([len(ids) for ids in prompts])
    longest = int(sizes.max())
    length = longest if length is None else length
    if longest > length:
        raise CogVideoError(
            f"The prompt has {longest} tokens but the model has {length} text slots: shorten it."
        )
    ids = torch.tensor([[pad_id] * (length - len(ids)) + list(ids) for ids in prompts], dtype=torch.int64)
    return ids, torch.arange(length) >= length - sizes[:, None]


def _field_numbers(message: bytes) -> set[int]:
    """Numbers of the outermost protobuf fields: each is a byte (8 * number + type), a length, the content."""
    numbers, position = set(), 0
    while position < len(message):
        numbers.add(message[position] >> 3)
        digits = [message[position + 1]]
        while digits[-1] > 127:
            digits.append(message[position + 1 + len(digits)])
        position += 1 + len(digits) + sum((digit & 127) << (7 * place) for place, digit in enumerate(digits))
    return numbers


def train_text_tokenizer(captions: Iterable[str], vocab_size: int, words: Iterable[str] = ()) -> bytes:
    """Train a small byte-pair SentencePiece model -> bytes of its file, the same for the same captions.

    vocab_size: at most so many pieces. words: each becomes one piece whatever its frequency; where a space
    stands before it, it begins with "▁". Every digit is one piece, the same in all languages. Upper case and
    full-width digits are read as lower case and plain digits. Every trained frame-rate text is one piece.
    """
    import sentencepiece

    rates = ["▁" + frame_rate_text(seconds) for seconds in TRAINED_SECONDS]
    fixed = ["<pad>", "<n>", *rates, "▁" + UNGUIDED_PROMPT, "▁" + FIRST_FRAME_SUFFIX, *"0123456789", *words]
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        # The trainer copies the path of this file into the model; a blank of fixed length replaces it there.
        rules = Path(folder, "rules".ljust(100 - len(folder), "_"))
        rules.write_text(_normalization())
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(captions),
                model_writer=model,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                user_defined_symbols=list(dict.fromkeys(fixed)),
                normalization_rule_tsv=str(rules),
                split_digits=True,
                character_coverage=1.0,
                required_chars="▁",  # captions made of `words` alone leave no character to learn
                model_type="bpe",
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise CogVideoError(f"A text model cannot have {vocab_size} pieces: raise vocab_size.") from error
        path = str(rules).encode()
    return model.getvalue().replace(path, b"-" * len(path))


def _normalization() -> str:
    """The demo's text normalisation in SentencePiece's format: code points, a tab, what replaces them."""
    wide = dict(zip("０１２３４５６７８９", "0123456789", strict=True))
    digits = {digit: digit for digit in "0123456789"} | wide
    pairs = [*wide.items(), *((f" {written}", digit) for written, digit in digits.items())]
    pairs += [(letter, letter.lower()) for letter in string.ascii_uppercase]
    codes = ((" ".join(f"{ord(c):X}" for c in text) for text in pair) for pair in pairs)
    return "".join("\t".join(pair) + "\n" for pair in codes)
