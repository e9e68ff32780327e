"""The settings of the recipe for any data, and what is chosen where they say nothing."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cogvideo.config import SamplingConfig
from cogvideo.errors import CogVideoError
from cogvideo.training import distributed
from cogvideo.training.frame_tokenizer import NetworkConfig
from cogvideo.training.optimizer import OptimizerConfig

PARTS = ("text", "frames", "image", "stage1", "stage2", "superres", "assemble")


@dataclass(frozen=True)
class TextConfig:
    pieces: int = 8000  # of a SentencePiece model of the captions, at most
    model: str | None = None  # a file instead, such as the released ice_text.model


@dataclass(frozen=True)
class FramesConfig:
    """See FrameTokenizerConfig, which has the same fields."""

    optimizer: OptimizerConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    start: str | None = None
    per_clip: int = 12
    plain: float = 0.15
    gradient: float = 1.0
    squared: float = 1.0
    perceptual: str | None = None
    adversarial: float = 0.0


@dataclass(frozen=True)
class TransformerConfig:
    num_layers: int
    hidden_size: int
    num_heads: int


@dataclass(frozen=True)
class RecipeConfig:
    """All settings of a recipe; see configs/own.yaml."""

    data: str
    run_dir: str
    frames: FramesConfig
    model: TransformerConfig
    image: OptimizerConfig
    stage1: OptimizerConfig
    stage2: OptimizerConfig
    superres: OptimizerConfig
    frame_side: int  # tokens; a frame has 8 pixels for each
    dtype: Literal["fp32", "bf16"]
    recompute: bool
    pictures: str | None = None  # captioned pictures that the image model is shown besides frames
    parts: tuple[str, ...] = PARTS
    text: TextConfig = field(default_factory=TextConfig)
    sampling: SamplingConfig | None = None  # None: the spans that were trained, nothing else unusual
    per_clip: int = 4  # sequences of a clip, and pictures
    views: int = 1  # of each clip that is trained on: itself and smaller windows of it, see data/views.py
    test_share: float = 0.1  # of the groups of clips
    seed: int = 0
    workers: int = 1  # processes that tokenize
    threads: int | None = None
    checkpoint_seconds: float = 60.0

    def __post_init__(self):
        if unknown := set(self.parts) - set(PARTS):
            raise CogVideoError(f"Part {min(unknown)!r} is unknown: choose of {', '.join(PARTS)}.")
        if min(self.frame_side, self.per_clip, self.views) < 1:
            raise CogVideoError("frame_side, per_clip and views must be at least 1.")


def defaults(clips: int, gpu: bool) -> dict[str, Any]:
    """Settings for so many clips: minutes on a CPU for a handful, a night on a GPU for some thousands."""
    many = min(clips, 5000)
    views = max(1, min(12, 67500 // max(1, clips) ** 2))  # 12 up to 75 clips, 1 from 184 on

    def steps(least: int, per_clip: float, most: int) -> int:
        return round(min(max(least, per_clip * many), most))

    if not gpu:
        size = {"num_layers": 4, "hidden_size": 128, "num_heads": 4}
        muon: dict[str, Any] = {"batch_size": 8, "warmup": 20}
        if distributed.world_size() == 1:
            muon["muon_lr"] = 1e-2
        network = {"batch_size": 8, "lr": 2e-3, "warmup": 50, "weight_decay": 1e-4}
        return {
            "model": size, "frame_side": 8, "dtype": "fp32", "recompute": False, "views": views,
            # Minutes are too few for sharp edges: the losses are those that PSNR rises with.
            "frames": {
                "network": {"codes": 2048}, "gradient": 0.25, "squared": 10.0,
                "optimizer": network | {"steps": steps(2000, 6, 8000)},
            },
            "image": muon | {"steps": steps(300, 4, 6000)},
            # Of few clips the image model learns no more than it should; stage 1 soon learns them by heart.
            "stage1": muon | {"steps": steps(120, 1.6, 6000) if views > 1 else steps(400, 4, 6000)},
            "stage2": muon | {"steps": steps(200, 2, 3000)},
            "superres": muon | {"steps": steps(60, 0.5, 1000), "batch_size": 4},
        }  # fmt: skip
    large = clips >= 1000
    layers, width = (16, 1024) if large else (12, 512)
    adam = {"batch_size": 64 if large else 32, "lr": 3e-4, "warmup": 500, "weight_decay": 0.01}
    wide = {"codes": 8192 if large else 4096, "dim": 64, "channels": 64, "encoder_mult": [1, 2, 4, 4]}
    return {
        "model": {"num_layers": layers, "hidden_size": width, "num_heads": width // 64},
        "frame_side": 16, "dtype": "bf16", "recompute": large, "views": views,
        "frames": {
            "network": wide | {"decoder_mults": [[1, 2, 4, 4]]},
            "optimizer": {"batch_size": 64, "lr": 5e-4, "warmup": 500, "steps": steps(5000, 20, 60000)},
        },
        "image": adam | {"steps": steps(4000, 20, 60000)}, "stage1": adam | {"steps": steps(4000, 20, 60000)},
        "stage2": adam | {"steps": steps(3000, 10, 30000)},
        "superres": adam | {"steps": steps(2000, 5, 20000), "batch_size": 16},
    }  # fmt: skip


def filled(values: dict[str, Any], left: dict[str, Any]) -> dict[str, Any]:
    """The values, and where they say nothing what `left` says."""
    own = {key: value for key, value in values.items() if value is not None}
    both = {
        k: filled(own[k], v) for k, v in left.items() if isinstance(own.get(k), dict) and isinstance(v, dict)
    }
    return left | own | both
