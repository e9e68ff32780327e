"""Where points run: a Dask cluster of this machine, one that is there already, or jobs of Slurm. The rest is the same code."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.config import load_yaml
from cogvideo.errors import CogVideoError
from cogvideo.sweeps.spec import Resources, Sweep

if TYPE_CHECKING:
    from distributed import Client

FAILURES = 20  # workers that may die under a point before it is given up
CONNECT = 20  # seconds
VAIN = 5  # starts of each worker
# Dask looks at its own loop and stacks up to a hundred times a second; with this a waiting worker takes an eighth of the time.
QUIET = {
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "1s",
}


@contextmanager
def connect(
    workers: int | None, scheduler: str | None, slurm: str | Path | None, sweep: Sweep, points: int
) -> "Iterator[tuple[Client, Callable[[], None]]]":
    """A client of the cluster, and what to call now and then to replace workers that died; all ends with it.

    workers: points at once; by default what cores and memory allow on this machine, and a job for each point on Slurm.
    slurm: a YAML file of the arguments of dask_jobqueue.SLURMCluster.
    Raises CogVideoError when there is no scheduler at the address and for arguments that SLURMCluster does not take.
    """
    try:
        from dask.config import set as set_config
        from distributed import Client, LocalCluster
        from distributed.utils import silence_logging_cmgr
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
        with silence_logging_cmgr("CRITICAL"), client:
            yield client, lambda: None
        return
    settings = {"distributed.scheduler.allowed-failures": FAILURES, "distributed.admin.tick.interval": "1s"}
    with set_config(settings), silence_logging_cmgr("CRITICAL"):
        if slurm:
            with _slurm(slurm) as cluster, Client(cluster, set_as_default=False) as client:
                cluster.scale(workers or points)
                yield client, lambda: None
            return
        count = min(workers or room(sweep.resources), points)
        quiet: dict[str, Any] = {"silence_logs": "CRITICAL", "dashboard_address": "127.0.0.1:0"}
        with (
            LocalCluster(n_workers=0, host="127.0.0.1", **quiet) as cluster,
            Client(cluster, set_as_default=False) as client,
            _Workers(client, count, sweep.folder / "workers.txt") as team,
        ):
            team.tend()
            yield client, team.tend


class _Workers:
    """Worker processes on this machine, each for one point at a time.

    They are in sessions of their own, so that Ctrl-C reaches the driver alone. A worker whose scheduler is gone ends itself.
    """

    def __init__(self, client: "Client", count: int, log: Path):
        self.client, self.log = client, log
        address = client.scheduler_info()["address"]
        self.command = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--no-nanny",
            "--nthreads",
            "1",
        ]
        # Guards watch the memory of points, which are processes of their own.
        self.command += ["--memory-limit", "0", "--no-dashboard", "--death-timeout", "60"]
        self.processes: list[subprocess.Popen[bytes] | None] = [None] * count
        self.vain = 0  # starts before the first one was heard of

    def tend(self) -> None:
        """Start a new worker for each that has died. Raises CogVideoError when none of many starts is heard of."""
        for i, process in enumerate(self.processes):
            if process is None or process.poll() is not None:
                with open(self.log, "a" if process else "w") as log:
                    self.processes[i] = subprocess.Popen(
                        self.command, stdout=log, stderr=log, env=os.environ | QUIET, start_new_session=True
                    )
                self.vain += 1
        if self.client.scheduler_info()["workers"]:
            self.vain = -sys.maxsize
        if self.vain > VAIN * len(self.processes):
            raise CogVideoError(f"Dask's workers end as soon as they begin: {self.log} tells why.")

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in filter(None, self.processes):
            process.kill()
            process.wait()


def _slurm(file: str | Path) -> Any:
    from dask_jobqueue.slurm import SLURMCluster

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
