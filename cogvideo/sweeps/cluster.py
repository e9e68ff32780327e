"""Where points run: workers on this machine, a Dask cluster that is already running, or jobs of Slurm."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.config import load_yaml
from cogvideo.errors import CogVideoError
from cogvideo.sweeps.spec import Resources, Sweep

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 20  # seconds
SETTINGS = {
    "distributed.scheduler.allowed-failures": 20,  # workers that may die under a point before it fails
    "distributed.deploy.lost-worker-timeout": "1h",  # to restart a killed worker: the machine may be busy
    "distributed.worker.preload": ["cogvideo.sweeps.point"],
    # By default a waiting worker spends most of its time on looking at its own loop and stacks.
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.profile.enabled": False,
}


@contextmanager
def connect(
    workers: int | None, scheduler: str | None, slurm: str | Path | None, sweep: Sweep, points: int
) -> "Iterator[Client]":
    """A client of the cluster. Workers that were started here are restarted when they die, and end with it.

    workers: points at once; by default what cores and memory allow on this machine, and a job a point on
    Slurm. slurm: a YAML file of the arguments of dask_jobqueue.SLURMCluster.
    """
    try:
        from dask.config import set as set_config
        from distributed import Client
        from distributed.utils import silence_logging_cmgr
    except ImportError:
        raise CogVideoError('Sweeps need Dask: pip install "cogvideo[sweeps]".') from None
    if scheduler and (slurm or workers):
        raise CogVideoError("A running cluster has its own workers: leave out --workers and --slurm.")
    with set_config(SETTINGS), silence_logging_cmgr("CRITICAL"), ExitStack() as stack:
        cluster = scheduler or stack.enter_context(_start(slurm, workers, sweep, points))
        try:
            client = Client(cluster, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            reason = f"({type(error).__name__}): start one with `dask scheduler`"
            raise CogVideoError(f"There is no Dask scheduler at {scheduler} {reason}.") from None
        yield stack.enter_context(client)


def _start(slurm: str | Path | None, workers: int | None, sweep: Sweep, points: int) -> Any:
    """Jobs of Slurm, or workers on this machine, one point each. Guards limit points' memory, not Dask."""
    from distributed import LocalCluster

    try:
        if slurm:
            from dask_jobqueue.slurm import SLURMCluster

            cluster = SLURMCluster(**load_yaml(slurm))
            cluster.scale(workers or points)
            return cluster
        count = min(workers or capacity(sweep.resources), points)
        quiet: dict[str, Any] = {"dashboard_address": None, "silence_logs": "CRITICAL", "memory_limit": 0}
        return LocalCluster(n_workers=count, threads_per_worker=1, host="127.0.0.1", **quiet)
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        what = f"{slurm} does not suit dask_jobqueue.SLURMCluster" if slurm else "Dask starts no workers"
        raise CogVideoError(f"{what}: {' '.join(str(error).split()).rstrip('.')}.") from None


def capacity(resources: Resources) -> int:
    """How many points this machine can run at once, by their threads and their memory; at least one."""
    from dask.system import CPU_COUNT  # what affinity and control groups leave
    from distributed.system import MEMORY_LIMIT

    return max(1, min(CPU_COUNT // resources.threads, MEMORY_LIMIT // (resources.memory_bytes or 1)))
