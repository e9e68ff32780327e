"""Fewer clips at once where memory does not suffice for all."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")

# What torch's CPU allocator, CUDA itself (it makes graphs, too) and cuBLAS say, all as plain RuntimeErrors.
SAID = "not enough memory: you tried to allocate", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED"


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on CUDA or the host: in `error`, or in the one that it followed."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, RuntimeError) and any(words in str(error) for words in SAID):
        return True
    # A capture that memory runs out in ends with an error of its own.
    return error.__context__ is not None and out_of_memory(error.__context__)


def halving(
    make: Callable[[slice], list[Result]], clips: int, *, release: Callable[[], object] = lambda: None
) -> list[Result]:
    """`make(slice)` for all clips at once, or in halves, quarters, .. of them where memory does not suffice.

    Rows do not depend on each other, so the results are those of the whole batch. release: called before
    fewer clips are tried. Raises what `make` raises, and its out-of-memory error where even one clip is too
    much.
    """
    done: list[Result] = []
    size = clips
    while len(done) < clips:
        part = slice(len(done), min(len(done) + size, clips))
        try:
            done += make(part)
            continue
        except (MemoryError, RuntimeError) as error:
            tried = part.stop - part.start
            if not out_of_memory(error) or tried == 1:
                raise
            size = tried // 2
        release()  # outside of `except`: there the error's frames still hold the tensors
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"Memory does not suffice for {tried} clips at once: going on with {size}.", stacklevel=3
        )
    return done
