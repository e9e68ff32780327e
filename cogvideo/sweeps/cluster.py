"""Where points run: a Dask cluster of this machine, one that is there already, or jobs of Slurm. The rest is the same code."""

import os
from collections.abc import Iterator
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
_IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # the driver alone answers it


@contextmanager
def connect(
    workers: int | None, scheduler: str | None, slurm: str | Path | None, resources: Resources, points: int
) -> "Iterator[Client]":
    """A client of the cluster; what was started here ends with it.

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
            yield client
        return
    with dask.config.set({"distributed.scheduler.allowed-failures": FAILURES}):  # type: ignore[no-untyped-call]
        if slurm:
            cluster = _slurm(slurm)
            cluster.scale(workers or points)
        else:
            cluster = LocalCluster(
                n_workers=min(workers or room(resources), points),
                threads_per_worker=1,
                memory_limit=0,  # guards watch the points, which are processes of their own
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs="CRITICAL",
                preload=_IGNORE_CTRL_C,
            )
        with cluster, Client(cluster, set_as_default=False) as client:
            yield client


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
