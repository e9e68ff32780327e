"""What a training will need, from its settings alone: memory, operations, disk, days. See docs/scale.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideo.checkpoints.registry import weights_folder
from cogvideo.config import COGVIDEO_9B, ModelConfig, Order, from_dict, load_yaml
from cogvideo.data.tokenized import MANIFEST
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import CUDA_BYTES, GB
from cogvideo.runtime.tensors import DTYPES, without_memory
from cogvideo.training.flops import PEAKS, step_flops
from cogvideo.training.lora import LoraConfig
from cogvideo.training.optimizer import OptimizerConfig
from cogvideo.training.run import TrainingConfig

# What blocks keep for gradients, and what one block needs while it works, in bytes a position and hidden
# dimension: counted by torch's hooks for saved tensors in fp32 (4.0 with recompute, 89 without).
KEPT, RECOMPUTED = 89, 4
PAPER_CLIPS = 5_400_000
LOGITS = 3 * 4 * 2048  # bytes an image token: fp32 scores of a piece of the positions, and their gradients


@dataclass(frozen=True)
class Plan:
    """How a stage of the release's geometry (or `model`) is to be trained."""

    optimizer: OptimizerConfig
    stage: str = "stage1"
    dtype: str = "bf16"
    recompute: bool = True
    lora: LoraConfig | None = None
    optimizer_bits: int = 32
    clips: int = PAPER_CLIPS  # sequences of the tokenized data
    gpus: int = 1
    gpu: str = "H100"
    mfu: float = 0.4  # fraction of the GPU's peak that steps reach
    model: ModelConfig = COGVIDEO_9B

    def __post_init__(self):
        if self.clips < 1 or self.gpus < 1 or not 0 < self.mfu <= 1:
            raise CogVideoError("A plan needs clips and gpus of 1 or more, and mfu above 0, up to 1.")
        if self.gpu not in PEAKS:
            raise CogVideoError(f"The speed of {self.gpu} is unknown: choose one of {', '.join(PEAKS)}.")


def plan(path: str | Path, overrides: list[str], clips: int | None, gpus: int) -> str:
    """What `cogvideo train` would need with these settings, in lines; nothing is read or made."""
    config = from_dict(TrainingConfig, load_yaml(path, overrides), str(path))
    return report(plan_of(config, clips, gpus))


def plan_of(config: TrainingConfig, clips: int | None, gpus: int) -> Plan:
    """The plan of a training's settings; what is not there yet (start, data) is taken as the release has it.

    clips: sequences to train on; None: those in `data`, or the paper's 5.4 million.
    """
    if config.stage == "superres":
        raise CogVideoError("Operations of super-resolution are not counted: plan stage1, stage2 or image.")
    found = read_json(Path(config.data) / MANIFEST, default={}).get("samples", 0)
    shared = ("optimizer", "stage", "dtype", "recompute", "lora", "optimizer_bits")
    own: dict[str, Any] = {name: getattr(config, name) for name in shared}
    return Plan(**own, clips=clips or found or PAPER_CLIPS, gpus=gpus, model=_geometry(config))


def _geometry(config: TrainingConfig) -> ModelConfig:
    """Of the model at `start`, once it is what the stage trains; the release's where nothing is there."""
    start = weights_folder(config.start)
    places = (start, start / ("stage2" if config.stage == "stage2" else "stage1"))
    file = next((f for f in (place / "config.json" for place in places) if f.exists()), None)
    model = from_dict(ModelConfig, read_json(file), str(file)) if file else COGVIDEO_9B
    image = model.image()
    if config.stage == "image":
        return image
    order: Order = "interpolation" if config.stage == "stage2" else "sequential"
    return image.video(order=order, window=config.window or model.window)


def numbers(p: Plan) -> tuple[int, int, int]:
    """Weights: frozen matrices of blocks, other frozen ones, trained ones."""
    with without_memory():
        model = CogVideoTransformer(p.model)
    named = dict(model.named_parameters())
    if p.lora:
        linear = [w.shape for n, w in named.items() if n.endswith(("qkv.weight", "dense.weight"))]
        trained, own = p.lora.rank * sum(sum(shape) for shape in linear), set()
    else:
        own = set(named if p.stage == "image" else model.temporal_parameters())
        trained = sum(named[name].numel() for name in own)
    frozen = {name: w for name, w in named.items() if name not in own}
    matrices = sum(w.numel() for n, w in frozen.items() if w.ndim == 2 and n.startswith("blocks."))
    return matrices, sum(w.numel() for w in frozen.values()) - matrices, trained


def memory(p: Plan) -> dict[str, int]:
    """Bytes on each GPU. Weights, gradients and states are exact, and divided over the GPUs (FSDP)."""
    matrices, others, trained = numbers(p)
    c, o = p.model, p.optimizer
    rows = -(-o.batch_size // (o.accumulate * p.gpus))
    width = rows * (c.text_length + c.num_frames * c.frame_tokens) * c.hidden_size
    frozen = matrices * DTYPES[p.dtype].itemsize
    block = (frozen + 4 * trained) // c.num_layers if p.gpus > 1 else 0  # gathered to work
    kept = c.num_layers * RECOMPUTED + KEPT if p.recompute else c.num_layers * KEPT
    divided = {
        "frozen weights": frozen + 4 * others,
        "trained weights": 4 * trained,
        "gradients": 4 * trained,
        "optimiser": p.optimizer_bits // 4 * trained,
    }
    own = {"gathered block": block, "activations": width * kept, "logits": LOGITS * c.image_tokens}
    return {name: size // p.gpus for name, size in divided.items()} | own | {"CUDA": CUDA_BYTES}


def sample_bytes(c: ModelConfig) -> int:
    """Bytes of a tokenized sequence on disk, at most (see data.tokenized): int16 frames, int32 text."""
    return 2 * c.num_frames * c.frame_tokens + 4 * c.text_length + 3 * 8


def report(p: Plan) -> str:
    """The plan in lines for people."""
    c, o, parts = p.model, p.optimizer, memory(p)
    matrices, others, trained = numbers(p)
    tokens = c.text_length + c.num_frames * c.frame_tokens
    flops = step_flops(c, o.batch_size, c.text_length, everything=p.stage == "image")
    seconds = o.steps * flops / (p.gpus * p.mfu * PEAKS[p.gpu])
    checkpoint = parts["trained weights"] + parts["optimiser"]
    return "\n".join(
        [
            f"{p.stage}: {c.num_layers} layers, width {c.hidden_size}, "
            f"{(matrices + others + (0 if p.lora else trained)) / 1e9:.2f} G weights; trained "
            f"{trained / 1e9:.3f} G{' in adapters' if p.lora else ''}",
            f"{o.steps:,} steps of {o.batch_size} clips: {o.steps * o.batch_size / p.clips:.2f} epochs of "
            f"{p.clips:,}; {tokens:,} tokens a clip, {o.steps * o.batch_size * tokens:.3g} in all",
            f"{flops:.3g} operations a step, {flops * o.steps:.3g} in all: {seconds / 3600:.3g} hours "
            f"on {p.gpus} {p.gpu} at {p.mfu:.0%} of {PEAKS[p.gpu] / 1e12:.0f} TFLOP/s",
            f"memory of a GPU: {sum(parts.values()) / GB:.1f} GB = "
            + " + ".join(f"{name} {size / GB:.1f}" for name, size in parts.items() if size),
            f"on disk: tokens {p.clips * sample_bytes(c) / GB:.3g} GB, a checkpoint "
            f"{p.gpus * checkpoint / GB:.3g} GB",
        ]
    )
