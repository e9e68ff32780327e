"""Sweeps as a user runs them: processes, limits, faults, and what is left in the folders."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import nbformat
import pandas as pd
import psutil
import pytest
from sweeps import faults
from sweeps.books import write_sweep

from cogvideo.errors import CogVideoError
from cogvideo.sweeps import cluster as cluster_module
from cogvideo.sweeps import notes, run
from cogvideo.sweeps.guard import ATTEMPT
from cogvideo.sweeps.point import Job, run_point
from cogvideo.sweeps.spec import fingerprint, load

KINDS = """\
import time
from cogvideo.sweeps import record
print(kind)
held = []
while kind == "memory":
    if len(held) < 40:
        held.append(bytearray(20_000_000))
    time.sleep(0.03)
while kind == "endless":
    time.sleep(0.1)
if kind == "raises":
    raise ValueError("no such thing,\\nreally")
if kind == "fine":
    record({"score": 1.5, "seconds": 3})"""


LONG = 900  # seconds: a machine may be busy


def command(*arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(faults.ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "cogvideo", "sweep", *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=LONG,
    )  # fmt: skip


def wait_for(condition):
    deadline = time.monotonic() + LONG
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


def gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have asked for its exit code yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def state(folder, fingerprint: str, collect: list[str]) -> str:
    return notes.look(folder, fingerprint, collect)["status"]


@contextmanager
def dask(program: str, *arguments: object) -> Iterator[None]:
    """`dask scheduler` or `dask worker`, started by hand."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{program}", "--no-dashboard", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(faults.ROOT)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        process.wait(LONG)


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler without workers. Gives the address."""
    file = tmp_path / "scheduler.json"
    local = ["--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0"]
    with dask("scheduler", *local, "--scheduler-file", file):
        yield wait_for(lambda: notes.read_json(file).get("address"))


@pytest.fixture
def cluster(scheduler):
    """A scheduler and a worker. Gives the address."""
    with dask("worker", scheduler, "--no-nanny", "--nthreads", 2, "--memory-limit", 0):
        yield scheduler


@pytest.mark.slow
def test_each_point_is_reported_as_what_it_is_and_the_others_finish(tmp_path, cluster):
    """On a cluster started by hand: one runs out of memory, one loops, one raises, one records nothing."""

    def sweep(kinds: list[str], minutes: float) -> tuple[subprocess.CompletedProcess, pd.DataFrame]:
        limits = {"memory": "600MB", "minutes": minutes}
        cells, cell, grid = ["1 + 1", KINDS, "2 + 2"], 'kind: str = "fine"\n', {"kind": kinds}
        file = write_sweep(tmp_path, cells, cell, grid=grid, resources=limits, collect=["score"])
        done = command("run", file, "--scheduler", cluster)
        table = pd.read_parquet(tmp_path / "runs" / "study" / "table.parquet")
        assert table["kind"].tolist() == kinds, done.stdout + done.stderr
        return done, pd.read_csv(tmp_path / "runs" / "study" / "table.csv").set_index("kind")

    first, others = sweep(["memory", "raises", "silent", "fine"], 60.0)
    assert first.returncode == 3, first.stdout + first.stderr
    last, rows = first, others
    limit, begun = float(others["seconds"].max() + 2) / 60, 0
    while begun < 4:  # however busy the machine is by now
        limit *= 2
        last, rows = sweep(["endless", "fine"], limit)
        note = notes.read_note(next((tmp_path / "runs" / "study").glob("kind=endless_*")))
        assert limit < LONG and note["reason"] == "time limit", note
        begun = note["cell"]
    assert last.returncode == 1, last.stdout + last.stderr
    assert "1 of 2 points done; 1 " in last.stdout and rows.loc["fine"].equals(others.loc["fine"])
    said, rows = first.stdout + last.stdout, pd.concat([others, rows.loc[["endless"]]])
    assert rows["status"].to_dict() == {
        "endless": "failed", "memory": "failed", "raises": "failed", "silent": "failed", "fine": "done"
    }  # fmt: skip
    assert rows["reason"].dropna().to_dict() == {
        "endless": "time limit", "memory": "out of memory", "raises": "error", "silent": "no result"
    }  # fmt: skip
    assert (
        rows.error["raises"] == "ValueError: no such thing, really"
        and rows.error["endless"] == f"{limit:g} min"
    )
    used, most = re.findall(r"^([\d.]+) GB of ([\d.]+) GB$", rows.error["memory"])[0]
    assert float(most) == 0.6 <= float(used) < 2  # rounded
    assert rows.score["fine"] == 1.5 and rows.metric_seconds["fine"] == 3 and rows.score.isna().sum() == 4
    assert 0 < rows.seconds["fine"] < 60 * limit <= rows.seconds["endless"]
    for kind in ("endless", "memory", "raises"):
        assert f"kind={kind}" in said and f"{rows.reason[kind]} in cell 4" in said
        folder = next((tmp_path / "runs" / "study").glob(f"kind={kind}_*"))
        assert json.loads((folder / "point.json").read_text())["cell"] == 4
        book = nbformat.read(folder / "executed.ipynb", 4)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert "print(kind)" in code[3].source and not code[4].outputs
        assert code[3].outputs[0].text == f"{kind}\n"  # also of those whose kernel was killed
    assert rows.peak_memory["memory"] > 6e8


@pytest.mark.slow
def test_workers_and_driver_are_killed_and_every_point_ends_once(tmp_path, capsys):
    """A small one of what tests/sweeps/faults.py does; the undisturbed result is known here."""
    points, pause = 4, 1.0
    file = faults.make(tmp_path, points, pause)
    kills, code = faults.disturb(file, tmp_path, points, random.Random(0), (0.5, 2.0))
    assert code == 0 and kills, file.with_suffix(".out").read_text()
    rows = faults.table(file)
    known = [(name, seed, random.Random(f"{name}{seed}").random()) for name in "ab" for seed in (0, 1)]
    assert list(zip(rows["name"], rows["seed"], rows["score"], strict=True)) == known
    assert sorted(faults.ended(tmp_path)) == [f"ended {name} {seed}" for name, seed, _ in known]
    assert run.run(file) == 0  # nothing is left to do
    said = capsys.readouterr().out
    assert "4 of 4 points done" in said and "running" not in said
    assert command("status", file).stdout.count("4 done") == 1


@pytest.mark.slow
def test_ctrl_c_stops_points_and_only_one_driver_runs_a_sweep(tmp_path):
    file = write_sweep(tmp_path, ["import time\nwhile True:\n    time.sleep(1)"])
    sweep = load(file)
    folder = sweep.folder_of(sweep.points[0])
    driver = faults.start(file)
    note = wait_for(lambda: notes.read_note(folder))
    with pytest.raises(CogVideoError, match="study is being run already"):
        run.run(file)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(LONG) == 130
    assert notes.read_note(folder)["status"] == "stopped" and not alive(note["attempt"])
    assert "1 stopped" in file.with_suffix(".out").read_text()
    wait_for(lambda: gone(note["guard"]))


@pytest.mark.slow
def test_stop_ends_a_point_whose_driver_is_dead(tmp_path, scheduler):
    file = write_sweep(tmp_path, ["import time\nwhile True:\n    time.sleep(1)"])
    sweep = load(file)
    folder = sweep.folder_of(sweep.points[0])
    driver = faults.start(file)
    note = wait_for(lambda: notes.read_note(folder))
    driver.kill()
    driver.wait()
    assert state(folder, note["fingerprint"], []) == "running"
    assert run.stop(file).startswith("Stopped the sweep study: 1 points were running")
    assert notes.read_note(folder)["status"] == "stopped" and not alive(note["attempt"])
    assert run.stop(file) == "Nothing of the sweep study is running."
    driver = faults.start(file, "--scheduler", scheduler)  # without workers it begins no point
    wait_for(lambda: notes.is_locked(sweep.folder / "lock"))
    assert run.stop(file).startswith("Stopped the sweep study: 0 points") and driver.wait(LONG) == 130
    assert notes.read_note(folder)["attempt"] == note["attempt"]


@pytest.fixture
def point(tmp_path):
    """A point that its guard left when the notebook had just ended: (sweep file, folder, note)."""
    file = write_sweep(tmp_path, collect=["score"])
    sweep = load(file)
    folder = sweep.folder_of(sweep.points[0])
    folder.mkdir(parents=True)
    note = {
        "point": folder.name, "status": "running", "attempt": "first", "host": "elsewhere",
        "parameters": {"seed": 0},
        "fingerprint": fingerprint(sweep.notebook), "started": "2026-01-01T00:00:00.000+00:00",
    }  # fmt: skip
    notes.write_note(folder, note)
    (folder / "result.json").write_text('{"metrics": {"score": 1.0}}')
    (folder / "outcome.json").write_text('{"status": "done", "attempt": "first"}')
    return file, folder, note


def test_a_notebook_that_ended_counts_though_its_guard_died(point):
    file, folder, note = point
    sweep = load(file)
    assert state(folder, note["fingerprint"], []) == "interrupted"
    found = run_point(Job(sweep, note["fingerprint"], None, "now"))
    assert (found["status"], found["attempt"]) == ("done", "first") and found == notes.read_note(folder)
    assert run.run(file) == 0  # nothing left to do
    rows = pd.read_csv(sweep.folder / "table.csv")
    assert rows["score"].tolist() == [1.0] and rows["seed"].tolist() == [0]


def test_what_is_done_is_done_until_code_or_metrics_change(point):
    file, folder, note = point
    notes.write_note(folder, note | {"status": "done", "seconds": 1.0})
    assert state(folder, note["fingerprint"], ["score"]) == "done"
    assert state(folder, note["fingerprint"], ["score", "fvd"]) == "incomplete"
    assert state(folder, "other", ["score"]) == "changed"
    notebook = load(file).notebook
    notebook.write_text(notebook.read_text().replace("size * rate", "size + rate"))
    assert state(folder, fingerprint(notebook), ["score"]) == "changed"


def test_a_stop_reaches_those_who_wait_for_the_lock(point):
    file, folder, _ = point
    sweep = load(file)
    lock = notes.try_lock(folder / "lock")
    assert lock is not None
    with lock:
        assert notes.is_locked(folder / "lock") and notes.try_lock(folder / "lock") is None
        notes.set_run(sweep.folder, notes.STOPPED)
        assert run_point(Job(sweep, "", None, "now"))["status"] == "running"  # somebody else's
    assert not notes.is_locked(folder / "lock")


@pytest.mark.slow
def test_jobs_of_slurm(tmp_path, monkeypatch):
    """With a stand-in for the queue: an sbatch that runs the script at once, an scancel that ends it."""
    programs = {
        # As the real one it keeps the script: dask-jobqueue deletes it at once.
        "sbatch": f'cp "$1" {tmp_path}/script\nsetsid bash {tmp_path}/script > /dev/null 2>&1 &\n'
        'echo "Submitted batch job $!"',
        "scancel": 'kill -- "-$1"',
    }
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\necho {name} >> {tmp_path}/asked\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    slurm = tmp_path / "slurm.yaml"
    slurm.write_text(
        "cores: 1\nmemory: 1GB\nqueue: debug\nwalltime: '00:10:00'\ninterface: lo\ndeath_timeout: 600\n"
    )
    file = write_sweep(tmp_path, points=[{"size": 3, "seed": 1}])
    done = command("run", file, "--slurm", slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert pd.read_csv(tmp_path / "runs" / "study" / "table.csv")["score"].tolist() == [2.5]
    assert (tmp_path / "asked").read_text().split() == ["sbatch", "scancel"]


def test_a_guard_whose_driver_has_a_successor_begins_nothing(point):
    file, folder, note = point
    notes.write_note(folder, note | {"status": "stopped"})
    sweep = load(file)
    notes.set_run(sweep.folder, "later")
    assert run_point(Job(sweep, note["fingerprint"], None, "now"))["status"] == "stopped"


def test_points_that_ran_where_their_files_are_not_shared(point, monkeypatch):
    from distributed import Client

    monkeypatch.setattr(run, "ARRIVAL", 0.0)
    _, folder, note = point
    with Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as client:
        for attempt, status in {"first": "done", "other": "failed"}.items():
            future = client.submit(dict, note | {"status": "done", "attempt": attempt})
            future.result()
            found = run._note_of(future, client, folder)
            assert found["status"] == status and ("ran on elsewhere" in found.get("error", "")) == (
                status == "failed"
            )


def test_a_typo_is_told_before_anything_runs(tmp_path):
    done = command("run", write_sweep(tmp_path, grid={"sead": [1, 2]}))
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "runs").exists()
    assert "the notebook has no parameter 'sead'" in done.stderr and done.stderr.count("\n") == 1


def test_wrong_places_to_run_are_one_sentence(tmp_path, monkeypatch):
    file = write_sweep(tmp_path)
    monkeypatch.setattr(cluster_module, "CONNECT", 1)
    for address in ("tcp://127.0.0.1:1", "nowhere"):
        with pytest.raises(CogVideoError, match=f"no Dask scheduler at {address} "):
            run.run(file, scheduler=address)
    with pytest.raises(CogVideoError, match="leave out --workers"):
        run.run(file, workers=2, scheduler="tcp://127.0.0.1:1")
    slurm = tmp_path / "slurm.yaml"
    slurm.write_text("cores: 1\nmemory: 1GB\nqueu: x\n")
    with pytest.raises(CogVideoError, match="does not suit dask_jobqueue.SLURMCluster: .*queu"):
        run.run(file, slurm=slurm)
