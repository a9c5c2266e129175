"""The Triton kernels outside this process: right in the interpreter, and compiled for a GPU that is not here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.attention import PREFERENCE, explain, head_attention
from kernels.backends import triton_kernels
from kernels.backends.triton_call import AUXILIARY, Call
from kernels.backends.triton_kernels import INTERPRETED
from kernels.errors import UnsupportedRequest
from kernels.patterns import full, streaming
from kernels.request import Request
from kernels.types import CaptureSpec, HeadPlan

if INTERPRETED:
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

NAMES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8",
}  # fmt: skip

SHARED_MEMORY = 160 * 1024
"""Bytes a program may take of the 227 KiB of shared memory of a processor of an H100."""

STATISTICS = CaptureSpec(entropy=True, spans=torch.tensor([[[100, 132]]]), column_sums=True)
STREAMING = HeadPlan.of([streaming(4, 256)] * 16 + [full()] * 16)


def test_the_interpreter_computes_what_the_reference_computes(root: Path) -> None:
    """`test_triton` in a process of its own: the interpreter is chosen before Triton is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/kernels/test_triton.py"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=root, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"^(\d+) passed", done.stdout.splitlines()[-1])
    assert passed is not None, done.stdout[-2000:]
    assert "skipped" not in done.stdout.splitlines()[-1]


def test_on_a_cpu_it_computes_only_where_the_interpreter_was_chosen() -> None:
    q = torch.zeros(1, 1, 3, 16)
    with pytest.raises(UnsupportedRequest, match=r"triton refuses: .*set TRITON_INTERPRET=1 before Python starts"):
        head_attention(q, q, q, backend="triton")
    assert explain(q, q, q).backend != "triton"
    assert PREFERENCE["cuda"][0] == "triton"


def signature(value: Any, path: tuple[int, ...], constants: dict[Any, Any], hints: dict[Any, Any], exact: bool) -> Any:
    """The type of an argument in Triton's words; what a launch would specialize on goes to `constants` and `hints`."""
    if isinstance(value, tuple):
        return type(value)(*(signature(item, (*path, i), constants, hints, exact) for i, item in enumerate(value)))
    if isinstance(value, Tensor):
        hints[path] = [["tt.divisibility", 16]]
        return "*" + NAMES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value is None or (exact and value == 1):
        constants[path] = value
        return "constexpr"
    if exact and value % 16 == 0:
        hints[path] = [["tt.divisibility", 16]]
    return "i32"


def compiled(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], options: dict[str, int]) -> Any:
    """A kernel for compute capability 9.0, as a launch with these arguments would compile it."""
    types: dict[str, Any] = {}
    values: dict[Any, Any] = {}
    hints: dict[Any, Any] = {}
    for i, parameter in enumerate(kernel.params):
        if parameter.name in constants:
            types[parameter.name], values[(i,)] = "constexpr", constants[parameter.name]
        else:
            exact = not parameter.do_not_specialize
            types[parameter.name] = signature(arguments[i], (i,), values, hints, exact)
    source = ASTSource(kernel, signature=types, constexprs=values, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(kernel: Any, folder: Path) -> dict[str, int]:
    """What the compiled code takes of a processor: registers of a thread, bytes of stack, to which it would spill."""
    path = folder / "kernel.cubin"
    path.write_bytes(kernel.asm["cubin"])
    tool = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", path]
    report = subprocess.run(tool, capture_output=True, text=True, check=True).stdout
    return {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", report)}


@pytest.mark.parametrize("capture", [None, STATISTICS], ids=["plain", "statistics"])
def test_compiled_for_hopper_nothing_spills(
    capture: CaptureSpec | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16, 32 heads of 128 on 8 key/value heads."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    q, k, v = (torch.empty(1, heads, 4096, 128, dtype=torch.bfloat16) for heads in (32, 8, 8))
    call = Call(Request.of(q, k, v, plan=None if capture is None else STREAMING, capture=capture))
    call.allocate()
    ((order, stats),) = call.launches()
    launches = [(triton_kernels.attend, call.arguments(order, stats), call.constants(stats), call.options)]
    if capture is not None:
        launches.append((triton_kernels.columns, call.column_arguments(), call.column_constants, AUXILIARY))
    for launch in launches:
        kernel = compiled(*launch)
        used = resources(kernel, tmp_path)
        assert used["STACK"] == used["LOCAL"] == 0, used
        assert used["REG"] <= 255
        assert kernel.metadata.shared <= SHARED_MEMORY
        assert "wgmma.mma_async" in kernel.asm["ptx"]
