"""Scores of generated videos alone: Inception Score (C3D on UCF-101) and CLIPSIM (frames against prompts)."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cogvideo.checkpoints.c3d_weights import FRAMES, read_table
from cogvideo.errors import CogVideoError, first_sentence
from cogvideo.evaluation.c3d import C3D
from cogvideo.evaluation.features import CHUNK, clips_of, readable, rows_of
from cogvideo.evaluation.recipes import Recipe
from cogvideo.evaluation.settings import Settings, lines
from cogvideo.evaluation.sides import Side
from cogvideo.evaluation.sources import open_side
from cogvideo.runtime.device import choose_device

N, SPLITS = 2048, 10
C3D_RECIPE = Recipe(
    "inception-score", "TGANv2, which TATS and CogVideo used", 10_000, True, 0.0, clip="first"
)


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over disjoint splits, and what it takes to read them."""

    value: float
    deviation: float
    whole: float  # of all clips as one split, as TGANv2 takes it; grows with n
    splits: int
    n: int
    protocol: dict


@dataclass(frozen=True)
class ClipSim:
    """Mean similarity of clips with their prompts, and what it takes to read it."""

    value: float
    error: float  # standard error over clips
    relative: float | None  # GODIVA's RM: mean over clips of the similarity divided by that of the real clip
    n: int
    protocol: dict


def inception_score(logits: np.ndarray, splits: int = SPLITS) -> tuple[float, float]:
    """exp(mean KL(p(y|x) || p(y))) of logits [n,K] before the softmax -> mean and deviation over splits.

    Splits are disjoint, equal up to one, in the given order, each with a p(y) of its own; the deviation
    divides by their number (Salimans et al. 2016, TGANv2, StyleGAN-V). In float64 on log-probabilities, so
    that no epsilon is needed.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise CogVideoError(f"The score takes finite logits [n, classes], not {logits.shape} or NaN.")
    check_splits(len(logits), splits)
    scores = []
    for part in torch.from_numpy(logits).log_softmax(1).tensor_split(splits):
        marginal = part.logsumexp(0) - np.log(len(part))
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def check_splits(n: int, splits: int) -> None:
    """CogVideoError unless n clips can be cut into so many splits."""
    if not 1 <= splits <= n:
        raise CogVideoError(f"{n} clips cannot be cut into {splits} splits: give more clips or fewer splits.")


def evaluate_inception_score(
    generated: str, network: C3D, settings: Settings = Settings(), *, splits: int = SPLITS
) -> InceptionScore:
    """Inception Score of the first 16 frames of each video of a side; by default of 2048 videos."""
    settings.check_out()
    n = N if settings.n is None else settings.n
    check_splits(n, splits)
    side = open_side(generated, n, seed=settings.seed, device=settings.device, progress=settings.progress)
    clips, skipped = clips_of(side, C3D_RECIPE, settings.seed)

    def logits(some: list[np.ndarray]) -> np.ndarray:
        return network(torch.from_numpy(np.stack(some))).cpu().numpy()

    key, total = f"c3d {network.digest}", len(side.names)
    rows = rows_of(clips, logits, key=key, total=total, title="C3D", progress=settings.progress)
    protocol = {
        "generated": generated,
        "frames": f"the first {FRAMES} of each video",
        "c3d_sha256": network.digest,
        "exact_mean": network.exact_mean,
        "skipped": skipped,
        "seed": settings.seed,
    }
    whole = inception_score(rows, 1)[0]
    result = InceptionScore(*inception_score(rows, splits), whole, splits, len(rows), protocol)
    settings.finish(inception_card(result), asdict(result))
    return result


def inception_card(result: InceptionScore) -> str:
    """The score and its protocol as lines of text."""
    p = result.protocol
    mean = "a mean clip"
    if not p["exact_mean"]:
        mean = "Sports-1M's mean colour (no --c3d-mean was given; not as published)"
    value = f"{result.value:.3f} ± {result.deviation:.3f} (mean and deviation of {result.splits} splits)"
    whole = f"{result.whole:.3f} (TGANv2 and TATS repeat this for sets of 2048 or 10000 clips)"
    count = f"{result.n}; it grows with their number: published with 10000 (CogVideo) and 2048 (StyleGAN-V)"
    return lines(
        ("Inception Score", value),
        ("all as one split", whole),
        ("clips", count),
        ("frames", f"{p['frames']}, squeezed to 112 x 112, minus {mean}"),
        ("generated", p["generated"]),
        ("skipped", "; ".join(p["skipped"]) or "none"),
        ("C3D", p["c3d_sha256"][:16]),
        ("seed", str(p["seed"])),
    )


@dataclass(frozen=True)
class ClipEncoder:
    """Images and texts in one space: images(uint8 [T,H,W,3]) -> [T,D], texts(list of n) -> [n,D]."""

    images: Callable[[np.ndarray], Tensor]
    texts: Callable[[list[str]], Tensor]
    digest: str

    @classmethod
    def from_open_clip(cls, path: str | Path, name: str, *, device: str = "auto") -> "ClipEncoder":
        """A model of open_clip (such as ViT-B-32 or ViT-B-32-quickgelu) with weights out of a file."""
        device = choose_device(device)
        try:
            import open_clip  # pyright: ignore[reportMissingImports]  # an extra
        except (ImportError, RuntimeError) as error:  # also "operator torchvision::nms does not exist"
            raise CogVideoError(
                f'CLIPSIM needs open_clip ({first_sentence(error)}): run `pip install "cogvideo[clip]"` with '
                f"the torchvision made for torch {torch.__version__}."
            ) from None
        if name not in open_clip.list_models():
            raise CogVideoError(f"open_clip has no model {name!r}: see open_clip.list_models().")
        table = read_table(Path(path), "of CLIP")
        weights = {key.removeprefix("module."): value for key, value in table.items()}
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                name, load_weights=False, pretrained_text=False
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # models that take parts from the Hugging Face hub fail in many ways
            reason = first_sentence(error)
            raise CogVideoError(f"{name} cannot be made offline ({reason}): take another model.") from None
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1].strip().rstrip(".")[:200]
            raise CogVideoError(
                f"{path} does not hold the weights of {name} ({reason}): check --clip-model."
            ) from None
        model = model.to(device).eval().requires_grad_(False)
        digest = hashlib.sha256(name.encode())
        for key in sorted(weights):
            digest.update(weights[key].contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())

        def images(frames: np.ndarray) -> Tensor:
            pictures = torch.stack([transform(Image.fromarray(frame)) for frame in frames])
            return model.encode_image(pictures.to(device))

        def texts(some: list[str]) -> Tensor:
            return model.encode_text(tokenizer(some).to(device))

        return cls(images, texts, digest.hexdigest())


def frame_mean(encoder: ClipEncoder, frames: np.ndarray) -> np.ndarray:
    """uint8 [T,H,W,3] -> [D], the mean of the frames' unit vectors; times a text's: their mean cosine."""
    with torch.inference_mode():
        return F.normalize(encoder.images(frames).float(), dim=-1).mean(0).cpu().numpy()


def similarities(videos: np.ndarray, encoder: ClipEncoder, prompts: list[str]) -> np.ndarray:
    """GODIVA's SIM (equation 14) [n]: cosine with the prompt, mean over frames; videos: frame_mean [n,D]."""
    with torch.inference_mode():
        parts = [encoder.texts(prompts[at : at + CHUNK]).float() for at in range(0, len(prompts), CHUNK)]
        texts = F.normalize(torch.cat(parts), dim=-1).cpu().numpy()
    return np.einsum("nd,nd->n", videos.astype(np.float64), texts.astype(np.float64))


def evaluate_clipsim(
    generated: str, encoder: ClipEncoder, settings: Settings = Settings(), *, real: str | None = None
) -> ClipSim:
    """CLIPSIM over all frames of the videos (by default 2048) of a side with known prompts; prints the card.

    Such sides are weights to sample from, theatre:.., and folders with captions.jsonl (as `data make-theatre`
    writes). real: a side with real videos of the same prompts in the same order, for GODIVA's relative
    matching (RM, equation 15).
    """
    settings.check_out()
    n, seed = N if settings.n is None else settings.n, settings.seed
    sides = [
        open_side(spec, n, seed=seed, device=settings.device, progress=settings.progress)
        for spec in (generated, real)
        if spec is not None
    ]
    prompts = [_prompts(side) for side in sides]
    if prompts[-1] != prompts[0]:
        raise CogVideoError(f"{real} and {generated} need the same prompts in the same order.")
    skipped: list[str] = []
    values = [
        _values(side, encoder, title, skipped, settings.progress)
        for side, title in zip(sides, ("generated", "real"), strict=False)
    ]
    both = [number for number in values[0] if number in values[-1]]
    sim = np.array([values[0][number] for number in both])
    relative = None if real is None else float(np.mean(sim / [values[1][number] for number in both]))
    error = float(sim.std(ddof=1) / len(sim) ** 0.5) if len(sim) > 1 else float("nan")
    protocol = {
        "generated": generated,
        "real": real,
        "clip_sha256": encoder.digest,
        "skipped": skipped,
        "seed": seed,
    }
    result = ClipSim(float(sim.mean()), error, relative, len(sim), protocol)
    settings.finish(clipsim_card(result), asdict(result))
    return result


def clipsim_card(result: ClipSim) -> str:
    """The score and its protocol as lines of text."""
    p, value = result.protocol, f"{result.value:.4f} ± {result.error:.2g}"
    rows = [("CLIPSIM", f"{value} (standard error; GODIVA prints 100 times as much)")]
    if result.relative is not None:
        rows.append(("relative matching", f"{result.relative:.4f} (mean over clips of generated / real)"))
        rows.append(("real", p["real"]))
    return lines(
        *rows,
        ("clips", f"{result.n}, all frames of each"),
        ("generated", p["generated"]),
        ("skipped", "; ".join(p["skipped"]) or "none"),
        ("CLIP", p["clip_sha256"][:16]),
        ("seed", str(p["seed"])),
    )


def _prompts(side: Side) -> list[str]:
    if missing := [name for name in side.names if name not in side.prompts]:
        raise CogVideoError(
            f"{side.label} has no prompt for {missing[0]}: give weights, or a folder with captions.jsonl."
        )
    return [side.prompts[name] for name in side.names]


def _values(
    side: Side, encoder: ClipEncoder, title: str, skipped: list[str], progress: bool
) -> dict[int, float]:
    """Similarity with the prompt of each readable video of a side, by number; `skipped` describes others."""
    kept: list[int] = []
    unreadable: list[str] = []

    def videos() -> Iterator[np.ndarray]:
        for number, frames in readable(side, unreadable):
            kept.append(number)
            yield frames

    def compute(some: list[np.ndarray]) -> np.ndarray:
        return np.stack([frame_mean(encoder, frames) for frames in some])

    key, total, prompts = f"clip {encoder.digest}", len(side.names), _prompts(side)
    rows = rows_of(videos(), compute, key=key, total=total, title=title, progress=progress)
    skipped += unreadable
    return dict(zip(kept, similarities(rows, encoder, [prompts[i] for i in kept]).tolist(), strict=True))
