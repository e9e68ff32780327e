"""A sweep whose workers are killed at random and whose driver is killed twice, against an undisturbed one.

The whole of it, 12 points: PYTHONPATH=.:tests python -m sweeps.faults FOLDER 12
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
from sweeps.books import write_sweep

ROOT = Path(__file__).parents[2]
CELL = 'name: str = "a"\nseed: int = 0\npause: float = 4.0\ntold: str = "told"\nheld: bool = False\n'
CELLS = [
    "import os, time, random\nfrom cogvideo.sweeps import record\n"
    "def tell(word):\n"
    "    line = os.open(told, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
    "    os.write(line, f'{word} {name} {seed}\\n'.encode())",
    'tell("begun")\ntime.sleep(pause / 2)',
    "while held and not os.path.exists(f'{told}.over'):\n    time.sleep(0.1)",
    "score = random.Random(f'{name}{seed}').random()\ntime.sleep(pause / 2)",
    'record({"score": score, "seed_seen": seed})\ntell("ended")',
]
SURE = [
    "commit",
    "started",
    "seconds",
    "peak_memory",
]  # columns that may differ between two runs; commit: -dirty may come


def make(folder: Path, points: int, pause: float) -> Path:
    """The last point is held until there is a file told.txt.over, so that the fire has something to burn."""
    names = "abc"[: points // 2] if points < 6 else "abc"
    grid = [{"name": name, "seed": seed} for name in names for seed in range(points // len(names))]
    grid[-1]["held"] = True
    parameters = {"told": str(folder / "told.txt"), "pause": pause}
    return write_sweep(folder, CELLS, CELL, points=grid, parameters=parameters, collect=["score"])


def start(file: Path, *options: str) -> subprocess.Popen:
    """The command, as a user starts it; without options, with two workers."""
    options = options or ("--workers", "2")
    command = [sys.executable, "-m", "cogvideo", "sweep", "run", str(file), *options]
    with open(file.with_suffix(".out"), "a") as out:
        return subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )


def busy_workers(driver: subprocess.Popen) -> list[psutil.Process]:
    """Dask's worker processes, children of the driver, that have started the guard of a point."""
    try:
        return [child for child in psutil.Process(driver.pid).children() if child.children()]
    except psutil.NoSuchProcess:
        return []


def ended(folder: Path) -> list[str]:
    told = folder / "told.txt"
    return (
        [line for line in told.read_text().splitlines() if line.startswith("ended")] if told.exists() else []
    )


def disturb(
    file: Path, folder: Path, points: int, chance: random.Random, every: tuple[float, float]
) -> tuple[int, int]:
    """Run to the end under fire. Returns the workers killed and the exit code of the last driver."""
    kills, drivers, over = 0, 0, folder / "told.txt.over"
    deadly = sorted(chance.sample(range(1, points - 1), 2))  # ends after which the driver is killed
    driver = start(file)
    due = time.monotonic() + chance.uniform(*every)
    try:
        while driver.poll() is None:
            if drivers < 2 and len(ended(folder)) >= deadly[drivers]:
                driver.kill()
                driver.wait()
                drivers += 1
                driver = start(file)
            victims = busy_workers(driver)
            if victims and time.monotonic() > due:
                chance.choice(victims).kill()
                kills += 1
                victims = []
            if drivers == 2 and kills:
                over.touch()
            if (
                not victims
            ):  # the next time counts from when somebody is at work: a slow machine gets through, too
                due = time.monotonic() + chance.uniform(*every)
            time.sleep(0.1)
    finally:
        driver.kill()
    assert drivers == 2, file.with_suffix(".out").read_text()
    return kills, driver.wait()


def table(file: Path) -> pd.DataFrame:
    table = pd.read_parquet(file.parents[1] / "runs" / file.stem / "table.parquet")
    return table.drop(columns=[*SURE, "point", "told"])  # point: holds a hash of `told`


def check(folder: Path, points: int, pause: float, every: tuple[float, float]) -> str:
    (folder / "calm").mkdir()
    (folder / "calm" / "told.txt.over").touch()
    (folder / "fire").mkdir()
    calm, fire = make(folder / "calm", points, pause), make(folder / "fire", points, pause)
    kills, code = disturb(fire, folder / "fire", points, random.Random(points), every)
    assert code == 0, fire.with_suffix(".out").read_text()
    assert start(calm).wait() == 0, calm.with_suffix(".out").read_text()
    pd.testing.assert_frame_equal(table(fire), table(calm))
    assert len(table(fire)) == points and set(table(fire)["status"]) == {"done"}
    counts = Counter(ended(folder / "fire"))
    assert len(counts) == points and set(counts.values()) == {1}, counts
    begun = len((folder / "fire" / "told.txt").read_text().splitlines()) - points
    return (
        f"{points} points, {kills} workers and 2 drivers killed, {begun} begun, each ended once, tables equal"
    )


if __name__ == "__main__":
    print(check(Path(sys.argv[1]).resolve(), int(sys.argv[2]), pause=6.0, every=(3.0, 10.0)))
