"""Models larger than the device's memory: weights stay in host memory and are copied when they are needed.

Two ways. *stages*: of a pipeline's parts (stage 1, stage 2, super-resolution, frame tokenizer) only the one
at work is on the device. *layers*: of that part, only two blocks are; while one computes, the next is copied
on a CUDA stream of its own. Weights are never changed, so nothing is copied back.

On the CPU the same code makes plain copies, one after another: outputs are equal to those without offloading.
"""

import contextlib
import warnings
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.runtime.memory import check_fits

ALIGNMENT = 256  # bytes, as CUDA aligns its own tensors
PAGE = 4096  # bytes that the system locks at once


class HostWeights:
    """Tensors of a module side by side in one run of host memory, so that one copy brings them to the device.

    The tensors given are bound to that memory at once (what they held before is freed), later to a device's
    or back.
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.tensors = tensors
        self.layout = []  # (first byte, type, shape) of each
        end = 0
        for tensor in tensors:
            self.layout.append((end, tensor.dtype, tensor.shape))
            end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        self.bytes = _host_memory(end)
        for tensor, view in zip(tensors, self._views(self.bytes), strict=True):
            view.copy_(tensor.detach())
        self.unload()

    def load(self, room: Tensor) -> None:
        """Copy to the device memory `room` (uint8, long enough) without waiting; `bind` follows."""
        room[: len(self.bytes)].copy_(self.bytes, non_blocking=True)

    def bind(self, memory: Tensor) -> None:
        """Let the tensors be those that lie in `memory`."""
        for tensor, view in zip(self.tensors, self._views(memory), strict=True):
            tensor.data = view

    def unload(self) -> None:
        self.bind(self.bytes)

    def _views(self, memory: Tensor) -> Iterator[Tensor]:
        for first, dtype, shape in self.layout:
            yield memory[first : first + shape.numel() * dtype.itemsize].view(dtype).view(shape)


class StreamedBlocks(nn.ModuleList):
    """Replaces a model's `blocks`: iterating over it yields each block with its weights on the device.

    Two buffers (`rooms`) take turns: while block i computes in one, block i + 1 is copied into the other; the
    first block follows the last, for the next token. A block's weights are on the device until the iterator
    is asked for the next block, and only while one iterates.
    """

    def __init__(self, blocks: nn.ModuleList, device: torch.device):
        super().__init__(blocks)
        self.device = device
        self.host = [HostWeights(_tensors(block)) for block in blocks]
        self.room_size = max(len(weights.bytes) for weights in self.host)
        self.rooms: list[Tensor] = []
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.turn = 0  # how many copies have been started
        self.ahead: tuple[int, Tensor, Any] | None = None  # the copy under way: block, room, event at its end

    def load(self) -> None:
        """Take device memory for two blocks."""
        self.rooms = [torch.empty(self.room_size, dtype=torch.uint8, device=self.device) for _ in range(2)]

    def unload(self) -> None:
        if self.stream is not None:  # what is copied ahead must not land in memory that others have by then
            torch.cuda.current_stream(self.device).wait_stream(self.stream)
        self.rooms, self.ahead = [], None

    def __iter__(self) -> Iterator[nn.Module]:
        blocks = list(super().__iter__())
        for index, block in enumerate(blocks):
            if self.ahead is None or self.ahead[0] != index:  # the first pass, or an earlier one ended early
                self.ahead = self._copy(index)
            _, room, copied = self.ahead
            if copied is not None:
                torch.cuda.current_stream(self.device).wait_event(copied)
            self.ahead = self._copy((index + 1) % len(blocks))
            with torch.inference_mode(False):
                self.host[index].bind(room)
            try:
                yield block
            finally:
                with torch.inference_mode(False):
                    self.host[index].unload()

    def _copy(self, index: int) -> tuple[int, Tensor, Any]:
        """Start to copy a block into the next room -> the block, the room, the event at the end."""
        room = self.rooms[self.turn % 2]
        self.turn += 1
        with torch.inference_mode(False):
            if self.stream is None:
                self.host[index].load(room)
                return index, room, None
            # The work of the block that lies in that room has been launched: the copy waits for its end, and
            # no longer.
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.stream):
                self.host[index].load(room)
                return index, room, self.stream.record_event()


class Offload:
    """Decides which part of a pipeline is on the device: `use(part)` brings it and removes the one before.

    parts: modules in host memory; with `layers`, the `blocks` of those that have them are streamed. Memory of
    the host: all weights once, page-locked where the device is a GPU.
    """

    @torch.inference_mode(False)
    def __init__(self, parts: Sequence[nn.Module], device: torch.device, *, layers: bool = False):
        self.device = device
        self.weights: dict[nn.Module, list[HostWeights]] = {}
        self.present: nn.Module | None = None
        self.streamed: dict[nn.Module, StreamedBlocks] = {}
        for part in parts:
            blocks: Any = getattr(part, "blocks", nn.ModuleList())
            inside = {id(tensor) for tensor in _tensors(blocks)}
            rest = [tensor for tensor in _tensors(part) if id(tensor) not in inside]
            self.weights[part] = [HostWeights(rest)]
            if layers and len(blocks):
                part.blocks = self.streamed[part] = StreamedBlocks(blocks, device)
            else:
                # Block by block, so that no more than one of them is in host memory twice.
                self.weights[part] += [HostWeights(_tensors(block)) for block in blocks]
        largest = max(map(self._device_bytes, parts), default=0)
        check_fits(largest, device, "The largest part of these weights")

    def _device_bytes(self, part: nn.Module) -> int:
        """What `use(part)` takes on the device."""
        rooms = 2 * self.streamed[part].room_size if part in self.streamed else 0
        return rooms + sum(len(weights.bytes) for weights in self.weights[part])

    @torch.inference_mode(False)  # weights bound in inference mode would be of another kind
    def use(self, part: nn.Module) -> None:
        """Bring a part to the device, if it is not there."""
        if part is self.present:
            return
        if self.present is not None:
            self._leave(self.present)
        self.present = None
        try:
            for weights in self.weights[part]:
                room = torch.empty(len(weights.bytes), dtype=torch.uint8, device=self.device)
                weights.load(room)
                weights.bind(room)
            if part in self.streamed:
                self.streamed[part].load()
        except BaseException:  # no memory: nothing of it stays there, so that fewer clips may be tried
            self._leave(part)
            raise
        self.present = part

    def _leave(self, part: nn.Module) -> None:
        for weights in self.weights[part]:
            weights.unload()
        if part in self.streamed:
            self.streamed[part].unload()


def _tensors(module: nn.Module) -> list[Tensor]:
    """Those of the same name side by side: spatial.qkv.weight, temporal.qkv.weight, .. (sampling.cuda)."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [tensor for _, tensor in sorted(named, key=lambda pair: pair[0].split(".")[::-1])]


def _host_memory(size: int) -> Tensor:
    """uint8 [size] in host memory, page-locked where there is a GPU so that copies overlap computation.

    torch's own page-locked memory is handed out in powers of two, which would cost up to twice the size.
    """
    # Whole pages of its own: a page that belongs to two runs could be locked for one of them only.
    length = -(-size // PAGE) * PAGE
    memory = torch.empty(length + PAGE, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE
    memory = memory[first : first + size]
    if torch.cuda.is_available() and size:
        runtime: Any = torch.cuda.cudart()
        if int(runtime.cudaHostRegister(memory.data_ptr(), length, 1)) == 0:  # 1: for all devices
            release = weakref.finalize(memory, _unlock, memory.data_ptr())
            release.atexit = False  # the system does that for an ending program
        else:
            with contextlib.suppress(RuntimeError):  # which else the next launch would raise
                torch.zeros(1, device="cuda")
            warnings.warn(
                "Host memory cannot be page-locked, so copies to the GPU will be slower: allow it with "
                "`ulimit -l unlimited`.",
                stacklevel=2,
            )
    return memory


def _unlock(address: int) -> None:
    runtime: Any = torch.cuda.cudart()
    torch.cuda.synchronize()  # a copy from it may be under way
    runtime.cudaHostUnregister(address)
