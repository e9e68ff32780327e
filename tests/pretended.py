"""A pretended GPU for machines without one: the numbers of the CPU under the rules of CUDA.

    with PretendedGpu() as gpu:  # inside, torch.device("cuda") works and there is one GPU
        ...
    gpu.launches, gpu.waits      # Counters by (operation, file:line)

What it notices. Operations on tensors of both devices, and generators of the other one, raise `Mixed`. What
makes the host wait for the device is counted, and refused while a graph is captured. Every kernel is counted.
Captured graphs are replayed as CUDA does it: the same kernels on the same memory, with the numbers that the
host gave at capture. Every access to device memory has a time on its stream, and two accesses that no wait
orders are a race (vector clocks).

Limits. It knows what torch's own operations cost, not how CUDA computes: rounding, atomics, memory running
out and speed are the CPU's. Compositions that torch takes apart differently on CUDA are counted as on the
CPU, except for linear layers and attention, which are told here. Graphs do not share memory. Triton (see
`kernel`) and backward passes (autograd asks for a real accelerator) do not run. It needs a CPU build of torch
on Linux, whose registry of device guards it reaches by address.
"""

import contextlib
import ctypes
import gc
import itertools
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

CUDA = torch.device("cuda", 0)
WAITS = {"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount"}
# Additions whose order differs from run to run: by atomics, or in parts that are done in any order.
UNORDERED = {"scatter_add", "scatter_add_", "index_add", "index_add_", "scatter_reduce", "index_put_", "put_"}
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}  # new memory, no kernel
NEEDS_ALL = {"cat", "stack", "mm", "bmm", "linear", "index_select", "gather", "embedding", "searchsorted"}


class Mixed(RuntimeError):
    """Tensors or generators of both devices in one operation."""


class Refused(RuntimeError):
    """What CUDA cannot do: wait during a capture, give numpy its memory."""


class OnGpu(torch.Tensor):
    """A tensor that says it lies on cuda:0; `held` is the CPU tensor behind it."""

    held: torch.Tensor
    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held, requires_grad=False):
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=CUDA, requires_grad=requires_grad,
        )  # fmt: skip
        made.__dict__["held"] = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert PretendedGpu.now is not None, f"{func} outside of the pretended GPU"
        return PretendedGpu.now.__torch_dispatch__(func, types, args, kwargs)

    def __repr__(self, *, tensor_contents=None):
        return f"OnGpu({self.held!r})"

    def data_ptr(self):
        return self.held.data_ptr()

    def untyped_storage(self):
        return self.held.untyped_storage()

    def numpy(self, *args, **kwargs):
        raise Refused("numpy() of a CUDA tensor")

    __array__ = numpy


BASE: Any = torch.Generator
SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__


class Generator(BASE):
    """Remembers which device it was made for, and draws the CPU's numbers."""

    places: ClassVar[dict[int, torch.device]] = {}

    def __new__(cls, device: Any = "cpu"):
        made = super().__new__(cls, "cpu")
        cls.places[made._cdata] = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")
        return made

    @property
    def device(self):
        return self.places[self._cdata]


class Stream:
    """A stream's clock: how far it has come, and how far each other stream had when it last waited for it."""

    count = itertools.count()

    def __init__(self, device=None, **_):
        self.number = next(Stream.count)
        self.clock = Counter({self.number: 0})

    def tick(self):
        self.clock[self.number] += 1
        return self.number, self.clock[self.number]

    def wait_event(self, event):
        self.clock |= event

    def wait_stream(self, other):
        self.clock |= other.clock

    def record_event(self, event=None):
        return Counter(self.clock)

    def synchronize(self):
        gpu = PretendedGpu.now
        assert gpu is not None
        gpu.wait("stream.synchronize")


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self):
        self.kernels: list[tuple] = []

    def pool(self):
        return 0, 1

    def replay(self):
        gpu = PretendedGpu.now
        assert gpu is not None
        gpu.launches["graph", where()] += 1
        with alone(), torch.no_grad():
            for func, args, kwargs, out in self.kernels:
                for old, new in zip(tensors_in(out), tensors_in(func(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


class PretendedGpu(TorchDispatchMode):
    now: "PretendedGpu | None" = None

    def __init__(self, capability=(9, 0)):
        super().__init__()
        self.capability = capability
        self.launches: Counter = Counter()
        self.waits: Counter = Counter()
        self.convolutions: Counter = Counter()  # by type, and whether TF32 is allowed
        self.unordered: Counter = Counter()
        self.attentions: Counter = Counter()  # by whether cuDNN may take them
        self.captured: list[int] = []  # kernels of each graph
        self.races: list[str] = []
        self.locked: list[range] = []  # host memory
        self.recording: list[tuple] | None = None
        self.streams = [Stream()]  # the last is the current one
        self.accesses: dict[int, dict[bool, dict[int, tuple[int, str]]]] = {}

    def __enter__(self):
        make_guard()
        PretendedGpu.now, self.patches = self, contextlib.ExitStack()
        for name, value in self.interface().items():
            self.patches.enter_context(mock.patch(name, value, create=True))
        self.patches.enter_context(Functions(self))
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes a CPU tensor, whose copy is seen here
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # module.to keeps the class OnGpu
        return super().__enter__()

    def __exit__(self, *error):
        gc.collect()  # locked memory is given back while there is a runtime to give it to
        super().__exit__(*error)
        self.patches.close()
        torch._C._set_only_lift_cpu_tensors(False)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        PretendedGpu.now = None

    def interface(self) -> dict[str, Any]:
        """What torch.cuda says and does."""
        memory = 80 * 10**9
        runtime = SimpleNamespace(cudaHostRegister=self.lock, cudaHostUnregister=lambda address: 0)
        facts = {
            "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0,
            "cudart": runtime, "get_device_name": "Pretended", "mem_get_info": (memory, memory),
            "memory_allocated": 0, "memory_reserved": 0, "max_memory_allocated": 0,
            "reset_peak_memory_stats": None, "empty_cache": None, "set_device": None,
            "get_device_capability": self.capability, "is_bf16_supported": True,
        }  # fmt: skip
        made = {f"torch.cuda.{name}": lambda *_, value=value, **__: value for name, value in facts.items()}
        return made | {
            "torch.Generator": Generator, "torch.cuda.default_generators": (Generator("cuda"),),
            "torch.cuda.Stream": Stream, "torch.cuda.current_stream": lambda device=None: self.streams[-1],
            "torch.cuda.stream": self.on, "torch.cuda.CUDAGraph": Graph, "torch.cuda.graph": self.capture,
            "torch.cuda.synchronize": lambda device=None: self.wait("cuda.synchronize"),
            "torch.backends.cudnn.is_available": lambda: True,
        }  # fmt: skip

    def lock(self, address, length, flags):
        self.locked.append(range(address, address + length))
        return 0

    @contextlib.contextmanager
    def on(self, stream):
        before = list(self.streams)
        self.streams.append(stream)
        try:
            yield
        finally:
            self.streams[:] = before

    @contextlib.contextmanager
    def capture(self, graph, pool=None):
        """As torch's: if it fails, its end fails, too, and its stream stays the current one."""
        before, side = self.launches.total(), Stream()
        side.wait_stream(self.streams[-1])
        self.recording = graph.kernels
        self.streams.append(side)
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            ) from error
        finally:
            self.recording = None
        self.streams.pop()
        self.streams[-1].wait_stream(side)
        self.captured.append(self.launches.total() - before)

    def wait(self, what):
        self.waits[what, where()] += 1
        if self.recording is not None:
            raise Refused(f"{what} at {where()} while a graph is captured")
        for stream in self.streams:
            stream.wait_stream(self.streams[-1])

    def launch(self, name, reads=(), writes=()):
        """Count a kernel, and note a race with what other streams do to the same memory."""
        at = where()
        self.launches[name, at] += 1
        stream = self.streams[-1]
        number, time = stream.tick()
        for tensors, writing in ((reads, False), (writes, True)):
            for pointer in {t.untyped_storage().data_ptr() for t in tensors}:
                known = self.accesses.setdefault(pointer, {True: {}, False: {}})
                for wrote in (True, False) if writing else (True,):
                    for other, (when, what) in known[wrote].items():
                        if other != number and stream.clock[other] < when:
                            self.races.append(f"{what} and {name} at {at}")
                known[writing][number] = time, f"{name} at {at}"

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        flat, spec = tree_flatten((args, kwargs))
        tensors = [t for t in flat if isinstance(t, torch.Tensor)]
        own = [t for t in tensors if isinstance(t, OnGpu)]
        device = next((d for d in flat if isinstance(d, torch.device)), None)
        if not own and (device is None or device.type != "cuda"):
            return func(*args, **kwargs)
        if name in ("to", "_to_copy", "device_put"):
            return self.moved(args, flat, kwargs)
        if func is torch.ops.aten.mm.dtype:  # CUDA's alone: 16 bits in, 32 out
            return self.kernel(name, lambda a, b: [a.float() @ b.float()], args[0], args[1])[0]
        if name == "_has_compatible_shallow_copy_type":
            return False
        if name == "copy_":
            return self.copied(args[0], args[1], (*args, kwargs.get("non_blocking", False))[2])
        self.check(name, flat, tensors, own)
        if name in WAITS:
            self.wait(name)
        single = name == "cumsum" and own[0].numel() == own[0].shape[-1] and own[0].is_floating_point()
        if single or (name in UNORDERED and (name != "index_put_" or (args[3:] or [False])[0])):
            self.unordered[name, where()] += 1
        if "convolution" in name or name.startswith("conv"):
            self.convolutions[own[0].dtype, torch.backends.cudnn.allow_tf32] += 1
        host = (torch.device("cpu") if isinstance(t, torch.device) else t for t in flat)
        held = [t.held if isinstance(t, OnGpu) else t for t in host]
        host_args, host_kwargs = tree_unflatten(held, spec)
        with alone():
            out = func(*host_args, **host_kwargs)
        self.account(name, func, own, out)
        if self.recording is not None:
            self.recording.append((func, host_args, host_kwargs, out))
        return self.wrapped(func, args, kwargs, own, out)

    def check(self, name, flat, tensors, own):
        host = [t for t in tensors if not isinstance(t, OnGpu)]
        generator = next((g for g in flat if isinstance(g, BASE)), None)
        if generator is not None and Generator.places.get(generator._cdata) != CUDA:
            raise Mixed(f"{name} at {where()}: a generator of the CPU")
        if name.lstrip("_").startswith(("index.", "index_put")) or name == "index":
            if any(t.dtype == torch.bool for t in tensors[1:]):
                self.wait("nonzero of a mask")
            if isinstance(tensors[0], OnGpu):
                for _ in (t for t in host if t.ndim):
                    self.wait("index from the host")
                return
        if own and any(t.ndim or name in NEEDS_ALL for t in host):
            raise Mixed(f"{name} at {where()}: {[(str(t.device), list(t.shape)) for t in tensors]}")

    def account(self, name, func, own, out):
        """Count the kernels of an operation: none for a view."""
        outs, held = tensors_in(out), [t.held for t in own]
        memory = {t.untyped_storage().data_ptr() for t in held}
        writes = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
        fresh = [t for t in outs if t.untyped_storage().data_ptr() not in memory]
        if name in FREE or (not fresh and not any(writes)):
            return
        self.launch(name, held, outs)
        # A product, then the bias.
        if name == "linear" and len(held) > 2 and held[0].ndim > 2 and not held[0].is_contiguous():
            self.launches["bias of a linear layer", where()] += 1

    def wrapped(self, func, args, kwargs, own, out):
        for given, argument in zip(args, func._schema.arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                return given  # in place
        views = any(r.alias_info is not None for r in func._schema.returns)
        normal = views and own and torch.is_inference_mode_enabled() and not own[0].is_inference()
        # A view is of its base's kind.
        with torch.inference_mode(False) if normal else contextlib.nullcontext():
            return tree_map(lambda t: OnGpu(t) if isinstance(t, torch.Tensor) else t, out)

    def moved(self, args, flat, kwargs):
        """to and _to_copy, which torch gives whole or taken apart."""
        source, rest = args[0], flat[1:]
        like = next((t for t in rest if isinstance(t, torch.Tensor)), source)
        dtype = next((d for d in rest if isinstance(d, torch.dtype)), like.dtype)
        target = next((d for d in rest if isinstance(d, torch.device)), like.device)
        layout = kwargs.get("memory_format") or torch.preserve_format
        flags = [b for b in rest if isinstance(b, bool)]
        same = target.type == source.device.type and dtype == source.dtype
        if same and len(flags) > 1 and not flags[1]:
            return source
        if target.type == "meta":
            return torch.empty(source.shape, dtype=dtype, device="meta")
        held = source.held if isinstance(source, OnGpu) else source
        with alone():
            out = held.to(dtype, copy=True, memory_format=layout)
        self.crossing(isinstance(source, OnGpu), target.type == "cuda", held, bool(flags and flags[0]))
        self.launch("copy", [held] * isinstance(source, OnGpu), [out] * (target.type == "cuda"))
        if self.recording is not None:
            self.recording.append((lambda t: t.to(dtype, copy=True), (held,), {}, out))
        return OnGpu(out) if target.type == "cuda" else out

    def copied(self, target, source, non_blocking):
        a, b = (t.held if isinstance(t, OnGpu) else t for t in (target, source))
        own = isinstance(target, OnGpu)
        self.crossing(isinstance(source, OnGpu), own, b, non_blocking)
        with alone():
            a.copy_(b)
        self.launch("copy", [b] * isinstance(source, OnGpu), [a] * own)
        if self.recording is not None:
            self.recording.append((lambda a, b: a.copy_(b), (a, b), {}, a))
        return target

    def crossing(self, from_gpu, to_gpu, held, non_blocking):
        """The host waits for a copy between the devices, unless it need not: from locked memory."""
        locked = any(held.data_ptr() in memory for memory in self.locked)
        if from_gpu != to_gpu and not (non_blocking and (from_gpu or locked)):
            self.wait("copy to the host" if from_gpu else "copy to the device")

    def attention(self, q, k, v, attn_mask=None):
        """One kernel, whose output lies in memory by query; a mask with rows not aligned is copied first."""
        if any(not isinstance(t, OnGpu) for t in (q, k, v, attn_mask) if t is not None):
            raise Mixed(f"attention at {where()}")
        self.attentions[torch.backends.cuda.cudnn_sdp_enabled()] += 1
        if torch.is_grad_enabled():  # composed, for the backward pass
            scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v
        held = [None if t is None else t.held for t in (q, k, v, attn_mask)]

        def kernel(q, k, v, mask):
            out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            return out.transpose(1, 2).contiguous().transpose(1, 2)

        mask = held[3]
        if mask is not None and any(step % 8 for step in mask.stride()[:-1]):
            self.launches["mask padded for attention", where()] += 1
        with alone():
            out = kernel(*held)
        self.launch("attention", [t for t in held if t is not None], [out])
        if self.recording is not None:
            self.recording.append((kernel, tuple(held), {}, out))
        return OnGpu(out)

    def kernel(self, name, function, *tensors):
        """Run what a kernel of our own does, as one: function of CPU tensors -> new ones."""
        held = [t.held for t in tensors]
        with alone():
            outs = function(*held)
        self.launch(name, held, outs)
        if self.recording is not None:
            self.recording.append((function, tuple(held), {}, outs))
        return tuple(OnGpu(out) for out in outs)


class Functions(TorchFunctionMode):
    """What has to be seen before torch takes it apart, or does it without an operation."""

    def __init__(self, gpu):
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        own = any(isinstance(a, OnGpu) for a in args)
        if func is nn.functional.scaled_dot_product_attention and own:
            return self.gpu.attention(*args, **kwargs)
        if func is torch.Tensor.tolist and own:
            self.gpu.wait("tolist")
            return args[0].held.tolist()
        if func == SET_DATA and any(isinstance(a, OnGpu) for a in args):
            new = args[1].detach()
            if isinstance(args[0], nn.Parameter):
                new = nn.Parameter(new, args[0].requires_grad)
            return torch.utils.swap_tensors(args[0], new)
        return func(*args, **kwargs)


@contextlib.contextmanager
def alone():
    """The CPU's own operations."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        yield


def tensors_in(value) -> list[torch.Tensor]:
    return [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]


def where() -> str:
    """The line of the package that is at work."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/cogvideo/" in path and "/tests/" not in path and "site-packages" not in path:
            return f"{Path(path).name}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


GUARD: list[Any] = []  # keeps alive what C++ points to


def make_guard() -> None:
    """Give C++ the device guard of CUDA that autograd asks for and a CPU build lacks.

    It is the CPU's, which does nothing, but says cuda:0: a copy of its methods with three of them replaced.
    """
    file = next((Path(str(torch.__file__)).parent / "lib").glob("libc10.so*"))
    library = ctypes.CDLL(str(file))
    registry = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    if registry[1] is not None:
        return
    first, methods = 2, 42  # before the first method are two words about the class
    table = ctypes.c_void_p.from_address(registry[0]).value
    assert table is not None
    own = (ctypes.c_void_p * methods)(*(ctypes.c_void_p * methods).from_address(table - 8 * first))
    cuda = 1  # type 1, index 0, as one number of 16 bits
    plain = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p)(lambda this: cuda)
    swap = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p, ctypes.c_uint16)(lambda this, device: cuda)
    for slot, function in enumerate((plain, swap, plain)):  # type, exchangeDevice, getDevice
        own[first + slot] = ctypes.cast(function, ctypes.c_void_p).value
    guard = (ctypes.c_void_p * 4)(ctypes.addressof(own) + 8 * first)
    GUARD.extend([library, own, plain, swap, guard])
    registry[1] = ctypes.addressof(guard)
