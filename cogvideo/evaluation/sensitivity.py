"""What a score feels: clips that are wrong in one known way each, scored against clips that are right."""

import io
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.features import features_of
from cogvideo.evaluation.fvd_plots import BLUE, GREY, ORANGE, pyplot
from cogvideo.evaluation.fvd_score import FVDResult, fvd, versions
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import PRESETS, find_recipe
from cogvideo.evaluation.settings import Settings
from cogvideo.evaluation.sides import Side
from cogvideo.evaluation.sources import generations, open_side, real_sides, weights_of

DAMAGES = ("shuffled", "frozen", "reversed", "blurred", "noisy", "recoded")


@dataclass(frozen=True)
class Row:
    preset: str
    clips: str  # real (undamaged: the floor), generated, or a damage
    strength: float | None  # None for clips that are as they are
    score: FVDResult


@dataclass(frozen=True)
class Sensitivity:
    rows: list[Row]
    protocol: dict

    def of(self, preset: str, clips: str) -> list[Row]:
        """The rows of a preset and a kind of clips, one for each strength."""
        return [row for row in self.rows if (row.preset, row.clips) == (preset, clips)]


def sensitivity(
    real: str,
    generated: str | None = None,
    settings: Settings = Settings(),
    *,
    presets: Sequence[str] = tuple(PRESETS),
    damages: Sequence[str] = DAMAGES,
    strengths: Sequence[float] = (1.0,),
) -> Sensitivity:
    """Score real clips (64 by default) against as many others, plain (the floor) and damaged; print a table.

    real, generated: see sources.open_side; the generated side, if any, is a line of the table. Of a side with
    fewer than 2 n videos, each half is used. strengths: see damage. A picture goes beside the result in
    `out`. Cost: presets x (2 + generated + damages x strengths) x n clips through I3D.
    """
    n, seed = settings.count(64), settings.seed
    recipes = [find_recipe(name) for name in presets]
    for kind, strength in product(damages, strengths):
        check_damage(kind, strength)
    settings.check_out()
    begin = time.perf_counter()
    first, others = _halves(real, n, settings)
    n = min(n, len(others.names))
    jobs: list[tuple[str, float | None, Side]] = [("real", None, others)]  # as in Row
    if generated is not None:
        ((spec, own),) = generations(generated, seed)
        jobs.append(("generated", None, open_side(spec, n, seed=own, **settings.sampling)))
    jobs += [(kind, strength, others) for kind, strength in product(damages, strengths)]
    rows, protocol = [], {"real": real, "generated": generated, "n": n, "seed": seed}
    for recipe in recipes:
        eps = recipe.batch_norm_eps
        network = I3D.from_pretrained(settings.i3d, device=settings.device, batch_norm_eps=eps)
        protocol |= versions(network)
        options = {"seed": seed, "progress": settings.progress}
        truth = features_of(first, recipe, network, title=f"{recipe.name}, real", **options)
        for kind, strength, side in jobs:
            more: dict[str, Any] = {"title": f"{recipe.name}, {'other real' if kind == 'real' else kind}"}
            if strength is not None:
                more["change"] = partial(_damaged, kind=kind, strength=strength, seed=seed)
            found = features_of(side, recipe, network, size=truth.size, **more, **options)
            score = fvd(truth.values, found.values, recipe=recipe, seed=seed)
            rows.append(Row(recipe.name, kind, strength, score))
    protocol["weights"] = generated and weights_of(generated)
    result = Sensitivity(rows, protocol | {"seconds": time.perf_counter() - begin})
    settings.finish(table(result), asdict(result))
    if settings.out:
        plot_sensitivity(result).savefig(Path(settings.out).with_suffix(".png"), dpi=110)
    return result


def _halves(real: str, n: int, settings: Settings) -> tuple[Side, Side]:
    """n real clips and n others, or fewer, but as many of each, where there are not enough."""
    first, others = real_sides(real, n, settings.seed, **settings.sampling)
    if len(others.names) < n:
        n = (len(first.names) + len(others.names)) // 2
        if n < 2:
            raise CogVideoError(f"{first.label} has too few videos: two halves of 2 are needed at least.")
        first, others = real_sides(real, n, settings.seed, **settings.sampling)
    return first, others


def _damaged(clip: np.ndarray, number: int, *, kind: str, strength: float, seed: int) -> np.ndarray:
    return damage(clip, kind, [seed, number], strength)


def table(result: Sensitivity) -> str:
    """Lines of text: a line for each kind of clips and strength, FVD, KVD and MIND for each preset."""
    values = {(row.clips, row.strength, row.preset): row.score for row in result.rows}
    presets = list(dict.fromkeys(row.preset for row in result.rows))
    lines = [" " * 24 + "".join(f"{preset:>36}" for preset in presets)] if len(presets) > 1 else []
    titles = "".join(f"{title:>12}" for title in ("FVD", "KVD", "MIND"))
    lines.append(f"{'against real clips':<24}{titles * len(presets)}")
    for clips, strength in dict.fromkeys((row.clips, row.strength) for row in result.rows):
        title = clips if strength is None else f"{clips} {strength:g}"
        title = "other real (the floor)" if clips == "real" else title
        scores = [values[clips, strength, preset] for preset in presets]
        kernel = ("–" if s.kernel is None else f"{s.kernel:.4g}" for s in scores)
        cells = (f"{s.value:>12.2f}{k:>12}{s.mind:>12.4g}" for s, k in zip(scores, kernel, strict=True))
        lines.append(f"{title:<24}" + "".join(cells))
    p = result.protocol
    published = ", ".join(f"{preset} {find_recipe(preset).samples}" for preset in presets)
    lines.append(f"{p['n']} clips a side (published with: {published}); {p['real']}; seed {p['seed']}")
    lines.append(f"I3D {p['i3d_sha256'][:16]}, commit {p['commit']}, {p['seconds']:.0f} s")
    return "\n".join(lines)


def plot_sensitivity(result: Sensitivity) -> Any:
    """FVD and MIND of each preset: a dot a damage and strength, lines at the floor and generated clips."""
    from matplotlib.ticker import LogLocator, NullFormatter

    presets = list(dict.fromkeys(row.preset for row in result.rows))
    kinds = list(dict.fromkeys(row.clips for row in result.rows if row.strength is not None))
    several = len({row.strength for row in result.rows}) > 2
    size = (9.6, len(presets) * (1.3 + 0.34 * len(kinds)))
    figure, axes = pyplot().subplots(
        len(presets), 2, figsize=size, squeeze=False, sharey=True, facecolor="white", layout="constrained"
    )
    panels = product(enumerate(presets), enumerate({"FVD": "value", "MIND": "mind"}.items()))
    for (row, preset), (column, (name, score)) in panels:
        axis = axes[row, column]
        _draw_damages(axis, result, preset, score, kinds)
        label = f"{name} against real clips" + (" (larger dots: stronger)" if several else "")
        axis.set(yticks=range(len(kinds)), yticklabels=kinds, title=preset, xscale="log", xlabel=label)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.14, y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()  # shared by all
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncol=2, loc="outside upper center", frameon=False, fontsize=9)
    figure.set_label("FVD and MIND of damaged clips")
    return figure


def _draw_damages(axis: Any, result: Sensitivity, preset: str, score: str, kinds: Sequence[str]) -> None:
    """score: a field of FVDResult."""
    floor = getattr(result.of(preset, "real")[0].score, score)
    axis.axvline(floor, ls="--", color=GREY, lw=1.2, label="other real clips (the floor)")
    for row in result.of(preset, "generated"):
        axis.axvline(getattr(row.score, score), color=ORANGE, lw=1.6, label="generated")
    for y, kind in enumerate(kinds):
        rows = result.of(preset, kind)
        values = [getattr(row.score, score) for row in rows]
        axis.plot([floor, max(values)], [y, y], color=BLUE, lw=1.2, alpha=0.4)
        sizes = [20 + 50 * (row.strength or 0) for row in rows]
        axis.scatter(values, [y] * len(rows), s=sizes, color=BLUE, zorder=3)
        text = f"{max(values):.0f}" if max(values) >= 100 else f"{max(values):.3g}"
        style = {"va": "center", "fontsize": 8, "bbox": {"fc": "white", "ec": "none", "pad": 1}}
        axis.annotate(text, (max(values), y), xytext=(8, 0), textcoords="offset points", **style)


def damage(clip: np.ndarray, kind: str, seed: int | Sequence[int] = 0, strength: float = 1.0) -> np.ndarray:
    """A clip uint8 [T,H,W,3] made wrong in one way, of the same shape; strength s above 0 and at most 1.

    shuffled: a fraction s of the frames, drawn at random, in a random order. frozen: the last fraction s
    shows the frame before it. reversed: the first fraction s backwards. blurred: by a Gaussian with a
    standard deviation of s/32 of the height. noisy: Gaussian noise of 32 s grey levels.
    recoded: through MPEG-4 at quantiser 31 s (31 is the coarsest).
    """
    check_damage(kind, strength)
    rng, t = np.random.default_rng(seed), len(clip)
    several = min(max(2, round(strength * t)), t)
    if kind == "shuffled":
        chosen, order = rng.permutation(t)[:several], np.arange(t)
        order[np.sort(chosen)] = chosen
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


def check_damage(kind: str, strength: float) -> None:
    """CogVideoError for a damage that damage() does not know."""
    if kind not in DAMAGES:
        raise CogVideoError(f"There is no damage {kind!r}: choose one of {', '.join(DAMAGES)}.")
    if not 0 < strength <= 1:
        raise CogVideoError(f"A damage cannot have the strength {strength:g}: choose at most 1, above 0.")


def _blurred(clip: np.ndarray, sigma: float) -> np.ndarray:
    reach = min(round(3 * sigma), min(clip.shape[1:3]) - 1)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    pixels = rearrange(torch.from_numpy(clip).float(), "t h w c -> (t c) 1 h w")
    pixels = F.pad(pixels, [reach] * 4, mode="reflect")
    pixels = F.conv2d(F.conv2d(pixels, weights[None, None, :, None]), weights[None, None, None])
    return rearrange(pixels.round().byte(), "(t c) 1 h w -> t h w c", c=3).numpy()


def _recoded(clip: np.ndarray, quantiser: int) -> np.ndarray:
    t, h, w, _ = clip.shape
    even = np.pad(clip, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        options = {"qmin": str(quantiser), "qmax": str(quantiser)}
        stream = container.add_stream("mpeg4", rate=8, options=options)
        stream.width, stream.height, stream.pix_fmt = even.shape[2], even.shape[1], "yuv420p"
        for pixels in even:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames)[:t, :h, :w]
