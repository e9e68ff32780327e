"""A judge of demo clips that reads pixels: which digit, colour and action, how much of it, and is it one object?

It knows the world's definitions (colours, the paths of actions, how digits are drawn) but never a clip's hidden state.
Three parts: a tracker finds the object in every frame, a small network reads digit and turn from a crop of it, and the
path over the frames is compared with the path of every action.

`python -m cogvideo.theatre.judge OUT.safetensors` trains the network anew (about a minute on one core).
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from cogvideo.errors import CogVideoError
from cogvideo.theatre.digits import (
    ACTION_NAMES,
    COLOR_NAMES,
    COLORS,
    DURATIONS,
    FRAME_SIZE,
    SPANS,
    Clips,
    World,
    object_states,
    render,
    sample_clips,
)

WEIGHTS = Path(__file__).parent.parent / "weights" / "judge.safetensors"
CROP = 28
# How far a frame may be from the ideal path: about a quarter of an action, which is one step of five frames.
TOLERANCES = {
    "x": 8.0,
    "y": 8.0,
    "octaves": 0.25,
    "degrees": 22.5,
    "brightness": 0.2,
}  # x, y in px of a 64 px frame
# Parts and multiples of an action that five frames may span; beyond 1 the object rests.
RATIOS = np.concatenate([np.arange(64) / 64, np.arange(16, 16 * max(SPANS) / min(DURATIONS) + 1) / 16])
PALETTE = np.array([COLORS[name][1] for name in COLOR_NAMES]) / 255  # [colours, 3]


@dataclass(frozen=True)
class Observation:
    """What is seen in n clips of T frames, arrays [n, T]; lengths in pixels of a 64 x 64 frame."""

    objects: (
        np.ndarray
    )  # how many; everything else is about the largest and means nothing where there is none
    x: np.ndarray  # centre of mass
    y: np.ndarray
    size: np.ndarray  # radius of gyration
    brightness: np.ndarray  # 1 = the full colour
    color: np.ndarray  # index into COLOR_NAMES; -1 where less than 70 % of the object have one colour
    digit_log_probs: np.ndarray  # [n, T, 10]
    degrees: np.ndarray  # clockwise, told apart between -40 and 130

    @property
    def digit(self) -> np.ndarray:
        """The digit of each whole clip [n]."""
        return self.digit_log_probs.mean(1).argmax(1)

    @property
    def clip_color(self) -> np.ndarray:
        """The colour that most frames of each clip show [n]; -1 where no frame has a clear one."""
        votes = (self.color[:, :, None] == np.arange(len(COLOR_NAMES))).sum(1)
        return np.where(votes.any(1), votes.argmax(1), -1)

    @property
    def same_object(self) -> np.ndarray:
        """True [n] where every frame shows one object of sensible size with the same digit and the same colour."""
        frame_digit = self.digit_log_probs.argmax(-1)
        sensible = (self.objects == 1) & (self.size > 3) & (self.size < 14)
        steady = (frame_digit == frame_digit[:, :1]) & (self.color == self.color[:, :1]) & (self.color >= 0)
        return (sensible & steady).all(1)

    def path_errors(self, ratios: np.ndarray) -> np.ndarray:
        """Distance of the path from that of every action, when the T frames span `ratios` [R] of the action.

        Returns [n, actions + 1, R, T] in units of `TOLERANCES`, so that above 1 is too far; the last "action" is an
        object that rests. Where and how large the object is at the start is free.
        """
        seen = _path_features(self.x, self.y, self.size, self.degrees, self.brightness)
        ideal = _action_paths(ratios, self.x.shape[1])
        difference = seen[:, None, None] - ideal[None]
        difference[..., :3] -= difference[..., :3].mean(-2, keepdims=True)
        errors = np.sqrt((difference**2).sum(-1))
        return np.where((self.objects > 0)[:, None, None], errors, np.inf)

    def action(self, ratio: np.ndarray) -> np.ndarray:
        """The action [n] whose path is nearest when the frames span `ratio` [n] of it; -1 where none is near."""
        found = np.full(len(ratio), -1)
        for value in np.unique(ratio):
            rows = np.flatnonzero(ratio == value)
            errors = self.path_errors(np.array([value]))[rows, :, 0]
            nearest = (errors**2).mean(-1).argmin(1)
            good = (errors[np.arange(len(rows)), nearest].max(-1) <= 1) & (nearest < len(ACTION_NAMES))
            found[rows] = np.where(good, nearest, -1)
        return found

    def part(self, action: np.ndarray, expected: np.ndarray) -> np.ndarray:
        """The share of `action` [n] done in the last frame, 0..1; NaN where the object goes another way.

        Paths may fit several shares equally well (a bounce that ends between two frames looks like rest): then the
        share nearest to `expected` [n] counts.
        """
        errors = self.path_errors(RATIOS)[np.arange(len(action)), action]  # [n, R, T]
        cost, worst, shares = (errors**2).mean(-1), errors.max(-1), np.minimum(1, RATIOS)
        fits = (cost <= cost.min(1, keepdims=True) + 0.0025) & (worst <= 1)  # equal but for half a pixel
        distance = np.where(fits, abs(shares - expected[:, None]), np.inf)
        return np.where(fits.any(1), shares[distance.argmin(1)], np.nan)


def _path_features(x, y, size, degrees, brightness) -> np.ndarray:
    """[..., 5] in units of TOLERANCES; the first three may be shifted as a whole, the last two are absolute."""
    return np.stack([x, y, np.log2(np.maximum(size, 1)), degrees, brightness], -1) / list(TOLERANCES.values())


def _action_paths(ratios: np.ndarray, steps: int) -> np.ndarray:
    """The ideal paths [actions + 1, R, T, 5], the last that of an object at rest."""
    action = np.arange(len(ACTION_NAMES))[:, None]
    zero = np.zeros_like(action)
    clips = Clips(zero, zero, action, zero + 1.0, zero, zero, zero, World(), "test")
    paths = []
    for ratio in ratios:
        states = object_states(clips, repeat(np.linspace(0, ratio, steps), "t -> a t", a=len(action)))
        keys = ("x", "y", "scale", "degrees", "brightness")
        features = _path_features(
            *(32 * states[k][..., 0] if k == "scale" else states[k][..., 0] for k in keys)
        )
        rest = _path_features(*(np.full((1, steps), value) for value in (0, 0, 32, 0, 1)))
        paths.append(np.concatenate([features, rest]))
    return np.stack(paths, 1)


class DigitReader(nn.Module):
    """Crops [m, 1, 28, 28] -> digit log-probabilities [m, 10] and degrees turned clockwise [m]."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 40, 3, padding=1, stride=2), nn.BatchNorm2d(40), nn.ReLU(),
            nn.Flatten(), nn.Linear(40 * 16, 64), nn.ReLU(),
        )  # fmt: skip
        self.digit, self.turn = nn.Linear(64, 10), nn.Linear(64, 2)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.features(crops)
        cos, sin = self.turn(hidden).unbind(-1)
        return self.digit(hidden).log_softmax(-1), torch.atan2(sin, cos).rad2deg()


class Judge:
    """Reads clips; `Judge.from_pretrained()` loads the network that comes with the package."""

    def __init__(self, reader: DigitReader):
        self.reader = reader.eval()

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "Judge":
        """Load the reader from a file, by default the package's own; CogVideoError when that is absent or unfit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = Path(path) if path else WEIGHTS
        reader = DigitReader()
        try:
            reader.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()  # load_state_dict names the tensor in its last line
            remedy = "train it by `python -m cogvideo.theatre.judge OUT.safetensors`"
            raise CogVideoError(f"The judge's weights {file} cannot be used ({reason}): {remedy}.") from error
        return cls(reader)

    @torch.no_grad()
    def observe(self, frames: np.ndarray | Tensor) -> Observation:
        """Look at clips [n, T, H, W, 3], uint8 or floats in 0..1, square and 64 px or a multiple of it wide."""
        video = _as_small_float(frames)
        n, steps = video.shape[:2]
        found = [locate(frame) for frame in rearrange(video, "n t h w c -> (n t) h w c").numpy()]
        table = {key: np.array([one[key] for one in found]) for key in found[0]}
        x, y, size = (torch.from_numpy(table[key]) for key in ("x", "y", "size"))
        # Looking three times with the head tilted halves the errors of the turn.
        tilts, alpha = (-20.0, 0.0, 20.0), torch.from_numpy(table.pop("alpha"))
        log_probs, degrees = zip(
            *(self.reader(cut_out(alpha, x, y, size, tilt)) for tilt in tilts), strict=True
        )
        table["digit_log_probs"] = torch.stack(log_probs).mean(0).numpy()
        table["degrees"] = torch.stack(degrees).mean(0).numpy()
        return Observation(**{key: value.reshape(n, steps, *value.shape[1:]) for key, value in table.items()})


def _as_small_float(frames: np.ndarray | Tensor) -> Tensor:
    """Any clips [n, T, H, W, 3] -> float [n, T, 64, 64, 3] in 0..1."""
    video = torch.as_tensor(frames)
    if (
        video.ndim != 5
        or video.shape[-1] != 3
        or video.shape[2] != video.shape[3]
        or video.shape[2] % FRAME_SIZE
    ):
        remedy = "give [n, T, H, W, 3] with H = W = 64 or a multiple of it"
        raise CogVideoError(f"The judge cannot look at frames of shape {list(video.shape)}: {remedy}.")
    video = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    factor = video.shape[2] // FRAME_SIZE
    return reduce(video, "n t (h a) (w b) c -> n t h w c", "mean", a=factor, b=factor)


def locate(frame: np.ndarray) -> dict[str, Any]:
    """Find the bright objects of a frame [64, 64, 3] on black; measure the largest.

    Returns the fields of an `Observation` and "alpha" [64, 64]: how much of each pixel the object covers.
    """
    from scipy import ndimage

    value = frame.max(-1)
    bright = value > max(0.08, 0.25 * np.quantile(value, 0.995))
    # Parts of a broken stroke stay together; what is more than 4 px away is another object.
    labels = np.zeros(value.shape, np.int32)
    ndimage.label(ndimage.binary_dilation(bright, iterations=2), np.ones((3, 3)), output=labels)
    mass = ndimage.sum_labels(value * bright, labels, np.arange(1, labels.max() + 1))
    if labels.max() == 0 or mass.max() < 3:
        nothing = {"objects": 0, "x": 0.0, "y": 0.0, "size": 1.0, "brightness": 0.0, "color": -1}
        return nothing | {"alpha": np.zeros_like(value)}
    inside = bright & (labels == 1 + mass.argmax())
    peak = np.quantile(value[inside], 0.8)
    alpha = np.where(inside, np.minimum(value / peak, 1), 0).astype(np.float32)
    total = alpha.sum()
    rows, columns = np.mgrid[: len(value), : len(value)] + 0.5
    x, y = (alpha * columns).sum() / total, (alpha * rows).sum() / total
    size = np.sqrt((alpha * ((columns - x) ** 2 + (rows - y) ** 2)).sum() / total)

    pixels = frame[inside & (value >= 0.6 * peak)]  # edges are darker; ink alone tells the colour
    similarity = pixels @ (PALETTE / np.linalg.norm(PALETTE, axis=1, keepdims=True)).T
    votes = np.bincount(similarity.argmax(1), minlength=len(PALETTE))
    color = int(votes.argmax())
    return {
        "objects": int((mass > 0.12 * mass.max()).sum()),
        "x": x,
        "y": y,
        "size": size,
        "brightness": peak / PALETTE[color].max(),
        "color": color if votes[color] >= 0.7 * len(pixels) else -1,
        "alpha": alpha,
    }


def cut_out(alpha: Tensor, x: Tensor, y: Tensor, size: Tensor, degrees: Tensor | float = 0.0) -> Tensor:
    """Crops [m, 1, 28, 28] of alpha [m, 64, 64] about (x, y), scaled so that the size is always the same.

    degrees [m] turns the picture clockwise (for training).
    """
    half = FRAME_SIZE / 2
    angle = torch.as_tensor(degrees).expand(len(alpha)).deg2rad()
    zoom = 2.2 * size / half
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    theta = torch.stack([cos, sin, x / half - 1, -sin, cos, y / half - 1], -1).float()
    theta = rearrange(theta, "m (row column) -> m row column", row=2)
    grid = F.affine_grid(theta, [len(alpha), 1, CROP, CROP], align_corners=False)
    return F.grid_sample(alpha[:, None].float(), grid, align_corners=False)


def train_reader(
    *, frames: int = 6000, epochs: int = 12, seed: int = 0, progress: bool = True
) -> DigitReader:
    """Train on renderings of both glyph sets (train scans), spoiled the ways that frame tokenizers spoil pictures."""
    rng, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    batches = []
    for start in range(0, frames, 500):
        if progress:
            print(f"\rjudge: {start} of {frames} pictures", end="", file=sys.stderr, flush=True)
        world = World("clean") if start % 1000 else World("handwriting", scans_per_digit=140)
        clips = sample_clips(500, rng, world=world)
        turning = np.where(rng.random(clips.action.shape) < 0.5, ACTION_NAMES.index("turns"), clips.action)
        clips = replace(clips, action=turning)
        times = rng.uniform(0, 1, (len(clips), 1)) * clips.duration
        pictures = render(clips, times)[:, 0]
        truth = torch.from_numpy(object_states(clips, times)["degrees"][:, 0, 0]).float()
        for _ in range(2):
            spoiled = rearrange(_spoil(pictures, noise), "m c h w -> m h w c")
            found = [locate(frame) for frame in spoiled.numpy()]
            table = [
                torch.from_numpy(np.stack([one[key] for one in found])) for key in ("alpha", "x", "y", "size")
            ]
            batches.append((*table, truth, torch.from_numpy(clips.kind[:, 0])))
    alpha, x, y, size, truth, digits = (torch.cat(column) for column in zip(*batches, strict=True))

    reader, batch = DigitReader(), 200
    steps = epochs * (len(alpha) // batch)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(alpha), (batch,), generator=noise)
        jitter = torch.rand(4, batch, generator=noise) * 2 - 1
        extra = 35 * jitter[0]
        crops = cut_out(
            alpha[rows], x[rows] + jitter[1], y[rows] + jitter[2], size[rows] * (1 + 0.08 * jitter[3]), extra
        )
        hidden, angle = reader.features(crops), (truth[rows] + extra).deg2rad()
        loss = F.cross_entropy(reader.digit(hidden), digits[rows], label_smoothing=0.02)
        loss = loss + 2 * F.mse_loss(reader.turn(hidden), torch.stack([angle.cos(), angle.sin()], -1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress and step % 20 == 0:
            print(
                f"\rjudge: step {step} of {steps}, loss {loss.item():.3f}",
                end="",
                file=sys.stderr,
                flush=True,
            )
    return reader.eval()


def _spoil(pictures: Tensor, noise: torch.Generator) -> Tensor:
    """Make renderings [m, 3, 64, 64] look like reconstructions: dim, shifted blocks, lost detail, blur, noise."""
    m = len(pictures)
    amount = repeat(torch.rand(5, m, generator=noise) ** 2, "k m -> k m 1 1 1")  # mostly mild
    dim = 1 - 0.5 * amount[0]
    shifts = (
        (torch.rand(m, 2, 8, 8, generator=noise) - 0.5) * 6 * amount[1] / FRAME_SIZE * 2
    )  # up to 3 px a block
    grid = F.affine_grid(torch.eye(2, 3).expand(m, 2, 3), [m, 1, FRAME_SIZE, FRAME_SIZE], align_corners=False)
    moved = grid + repeat(shifts, "m c h w -> m (h a) (w b) c", a=8, b=8)
    pictures = F.grid_sample(pictures, moved, align_corners=False)
    # Drop the small cosine coefficients of every 8 x 8 block.
    k = torch.arange(8.0)
    basis = torch.cos(torch.pi / 8 * (k[None] + 0.5) * k[:, None]) * torch.where(
        k[:, None] == 0, 0.125**0.5, 0.5
    )
    blocks = rearrange(pictures, "m c (h a) (w b) -> m c h w a b", a=8, b=8)
    coefficients = basis @ blocks @ basis.T
    kept = coefficients * (coefficients.abs() > 0.35 * amount[2][..., None, None])
    pictures = rearrange(basis.T @ kept @ basis, "m c h w a b -> m c (h a) (w b)")
    blurred = F.avg_pool2d(pictures, 3, stride=1, padding=1)
    pictures = pictures + amount[3] * (blurred - pictures)
    grain = torch.randn(pictures.shape, generator=noise) * 0.06 * amount[4]
    return (dim * (pictures + grain)).clamp(0, 1)


def main(arguments: list[str]) -> None:
    from cogvideo.runtime.tensors import save_tensors

    if len(arguments) != 1:
        raise SystemExit("usage: python -m cogvideo.theatre.judge OUT.safetensors")
    torch.set_num_threads(1)
    reader = train_reader()
    save_tensors({name: tensor.half() for name, tensor in reader.state_dict().items()}, arguments[0])
    print(f"\nsaved {arguments[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
