"""What a data set is tokenized with: the tokenizers of a set of weights and the geometry of its models."""

from dataclasses import dataclass
from pathlib import Path

from cogvideo.checkpoints import released
from cogvideo.checkpoints.frames import read_frame_tokenizer
from cogvideo.checkpoints.native import ADVICE
from cogvideo.checkpoints.registry import no_pipeline, weights_folder
from cogvideo.config import COGVIDEO_9B, ModelConfig, from_dict
from cogvideo.io import read_json
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
    """The tokenizers of "demo", of a pipeline folder, or of a folder with the release's tokenizer files."""
    folder = weights_folder(weights)
    if released.is_released(folder):
        released.check_there(folder, (released.TEXT, released.FRAMES))
        frames, config = read_frame_tokenizer(folder / released.FRAMES), COGVIDEO_9B
        text = TextTokenizer(folder / released.TEXT, frames.num_codes)
    elif (folder / "tokenizers").is_dir():
        frames = FrameTokenizer.load(folder / "tokenizers" / "frames.safetensors")
        text = TextTokenizer(folder / "tokenizers" / "text.model", frames.num_codes)
        file = folder / "stage1" / "config.json"
        config = from_dict(ModelConfig, read_json(file, advice=ADVICE), str(file))
    else:
        raise no_pipeline(folder)
    return Tokenizers(text, frames, config.frame_height, config.frame_width, config.text_length)
