"""Fewer clips at once where memory does not suffice for all."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: on CUDA, in Python or in torch's CPU allocator."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory: you tried to allocate" in str(error)


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
