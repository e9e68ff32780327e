"""Triton kernels on a machine without a GPU: in the interpreter, and compiled ahead of time."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Triton 3.7 interprets bfloat16 as whole numbers: it multiplies these, and converts into them wrongly.
MENDED = """
import numpy as np, triton.language as tl
from triton.runtime import interpreter

Builder, Handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
dot, convert = Builder.create_dot, Builder.create_si_to_fp


def wide(h):
    return (h.data.astype(np.uint32) << 16).view(np.float32)


def create_dot(self, a, b, d, *rest):
    if a.dtype.scalar != tl.bfloat16:
        return dot(self, a, b, d, *rest)
    return Handle(np.matmul(wide(a), wide(b), dtype=np.float32) + d.data, d.dtype.scalar)


def create_si_to_fp(self, source, to):
    if to.scalar != tl.bfloat16:
        return convert(self, source, to)
    bits = source.data.astype(np.float32).view(np.uint32) >> 16  # whole numbers up to 256 are exact
    return Handle(bits.astype(np.uint16), tl.bfloat16)


Builder.create_dot, Builder.create_si_to_fp = create_dot, create_si_to_fp
"""


def interpret(code: str) -> None:
    """Run code in a process of its own: the interpreter is chosen when Triton is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MENDED + code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Compiled:
    spilled: int  # bytes
    shared: int  # bytes
    copied: list[int]  # bytes of each copy from memory that runs ahead
    ptx: str


def build(
    kernel: Any, arch: int, types: dict[str, str], constants: dict[str, Any], **options: int
) -> Compiled:
    """Compile for a GPU; types: of all arguments that are no constants and not i32.

    Pointers and whole numbers are taken to be divisible by 16, unless the kernel must not be specialised.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    general = {p.name for p in kernel.params if p.do_not_specialize}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and name not in general and signature[name] != "fp32"
    }
    source = ASTSource(
        fn=kernel, signature=signature, attrs=attributes,
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )  # fmt: skip
    settings = {"num_warps": options["warps"], "num_stages": options["stages"]}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=settings)
    ptx = made.asm["ptx"]
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    name = f"sm_{arch}" + "a" * (arch >= 90)
    said = subprocess.run(
        [assembler, "-v", f"--gpu-name={name}", "-", "-o", os.devnull],
        input=ptx,
        capture_output=True,
        text=True,
    )
    if said.returncode:
        raise RuntimeError(said.stderr)
    spilled = sum(map(int, re.findall(r"(\d+) bytes spill", said.stderr)))
    copied = re.findall(r"cp\.async\.c[ga]\.shared\.global \[[^\]]*\][^;]*?, (0x\w+|\d+),", ptx)
    return Compiled(spilled, made.metadata.shared, [int(size, 0) for size in copied], ptx)
