"""How long a step should take on a GPU, from bytes and launches alone: `cogvideo bench sampler --plan`.

A decoding step reads its weights once, the keys and values that its positions see, and the head's matrix; its
captured kernels follow one another with a small gap. Super-resolution computes a whole frame at once and is
bound by its products. The assumptions are printed with every plan; nothing here is measured.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

import torch

from cogvideo.benchmarks.memory_plan import SEQUENCES, device_memory, released_geometry
from cogvideo.checkpoints.pipeline_folder import OFFLOADS
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import GB, weight_bytes
from cogvideo.runtime.tensors import DTYPES, without_memory
from cogvideo.superres.direct import SuperResolutionConfig

READ = 0.9  # of the data sheet's bandwidth, for matrices of tens of megabytes and long runs of keys
PRODUCTS = 0.6  # of the data sheet's operations a second, for products of thousands of rows
GAP = 1.0e-6  # seconds between a captured kernel's end and the next one's work
# A layer's kernels: a norm, 2 that join the other norms and the sums, 4 products, GELU, 2 cache writes, 2
# attentions and one that adds the temporal one's parts, both channels' results side by side. As many in int8:
# two products close the channels and are mixed, and GELU is in the kernel of its product.
LAUNCHES = 14
WITHOUT_KERNELS = 9  # more a layer where torch's own attention and norms take the place of our kernels
AROUND = 12  # a step's other launches: inputs, biases, final norm, head


@dataclass(frozen=True)
class Gpu:
    """A card by its data sheet: bytes a second, operations a second in 16 and 32 bits, bytes, link."""

    name: str
    bandwidth: float
    flops: float
    flops32: float
    memory: float
    link: float  # bytes a second from the host's pinned memory
    kernels: bool = True  # compute capability 8.0: our kernels and bf16


GPUS = {
    "h100": Gpu("H100", 3.35e12, 989e12, 67e12, 80e9, 50e9),
    "h200": Gpu("H200", 4.8e12, 989e12, 67e12, 141e9, 50e9),
    "a100": Gpu("A100", 2.04e12, 312e12, 19.5e12, 80e9, 25e9),
    "4090": Gpu("4090", 1.01e12, 165e12, 82.6e12, 24e9, 25e9),
    "t4": Gpu("T4", 0.32e12, 65e12, 8.1e12, 16e9, 12e9, kernels=False),
}


@dataclass(frozen=True)
class Plan:
    """What one step should take: bytes and milliseconds of each part."""

    what: str
    bytes: dict[str, float]
    launches: int
    ms: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.ms.values())

    @property
    def bound(self) -> str:
        return max(self.ms, key=self.ms.__getitem__)


def gpu_of(name: str) -> Gpu | None:
    """The card with this short name, or that torch calls so."""
    found = [gpu for gpu in GPUS.values() if re.search(rf"\b{gpu.name}\b", name, re.IGNORECASE)]
    return found[0] if found else None


def keys_read(
    c: ModelConfig, times: Sequence[int], text: int, *, wavefront: bool, hidden: bool = False
) -> list[float]:
    """Keys that a row reads in each step, in both channels of a layer (mean of even and odd layers).

    hidden: all places of the caches, also those that no position of the step sees, as without the kernel; in
    a wavefront those of every frame.
    """
    n = c.frame_tokens
    steps = masks.decoding_steps(c, list(times)) if wavefront else masks.one_by_one_steps(len(times), n)
    seen = [
        masks.temporal_visible(c, parity).view(c.num_frames, n, -1)[list(times)].flatten(0, 1)
        for parity in range(2 if c.window else 1)
    ]
    order = steps.flatten().argsort(stable=True)
    counts = []
    for own in order.split(torch.bincount(steps.flatten())[1:].tolist()):
        if hidden:
            counts.append((len(times) if wavefront else 1) * (text + n) + text + seen[0].shape[1])
            continue
        spatial = int((own % n + 1 + text).sum())
        counts.append(spatial + text + fmean(int(mask[own].any(0).sum()) for mask in seen))
    return counts


def step_plan(
    gpu: Gpu, c: ModelConfig, dtype: str, rows: int, text: int, *, wavefront: bool, offload: str = "none"
) -> Plan:
    """A decoding step of `rows` rows, the mean of all steps of a stage."""
    wide = DTYPES.get(dtype, torch.bfloat16).itemsize
    with without_memory():
        model = CogVideoTransformer(c)
    weights = float(weight_bytes(dict(model.get_submodule("blocks").named_parameters()), dtype, "cuda"))
    times = [time for time in masks.frame_order(c)[1:] if not masks.is_given(c)[time]]
    keys = fmean(keys_read(c, times, text, wavefront=wavefront, hidden=not gpu.kernels))
    sizes = {
        "weights": weights,
        "caches": keys * rows * 2 * c.num_layers * c.hidden_size * wide,
        "head": float(c.image_tokens * c.hidden_size * wide),
    }
    launches = c.num_layers * (LAUNCHES + WITHOUT_KERNELS * (not gpu.kernels)) + AROUND
    ms = {part: 1e3 * size / gpu.bandwidth / READ for part, size in sizes.items()}
    if dtype == "int8" and not gpu.kernels:  # widened first: written and read again in 16 bits
        ms["weights"] *= 5
    if offload == "layers":
        ms["weights"] = max(ms["weights"], 1e3 * weights / gpu.link)
    return Plan(f"{c.order}, {rows} rows", sizes, launches, ms | {"launches": 1e3 * launches * GAP})


def frame_plan(gpu: Gpu, c: SuperResolutionConfig, dtype: str) -> Plan:
    """A frame of super-resolution: products of all its tokens, and the head's, which is in fp32."""
    positions = c.text_slots + c.low_tokens + c.high_tokens
    keys = c.low_window**2 + c.high_window_rows * c.high_window_columns
    layer = 2 * 12 * positions * c.hidden_size**2 + 4 * c.high_tokens * keys * c.hidden_size
    head = 2 * c.high_tokens * c.image_tokens * c.hidden_size
    itemsize = DTYPES.get(dtype, torch.bfloat16).itemsize
    weights = 16.0 * c.num_layers * c.hidden_size**2 * (1 if dtype == "int8" else itemsize)
    launches = 40 * c.num_layers
    products = gpu.flops32 if dtype == "fp32" else gpu.flops
    ms = {
        "weights": 1e3 * weights / gpu.bandwidth / READ,
        "products": 1e3 * layer * c.num_layers / products / PRODUCTS,
        "head": 1e3 * head / products / PRODUCTS,
        "launches": 1e3 * launches * GAP,
    }
    return Plan("super-resolution, a frame", {"weights": weights}, launches, ms)


def released_plans(name: str) -> tuple[Gpu, dict[str, tuple[str, list[Plan]]]]:
    """The card; for bf16 (fp16 where there is no bf16) and int8 the offloading that fits, and the plans."""
    gpu = gpu_of(name)
    if gpu is None:
        raise CogVideoError(f"There is no plan for the GPU {name!r}: choose one of {', '.join(GPUS)}.")
    geometry, plans = released_geometry(), {}
    text = geometry.stage1.text_length
    for dtype in ("bf16" if gpu.kernels else "fp16", "int8"):
        fits = [way for way in OFFLOADS if device_memory(geometry, dtype, way).device <= gpu.memory]
        offload = fits[0] if fits else OFFLOADS[-1]
        step = partial(step_plan, gpu, dtype=dtype, text=text, offload=offload)
        plans[dtype] = (
            offload,
            [
                replace(step(geometry.stage1, rows=2, wavefront=False), what="stage 1, guided: 2 rows"),
                replace(
                    step(geometry.stage2, rows=SEQUENCES, wavefront=True),
                    what=f"stage 2, {SEQUENCES} rows, frame-parallel",
                ),
                frame_plan(gpu, geometry.superres, dtype),
            ],
        )
    return gpu, plans


def assumptions(gpu: Gpu) -> str:
    kernel = (
        "our kernels read int8 weights as they are, and only keys that are seen"
        if gpu.kernels
        else "no kernels of ours before compute capability 8.0: int8 is widened, hidden keys are read as well"
    )
    return (
        f"Assumed: {gpu.bandwidth / 1e12:.2f} TB/s by the data sheet, {READ:.0%} of it reached; products at "
        f"{PRODUCTS:.0%} of {gpu.flops / 1e12:.0f} TFLOP/s; captured steps, "
        f"{1e6 * GAP:.1f} us between kernels, "
        f"{LAUNCHES + WITHOUT_KERNELS * (not gpu.kernels)} of them a layer; "
        f"{kernel}. Computed, not measured."
    )


def render_plan(name: str) -> str:
    """Markdown: the released model's steps on a card."""
    gpu, plans = released_plans(name)
    lines = [
        f"The released model on {gpu.name}: one clip of 33 frames, milliseconds a step "
        "(stage 1: a token of two rows)",
        "",
        "| dtype, offload | step | weights | caches | head | products | launches | **all** | bound by |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dtype, (offload, own) in plans.items():
        for plan in own:
            cells = []
            for part in ("weights", "caches", "head", "products"):
                size = f"{plan.bytes[part] / GB:.2f} GB, " if part in plan.bytes else ""
                cells.append(f"{size}{plan.ms[part]:.2f}" if part in plan.ms else "-")
            cells.append(f"{plan.launches}, {plan.ms['launches']:.2f}")
            cells += [f"**{plan.total:.2f}**", plan.bound]
            lines.append(f"| {dtype}, {offload} | {plan.what} | {' | '.join(cells)} |")
    wide, narrow = (own for _, own in plans.values())
    ratios = ", ".join(f"{b.total / a.total:.2f}" for a, b in zip(wide[:2], narrow[:2], strict=True))
    return "\n".join([*lines, "", f"int8 takes of the wide type's time: {ratios}.", assumptions(gpu)])


def where_they_part(plan: Plan, points: Sequence[Sequence[float]]) -> str:
    """Measured beside expected: how much grows with the caches, and how much does not.

    points: (positions read, ms) of measured steps.
    """
    places, ms = torch.tensor(points, dtype=torch.float64).unbind(1)
    apart = places - places.mean()
    slope = apart @ ms / (apart @ apart).clamp(min=1.0)  # ms a position; 0 if all steps read as many
    measured = float(ms.mean())
    caches = float(slope * places.mean())
    return (
        f"{plan.what}: expected {plan.total:.2f} ms, measured {measured:.2f} "
        f"({measured / plan.total:.2f} times); "
        f"caches {plan.ms['caches']:.2f} and {caches:.2f}, "
        f"weights, head and launches {plan.total - plan.ms['caches']:.2f} and {measured - caches:.2f}"
    )
