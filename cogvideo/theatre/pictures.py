"""The README's pictures, made by the demo weights: `python -m cogvideo.theatre.pictures [FOLDER]`.

Written to docs/ by default: demo.png (a row for each sentence, six moments), demo.webp (the eight clips side
by side, in a loop) and, where Playwright and Chromium are installed, explorer.png.
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from cogvideo.benchmarks.plots import plot_schedule
from cogvideo.benchmarks.sampler import Settings, model_config
from cogvideo.data.video import Video
from cogvideo.model import masks
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.scenes import caption

SCENES = (  # actor, action, object, seconds of the action, language; all eight actions
    ("lion", "drinks", "milk", 4.0, "en"),  # no video of training shows a lion with milk
    ("fox", "eats", "cake", 4.0, "en"),
    ("monkey", "throws", "ball", 4.0, "en"),
    ("cat", "puts on", "hat", 4.0, "en"),
    ("elephant", "takes off", "hat", 4.0, "en"),
    ("mouse", "pushes away", "car", 4.0, "en"),
    ("panda", "pulls near", "train", 4.0, "en"),  # no video shows a panda
    ("rabbit", "rings", "bell", 4.0, "zh"),
)
SECONDS, SEED = 4.0, 0
MOMENTS, COLUMNS = 6, 4
LINE, GAP = 30, 6  # pixels of a label's line, and between pictures
HELD = 8  # frames that the last one is held before the loop begins anew
EXPLORED = caption(*SCENES[0][:4])
PATCH = (
    3,
    4.5 / 8,
    2.5 / 8,
)  # what is clicked in the explorer: frame, and where in it (x, y): near the mouth


def sheet(rows: Sequence[tuple[str, Video]]) -> Image.Image:
    """A row for each clip: its label, and MOMENTS of its frames, evenly spaced in time."""
    pictures = [(label, video.contact_sheet(MOMENTS, gap=GAP)) for label, video in rows]
    width, height = pictures[0][1].size
    page = Image.new("RGB", (width, len(rows) * (height + LINE + GAP)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(LINE * 2 // 3)
    for number, (label, picture) in enumerate(pictures):
        top = number * (height + LINE + GAP)
        draw.text((2, top + 4), label, fill="black", font=font)
        page.paste(picture, (0, top + LINE))
    return page


def grid(videos: Sequence[Video]) -> np.ndarray:
    """Clips of one size and length side by side, COLUMNS in a row: uint8 [T,H,W,3]."""
    padded = [
        np.pad(video.frames, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255) for video in videos
    ]
    return rearrange(np.stack(padded), "(r c) t h w k -> t (r h) (c w) k", c=COLUMNS)[:, :-GAP, :-GAP]


def save_loop(path: Path, frames: np.ndarray, fps: float) -> Path:
    """Write an animated WebP that plays for ever and holds its last frame."""
    pictures = [Image.fromarray(frame) for frame in frames]
    times = [round(1000 / fps)] * (len(frames) - 1) + [round(1000 * HELD / fps)]
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=80, method=2
    )
    return path


def save_explorer(path: Path, pipe: Pipeline) -> Path:
    """Write what a browser shows of the explorer's page after one click on a patch."""
    from playwright.sync_api import sync_playwright

    from cogvideo.explore import explorer

    frame, x, y = PATCH
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        scenes = explorer.scenes(pipe, EXPLORED, seconds=SECONDS, seed=SEED)
        page_file = explorer.page(scenes).save(Path(folder) / "attention.html")
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 700}, device_scale_factor=1.5)
        page.goto(page_file.resolve().as_uri())
        canvas = page.locator(".cv-frames[role] canvas").nth(frame)
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box() or {"width": 0.0, "height": 0.0}
        canvas.click(position={"x": x * box["width"], "y": y * box["height"]})
        page.screenshot(path=str(path), full_page=True)
        browser.close()
    note = PngInfo()
    note.add_text("front end", front_end_hash())
    Image.open(path).save(path, pnginfo=note, optimize=True)
    return path


def front_end_hash() -> str:
    """Of the explorer's scripts and styles: kept in its picture, which is old once it is another."""
    from cogvideo.explore.explorer.page import front_end

    return sha256("".join(front_end()).encode()).hexdigest()[:16]


def plot_masks() -> Figure:
    """Who sees whom, for three words, five frames of 2 x 2: both channels (columns) and stages (rows)."""
    words, tokens = 3, 4
    figure, axes = plt.subplots(2, 2, figsize=(7.5, 8), facecolor="white", layout="constrained")
    for row, stage, order in zip(axes, ("stage 1", "stage 2"), ("sequential", "interpolation"), strict=True):
        config = model_config(Settings(side=2), order, None)
        spatial = torch.block_diag(*masks.spatial_visible(config).float())
        channels = {"spatial": spatial, "temporal": masks.temporal_visible(config, 0).float()}
        for axis, (channel, frames) in zip(row, channels.items(), strict=True):
            seen = torch.cat([torch.ones(len(frames), words), frames], 1)  # all frames see the text
            axis.imshow(seen, cmap="Blues", vmin=0, vmax=1.4)
            axis.set(title=f"{stage}, {channel} channel", xlabel="looked at: text, frames", ylabel="asks")
            axis.set(xticks=[], yticks=[])
            for edge in range(0, len(frames), tokens):
                axis.axhline(edge - 0.5, color="grey", lw=0.6)
                axis.axvline(words + edge - 0.5, color="grey", lw=0.6)
    return figure


def main(folder: str = "docs") -> None:
    pipe, out = Pipeline.from_pretrained("demo"), Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    prompts = [caption(*scene) for scene in SCENES]
    videos = pipe(prompts, seconds=SECONDS, seed=[SEED + i for i in range(len(prompts))], progress=False)
    assert isinstance(videos, list)  # one for each prompt
    labels = [caption(*scene[:4]) + " (asked in Chinese)" * (scene[4] == "zh") for scene in SCENES]
    sheet(list(zip(labels, videos, strict=True))).save(out / "demo.png", optimize=True)
    written = [out / "demo.png", save_loop(out / "demo.webp", grid(videos), videos[0].fps)]
    for name, figure in {
        "masks": plot_masks(),
        "wavefront": plot_schedule(Settings(side=8, window=4)),
    }.items():
        written.append(out / f"{name}.png")
        figure.savefig(written[-1], dpi=100)
    try:
        written.append(save_explorer(out / "explorer.png", pipe))
    except ImportError:
        print("explorer.png needs Playwright and Chromium: pip install playwright")
    print("\n".join(f"{path}: {path.stat().st_size / 1e6:.2f} MB" for path in written))


if __name__ == "__main__":
    main(*sys.argv[1:])
