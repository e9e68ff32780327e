"""Training by several processes under torchrun: ranks, sharding (FSDP2), and means over all of them."""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.superres.direct import DirectSuperResolution

PATIENCE = timedelta(hours=6)  # with another process, which may be writing weights to a slow disk
TORCHRUN = ("RANK", "MASTER_ADDR", "MASTER_PORT")  # what it sets besides WORLD_SIZE and LOCAL_RANK


def join() -> tuple[int, int, torch.device]:
    """Join the processes that torchrun started -> (rank, processes, device); alone: (0, 1, device)."""
    world, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    cuda, gpus = torch.cuda.is_available(), torch.cuda.device_count()
    if cuda and local >= gpus:
        advice = f"start at most {gpus} by --nproc-per-node"
        raise CogVideoError(f"Process {local} of this machine finds no GPU: {advice}.")
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():
        if missing := [name for name in TORCHRUN if name not in os.environ]:
            advice = "start by torchrun, or unset WORLD_SIZE"
            raise CogVideoError(f"WORLD_SIZE is {world} and {missing[0]} is not set: {advice}.")
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
    """Shard weights, gradients and optimiser states over the processes, block by block (FSDP2), in place.

    Frozen weights are sharded as well. Every process must hold the same weights before.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # The methods that training calls; blocks of super-resolution are called as any module.
    video = isinstance(model, CogVideoTransformer)
    for block in model.blocks:
        fully_shard(block)
        if video:
            register_fsdp_forward_method(block, "with_text")
    fully_shard(model)
    register_fsdp_forward_method(model, "frame_losses" if video else "loss")


def mean(values: Tensor) -> Tensor:
    """The mean over all processes; alone: the values."""
    if world_size() > 1:
        dist.all_reduce(values)
        values /= world_size()
    return values


def gathered(values: Tensor) -> Tensor:
    """The rows [n,...] of all processes, joined in the order of ranks; all must have as many."""
    if world_size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def most(*values: float) -> list[float]:
    """The largest of every value over all processes."""
    if world_size() == 1:
        return list(values)
    device = torch.device("cuda") if dist.get_backend() == "nccl" else torch.device("cpu")
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process must call it."""
    full = getattr(tensor, "full_tensor", None)
    return full() if full else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every process has, sharded as `like` is."""
    if world_size() > 1:
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(like, DTensor) and tensor.shape == like.shape:
            return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor


def agree(*values: float) -> bool:
    """Whether all processes have the same values."""
    return most(*values) == [-value for value in most(*(-value for value in values))]


def first_only(work: Callable[[], None]) -> None:
    """Let process 0 work while the others wait; where it raises anything, the others raise CogVideoError."""
    failure = None
    if rank() == 0:
        try:
            work()
        except Exception as error:
            failure = error
    (failed,) = most(failure is not None)
    if failure is not None:
        raise failure
    if failed:
        raise CogVideoError("Process 0 failed; its own message says why.")
