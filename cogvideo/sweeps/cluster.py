"""Where points run: a Dask cluster of this machine, one that is there already, or jobs of Slurm. The rest is the same code."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cogvideo.config import load_yaml
from cogvideo.errors import CogVideoError
from cogvideo.sweeps.spec import Resources

if TYPE_CHECKING:
    from distributed import Client

FAILURES = 20  # workers that may die under a point before it is given up
CONNECT = 20  # seconds


@contextmanager
def connect(
    workers: int | None, scheduler: str | None, slurm: str | Path | None, resources: Resources, points: int
) -> "Iterator[tuple[Client, Callable[[], None]]]":
    """A client of the cluster, and what to call now and then to replace workers that died; all ends with it.

    workers: points at once; by default what cores and memory allow on this machine, and a job for each point on Slurm.
    slurm: a YAML file of the arguments of dask_jobqueue.SLURMCluster.
    Raises CogVideoError when there is no scheduler at the address and for arguments that SLURMCluster does not take.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise CogVideoError('Sweeps need Dask: pip install "cogvideo[sweeps]".') from None
    if scheduler and (slurm or workers):
        raise CogVideoError(
            "--scheduler names a cluster that has its workers already: leave out --workers and --slurm."
        )
    if scheduler:
        try:
            client = Client(scheduler, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise CogVideoError(
                f"There is no Dask scheduler at {scheduler} ({type(error).__name__}): start one with `dask scheduler`."
            ) from None
        with client:
            yield client, lambda: None
        return
    with dask.config.set({"distributed.scheduler.allowed-failures": FAILURES}):  # type: ignore[no-untyped-call]
        if slurm:
            with _slurm(slurm) as cluster, Client(cluster, set_as_default=False) as client:
                cluster.scale(workers or points)
                yield client, lambda: None
            return
        quiet = {"silence_logs": "CRITICAL", "dashboard_address": "127.0.0.1:0"}
        with LocalCluster(n_workers=0, host="127.0.0.1", **quiet) as cluster:
            team = _Workers(cluster.scheduler_address, min(workers or room(resources), points))
            try:
                with Client(cluster, set_as_default=False) as client:
                    team.tend()
                    yield client, team.tend
            finally:
                team.close()


class _Workers:
    """Worker processes on this machine, each for one point at a time.

    They are in sessions of their own, so that Ctrl-C reaches the driver alone. A worker whose scheduler is gone ends itself.
    """

    def __init__(self, address: str, count: int):
        self.command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--nthreads", "1"]
        # Guards watch the memory of points, which are processes of their own.
        self.command += ["--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count

    def tend(self) -> None:
        """Start a new worker for each that has died."""
        for i, process in enumerate(self.processes):
            if process is None or process.poll() is not None:
                self.processes[i] = subprocess.Popen(
                    self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
                )

    def close(self) -> None:
        for process in filter(None, self.processes):
            process.kill()
            process.wait()


def _slurm(file: str | Path):
    from dask_jobqueue import SLURMCluster

    try:
        return SLURMCluster(**load_yaml(file))
    except (TypeError, ValueError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise CogVideoError(f"{file} does not suit dask_jobqueue.SLURMCluster: {said}.") from None


def room(resources: Resources) -> int:
    """How many points this machine can take at once, by their threads and their memory; at least one."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = cores // resources.threads
    if resources.memory_bytes:
        most = min(most, psutil.virtual_memory().total // resources.memory_bytes)
    return max(most, 1)
