"""The captions of the theatre, and the text model that knows their words."""

from itertools import product

from cogvideo.theatre.scenes import ACTIONS, ACTORS, ADVERBS, OBJECTS, PAIRS, caption
from cogvideo.tokenizers.text import train_text_tokenizer

MEASURED = 2  # characters of a Chinese number with its measure word, such as 一只


def all_captions() -> list[str]:
    """Every sentence of the theatre, English and Chinese in turn."""
    scenes = product(ACTORS, PAIRS, ADVERBS)
    return [
        caption(actor, action, thing, duration, language)
        for actor, (action, thing), duration in scenes
        for language in ("en", "zh")
    ]


def words() -> list[str]:
    """The words of the captions as SentencePiece pieces ("▁": a space or the beginning of the text)."""
    english = sorted({word for sentence in all_captions() if sentence.isascii() for word in sentence.split()})
    named = [chinese for _, chinese in (*ACTORS.values(), *OBJECTS.values())]
    counted = sorted({name[:MEASURED] for name in named if name[0] == "一"})
    nouns = [name[MEASURED:] if name[0] == "一" else name for name in named]
    verbs, adverbs = (
        [chinese for chinese, _ in ACTIONS.values()],
        [chinese for _, chinese in ADVERBS.values() if chinese],
    )
    begin = [f"▁{word}" for word in (*counted, *nouns)]
    return list(dict.fromkeys([f"▁{word}" for word in english] + begin + counted + nouns + verbs + adverbs))


def train_demo_text_model() -> bytes:
    """The demo's text model: every word of the captions and every frame-rate text is one piece."""
    return train_text_tokenizer(all_captions(), vocab_size=256, words=words())
