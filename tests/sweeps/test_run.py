"""Sweeps as a user runs them: processes, limits, faults, and what is left in the folders."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import psutil
import pytest
from sweeps import faults
from sweeps.books import write_sweep

from cogvideo.errors import CogVideoError
from cogvideo.sweeps import notes, run
from cogvideo.sweeps.guard import ATTEMPT
from cogvideo.sweeps.point import job_of, run_point
from cogvideo.sweeps.spec import fingerprint, load

KINDS = """\
import time
from cogvideo.sweeps import record
print(kind)
held = []
while kind == "memory":
    held.append(bytearray(20_000_000))
    time.sleep(0.01)
while kind == "endless":
    time.sleep(0.1)
if kind == "raises":
    raise ValueError("no such thing,\\nreally")
if kind == "fine":
    record({"score": 1.5, "seconds": 3})"""


def command(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(faults.ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "cogvideo", "sweep", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def wait_for(condition, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "nothing came of it"
        time.sleep(0.1)
    return found


def alive(attempt: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            found += [process] if process.environ().get(ATTEMPT) == attempt else []
        except psutil.Error:
            continue
    return found


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and a worker, started by hand. Gives the address."""
    address = tmp_path / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli"]
    quiet = {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": os.environ | {"PYTHONPATH": str(faults.ROOT)},
    }
    scheduler = subprocess.Popen(
        [*dask[:-1], "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
         "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(address)], **quiet
    )  # fmt: skip
    wait_for(lambda: notes.read_json(address))
    tcp = json.loads(address.read_text())["address"]
    worker = subprocess.Popen(
        [*dask[:-1], "distributed.cli.dask_worker", tcp, "--nthreads", "2", "--memory-limit", "0", "--no-dashboard"],
        **quiet,
    )
    yield tcp
    for process in (worker, scheduler):
        process.terminate()
        process.wait(20)


def test_each_point_is_reported_as_what_it_is_and_the_others_finish(tmp_path, cluster):
    """On a scheduler and a worker started by hand: one runs out of memory, one loops, one raises, one says nothing."""
    file = write_sweep(
        tmp_path,
        ["1 + 1", KINDS, "2 + 2"],
        'kind: str = "fine"\n',
        grid={"kind": ["endless", "memory", "raises", "silent", "fine"]},
        resources={"memory": "600MB", "minutes": 0.6},
        collect=["score"],
    )
    done = command("run", file, "--scheduler", cluster)
    assert done.returncode == 4, done.stdout + done.stderr
    rows = pd.read_csv(tmp_path / "runs" / "study" / "table.csv").set_index("kind")
    assert rows["status"].to_dict() == {
        "endless": "failed", "memory": "failed", "raises": "failed", "silent": "failed", "fine": "done"
    }  # fmt: skip
    assert rows["reason"].dropna().to_dict() == {
        "endless": "time limit", "memory": "out of memory", "raises": "error", "silent": "no result"
    }  # fmt: skip
    assert rows.error["raises"] == "ValueError: no such thing, really" and rows.error["endless"] == "0.6 min"
    used, most = re.fullmatch(r"([\d.]+) GB of ([\d.]+) GB", rows.error["memory"]).groups()
    assert float(most) == 0.6 < float(used) < 2
    assert rows.score["fine"] == 1.5 and rows.metric_seconds["fine"] == 3 and rows.score.isna().sum() == 4
    assert 0 < rows.seconds["fine"] < 36 <= rows.seconds["endless"]
    for kind in ("endless", "memory", "raises"):
        assert f"kind={kind}" in done.stdout and f"{rows.reason[kind]} in cell 4" in done.stdout
        folder = next((tmp_path / "runs" / "study").glob(f"kind={kind}_*"))
        assert json.loads((folder / "point.json").read_text())["cell"] == 4
        book = nbformat.read(folder / "executed.ipynb", 4)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert "print(kind)" in code[3].source and not code[4].outputs
        assert code[3].outputs[0].text == f"{kind}\n"  # also of those whose kernel was killed
    table = pd.read_parquet(tmp_path / "runs" / "study" / "table.parquet")
    assert table["point"].tolist() == [point.name for point in load(file).points]
    assert table.set_index("kind")["peak_memory"]["memory"] > 5e8


def test_workers_and_driver_are_killed_and_every_point_ends_once(tmp_path):
    """A small one of what tests/sweeps/faults.py does; the undisturbed result is known here."""
    points, pause = 4, 1.0
    file = faults.make(tmp_path, points, pause)
    kills, code = faults.disturb(file, tmp_path, points, random.Random(0), (2.0, 6.0))
    assert code == 0 and kills, file.with_suffix(".out").read_text()
    rows = faults.table(file)
    known = [(name, seed, random.Random(f"{name}{seed}").random()) for name in "ab" for seed in (0, 1)]
    assert list(zip(rows["name"], rows["seed"], rows["score"], strict=True)) == known
    assert sorted(faults.ended(tmp_path)) == [f"ended {name} {seed}" for name, seed, _ in known]
    again = command("run", file)  # nothing is left to do
    assert again.returncode == 0 and "4 of 4 points done" in again.stdout and "running" not in again.stdout
    assert "4 done" in command("status", file).stdout


def test_ctrl_c_stops_points_and_the_next_run_begins_them_again(tmp_path):
    file = write_sweep(tmp_path, ["import time\nwhile True:\n    time.sleep(1)"])
    sweep = load(file)
    folder = sweep.folder_of(sweep.points[0])
    driver = faults.start(file)
    note = wait_for(lambda: notes.read_note(folder))
    assert command("run", file).stderr.startswith("Error: The sweep study is being run already")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    assert notes.read_note(folder)["status"] == "stopped" and not alive(note["attempt"])
    assert "1 stopped" in file.with_suffix(".out").read_text() and not (sweep.folder / "stop").exists()
    assert not psutil.pid_exists(note["guard"])


def test_stop_ends_a_point_whose_driver_is_dead(tmp_path):
    file = write_sweep(tmp_path, ["import time\nwhile True:\n    time.sleep(1)"])
    sweep = load(file)
    folder = sweep.folder_of(sweep.points[0])
    driver = faults.start(file)
    note = wait_for(lambda: notes.read_note(folder))
    driver.kill()
    driver.wait()
    assert notes.status(folder, note["fingerprint"], []) == "running"
    assert run.stop(file).startswith("Stopped the sweep study: 1 points were running")
    assert notes.read_note(folder)["status"] == "stopped" and not alive(note["attempt"])
    assert run.stop(file) == "Nothing of the sweep study is running."


@pytest.fixture
def point(tmp_path):
    """A point that its guard left when the notebook had just ended: (sweep file, folder, note)."""
    file = write_sweep(tmp_path, collect=["score"])
    sweep = load(file)
    folder = sweep.folder_of(sweep.points[0])
    folder.mkdir(parents=True)
    note = {
        "point": folder.name, "status": "running", "attempt": "first", "host": "elsewhere", "parameters": {"seed": 0},
        "fingerprint": fingerprint(sweep.notebook), "started": "2026-01-01T00:00:00.000+00:00",
    }  # fmt: skip
    notes.write_note(folder, note)
    (folder / "result.json").write_text('{"metrics": {"score": 1.0}}')
    (folder / "outcome.json").write_text('{"status": "done", "attempt": "first"}')
    return file, folder, note


def test_a_notebook_that_ended_counts_though_its_guard_died(point):
    file, folder, note = point
    sweep = load(file)
    assert notes.status(folder, note["fingerprint"], []) == "interrupted"
    found = run_point(job_of(sweep, sweep.points[0], note["fingerprint"], None))
    assert (found["status"], found["attempt"]) == ("done", "first") and found == notes.read_note(folder)
    assert run.run(file) == 0  # nothing left to do
    rows = pd.read_csv(sweep.folder / "table.csv")
    assert rows["score"].tolist() == [1.0] and rows["seed"].tolist() == [0]


def test_what_is_done_is_done_until_code_or_metrics_change(point):
    file, folder, note = point
    notes.write_note(folder, note | {"status": "done", "seconds": 1.0})
    assert notes.status(folder, note["fingerprint"], ["score"]) == "done"
    assert notes.status(folder, note["fingerprint"], ["score", "fvd"]) == "incomplete"
    assert notes.status(folder, "other", ["score"]) == "changed"
    notebook = load(file).notebook
    notebook.write_text(notebook.read_text().replace("size * rate", "size + rate"))
    assert notes.status(folder, fingerprint(notebook), ["score"]) == "changed"


def test_a_stop_reaches_those_who_wait_for_the_lock(point):
    file, folder, _ = point
    sweep = load(file)
    with notes.try_lock(folder / "lock"):
        assert notes.is_locked(folder / "lock") and notes.try_lock(folder / "lock") is None
        (sweep.folder / "stop").touch()
        assert run_point(job_of(sweep, sweep.points[0], "", None))["status"] == "running"  # somebody else's
    assert not notes.is_locked(folder / "lock")


def test_a_typo_is_told_before_anything_runs(tmp_path):
    done = command("run", write_sweep(tmp_path, grid={"sead": [1, 2]}))
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "runs").exists()
    assert "the notebook has no parameter 'sead'" in done.stderr and done.stderr.count("\n") == 1


def test_wrong_places_to_run_are_one_sentence(tmp_path):
    file = write_sweep(tmp_path)
    with pytest.raises(CogVideoError, match="leave out --workers"):
        run.run(file, workers=2, scheduler="tcp://127.0.0.1:1")
    slurm = tmp_path / "slurm.yaml"
    slurm.write_text("cores: 1\nmemory: 1GB\nqueu: x\n")
    with pytest.raises(CogVideoError, match="does not suit dask_jobqueue.SLURMCluster: .*queu"):
        run.run(file, slurm=slurm)
