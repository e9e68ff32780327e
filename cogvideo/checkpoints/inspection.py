"""What was found out about weights without reading them, and how it is told."""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from cogvideo.checkpoints.registry import size_text
from cogvideo.runtime.memory import free_memory

WIDTHS = {"fp32": 4, "bf16/fp16": 2, "int8": 1}  # bytes of a number in a large matrix
CUDA_BYTES = 500 * 10**6  # what CUDA itself takes on a GPU, about
SHOWN = 5  # names of keys


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found. Names of weights are those of the file."""

    path: Path
    kind: str
    layout: str  # of the files: released folder, native folder, ...
    geometry: dict[str, int | str] = field(default_factory=dict)
    parameters: int = 0
    matrices: int = 0  # parameters in large matrices, which int8 makes smaller
    cached: int = 0  # numbers in the caches of one sequence that is being drawn
    files: int = 1  # that hold weights: ranks or shards
    size: int = 0  # bytes on disk
    dtypes: tuple[str, ...] = ()
    keys: int = 0
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()  # the loader refuses them
    ignored: tuple[str, ...] = ()  # the loader leaves them out
    misshapen: tuple[str, ...] = ()  # "name [found] instead of [expected]"
    note: str = ""
    parts: tuple["Inspection", ...] = ()  # of a pipeline

    @property
    def complete(self) -> bool:
        """Whether nothing stands against loading."""
        return not (self.missing or self.unexpected or self.misshapen) and all(
            part.complete for part in self.parts
        )

    def memory(self, device: str, dtype: str) -> int:
        """Bytes, about, that the weights take on "cpu" or "cuda" in a type of WIDTHS; all parts together."""
        own = self.matrices * WIDTHS[dtype] + (self.parameters - self.matrices) * wide_bytes(device, dtype)
        return own + sum(part.memory(device, dtype) for part in self.parts)

    def caches(self, device: str, dtype: str) -> int:
        """Bytes of the caches of one sequence that is being drawn; of the part that needs most."""
        return max(
            [self.cached * wide_bytes(device, dtype), *(part.caches(device, dtype) for part in self.parts)]
        )


def wide_bytes(device: str, dtype: str) -> int:
    """Bytes of a number outside the large matrices: beside int8, 16 bit on a GPU and fp32 on a CPU."""
    return WIDTHS[dtype] if dtype != "int8" else 2 if device == "cuda" else 4


def report(found: Inspection) -> str:
    """An Inspection as aligned plain text, with the memory that is free here."""
    facts = [("weights", str(found.path)), ("kind", f"{found.kind} ({found.layout})")]
    if found.geometry:
        facts.append(("geometry", ", ".join(f"{name} {value}" for name, value in found.geometry.items())))
    facts += [("part", _line(part)) for part in found.parts]
    facts.append(("files", ", ".join([str(found.files), size_text(found.size), *found.dtypes])))
    parameters = found.parameters + sum(part.parameters for part in found.parts)
    if parameters:
        facts.append(
            ("parameters", f"{parameters / 1e9:.2f} billion" if parameters >= 1e8 else f"{parameters:,}")
        )
    if found.keys:
        facts.append(
            ("keys", f"{found.keys}, {'as' if found.complete else 'not as'} the loader expects them")
        )
    for part in (found, *found.parts):
        for name in ("missing", "misshapen", "unexpected", "ignored"):
            if keys := getattr(part, name):
                more = ", ..." if len(keys) > SHOWN else ""
                facts.append((name, f"{len(keys)}: {', '.join(keys[:SHOWN])}{more}"))
    facts += [("note", part.note) for part in (found, *found.parts) if part.note]
    if parameters:
        facts += _memory(found)
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {fact}".rstrip() for name, fact in facts)


def _line(part: Inspection) -> str:
    """A part of a pipeline in one line."""
    words = [f"{part.path.name}: {part.kind}", size_text(part.size)]
    return ", ".join([*words, *(f"{name} {value}" for name, value in list(part.geometry.items())[:3])])


def _memory(found: Inspection) -> list[tuple[str, str]]:
    """The table of memory by device and type."""
    gpus = {f"cuda:{index}": free_memory(f"cuda:{index}") for index in range(torch.cuda.device_count())}
    free = {
        "cpu": f"{size_text(free_memory())} free",
        **{name: f"{size_text(size)} free" for name, size in gpus.items()},
    }
    free = free if gpus else free | {"one GPU": "none here"}
    rows = [("memory", "".join(f"{name:<12}" for name in WIDTHS))]
    for name, told in free.items():
        device = "cpu" if name == "cpu" else "cuda"
        own = CUDA_BYTES if device == "cuda" else 0
        rows.append(
            (
                f"  {name}",
                "".join(f"{size_text(found.memory(device, dtype) + own):<12}" for dtype in WIDTHS) + told,
            )
        )
    if (caches := found.caches("cuda", "bf16/fp16")) > 0:
        rows.append(
            ("  caches", f"{size_text(caches)} more in 16 bit for each sequence that is drawn at once")
        )
    return rows
