"""What a score feels: clips that are wrong in one known way each, scored against clips that are right."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.fvd import (
    FVDResult,
    check_count,
    check_place,
    fvd,
    generations,
    real_sides,
    versions,
)
from cogvideo.evaluation.recipes import PRESETS, find_recipe
from cogvideo.io import write_json

DAMAGES = ("shuffled", "frozen", "reversed", "blurred", "noisy", "recoded")


@dataclass(frozen=True)
class Row:
    """A score of one table line: a preset, and clips that were damaged so much."""

    preset: str
    clips: str  # real (undamaged: the floor), generated, or a damage
    strength: float | None  # None for clips that are as they are
    score: FVDResult


@dataclass(frozen=True)
class Sensitivity:
    """What sensitivity() found."""

    rows: list[Row]
    protocol: dict

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all. Raises CogVideoError if the place cannot be written."""
        return write_json(path, asdict(self))

    def of(self, preset: str, clips: str) -> list[Row]:
        """The rows of a preset and a kind of clips, one for each strength."""
        return [row for row in self.rows if (row.preset, row.clips) == (preset, clips)]


def sensitivity(
    real: str,
    generated: str | None = None,
    *,
    presets: Sequence[str] = tuple(PRESETS),
    n: int = 64,
    damages: Sequence[str] = DAMAGES,
    strengths: Sequence[float] = (1.0,),
    seed: int = 0,
    i3d: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Sensitivity:
    """Score n real clips against n other real ones, as they are (the floor) and damaged; prints the table.

    real, generated: see sources.open_side; the generated side, if any, is a line of the table. Of a side with fewer than 2 n
    videos, each half is used. strengths: see damage. out: a JSON file; a picture of the same name goes beside it.
    Cost: presets x (2 + generated + damages x strengths) x n clips through I3D, about 1 s each on one core; clips that any
    score has met before are free. Raises CogVideoError for what evaluate() raises it for, and for other damages.
    """
    from cogvideo.evaluation.features import features_of
    from cogvideo.evaluation.i3d import I3D
    from cogvideo.evaluation.sources import open_side

    check_count(n)
    recipes = [find_recipe(name) for name in presets]
    for kind in damages:
        for strength in strengths:
            check_damage(kind, strength)
    if out:
        check_place(out)
    begin = time.perf_counter()
    right, others = real_sides(real, n, seed, device=device, progress=progress)
    if len(others.names) < n:
        n = (len(right.names) + len(others.names)) // 2
        if n < 2:
            raise CogVideoError(f"{right.label} has too few videos: two halves of 2 are needed at least.")
        right, others = real_sides(real, n, seed, device=device, progress=progress)
    made = None
    if generated is not None:
        ((spec, own_seed),) = generations(generated, seed)
        made = open_side(spec, n, seed=own_seed, device=device, progress=progress)  # mistakes in it now
    rows, common = [], {"seed": seed, "progress": progress}
    protocol = {"real": real, "generated": generated, "n": n, "seed": seed}
    for recipe in recipes:
        network = I3D.from_pretrained(i3d, device=device, batch_norm_eps=recipe.batch_norm_eps)
        protocol |= versions(network)
        truth = features_of(right, recipe, network, title=f"{recipe.name}, real", **common)
        jobs = [("real", None, others)]
        if made is not None:
            jobs.append(("generated", None, made))
        jobs += [(kind, strength, others) for kind in damages for strength in strengths]
        for kind, strength, clips in jobs:
            title = f"{recipe.name}, {'other real' if kind == 'real' else kind}"
            change = None if strength is None else _damaging(kind, strength, seed)
            features = features_of(
                clips, recipe, network, size=truth.size, change=change, title=title, **common
            )
            rows.append(
                Row(recipe.name, kind, strength, fvd(truth.values, features.values, recipe=recipe, seed=seed))
            )
    result = Sensitivity(rows, protocol | {"seconds": time.perf_counter() - begin})
    print(table(result))
    if out:
        from cogvideo.evaluation.fvd_plots import plot_sensitivity

        result.save(out)
        plot_sensitivity(result).savefig(Path(out).with_suffix(".png"), dpi=110)
    return result


def table(result: Sensitivity) -> str:
    """Lines of text: a line for each kind of clips and strength, a column for each preset."""
    values = {(row.clips, row.strength, row.preset): row.score.value for row in result.rows}
    presets = list(dict.fromkeys(row.preset for row in result.rows))
    lines = [f"{'FVD against real':<24}" + "".join(f"{preset:>12}" for preset in presets)]
    for clips, strength in dict.fromkeys((row.clips, row.strength) for row in result.rows):
        title = clips if strength is None else f"{clips} {strength:g}"
        title = "other real (the floor)" if clips == "real" else title
        lines.append(
            f"{title:<24}" + "".join(f"{values[clips, strength, preset]:>12.2f}" for preset in presets)
        )
    p = result.protocol
    published = ", ".join(f"{preset} {find_recipe(preset).samples}" for preset in presets)
    lines.append(f"{p['n']} clips a side (published with: {published}); {p['real']}; seed {p['seed']}")
    lines.append(f"I3D {p['i3d_sha256'][:16]}, commit {p['commit']}, {p['seconds']:.0f} s")
    return "\n".join(lines)


def damage(clip: np.ndarray, kind: str, seed: int | Sequence[int] = 0, strength: float = 1.0) -> np.ndarray:
    """A clip uint8 [T,H,W,3] made wrong in one way, of the same shape; strength s above 0 and at most 1.

    shuffled: a share s of the frames, drawn at random, in a random order. frozen: the last share s shows the frame before
    it. reversed: the first share s backwards. blurred: by a Gaussian with a standard deviation of s/32 of the height. noisy:
    Gaussian noise of 32 s grey levels. recoded: through MPEG-4 at quantiser 31 s (31 is the coarsest). Raises CogVideoError
    for another kind or strength.
    """
    check_damage(kind, strength)
    rng, t = np.random.default_rng(seed), len(clip)
    several = min(max(2, round(strength * t)), t)
    if kind == "shuffled":
        places, order = rng.permutation(t)[:several], np.arange(t)
        order[np.sort(places)] = places
        return clip[order]
    if kind == "frozen":
        last = round((1 - strength) * (t - 1))
        return clip[np.minimum(np.arange(t), last)]
    if kind == "reversed":
        return np.concatenate([clip[:several][::-1], clip[several:]])
    if kind == "blurred":
        return _blurred(clip, strength * clip.shape[1] / 32)
    if kind == "noisy":
        return (clip + rng.normal(0, 32 * strength, clip.shape)).round().clip(0, 255).astype(np.uint8)
    return _recoded(clip, max(1, round(31 * strength)))


def _damaging(kind: str, strength: float, seed: int) -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda clip, number: damage(clip, kind, [seed, number], strength)


def check_damage(kind: str, strength: float) -> None:
    """Raises CogVideoError for a damage that damage() does not know."""
    if kind not in DAMAGES:
        raise CogVideoError(f"There is no damage {kind!r}: choose one of {', '.join(DAMAGES)}.")
    if not 0 < strength <= 1:
        raise CogVideoError(
            f"A damage cannot have the strength {strength:g}: choose more than 0 and at most 1."
        )


def _blurred(clip: np.ndarray, sigma: float) -> np.ndarray:
    reach = min(round(3 * sigma), min(clip.shape[1:3]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    pixels = rearrange(torch.from_numpy(clip).float(), "t h w c -> (t c) 1 h w")
    pixels = F.pad(pixels, [reach] * 4, mode="reflect")
    pixels = F.conv2d(F.conv2d(pixels, weights[None, None, :, None]), weights[None, None, None])
    return rearrange(pixels.round().byte(), "(t c) 1 h w -> t h w c", c=3).numpy()


def _recoded(clip: np.ndarray, quantiser: int) -> np.ndarray:
    import av

    t, h, w, _ = clip.shape
    even = np.pad(clip, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream(
            "mpeg4", rate=8, options={"qmin": str(quantiser), "qmax": str(quantiser)}
        )
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        for pixels in even:
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"))
            )
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)[:t, :h, :w]
