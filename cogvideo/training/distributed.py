"""Training by several processes under torchrun: who is who, sharding (FSDP2), and sums over all of them."""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.superres.direct import DirectSuperResolution

PATIENCE = timedelta(hours=6)  # for another process; it may be writing weights to a slow disk
TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what else it sets


def join() -> tuple[int, int, torch.device]:
    """Join the processes that torchrun started -> (rank, processes, device); alone: (0, 1, device).

    Raises CogVideoError when there are more processes on a machine than GPUs, and for WORLD_SIZE without torchrun.
    """
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise CogVideoError(
            f"Process {local} of this machine finds no GPU: start at most {torch.cuda.device_count()} by --nproc-per-node."
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        if missing := [name for name in TORCHRUN if name not in os.environ]:
            raise CogVideoError(
                f"WORLD_SIZE is {world} and {missing[0]} is not set: start by torchrun, or unset WORLD_SIZE."
            )
        dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    return rank(), world_size(), device


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def shard(model: CogVideoTransformer | DirectSuperResolution) -> None:
    """Share weights, gradients and optimiser states out among the processes, block by block (FSDP2), in place.

    Frozen weights are shared out as well and have no gradients or states. Every process must hold the same weights before.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # The entries that training uses; blocks of super-resolution are called as any module.
    video = isinstance(model, CogVideoTransformer)
    for block in model.blocks:
        fully_shard(block)
        if video:
            register_fsdp_forward_method(block, "both")
    fully_shard(model)
    register_fsdp_forward_method(model, "frame_losses" if video else "loss")


def mean(values: Tensor) -> Tensor:
    """The mean over all processes; alone: the values."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def most(*values: float) -> list[float]:
    """The largest of every value over all processes."""
    if world_size() == 1:
        return list(values)
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    told = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return told.tolist()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be shared out, all of it; every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def shared_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, shared out as `like` is."""
    if not hasattr(like, "full_tensor") or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]


def agree(*values: float) -> bool:
    """Whether all processes have the same values."""
    return most(*values) == [-value for value in most(*(-value for value in values))]


def first_only(work: Callable[[], None]) -> None:
    """Let process 0 work while the others wait. What it raises it raises; the others then raise CogVideoError."""
    failure = None
    if rank() == 0:
        try:
            work()
        except Exception as error:  # the others have to hear of any
            failure = error
    (failed,) = most(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise CogVideoError("Process 0 could not go on; its own message says why.")


def without_sync(model: nn.Module, last: bool) -> None:
    """Average gradients over the processes after the last part of a step only."""
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
