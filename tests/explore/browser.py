"""A real headless Chromium, and what it shows of the explorer."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from conftest import CHROMIUM

# Nothing that Chromium does on its own: no look-ups, no updates.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WAIT = 120_000  # ms; machines may be busy
VIRIDIS = matplotlib.colormaps["viridis"](np.arange(256))[:, :3] * 255

# For every heat canvas: the colour in the middle of each patch, and whether it is hatched.
READ_HEAT = """([rows, columns]) =>
[...document.querySelectorAll(".cv-frames:not([role]) canvas")].map((canvas) => {
  const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const at = (x, y) => [...data.slice(4 * (y * width + x), 4 * (y * width + x) + 3)];
  return Array.from({ length: rows * columns }, (_, patch) => {
    const [x0, y0] = [(patch % columns) * canvas.width / columns,
      Math.floor(patch / columns) * canvas.height / rows];
    const [wide, high] = [canvas.width / columns, canvas.height / rows];
    let hatched = false;
    for (let y = Math.ceil(y0 + high / 4); y < y0 + (3 * high) / 4; y++)
      for (let x = Math.ceil(x0 + wide / 4); x < x0 + (3 * wide) / 4; x++)
        hatched ||= at(x, y).join() === "236,234,228";
    return [...at(Math.floor(x0 + wide / 2), Math.floor(y0 + high / 2)), Number(hatched)];
  });
})"""


@contextmanager
def opened(*, offline: bool = True) -> Iterator[Any]:
    """A page of a new browser; offline, there must be no error on its console."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, timeout=WAIT)
        page = browser.new_context(viewport={"width": 1280, "height": 720}, offline=offline).new_page()
        page.set_default_timeout(WAIT)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page
        browser.close()
    assert said == [] or not offline


def shown(page: Any) -> str:
    """Scene / layer / head / channel / place or word that is drawn."""
    return page.locator(".cv-explorer").get_attribute("data-shown")


def wait_for(page: Any, what: str) -> None:
    page.wait_for_function("what => document.querySelector('.cv-explorer')?.dataset.shown === what", arg=what)


def click_patch(page: Any, time: int, place: int, rows: int, columns: int) -> None:
    """Click the middle of a patch of a generated frame."""
    canvas = page.locator(".cv-frames[role] canvas").nth(time)
    box = canvas.bounding_box()
    canvas.click(
        position={
            "x": (place % columns + 0.5) * box["width"] / columns,
            "y": (place // columns + 0.5) * box["height"] / rows,
        }
    )


def heat(page: Any, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours [T,N,3] and hatching [T,N] of the heat maps."""
    cells = np.array(page.evaluate(READ_HEAT, [rows, columns]))
    return cells[..., :3], cells[..., 3] == 1


def assert_colors(colors: np.ndarray, shares: np.ndarray, *, slack: float = 1.0) -> None:
    """colors [..., 3] are matplotlib's viridis at shares [...] of 0..1, within `slack` of its 256 steps."""
    steps = np.arange(len(VIRIDIS))
    near = np.abs(steps - 255 * shares[..., None]) <= 0.5 + slack
    distance = np.abs(colors[..., None, :] - VIRIDIS).max(-1)
    assert (
        np.where(near, distance, np.inf).min(-1).max() <= 6
    )  # between anchors, 15 steps apart, it is 5 at most


def percent(text: str) -> float:
    """The last number before a per cent sign, as a share."""
    return float(text.split("%")[-2].split()[-1]) / 100
