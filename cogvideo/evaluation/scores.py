"""Scores that look at generated videos alone: the Inception Score (C3D on UCF-101) and CLIPSIM (frames against prompts)."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cogvideo.runtime.device import choose_device
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.c3d import C3D, FRAMES, read_table
from cogvideo.evaluation.features import CHUNK, MAX_SKIPPED, clips_of, rows_of
from cogvideo.evaluation.fvd import check_place
from cogvideo.evaluation.recipes import Recipe, check_frames
from cogvideo.evaluation.sources import Side, open_side
from cogvideo.io import write_json

SPLITS = 10
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
    """exp(mean KL(p(y|x) || p(y))) of logits [n,K] before the softmax -> mean and standard deviation over splits.

    Splits are disjoint, equal up to one, in the given order, each with a p(y) of its own; the deviation divides by their
    number (Salimans et al. 2016, TGANv2, StyleGAN-V). Computed in float64 on log-probabilities, so that no epsilon is
    needed. Raises CogVideoError for NaN, other shapes, and fewer rows than splits.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise CogVideoError(
            f"The Inception Score takes finite logits [n, classes], not {list(logits.shape)} or NaN."
        )
    check_splits(len(logits), splits)
    scores = []
    for part in torch.from_numpy(logits).log_softmax(1).tensor_split(splits):
        marginal = part.logsumexp(0) - np.log(len(part))
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def check_splits(n: int, splits: int) -> None:
    """Raise CogVideoError unless n clips can be cut into so many splits."""
    if not 1 <= splits <= n:
        raise CogVideoError(f"{n} clips cannot be cut into {splits} splits: give more clips or fewer splits.")


def evaluate_inception_score(
    generated: str,
    network: C3D,
    *,
    n: int = 2048,
    splits: int = SPLITS,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> InceptionScore:
    """Inception Score of n videos of a side (see sources.open_side), the first 16 frames of each; prints the card.

    Raises CogVideoError for fewer clips than splits and for what side and the place of `out` have wrong.
    """
    if out:
        check_place(out)
    check_splits(n, splits)
    side = open_side(generated, n, seed=seed, device=device, progress=progress)
    clips, skipped = clips_of(side, C3D_RECIPE, seed)

    def logits(some: list[np.ndarray]) -> np.ndarray:
        return network(torch.from_numpy(np.stack(some))).cpu().numpy()

    rows = rows_of(
        clips, logits, key=f"c3d {network.digest}", total=len(side.names), title="C3D", progress=progress
    )
    value, deviation = inception_score(rows, splits)
    protocol = {
        "generated": generated,
        "frames": f"the first {FRAMES} of each video",
        "c3d_sha256": network.digest,
        "exact_mean": network.exact_mean,
        "skipped": list(skipped),
        "seed": seed,
    }
    result = InceptionScore(value, deviation, inception_score(rows, 1)[0], splits, len(rows), protocol)
    print(inception_card(result))
    if out:
        write_json(out, asdict(result))
    return result


def inception_card(result: InceptionScore) -> str:
    """The score and its protocol as lines of text."""
    p = result.protocol
    mean = (
        "a mean clip"
        if p["exact_mean"]
        else "Sports-1M's mean colour (no --c3d-mean was given; not as published)"
    )
    return lines(
        (
            "Inception Score",
            f"{result.value:.3f} ± {result.deviation:.3f} (mean and deviation of {result.splits} splits)",
        ),
        (
            "all as one split",
            f"{result.whole:.3f} (TGANv2 and TATS repeat this for sets of 2048 or 10000 clips)",
        ),
        (
            "clips",
            f"{result.n}; it grows with their number: published with 10000 (CogVideo) and 2048 (StyleGAN-V)",
        ),
        ("frames", f"{p['frames']}, squeezed to 112 x 112, minus {mean}"),
        ("generated", p["generated"]),
        ("skipped", "; ".join(p["skipped"]) or "none"),
        ("C3D", p["c3d_sha256"][:16]),
        ("seed", str(p["seed"])),
    )


@dataclass(frozen=True)
class ClipEncoder:
    """Images and texts in one space. images(uint8 [T,H,W,3]) -> [T,D]; texts(list of n) -> [n,D]; of any length."""

    images: Callable[[np.ndarray], Tensor]
    texts: Callable[[list[str]], Tensor]
    digest: str

    @classmethod
    def from_open_clip(cls, path: str | Path, name: str, *, device: str = "auto") -> "ClipEncoder":
        """A model of open_clip (such as ViT-B-32 or ViT-B-32-quickgelu) with weights of a file; nothing is fetched.

        Raises CogVideoError if open_clip_torch is not installed, the name is unknown, or the weights are missing or others.
        """
        path, device = Path(path), choose_device(device)
        try:
            import open_clip  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            reason = str(error).partition("\n")[0].rstrip(".")
            raise CogVideoError(
                f'CLIPSIM needs open_clip ({reason}): run `pip install "cogvideo[clip]"`.'
            ) from None
        except RuntimeError as error:  # "operator torchvision::nms does not exist"
            reason = str(error).partition("\n")[0].rstrip(".")
            raise CogVideoError(
                f"open_clip does not load ({reason}): install the torchvision made for torch {torch.__version__}."
            ) from None
        if name not in open_clip.list_models():
            raise CogVideoError(f"open_clip has no model {name!r}: see open_clip.list_models().")
        weights = {key.removeprefix("module."): value for key, value in read_table(path, "of CLIP").items()}
        try:
            model, _, transform = open_clip.create_model_and_transforms(
                name, load_weights=False, pretrained_text=False
            )
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # models that take parts from the Hugging Face hub fail in many ways
            reason = str(error).partition("\n")[0].rstrip(".")
            raise CogVideoError(
                f"{name} cannot be made without a network ({reason}): take another model."
            ) from None
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
            from PIL import Image

            return model.encode_image(
                torch.stack([transform(Image.fromarray(frame)) for frame in frames]).to(device)
            )

        def texts(some: list[str]) -> Tensor:
            return model.encode_text(tokenizer(some).to(device))

        return cls(images, texts, digest.hexdigest())


def frame_mean(encoder: ClipEncoder, frames: np.ndarray) -> np.ndarray:
    """uint8 [T,H,W,3] -> [D], the mean of the frames' unit vectors. Its product with a text's is their mean cosine."""
    with torch.inference_mode():
        return torch.nn.functional.normalize(encoder.images(frames).float(), dim=-1).mean(0).cpu().numpy()


def similarities(videos: np.ndarray, encoder: ClipEncoder, prompts: list[str]) -> np.ndarray:
    """GODIVA's SIM (its equation 14) [n]: the mean over frames of the cosine with the prompt. videos: frame_mean [n,D]."""
    with torch.inference_mode():
        parts = [encoder.texts(prompts[at : at + CHUNK]).float() for at in range(0, len(prompts), CHUNK)]
        texts = torch.nn.functional.normalize(torch.cat(parts), dim=-1).cpu().numpy()
    return np.einsum("nd,nd->n", videos.astype(np.float64), texts.astype(np.float64))


def evaluate_clipsim(
    generated: str,
    encoder: ClipEncoder,
    *,
    real: str | None = None,
    n: int = 2048,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> ClipSim:
    """CLIPSIM of n videos of a side that knows its prompts, over all of their frames; prints the card.

    Such sides are weights to sample from, digits:.., and folders with captions.jsonl (as `data make-digits` writes).
    real: a side with real videos of the same prompts in the same order, for GODIVA's relative matching (RM, equation 15).
    Raises CogVideoError for sides without prompts, other prompts, and more than 1 % of unreadable videos.
    """
    if out:
        check_place(out)
    sides = {"generated": open_side(generated, n, seed=seed, device=device, progress=progress)}
    if real is not None:
        sides["real"] = open_side(real, n, seed=seed, device=device, progress=progress)
    prompts = {title: _prompts(side) for title, side in sides.items()}
    if real is not None and prompts["real"] != prompts["generated"]:
        raise CogVideoError(
            f"{real} and {generated} do not have the same prompts in the same order: RM needs that."
        )
    skipped, found, values = [], [], {}
    for title, side in sides.items():
        kept: list[int] = []
        rows = rows_of(
            _videos(side, kept, skipped), lambda some: np.stack([frame_mean(encoder, frames) for frames in some]),
            key=f"clip {encoder.digest}", total=len(side.names), title=title, progress=progress,
        )  # fmt: skip
        values[title] = np.full(len(side.names), np.nan)
        values[title][kept] = similarities(rows, encoder, [prompts[title][i] for i in kept])
        found.append(np.isin(np.arange(len(side.names)), kept))
    both = np.logical_and.reduce(found)
    sim = values["generated"][both]
    relative = float((sim / values["real"][both]).mean()) if real is not None else None
    error = float(sim.std(ddof=1) / len(sim) ** 0.5) if len(sim) > 1 else float("nan")
    protocol = {
        "generated": generated,
        "real": real,
        "clip_sha256": encoder.digest,
        "skipped": skipped,
        "seed": seed,
    }
    result = ClipSim(float(sim.mean()), error, relative, len(sim), protocol)
    print(clipsim_card(result))
    if out:
        write_json(out, asdict(result))
    return result


def clipsim_card(result: ClipSim) -> str:
    """The score and its protocol as lines of text."""
    p = result.protocol
    rows = [
        (
            "CLIPSIM",
            f"{result.value:.4f} ± {result.error:.2g} (standard error; GODIVA prints 100 times as much)",
        )
    ]
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
            f"{side.label} does not tell the prompt of {missing[0]}: give weights to sample from, or a folder with captions.jsonl."
        )
    return [side.prompts[name] for name in side.names]


def _videos(side: Side, kept: list[int], skipped: list[str]) -> Iterable[np.ndarray]:
    """All frames of every video that can be read; `kept` gathers their numbers, `skipped` sentences about the others."""
    side.make()
    for number, name in enumerate(side.names):
        try:
            frames = side.read(name)
        except (CogVideoError, OSError, ValueError, zipfile.BadZipFile) as error:
            skipped.append(f"{name}: {error}")
            if number + 1 - len(kept) > MAX_SKIPPED * len(side.names):
                raise CogVideoError(
                    f"Too many videos of {side.label} cannot be read (last {skipped[-1]}): mend or remove them."
                ) from None
            continue
        kept.append(number)
        yield check_frames(frames, f"{side.label}, {name}")


def lines(*rows: tuple[str, str]) -> str:
    """Names and texts in two columns."""
    return "\n".join(f"{name:<20} {text}" for name, text in rows)
