"""What a data set is tokenized with: the tokenizers of a set of weights and the geometry of its models."""

from dataclasses import dataclass
from pathlib import Path

from cogvideo.errors import CogVideoError
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Tokenizers:
    """The tokenizers of a set of weights, and the geometry of its models."""

    text: TextTokenizer
    frames: FrameTokenizer
    frame_height: int  # tokens
    frame_width: int
    text_length: int  # slots


def load_tokenizers(weights: str | Path) -> Tokenizers:
    """The tokenizers of "demo", of a pipeline folder, or of a folder with the release's ice_text.model and ice_image.pt.

    Raises CogVideoError for weights that are not there or damaged.
    """
    from cogvideo.checkpoints import released
    from cogvideo.checkpoints.native import read_json
    from cogvideo.config import COGVIDEO_9B, ModelConfig, from_dict
    from cogvideo.checkpoints.registry import DEMO

    folder = DEMO if str(weights) == "demo" else Path(weights)
    if released.is_released(folder):
        released.check_there(folder, (released.TEXT, released.FRAMES))
        frames, config = released.read_frame_tokenizer(folder / released.FRAMES), COGVIDEO_9B
        text = TextTokenizer(folder / released.TEXT, frames.num_codes)
    elif (folder / "tokenizers").is_dir():
        frames = FrameTokenizer.load(folder / "tokenizers" / "frames.safetensors")
        text = TextTokenizer(folder / "tokenizers" / "text.model", frames.num_codes)
        file = folder / "stage1" / "config.json"
        config = from_dict(ModelConfig, read_json(file), str(file))
    else:
        raise CogVideoError(
            f"There are no weights at {folder}: give demo or a folder with pipeline.json in it."
        )
    return Tokenizers(text, frames, config.frame_height, config.frame_width, config.text_length)
